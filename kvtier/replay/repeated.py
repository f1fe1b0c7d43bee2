"""A drive that repeats an event log: the chain is told the same, in the same order.

What the log says happens in its order, each event no sooner than the one before. A device read or
write ends when its model says so. A batch is read or written when the requests it is for have been
answered, and have computed. So decisions are the logged ones, and times are modelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from kvtier.chain import Flight, Read, Write
from kvtier.emulator import RepeatingDriver
from kvtier.errors import LimitError
from kvtier.events import Event, EventKind, Flag, LoggedRun, read_summary
from kvtier.pages import I64, PageStatus
from kvtier.replay.meter import RequestMeter
from kvtier.replay.repeated_requests import RepeatedRequests, Request
from kvtier.settings import Settings

_TURN_EVENTS = 256
"""Events after which Ctrl-C is heard."""


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
        self._puts = settings.origin is not None and settings.origin.write == "through"
        self._batch_pages_max = settings.chain.batch_pages_max
        self._meter = meter
        self._after_batch = after_batch
        self._start_ns = meter.now_ns
        self._requests = RepeatedRequests(
            driver.timeline,
            meter,
            concurrency=settings.replay.concurrency,
            is_open=settings.replay.drive == "open",
        )

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
            EventKind.MOVED: self._moved,
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
        requests = self._requests
        if event.name in requests:
            raise event.error(f"request {event.name} has begun before")
        if requests.unended == self._concurrency:
            raise event.error(f"more than {self._concurrency} requests are under way")
        # Of those before it enough have ended in the log that room comes without further events.
        self._wait(event, lambda: not requests.is_crowded)
        requests.come(event.name, self._start_ns + event.ns)

    def _compute(self, event: Event) -> None:
        self._request(event, event.name).compute_ns += event.ns
        self._meter.computed(event.ns)

    def _end(self, event: Event) -> None:
        request = self._request(event, event.name)
        self._wait(event, lambda: not request.is_planned)
        self._requests.end(request)

    def _request(self, event: Event, number: int) -> Request:
        request = self._requests.find(number)
        if request is None:
            raise event.error(f"request {number} is not under way")
        return request

    def _wait_for(self, event: Event, requests: Sequence[Request]) -> None:
        """Let time pass until requests were answered and have computed; a step begins."""
        starting = [request for request in requests if not request.goes_on]
        for request in starting:
            self._wait_idle(event, request)
        free_ns = max((request.free_ns for request in starting), default=0)
        while self._meter.now_ns < free_ns:
            self._timeline.step(free_ns)
        for request in starting:
            request.begin_step()

    def _wait_idle(self, event: Event, request: Request) -> None:
        self._wait(event, lambda: request.is_idle)

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
                self._requests.answer(owners[part])

        try:
            read = self._driver.read(
                event.page_ids(),
                purpose=event.purpose,
                wants_bytes=bool(event.flags & Flag.WANTS_BYTES),
                held=bool(event.flags & Flag.HELD),
                origin_shut=bool(event.flags & Flag.ORIGIN_SHUT),
                writes_shut=bool(event.flags & Flag.WRITES_SHUT),
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
            self._driver.put(pages, lambda: self._requests.answer(request))

        self._wait(event, lambda: not request.is_planned)
        self._requests.when_free(request, put)

    def _write(self, event: Event) -> None:
        self._check_size(event)
        writers = [self._request(event, number) for number in event.owners.tolist()]
        self._wait_for(event, writers)
        for writer in writers:
            writer.unanswered += 1

        def done() -> None:
            for writer in writers:
                self._requests.answer(writer)

        page_ids = event.page_ids()
        if len(np.unique(page_ids)) != len(page_ids):
            raise event.error("it writes a page twice")
        shut = bool(event.flags & Flag.WRITES_SHUT)
        write = self._driver.write(page_ids, event.count, done, writes_shut=shut)
        _check_epoch(event, write)
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

    def _moved(self, event: Event) -> None:
        work = self._driver.moves.get(event.name)
        if work is None or work.action.level != event.level:
            raise event.error(f"nothing is moved as {event.name} on level {event.level}")
        ok = event.status == PageStatus.OK if len(event.status) else None
        if ok is not None and len(ok) != len(work.action.moves.page_ids):
            raise event.error(f"it has {len(ok)} pages, and another number is moved")
        self._wait(event, lambda: work.is_over)
        self._driver.moved(work, ok)

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
            self._wait(event, lambda: len(self._requests) == 0)
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
