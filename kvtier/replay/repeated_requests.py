"""Requests of an event log that is repeated: when they begin, wait, compute and end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kvtier.emulator.timeline import Timeline
from kvtier.replay.meter import RequestMeter


@dataclass(slots=True, eq=False)
class Request:
    """A request under way.

    Attributes:
        number: its name in the log.
        arrival_ns: when it came.
        has_begun: there was room for it.
        answered_ns: when it began, or was answered last.
        compute_ns: it computes for so long after that.
        waits_ns: since when it has waited for its present step.
        unanswered: parts of batches that it waits for.
        goes_on: the next batch holds pages of its present step too.
        planned: what it does when it was answered; None once it is only left to compute.
        is_planned: it has something to do, and has not begun.
        has_ended: the log says nothing more of it.
    """

    number: int
    arrival_ns: int
    has_begun: bool = False
    answered_ns: int = 0
    compute_ns: int = 0
    waits_ns: int = 0
    unanswered: int = 0
    goes_on: bool = False
    planned: Callable[[], None] | None = None
    is_planned: bool = False
    has_ended: bool = False

    @property
    def is_answered(self) -> bool:
        """It waits for nothing."""
        return self.has_begun and self.unanswered == 0 and not self.goes_on

    @property
    def is_idle(self) -> bool:
        """It waits for nothing, and all that the log has told of it is done."""
        return self.is_answered and not self.is_planned

    @property
    def free_ns(self) -> int:
        """When it has computed."""
        return self.answered_ns + self.compute_ns

    def begin_step(self) -> None:
        """From when it had computed, it waits."""
        self.waits_ns = self.free_ns
        self.answered_ns, self.compute_ns = self.waits_ns, 0


class RepeatedRequests:
    """The requests that a log has told of, and that have not ended in virtual time.

    Args:
        timeline: virtual time.
        meter: measures them.
        concurrency: most of them that are under way at once.
        is_open: each comes at its recorded arrival, and not as soon as there is room.
    """

    def __init__(
        self, timeline: Timeline, meter: RequestMeter, *, concurrency: int, is_open: bool
    ) -> None:
        self._timeline = timeline
        self._meter = meter
        self._concurrency = concurrency
        self._is_open = is_open
        self._by_number: dict[int, Request] = {}
        self._coming: deque[Request] = deque()
        """They have come, and not begun."""
        self._called: Request | None = None
        """It begins at its arrival, which is still to come."""
        self._is_admitting = False
        self.unended = 0
        """By the log, they have come and not ended."""

    def __len__(self) -> int:
        return len(self._by_number)

    def __contains__(self, number: int) -> bool:
        return number in self._by_number

    @property
    def is_crowded(self) -> bool:
        """As many wait to begin as there is room for in all."""
        return len(self._coming) >= self._concurrency

    def find(self, number: int) -> Request | None:
        """The request of that number, if the log has not ended it."""
        request = self._by_number.get(number)
        return None if request is None or request.has_ended else request

    def come(self, number: int, arrival_ns: int) -> None:
        """A new request comes, in an open loop at ``arrival_ns``; it begins when there is room."""
        request = self._by_number[number] = Request(number, arrival_ns)
        self.unended += 1
        self._coming.append(request)
        self._admit()

    def end(self, request: Request) -> None:
        """The log says nothing more of a request with no plan: it ends when it has computed."""
        request.has_ended = True
        self.unended -= 1

        def finish() -> None:
            del self._by_number[request.number]
            self._meter.end(request.arrival_ns)
            self._admit()

        self.when_free(request, finish)

    def when_free(self, request: Request, act: Callable[[], None]) -> None:
        """Let a request with no plan do something when it was answered and has computed."""
        request.is_planned = True

        def begin() -> None:
            request.is_planned = False
            act()

        request.planned = begin
        self._go_on(request)

    def answer(self, request: Request) -> None:
        """A part of what a request waits for is there."""
        request.unanswered -= 1
        if request.is_answered:
            now_ns = self._meter.now_ns
            self._meter.waited(now_ns - request.waits_ns)
            request.answered_ns = now_ns
            self._go_on(request)

    def _admit(self) -> None:
        """Let requests begin that have come, while there is room for them."""
        if self._is_admitting:
            return  # one that begins may end at once, and make room for the next of this loop
        self._is_admitting = True
        while self._coming and self._meter.in_flight < self._concurrency:
            request = self._coming[0]
            now_ns = self._meter.now_ns
            if self._is_open and request.arrival_ns > now_ns:
                if self._called is not request:
                    self._called = request
                    self._timeline.at(request.arrival_ns, self._admit)
                break
            self._coming.popleft()
            if not self._is_open:
                request.arrival_ns = now_ns
            self._meter.begin(request.arrival_ns)
            request.answered_ns = now_ns
            request.has_begun = True
            self._go_on(request)
        self._is_admitting = False

    def _go_on(self, request: Request) -> None:
        """If a request was answered, let it do what is planned when it has computed."""
        act = request.planned
        if act is None or not request.is_answered:
            return
        request.planned = None
        if request.free_ns > self._meter.now_ns:
            self._timeline.at(request.free_ns, act)
        else:
            act()
