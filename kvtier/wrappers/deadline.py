"""Calls that end in time, however long the store behind them takes.

There are two bounds. Past the *soft* one a call is late: the cache has told its callers so, and
the call goes on, because its pages still fill the tiers. Late calls hold staging memory, so only
some may go on. Past the *hard* one a call has failed, and is cancelled: a backend that is
cancelled no longer touches ``out``, so no copy is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

from kvtier.backend import (
    Backend,
    ExtentBatch,
    ObjectBatch,
    ObjectStats,
    PutResult,
    check_options,
)
from kvtier.errors import BackendError, SettingsError
from kvtier.pages import U8
from kvtier.wrappers.wrapper import Wrapper

T = TypeVar("T")

_LATE_MAX: Final = 16
_OPTIONS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "inner": Backend,
    "read_timeout_s": float,
    "write_timeout_s": float,
    "late_s": float,
    "late_max": int,
}


class DeadlineBackend(Wrapper):
    """A call that is not answered in time raises :class:`BackendError`, and is cancelled.

    ``keys`` has no bound. Time is that of the event loop.

    Options:
        inner: an open backend, which is closed with this one.
        read_timeout_s: the hard bound of ``read`` and ``stat``; none without it.
        write_timeout_s: that of ``put`` and ``delete``; none without it.
        late_s: the soft bound of ``read``; none without it.
        late_max: reads that may go on beyond the soft bound at once; one more fails there. 16 by
            default.
    """

    name: ClassVar[str] = "deadline"

    def __init__(
        self,
        inner: Backend,
        *,
        read_timeout_s: float | None = None,
        write_timeout_s: float | None = None,
        late_s: float | None = None,
        late_max: int = _LATE_MAX,
    ) -> None:
        super().__init__(inner)
        self._read_timeout_s = read_timeout_s
        self._write_timeout_s = write_timeout_s
        self._late_s = late_s
        self._late_max = late_max
        self._late: set[asyncio.Timeout] = set()
        self._late_reads = 0
        self._timeouts = 0
        self._crowded_out = 0

    @classmethod
    async def open(cls, options: Mapping[str, Any], page_bytes: int) -> DeadlineBackend:  # noqa: ARG003
        check_options(options, _OPTIONS, cls.name, required=("inner",))
        for option, value in options.items():
            if option != "inner" and not 0 <= value < float("inf"):
                raise SettingsError(
                    f"option {option!r} of backend 'deadline' is {value}: it must be 0 or more"
                )
        return cls(**options)

    def counts(self) -> Mapping[str, int]:
        """``late`` reads, calls that met their ``timeouts``, late reads ``crowded_out``."""
        return {
            "late": self._late_reads,
            "timeouts": self._timeouts,
            "crowded_out": self._crowded_out,
        }

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        return await self._within(self._read_timeout_s, self.inner.stat(keys))

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        call = self.inner.read(batch, out)
        return await self._within(self._read_timeout_s, call, late_s=self._late_s)

    async def put(self, batch: ObjectBatch) -> PutResult:
        return await self._within(self._write_timeout_s, self.inner.put(batch))

    async def delete(self, keys: Sequence[bytes]) -> U8:
        return await self._within(self._write_timeout_s, self.inner.delete(keys))

    async def _within(
        self, timeout_s: float | None, call: Awaitable[T], *, late_s: float | None = None
    ) -> T:
        timer: asyncio.TimerHandle | None = None
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        scope = asyncio.timeout(timeout_s)
        try:
            async with scope:
                if late_s is not None:
                    timer = loop.call_later(late_s, self._be_late, scope)
                return await call
        except TimeoutError as error:
            if not scope.expired():
                raise  # a timeout of the store's own
            self._timeouts += 1
            elapsed_s = loop.time() - start_s
            raise BackendError(f"no answer within {elapsed_s:.3g} s") from error
        finally:
            self._late.discard(scope)
            if timer is not None:
                timer.cancel()

    def _be_late(self, scope: asyncio.Timeout) -> None:
        """Let a late call go on, if there is room for one more."""
        self._late_reads += 1
        if len(self._late) < self._late_max:
            self._late.add(scope)
        else:
            self._crowded_out += 1
            scope.reschedule(asyncio.get_running_loop().time())
