"""Where the sequences of a node come from: first come, first served."""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Iterator
from typing import Final, Protocol

from kvtier.serving.sequence import Sequence
from kvtier.trace import NO_PARENT, Request

HELD_MAX: Final = 4096
"""Turns that have come and wait for the former one of their session; more are not read ahead."""


class Source(Protocol):
    """A queue in front of a node."""

    def next(self, now_ns: int) -> Sequence | None:
        """The sequence that comes next, maybe after ``now_ns``; None if that is not known now."""
        ...

    def take(self, sequence: Sequence) -> None:
        """The one that :meth:`next` told of leaves the queue."""
        ...

    @property
    def is_over(self) -> bool:
        """No sequence will come any more."""
        ...


class Arrivals:
    """The requests of a trace, at their recorded times.

    A turn of a session comes when it was recorded, but not before the turn that it continues has
    ended. No more of the trace is read than has come; 8 bytes are kept of each request.

    Args:
        requests: numbered by their places in the trace, in the order of their times.
        first_t_ns: the recorded time that is 0 in virtual time.
        speed: recorded times are divided by it.
    """

    def __init__(
        self, requests: Iterator[tuple[int, Request]], first_t_ns: int, speed: float
    ) -> None:
        self._requests = requests
        self._first_t_ns = first_t_ns
        self._speed = speed
        self._unended: set[int] = set()
        """Numbers of requests that were read and have not ended."""
        self._end_ns = array("q")
        """When each request ended, by its number; -1 where it has not."""
        self._held: dict[int, list[Sequence]] = {}
        """Turns by the request that they wait for."""
        self._held_count = 0
        self._freed: list[tuple[int, int, Sequence]] = []
        """A heap of turns whose former ones have ended: when they came, and their numbers."""
        self._coming = self._read()

    @property
    def is_over(self) -> bool:
        return self._coming is None and not self._freed and not self._held_count

    def next(self, now_ns: int) -> Sequence | None:
        self._hold_turns(now_ns)
        coming, freed = self._coming, self._freed[0][2] if self._freed else None
        if coming is not None:
            # The turn before it may have ended since it was recorded to come.
            self._let_come(coming, self._ended_ns(coming.request.parent))
        if coming is None or self._is_early(coming, now_ns):
            return freed
        if freed is None or coming.arrival_ns < freed.arrival_ns:
            return coming
        return freed

    def take(self, sequence: Sequence) -> None:
        if sequence is self._coming:
            self._unended.add(sequence.number)
            self._coming = self._read()
        else:
            assert sequence is self._freed[0][2]
            heapq.heappop(self._freed)

    def end(self, sequence: Sequence, now_ns: int) -> None:
        """A sequence has ended: the turns that continue it may come."""
        self._hold_turns(now_ns)
        self._unended.remove(sequence.number)
        self._end_ns.extend([-1] * (sequence.number + 1 - len(self._end_ns)))
        self._end_ns[sequence.number] = now_ns
        for turn in self._held.pop(sequence.number, ()):
            self._let_come(turn, now_ns)
            heapq.heappush(self._freed, (turn.arrival_ns, turn.number, turn))
            self._held_count -= 1

    def _ended_ns(self, number: int) -> int:
        return self._end_ns[number] if 0 <= number < len(self._end_ns) else -1

    @staticmethod
    def _let_come(turn: Sequence, ended_ns: int) -> None:
        """The turn before it ended then."""
        turn.arrival_ns = turn.queued_ns = max(turn.arrival_ns, ended_ns)

    def _hold_turns(self, now_ns: int) -> None:
        """Put turns aside that have come too early, to see who comes after them."""
        while self._coming is not None and self._is_early(self._coming, now_ns):
            if self._held_count == HELD_MAX:
                return
            self._held.setdefault(self._coming.request.parent, []).append(self._coming)
            self._held_count += 1
            self._unended.add(self._coming.number)
            self._coming = self._read()

    def _is_early(self, sequence: Sequence, now_ns: int) -> bool:
        """It has come, and the turn that it continues has not ended."""
        return sequence.arrival_ns <= now_ns and sequence.request.parent in self._unended

    def _read(self) -> Sequence | None:
        number, request = next(self._requests, (NO_PARENT, None))
        if request is None:
            return None
        arrival_ns = round((request.t_ns - self._first_t_ns) / self._speed)
        return Sequence(number, request, arrival_ns, queued_ns=arrival_ns)


class Handover:
    """Sequences that another node passes on."""

    def __init__(self) -> None:
        self._waiting: deque[Sequence] = deque()
        self.is_closed = False

    @property
    def is_over(self) -> bool:
        return self.is_closed and not self._waiting

    def put(self, sequence: Sequence, now_ns: int) -> None:
        """Queue a sequence."""
        sequence.queued_ns = now_ns
        self._waiting.append(sequence)

    def next(self, now_ns: int) -> Sequence | None:  # noqa: ARG002  # they come when they are put
        return self._waiting[0] if self._waiting else None

    def take(self, sequence: Sequence) -> None:
        assert sequence is self._waiting[0]
        self._waiting.popleft()
