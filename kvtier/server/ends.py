"""Where objects end: a client may ask for what is past that, the store behind may not be.

To a store such an extent is FAILED, as if it were the store's own fault: it would be retried, and
a breaker would shut out all clients for the mistake of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from kvtier.backend import Backend, ExtentBatch
from kvtier.errors import KvtierError
from kvtier.extents import all_inside
from kvtier.pages import I64, U64, Bool

_OBJECTS_MAX: Final = 1 << 16
"""Objects remembered, of all clients: some 8 MiB."""

_UNKNOWN: Final = (1 << 63) - 1
"""Pages of an object of which nothing is known: the store is asked, and says that it is ABSENT."""


class ObjectEnds:
    """Pages of objects by key and version, which never change; the oldest are forgotten."""

    def __init__(self) -> None:
        # By a hash that nobody can foresee: keys may be long, and are the clients' choice.
        self._pages: dict[int, int] = {}

    async def within(self, backend: Backend, tenant: str, batch: ExtentBatch) -> Bool | None:
        """Which extents (bool[n]) end inside their object, as far as that can be known; None: all.

        Args:
            backend: as ``tenant`` sees it; asked for objects that are not remembered.
            tenant: its name.
            batch: of extents; each names one of its keys.
        """
        names = _names_of(tenant, batch.keys, batch.versions)
        known = [self._pages.get(name, -1) for name in names]
        pages = np.array(known, np.int64)
        if -1 in known:
            asked = np.flatnonzero(pages < 0)
            keys = [batch.keys[row] for row in asked.tolist()]
            versions = batch.versions[asked]
            found = await _pages_of(backend, keys, versions)
            self.note(tenant, keys, versions, np.where(found == _UNKNOWN, 0, found))
            pages[asked] = found
        if all_inside(batch.key_index, batch.first_page, batch.page_count, pages):
            return None
        last = batch.first_page.astype(np.int64) + batch.page_count
        within: Bool = last <= pages[batch.key_index]
        return within

    def note(self, tenant: str, keys: Sequence[bytes], versions: U64, pages: I64) -> None:
        """Remember pages of k keys in their versions, so that nobody is asked for them again.

        Args:
            tenant: whose keys they are.
            keys: k keys.
            versions: u64[k].
            pages: i64[k], less than 1 where there is nothing to remember.
        """
        for name, count in zip(_names_of(tenant, keys, versions), pages.tolist(), strict=True):
            if count > 0:
                self._pages[name] = count
        while len(self._pages) > _OBJECTS_MAX:
            del self._pages[next(iter(self._pages))]


def _names_of(tenant: str, keys: Sequence[bytes], versions: U64) -> list[int]:
    return [
        hash((tenant, key, version)) for key, version in zip(keys, versions.tolist(), strict=True)
    ]


async def _pages_of(backend: Backend, keys: Sequence[bytes], versions: U64) -> I64:
    """Pages of each key in that version (i64[k])."""
    try:
        stats = await backend.stat(keys)
    except KvtierError:  # it will say so of the read, too
        return np.full(len(keys), _UNKNOWN)
    is_there = (stats.pages >= 0) & (stats.versions == versions)
    return np.where(is_there, stats.pages, _UNKNOWN)
