"""Keys that are not there, remembered for a while, so that nobody asks for them in vain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np

from kvtier.backend import (
    Backend,
    ObjectBatch,
    ObjectStats,
    PutResult,
    check_keys,
    check_options,
)
from kvtier.clock import Clock, WallClock
from kvtier.errors import ClosedError
from kvtier.pages import U8
from kvtier.settings import NegativeSettings
from kvtier.wrappers.answers import checked_stats
from kvtier.wrappers.wrapper import Wrapper

_OPTIONS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "inner": Backend,
    "rules": NegativeSettings,
}


class NegativeBackend(Wrapper):
    """``stat`` is not asked for keys of which it said a short while ago that they are not there.

    A put or delete that passes here is seen at once. What another client puts is seen when the
    memory of its key has ended, ``ttl_s`` after it was found missing.

    Options:
        inner: an open backend, which is closed with this one.
        rules: for how long, and how many.
    """

    name: ClassVar[str] = "negative"

    def __init__(
        self, inner: Backend, rules: NegativeSettings, *, clock: Clock | None = None
    ) -> None:
        super().__init__(inner)
        self._clock = clock or WallClock()
        self._ttl_ns = round(rules.ttl_s * 1e9)
        self._keys_max = rules.keys_max
        self._ends_ns: dict[bytes, int] = {}
        """Until when each key is taken to be missing; ascending, for all last equally long."""
        self._changes = 0
        """Begins and ends of puts and deletes: what a stat found in between may be old."""
        self._changing = 0
        self._hits = 0
        self._remembered = 0
        self._closed = False

    @classmethod
    async def open(cls, options: Mapping[str, Any], page_bytes: int) -> NegativeBackend:  # noqa: ARG003
        check_options(options, _OPTIONS, cls.name, required=("inner",))
        return cls(options["inner"], options.get("rules", NegativeSettings(ttl_s=1.0)))

    def counts(self) -> Mapping[str, int]:
        """``hits``, keys answered from memory; keys ``remembered``."""
        return {"hits": self._hits, "remembered": self._remembered}

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        if self._closed:
            raise ClosedError("this negative cache is closed: open another")
        self._forget_old(self._clock.now_ns())
        asked = [row for row, key in enumerate(keys) if key not in self._ends_ns]
        if len(asked) == len(keys):
            return await self._ask(keys)
        check_keys(keys, self.capability)
        self._hits += len(keys) - len(asked)
        pages = np.full(len(keys), -1, np.int64)
        versions = np.zeros(len(keys), np.uint64)
        if asked:
            found = await self._ask([keys[row] for row in asked])
            pages[asked], versions[asked] = found.pages, found.versions
        return ObjectStats(pages, versions)

    async def put(self, batch: ObjectBatch) -> PutResult:
        self._begin_change(batch.keys)
        try:
            return await self.inner.put(batch)
        finally:
            self._end_change()

    async def delete(self, keys: Sequence[bytes]) -> U8:
        self._begin_change(keys)
        try:
            return await self.inner.delete(keys)
        finally:
            self._end_change()

    async def release(self) -> None:
        self._closed = True

    async def _ask(self, keys: Sequence[bytes]) -> ObjectStats:
        changes = self._changes
        found = checked_stats(await self.inner.stat(keys), len(keys))
        if changes == self._changes and self._changing == 0:
            end_ns = self._clock.now_ns() + self._ttl_ns
            for row in np.flatnonzero(found.pages < 0).tolist():
                self._remember(keys[row], end_ns)
        return found

    def _remember(self, key: bytes, end_ns: int) -> None:
        self._remembered += 1
        self._ends_ns.pop(key, None)  # so that it goes to the end
        self._ends_ns[key] = end_ns
        if len(self._ends_ns) > self._keys_max:
            del self._ends_ns[next(iter(self._ends_ns))]

    def _forget_old(self, now_ns: int) -> None:
        while self._ends_ns:
            key, end_ns = next(iter(self._ends_ns.items()))
            if end_ns > now_ns:
                return
            del self._ends_ns[key]

    def _begin_change(self, keys: Sequence[bytes]) -> None:
        self._changing += 1
        for key in keys:
            self._ends_ns.pop(key, None)

    def _end_change(self) -> None:
        self._changing -= 1
        self._changes += 1
