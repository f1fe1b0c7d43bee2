"""A store that is asked no more than so much per second, first come, first served."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from kvtier.alarm import Alarm, Wait
from kvtier.backend import (
    Backend,
    ExtentBatch,
    ObjectBatch,
    ObjectStats,
    PutResult,
    check_extents,
    check_options,
)
from kvtier.bucket import TokenBucket
from kvtier.clock import Clock, WallClock
from kvtier.errors import UnavailableError
from kvtier.pages import U8
from kvtier.settings import RateSettings
from kvtier.wrappers.wrapper import Wrapper

_OPTIONS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "inner": Backend,
    "rules": RateSettings,
}


class RateBackend(Wrapper):
    """Calls wait for their turn, in the order in which they came.

    An operation is an extent, an object, or a key of ``stat`` and ``delete``; bytes are those of
    reads and puts. A call that is cancelled while it waits takes nothing. Where so many wait that
    no more may, a call raises UnavailableError. ``keys`` goes through.

    Options:
        inner: an open backend, which is closed with this one.
        rules: how much, and how many may wait.
    """

    name: ClassVar[str] = "rate"

    def __init__(
        self,
        inner: Backend,
        rules: RateSettings,
        page_bytes: int,
        *,
        clock: Clock | None = None,
        wait: Wait | None = None,
    ) -> None:
        super().__init__(inner)
        self._page_bytes = page_bytes
        self._clock = clock or WallClock()
        self._wait = wait or Alarm(self._clock, "this rate backend")
        self._operations = self._bucket(rules.iops, rules.burst_s)
        self._bytes = self._bucket(rules.bytes_per_s, rules.burst_s)
        self._waiting_max = rules.waiting_max
        self._waiting = 0
        self._turn = asyncio.Lock()  # fair: its waiters get it in the order in which they came
        self._delayed = 0
        self._refused = 0

    @classmethod
    async def open(cls, options: Mapping[str, Any], page_bytes: int) -> RateBackend:
        check_options(options, _OPTIONS, cls.name, required=("inner",))
        return cls(options["inner"], options.get("rules", RateSettings()), page_bytes)

    @property
    def available(self) -> bool:
        return self._waiting < self._waiting_max and self.inner.available

    def counts(self) -> Mapping[str, int]:
        """Calls ``delayed``, and ``refused`` because too many waited."""
        return {"delayed": self._delayed, "refused": self._refused}

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        await self._pass(len(keys), 0)
        return await self.inner.stat(keys)

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        # What cannot be is refused here, for its page counts would be waited for.
        check_extents(batch, out, self._page_bytes, self.capability)
        await self._pass(len(batch), int(batch.page_count.sum(dtype="int64")))
        return await self.inner.read(batch, out)

    async def put(self, batch: ObjectBatch) -> PutResult:
        await self._pass(len(batch), len(batch.payload))
        return await self.inner.put(batch)

    async def delete(self, keys: Sequence[bytes]) -> U8:
        await self._pass(len(keys), 0)
        return await self.inner.delete(keys)

    async def release(self) -> None:
        self._wait.close()

    async def _pass(self, operations: int, pages: int) -> None:
        """Wait until so much may go through."""
        if not self.inner.available:
            return  # it will be refused, which costs the store nothing
        if self._waiting >= self._waiting_max:
            self._refused += 1
            raise UnavailableError(f"{self._waiting} calls wait for the store already")
        costs = [(self._operations, operations), (self._bytes, pages * self._page_bytes)]
        self._waiting += 1
        try:
            async with self._turn:
                now_ns = self._clock.now_ns()
                ready = (bucket.ready_ns(cost, now_ns) for bucket, cost in costs if bucket)
                start_ns = max(ready, default=now_ns)
                if start_ns > now_ns:
                    self._delayed += 1
                    await self._wait.until(start_ns)
                for bucket, cost in costs:
                    if bucket is not None:
                        bucket.take(cost, self._clock.now_ns())
        finally:
            self._waiting -= 1

    def _bucket(self, per_s: float | None, burst_s: float) -> TokenBucket | None:
        if per_s is None:
            return None
        return TokenBucket(per_s, max(1.0, per_s * burst_s), self._clock.now_ns())
