"""Waiting for a moment of the wall clock, more exactly than the timers of event loops.

Those are right to a millisecond or two. A thread that sleeps until shortly before the moment wakes
the loop, which asks the clock for what is left: right to about 0.1 ms, and no core is kept busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import threading
from typing import Final, Protocol

from kvtier.clock import Clock
from kvtier.errors import ClosedError

LEAD_NS: Final = 100_000
"""How long before the moment the thread wakes the loop: about what that takes."""

_NS_PER_S: Final = 1e9


class Wait(Protocol):
    """What makes a call wait; :class:`Alarm` on the wall clock."""

    async def until(self, t_ns: int) -> None: ...

    def check(self) -> None: ...

    def close(self) -> None: ...


class Alarm:
    """Lets the tasks of one event loop wait for moments. The thread begins with the first wait.

    Args:
        clock: the wall clock whose moments these are.
        name: what is closed, for the error.
    """

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name
        self._changed = threading.Condition()
        self._rings: list[tuple[int, int, asyncio.Future[None]]] = []
        """A heap: when to wake whom, and a number, which keeps the order."""
        self._rung = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    async def until(self, t_ns: int) -> None:
        """Wait until ``t_ns``; never returns before.

        Raises:
            ClosedError: the alarm was closed meanwhile, or before.
        """
        while (left_ns := t_ns - self._clock.now_ns()) > 0:
            self.check()
            if left_ns > LEAD_NS:
                await self._ring(t_ns - LEAD_NS)
            else:
                await asyncio.sleep(0)

    def check(self) -> None:
        """Raise ClosedError if it was closed."""
        if self._closed:
            raise ClosedError(f"{self._name} is closed: open another")

    def close(self) -> None:
        """End every wait with a ClosedError, and the thread; a second call does nothing."""
        with self._changed:
            self._closed = True
            rings, self._rings = self._rings, []
            self._changed.notify()
        for _, _, future in rings:
            if not future.done():
                future.set_exception(ClosedError(f"{self._name} was closed"))
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    async def _ring(self, t_ns: int) -> None:
        future = asyncio.get_running_loop().create_future()
        with self._changed:
            self._rung += 1
            heapq.heappush(self._rings, (t_ns, self._rung, future))
            if self._rings[0][2] is future:
                self._changed.notify()
        if self._thread is None:
            # A daemon: an alarm that nobody closed must not keep the interpreter alive.
            self._thread = threading.Thread(target=self._work, name="kvtier-alarm", daemon=True)
            self._thread.start()
        await future

    def _work(self) -> None:
        """Sleep and wake others, in the thread."""
        with self._changed:
            while not self._closed:
                if not self._rings:
                    self._changed.wait()
                    continue
                early_ns = self._rings[0][0] - self._clock.now_ns()
                if early_ns > 0:
                    self._changed.wait(early_ns / _NS_PER_S)
                    continue
                future = heapq.heappop(self._rings)[2]
                with contextlib.suppress(RuntimeError):  # its loop was closed: nobody waits
                    future.get_loop().call_soon_threadsafe(_wake, future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
