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

    async def within(self, backend: Backend, tenant: str, batch: ExtentBatch) -> Bool:
        """Which extents (bool[n]) end inside their object, as far as that can be known.

        Args:
            backend: as ``tenant`` sees it; asked for objects that are not remembered.
            tenant: its name.
            batch: of extents; each names one of its keys.
        """
        versions = batch.versions.tolist()
        names = [
            hash((tenant, key, version)) for key, version in zip(batch.keys, versions, strict=True)
        ]
        pages = np.array([self._pages.get(name, -1) for name in names], np.int64)
        asked = np.flatnonzero(pages < 0)
        if len(asked):
            keys = [batch.keys[row] for row in asked.tolist()]
            pages[asked] = await _pages_of(backend, keys, batch.versions[asked])
            for row in asked[pages[asked] != _UNKNOWN].tolist():
                self._remember(names[row], int(pages[row]))
        last = batch.first_page.astype(np.int64) + batch.page_count
        within: Bool = last <= pages[batch.key_index]
        return within

    def _remember(self, name: int, pages: int) -> None:
        self._pages[name] = pages
        if len(self._pages) > _OBJECTS_MAX:
            del self._pages[next(iter(self._pages))]


async def _pages_of(backend: Backend, keys: Sequence[bytes], versions: U64) -> I64:
    """Pages of each key in that version (i64[k])."""
    try:
        stats = await backend.stat(keys)
    except KvtierError:  # it will say so of the read, too
        return np.full(len(keys), _UNKNOWN)
    is_there = (stats.pages >= 0) & (stats.versions == versions)
    return np.where(is_there, stats.pages, _UNKNOWN)
