"""A drive that repeats an event log: the chain is told the same, in the same order.

What the log says happens in its order, each event no sooner than the one before. A device read or
write ends when its model says so. A batch is read or written when the requests it is for have been
answered, and have computed. So decisions are the logged ones, and times are modelled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kvtier.chain import Flight, Read, Write
from kvtier.emulator import RepeatingDriver
from kvtier.errors import LimitError
from kvtier.events import Event, EventKind, Flag, LoggedRun, read_summary
from kvtier.pages import I64, PageStatus
from kvtier.replay.meter import RequestMeter
from kvtier.settings import Settings

_TURN_EVENTS = 256
"""Events after which Ctrl-C is heard."""


@dataclass(slots=True, eq=False)
class _Request:
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
        planned: what it does as soon as it can; None if the log has not come to that.
        is_planned: it has something to do then.
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


class RepeatedDrive:
    """Feeds an event log to a driver that repeats.

    Args:
        logged: the log.
        driver: a new one, with the settings of the log.
        settings: of the run; those on which decisions depend are the log's.
        meter: measures the requests.
        after_batch: called after every batch of reads or writes.
    """

    def __init__(
        self,
        logged: LoggedRun,
        driver: RepeatingDriver,
        *,
        settings: Settings,
        meter: RequestMeter,
        after_batch: Callable[[], None],
    ) -> None:
        self._logged = logged
        self._driver = driver
        self._timeline = driver.timeline
        self._concurrency = settings.replay.concurrency
        self._is_open = settings.replay.drive == "open"
        self._puts = settings.origin is not None and settings.origin.write == "through"
        self._batch_pages_max = settings.chain.batch_pages_max
        self._meter = meter
        self._after_batch = after_batch
        self._start_ns = meter.now_ns
        self._requests: dict[int, _Request] = {}
        self._coming: deque[_Request] = deque()
        """They have come, and not begun."""
        self._called: _Request | None = None
        """It begins at its arrival, which is still to come."""
        self._open_requests = 0
        """They have come, and not ended, by the log."""
        self._is_admitting = False

    async def drive(self) -> bool:
        """Repeat the log; returns whether it is of a complete run.

        Raises:
            TraceError: the log is damaged, or an event cannot be: one line that names it.
        """
        acts = {
            EventKind.BEGIN: self._begin,
            EventKind.COMPUTE: self._compute,
            EventKind.READ: self._read,
            EventKind.PUT: self._put,
            EventKind.WRITE: self._write,
            EventKind.FETCHED: self._fetched,
            EventKind.FILLED: self._filled,
            EventKind.STORED: self._filled,
            EventKind.INVALIDATE: self._invalidate,
            EventKind.LEAVE: self._batch,
            EventKind.EXPIRE: self._batch,
            EventKind.RELEASE: self._batch,
            EventKind.TURN_AWAY: self._turn_away,
            EventKind.END: self._end,
        }
        complete = False
        for event in self._logged.events():
            if event.number % _TURN_EVENTS == 0:
                await asyncio.sleep(0)
            if event.kind is EventKind.LAST:
                complete = self._last(event)
            else:
                acts[event.kind](event)
        return complete

    # -- requests -----------------------------------------------------------------------------

    def _begin(self, event: Event) -> None:
        if event.name in self._requests:
            raise event.error(f"request {event.name} has begun before")
        self._open_requests += 1
        if self._open_requests > self._concurrency:
            raise event.error(f"more than {self._concurrency} requests are under way")
        request = _Request(event.name, self._start_ns + event.ns)
        self._requests[event.name] = request
        # Of those before it enough have ended in the log that room comes without further events.
        self._wait(event, lambda: len(self._coming) < self._concurrency)
        self._coming.append(request)
        self._admit()

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
            self._meter.begin()
            if not self._is_open:
                request.arrival_ns = now_ns
            request.answered_ns = now_ns
            request.has_begun = True
            self._go_on(request)
        self._is_admitting = False

    def _compute(self, event: Event) -> None:
        request = self._request(event, event.name)
        request.compute_ns += event.ns
        self._meter.computed(event.ns)

    def _end(self, event: Event) -> None:
        request = self._request(event, event.name)
        request.has_ended = True
        self._open_requests -= 1

        def finish() -> None:
            del self._requests[request.number]
            self._meter.end(request.arrival_ns, self._meter.now_ns)
            self._admit()

        self._when_free(event, request, finish)

    def _request(self, event: Event, number: int) -> _Request:
        request = self._requests.get(number)
        if request is None or request.has_ended:
            raise event.error(f"request {number} is not under way")
        return request

    def _when_free(self, event: Event, request: _Request, act: Callable[[], None]) -> None:
        """Let a request do something as soon as it was answered and has computed."""
        self._wait(event, lambda: not request.is_planned)
        request.is_planned = True

        def begin() -> None:
            request.is_planned = False
            act()

        request.planned = begin
        self._go_on(request)

    def _go_on(self, request: _Request) -> None:
        """If a request was answered, let it do what is planned when it has computed."""
        act = request.planned
        if act is None or not request.is_answered:
            return
        request.planned = None
        if request.free_ns > self._meter.now_ns:
            self._timeline.at(request.free_ns, act)
        else:
            act()

    def _wait_for(self, event: Event, requests: Sequence[_Request]) -> None:
        """Let time pass until requests were answered and have computed; a step begins."""
        starting = [request for request in requests if not request.goes_on]
        for request in starting:
            self._wait_idle(event, request)
        free_ns = max((request.free_ns for request in starting), default=0)
        while self._meter.now_ns < free_ns:
            self._timeline.step(free_ns)
        for request in starting:
            request.begin_step()

    def _wait_idle(self, event: Event, request: _Request) -> None:
        self._wait(event, lambda: request.is_idle)

    def _answer(self, request: _Request) -> None:
        """A part of what a request waits for is there."""
        request.unanswered -= 1
        if request.is_answered:
            now_ns = self._meter.now_ns
            self._meter.waited(now_ns - request.waits_ns)
            request.answered_ns = now_ns
            self._go_on(request)

    # -- batches ------------------------------------------------------------------------------

    def _read(self, event: Event) -> None:
        self._check_size(event)
        owners = [self._request(event, number) for number in event.owners.tolist()]
        self._wait_for(event, owners)
        for owner in owners:
            owner.unanswered += 1
            owner.goes_on = False
        if event.flags & Flag.GOES_ON:
            owners[-1].goes_on = True

        def answered(parts: I64) -> None:
            for part in parts.tolist():
                self._answer(owners[part])

        try:
            read = self._driver.read(
                event.page_ids(),
                purpose=event.purpose,
                wants_bytes=bool(event.flags & Flag.WANTS_BYTES),
                held=bool(event.flags & Flag.HELD),
                sizes=event.owner_pages.astype(np.int64) if owners else None,
                answered=answered,
            )
        except LimitError as error:
            raise event.error(str(error)) from error
        _check_epoch(event, read)
        self._after_batch()

    def _put(self, event: Event) -> None:
        request = self._request(event, event.name)
        if not self._puts:
            return
        pages = event.counts.astype(np.int64)

        def put() -> None:
            request.begin_step()
            request.unanswered += 1
            self._driver.put(pages, lambda: self._answer(request))

        self._when_free(event, request, put)

    def _write(self, event: Event) -> None:
        self._check_size(event)
        writers = [self._request(event, number) for number in event.owners.tolist()]
        self._wait_for(event, writers)
        for writer in writers:
            writer.unanswered += 1

        def done() -> None:
            for writer in writers:
                self._answer(writer)

        page_ids = event.page_ids()
        if len(np.unique(page_ids)) != len(page_ids):
            raise event.error("it writes a page twice")
        _check_epoch(event, self._driver.write(page_ids, event.count, done))
        self._after_batch()

    def _invalidate(self, event: Event) -> None:
        self._driver.invalidate(event.page_ids())

    def _batch(self, event: Event) -> None:
        read = self._driver.reads.get(event.name)
        if read is None:
            raise event.error(f"no read of epoch {event.name} is under way")
        match event.kind:
            case EventKind.LEAVE:
                self._driver.leave(read)
            case EventKind.EXPIRE:
                self._driver.expire(read)
            case _:
                self._driver.release(read)

    def _turn_away(self, event: Event) -> None:
        self._driver.chain.turn_away(event.count, event.purpose)

    def _check_size(self, event: Event) -> None:
        if event.pages > self._batch_pages_max:
            raise event.error(f"{event.pages} pages, more than a batch can have")

    # -- devices ------------------------------------------------------------------------------

    def _fetched(self, event: Event) -> None:
        work = self._driver.fetches.get(event.name)
        if work is None:
            raise event.error(f"flight {event.name} reads from no device")
        flight, extents = work.action.flight, work.action.extents
        status = event.status if len(event.status) else None
        existing = event.counts.astype(np.int64) if len(event.counts) else None
        if (status is not None and len(status) != len(flight)) or (
            existing is not None
            and (len(existing) != len(extents) or (existing > extents.count).any())
        ):
            raise event.error(f"it fits {len(flight)} pages in {len(extents)} extents badly")
        self._wait(event, lambda: work.is_over)
        self._driver.fetched(work, status, existing)

    def _filled(self, event: Event) -> None:
        kind = Flight if event.kind is EventKind.FILLED else Write
        work = self._driver.fills.get((kind, event.name, event.level))
        if work is None:
            raise event.error(f"nothing of {event.name} is written to level {event.level}")
        ok = event.status == PageStatus.OK if len(event.status) else None
        if ok is not None and len(ok) != len(work.action.slots):
            raise event.error(f"it has {len(ok)} slots, and another number is written")
        self._wait(event, lambda: work.is_over)
        self._driver.filled(work, ok)

    # -- time, and the end --------------------------------------------------------------------

    def _wait(self, event: Event, done: Callable[[], bool]) -> None:
        """Let time pass until something is done."""
        while not done():
            if not self._timeline.step():
                raise event.error("it waits for something that never comes")

    def _last(self, event: Event) -> bool:
        """Let everything arrive, and compare what was counted with what was logged."""
        complete, logged = read_summary(event)
        self._wait(event, lambda: self._driver.is_still)
        chain = self._driver.chain
        if complete:
            self._wait(event, lambda: not self._requests)
            if not chain.idle:
                raise event.error("pages are still on their way")
        self._after_batch()
        before = _flat(logged)
        for name, count in _flat(asdict(chain.counters)).items():
            if before.get(name) != count:
                raise event.error(f"{name} is {count} when repeated, and was {before.get(name)}")
        return complete


def _check_epoch(event: Event, batch: Read | Write) -> None:
    if batch.epoch != event.name:
        raise event.error(f"it has epoch {batch.epoch} when repeated, and had {event.name}")


def _flat(counters: Any, name: str = "") -> dict[str, Any]:
    """Nested counters by dotted names."""
    if isinstance(counters, dict):
        items = counters.items()
    elif isinstance(counters, list):
        items = dict(enumerate(counters)).items()
    else:
        return {name: counters}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{name}.{key}" if name else str(key))
    return flat
