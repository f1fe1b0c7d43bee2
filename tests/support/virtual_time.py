"""Backends in virtual time: no test of theirs sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from kvtier.clock import VirtualClock
from kvtier.emulator import VirtualLoop
from kvtier.emulator.timeline import Timeline
from kvtier.errors import ClosedError

MS = 1_000_000


class VirtualWait:
    """Lets virtual time pass; as :class:`kvtier.alarm.Alarm`, of a timeline."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._waiters: set[asyncio.Future[None]] = set()
        self._closed = False

    async def until(self, t_ns: int) -> None:
        self.check()
        reached = asyncio.get_running_loop().create_future()
        self._waiters.add(reached)

        def reach() -> None:
            if not reached.done():
                reached.set_result(None)

        self._timeline.at(max(t_ns, self._timeline.now_ns), reach)
        try:
            await reached
        finally:
            self._waiters.discard(reached)

    def check(self) -> None:
        if self._closed:
            raise ClosedError("closed")

    def close(self) -> None:
        self._closed = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(ClosedError("closed"))


class Stage:
    """A clock, and something that waits by it."""

    def __init__(self, timeline: Timeline, clock: VirtualClock) -> None:
        self.clock = clock
        self.timeline = timeline

    def wait(self) -> VirtualWait:
        return VirtualWait(self.timeline)

    @property
    def now_ms(self) -> float:
        return self.clock.now_ns() / MS


def in_virtual_time(work: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    """Run ``work``; its sleeps and timeouts pass virtual time only."""
    clock = VirtualClock()
    timeline = Timeline(clock)
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(timeline)) as runner:
        runner.run(work(Stage(timeline, clock)))
