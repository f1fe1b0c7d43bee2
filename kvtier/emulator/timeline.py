"""Virtual time: what happens next, and only then."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from kvtier.clock import VirtualClock

Event = Callable[[], None]


class Timeline:
    """Events in order of time; those of one moment happen in the order they were planned.

    Args:
        clock: moved by this timeline only.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._events: list[tuple[int, int, Event]] = []
        self._planned = 0

    @property
    def now_ns(self) -> int:
        """The present."""
        return self._clock.now_ns()

    def at(self, t_ns: int, event: Event) -> None:
        """Let ``event`` happen at ``t_ns``, which is not in the past."""
        self._planned += 1
        heapq.heappush(self._events, (t_ns, self._planned, event))

    def step(self, end_ns: int | None = None) -> bool:
        """Let the next event happen, or time pass to ``end_ns`` if none comes before.

        Returns:
            Whether anything happened: False if no event is planned, and no end given.
        """
        if self._events and (end_ns is None or self._events[0][0] <= end_ns):
            t_ns, _, event = heapq.heappop(self._events)
            self._clock.advance_to(t_ns)
            event()
        elif end_ns is not None:
            self._clock.advance_to(end_ns)
        else:
            return False
        return True
