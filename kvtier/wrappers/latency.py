"""A modelled device on the wall clock: a backend that answers no earlier than the device would."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Mapping
from typing import Any, ClassVar, Final, TypeVar

import numpy as np

from kvtier.alarm import Alarm, Wait
from kvtier.backend import (
    Backend,
    ExtentBatch,
    ObjectBatch,
    PutResult,
    check_extents,
    check_objects,
    check_options,
)
from kvtier.clock import Clock, WallClock
from kvtier.emulator.device import ModelledDevice
from kvtier.emulator.station import Work
from kvtier.pages import I64, U8, U64
from kvtier.settings import DeviceModel
from kvtier.wrappers.wrapper import Wrapper

T = TypeVar("T")

_OPTIONS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "inner": Backend,
    "model": DeviceModel,
    "seed": int,
}
_HIGH_HALF: Final = np.uint64(32)


class LatencyBackend(Wrapper):
    """Reads and puts take as long as a modelled device says, and never less.

    Batches under way queue at the device as they do in the emulator. Where the inner backend is
    slower than the device, it alone decides; its errors come when the device would have answered.
    As in the emulator, ``stat``, ``delete`` and ``keys`` take no time of the device.

    A cancelled call leaves at once. ``close`` ends the calls that wait with a ClosedError.

    Options:
        inner: an open backend, which is closed with this one.
        model: of the device.
        seed: of its random choices; 1 by default.
    """

    name: ClassVar[str] = "latency"

    def __init__(
        self,
        inner: Backend,
        model: DeviceModel,
        page_bytes: int,
        *,
        seed: int = 1,
        clock: Clock | None = None,
        wait: Wait | None = None,
    ) -> None:
        super().__init__(inner)
        self._page_bytes = page_bytes
        self._clock = clock or WallClock()
        self._wait = wait or Alarm(self._clock, "this latency backend")
        self._has_places = model.flash is not None
        self._device = ModelledDevice(model, seed)
        self._opened_ns = self._clock.now_ns()
        # Compiled now, not inside the first request.
        ModelledDevice(model, seed).serve(0, self._work(np.zeros(1, np.uint64), None))

    @classmethod
    async def open(cls, options: Mapping[str, Any], page_bytes: int) -> LatencyBackend:
        check_options(options, _OPTIONS, "latency", required=("inner", "model"))
        seed = options.get("seed", 1)
        return cls(options["inner"], options["model"], page_bytes, seed=seed)

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        self._wait.check()
        check_extents(batch, out, self._page_bytes, self.capability)
        places = batch.first_page.astype(np.uint64)
        if self._has_places and len(batch):
            places |= _words(batch.keys)[batch.key_index]
        work = self._work(places, batch.page_count.astype(np.int64))
        return await self._no_earlier(self._serve(work), self.inner.read(batch, out))

    async def put(self, batch: ObjectBatch) -> PutResult:
        self._wait.check()
        check_objects(batch, self._page_bytes, self.capability)
        work = self._work(_words(batch.keys), batch.page_counts.astype(np.int64), is_write=True)
        return await self._no_earlier(self._serve(work), self.inner.put(batch))

    async def release(self) -> None:
        self._wait.close()

    def _work(self, places: U64, pages: I64 | None, *, is_write: bool = False) -> Work:
        return Work(places, pages, self._page_bytes, is_write)

    def _serve(self, work: Work) -> int:
        """Queue work at the device now; returns when it is done, by the clock."""
        # Counted from the opening, for a device keeps fractions of a ns.
        now_ns = self._clock.now_ns() - self._opened_ns
        return self._device.serve(now_ns, work) + self._opened_ns

    async def _no_earlier(self, end_ns: int, call: Awaitable[T]) -> T:
        """What the call returns or raises, once it is ``end_ns``; a cancellation at once."""
        try:
            result = await call
        except Exception:
            await self._wait.until(end_ns)
            raise
        await self._wait.until(end_ns)
        return result


def _words(keys: tuple[bytes, ...]) -> U64:
    """The high half of places on a flash drive, of each key (u64[k])."""
    words = np.array([zlib.crc32(key) for key in keys], np.uint64)
    return words << _HIGH_HALF
