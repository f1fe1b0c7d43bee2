"""Drives in which every request goes at its own pace: the closed loop and the open loop.

A request asks for its next batch when it has computed with its last one, and waits for nobody
else. Batches of several requests that are due together share a chain batch, as a GPU's runtime
collects them; each goes on as soon as its own pages are there.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from kvtier.answers import Parts
from kvtier.cache import TieredCache
from kvtier.chain import Read
from kvtier.events import EventLog, Owners, owned_by
from kvtier.pages import I64, U64, Purpose
from kvtier.replay.active import ActiveRequest, Reads, Step, Writes
from kvtier.replay.arena import Arena
from kvtier.replay.meter import RequestMeter
from kvtier.replay.payload import Verifier
from kvtier.replay.writing import ObjectWriter


@dataclass(frozen=True, slots=True)
class Pace:
    """When requests come, and how they go on.

    Attributes:
        concurrency: requests under way at once; those that come meanwhile wait.
        compute_ns: between the answer of a batch and the next one; None: as recorded.
        tick_ns: batches are issued at multiples of it; 0: at once.
        speed: requests come at their recorded times, divided by this, and so are recorded
            compute times; None: as soon as there is room (a closed loop).
        first_t_ns: the recorded time with which an open loop begins; None: that of the drive's
            first request.
    """

    concurrency: int
    compute_ns: int | None
    tick_ns: int
    speed: float | None
    first_t_ns: int | None = None

    def compute_before_ns(self, step: Step) -> int:
        """How long a request computes before ``step``."""
        if self.compute_ns is not None:
            return self.compute_ns
        gap_ns = step.gap_ns if isinstance(step, Reads) else 0
        return round(gap_ns / (self.speed or 1.0))

    def issue_ns(self, ready_ns: int) -> int:
        """When a batch is issued that is ready at ``ready_ns``."""
        return ready_ns if self.tick_ns == 0 else -(-ready_ns // self.tick_ns) * self.tick_ns


@dataclass(slots=True, eq=False)
class _Active:
    """A request under way.

    Attributes:
        number: its place in the order of beginning.
        arrival_ns: when it came.
        steps: what is left of it.
        step: what it waits for, or computes before; None until it has begun.
        ready_ns: when it has computed, and begins to wait.
        pieces: chain batches that hold pages it waits for.
    """

    number: int
    arrival_ns: int
    steps: Iterator[Step]
    step: Step | None = None
    ready_ns: int = 0
    pieces: int = 0


@dataclass(slots=True, eq=False)
class _Piece:
    """One chain batch.

    Attributes:
        owners: the requests whose pages it holds, in the order of the pages.
        sizes: i64[k], pages of each.
        page_ids: u64[n].
        unanswered: owners whose pages are not all there.
        goes_on: the next piece holds pages of its last owner too.
        rows: of the arena, where bytes move.
        read: what the driver started.
    """

    owners: Sequence[_Active]
    sizes: I64
    page_ids: U64
    unanswered: int
    goes_on: bool
    rows: slice | None = None
    read: Read | None = None


class PacedDrive:
    """Drives requests into a cache.

    Args:
        cache: on real devices or in virtual time.
        pace: of the requests.
        batch_pages: pages of one chain batch; a larger one is cut.
        arena: memory to read into, for two such batches at least; None where no bytes move.
        verifier: checks what was read; None where no bytes move.
        writer: writes what is missing.
        meter: measures the requests.
        after_round: called after every round of this drive.
        log: is told what requests do, and for whom batches are; None where there is none.
    """

    def __init__(
        self,
        cache: TieredCache[Any],
        *,
        pace: Pace,
        batch_pages: int,
        arena: Arena | None,
        verifier: Verifier | None,
        writer: ObjectWriter,
        meter: RequestMeter,
        after_round: Callable[[], None],
        log: EventLog | None = None,
    ) -> None:
        self._cache = cache
        self._pace = pace
        self._batch_pages = batch_pages
        self._arena = arena
        self._verifier = verifier
        self._writer = writer
        self._meter = meter
        self._after_round = after_round
        self._log = log
        self._begun = 0
        self._due: list[tuple[int, int, _Active]] = []
        """A heap: when a step is to be issued, and its number, which keeps the order."""
        self._steps_planned = 0
        self._answered: list[tuple[int, _Active]] = []
        """When a request was answered that has not gone on since."""
        self._landed: list[_Piece] = []
        """All of their owners are answered."""
        self._event = asyncio.Event()
        self._alarms_ns: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    async def drive(self, requests: AsyncIterator[ActiveRequest]) -> None:
        """Drive every request to its end, and let all fills end."""
        try:
            await self._drive(requests)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._cache.drain()
        self._after_round()

    async def _drive(self, requests: AsyncIterator[ActiveRequest]) -> None:
        coming = await anext(requests, None)
        start_ns, first_t_ns = self._meter.now_ns, self._pace.first_t_ns
        if first_t_ns is None:
            first_t_ns = coming.t_ns if coming else 0
        while coming or self._meter.in_flight:
            arrival_ns = None
            while coming and self._meter.in_flight < self._pace.concurrency:
                arrival_ns = now_ns = self._meter.now_ns
                if self._pace.speed is not None:
                    arrival_ns = start_ns + round((coming.t_ns - first_t_ns) / self._pace.speed)
                if arrival_ns > now_ns:
                    break
                self._meter.begin(arrival_ns)
                if self._log is not None:
                    self._log.begin(self._begun, arrival_ns - start_ns)
                self._spawn(self._begin(coming, self._begun, arrival_ns))
                self._begun += 1
                coming, arrival_ns = await anext(requests, None), None
            await self._issue()
            self._after_round()
            if self._log is not None:
                self._log.check()
            await self._pause(arrival_ns)
            self._go_on()

    # -- steps --------------------------------------------------------------------------------

    async def _begin(self, request: ActiveRequest, number: int, arrival_ns: int) -> None:
        await request.begin()
        self._note(_Active(number, arrival_ns, request.steps()))

    async def _write(self, active: _Active, step: Writes) -> None:
        with owned_by(Owners((active.number,))):
            await self._writer.write([step])
        self._note(active)

    async def _issue(self) -> None:
        """Issue every step that is due; reads for one purpose share chain batches."""
        now_ns = self._meter.now_ns
        readers: dict[Purpose, list[_Active]] = {}
        page_ids: dict[Purpose, list[U64]] = {}
        while self._due and self._due[0][0] <= now_ns:
            active = heapq.heappop(self._due)[2]
            match active.step:
                case Reads() as step:
                    readers.setdefault(step.purpose, []).append(active)
                    page_ids.setdefault(step.purpose, []).append(step.page_ids)
                case Writes() as step:
                    self._spawn(self._write(active, step))
        if readers:
            await self._cache.driver.prepare(sum(map(len, readers.values())))
        for purpose, owners in readers.items():
            await self._read(owners, page_ids[purpose], purpose)

    async def _read(
        self, owners: Sequence[_Active], page_ids: Sequence[U64], purpose: Purpose
    ) -> None:
        pieces = list(_cut(owners, page_ids, self._batch_pages))
        for piece in pieces:  # all of them before the first is answered
            for owner in piece.owners:
                owner.pieces += 1
        for piece in pieces:
            rows = None
            if self._arena is not None:
                piece.rows = await self._take_rows(self._arena, len(piece.page_ids))
                rows = self._arena[piece.rows]
            parts = Parts(piece.sizes, partial(self._note_parts, piece))
            with self._owned(piece):
                piece.read = await self._cache.driver.submit(piece.page_ids, rows, parts, purpose)

    def _owned(self, piece: _Piece) -> AbstractContextManager[None]:
        """While a piece is submitted, a log is to know for whom."""
        if self._log is None:
            return nullcontext()
        numbers = [owner.number for owner in piece.owners]
        return owned_by(Owners(numbers, piece.sizes.tolist(), piece.goes_on))

    async def _take_rows(self, arena: Arena, pages: int) -> slice:
        while True:
            self._release()
            rows = arena.take(pages)
            if rows is not None:
                return rows
            await self._next_event()

    # -- answers ------------------------------------------------------------------------------

    def _note_parts(self, piece: _Piece, parts: I64) -> None:
        """Requests have all their pages of a piece; called by the driver."""
        for number in parts.tolist():
            owner = piece.owners[number]
            owner.pieces -= 1
            if owner.pieces == 0:
                self._note(owner)
        piece.unanswered -= len(parts)
        if piece.unanswered == 0:
            self._landed.append(piece)
            self._event.set()

    def _note(self, active: _Active) -> None:
        """A step is done."""
        self._answered.append((self._meter.now_ns, active))
        self._event.set()

    def _go_on(self) -> None:
        """Plan the next step of every request that was answered, or end it."""
        self._release()
        answered, self._answered = self._answered, []
        for now_ns, active in answered:
            compute_ns = 0
            if active.step is not None:
                self._meter.waited(now_ns - active.ready_ns)
            step = next(active.steps, None)
            if step is None:
                self._meter.end(active.arrival_ns, now_ns)
                if self._log is not None:
                    self._log.end(active.number)
                continue
            if active.step is not None:
                compute_ns = self._pace.compute_before_ns(step)
                self._meter.computed(compute_ns)
                if self._log is not None:
                    self._log.compute(active.number, compute_ns)
            active.step = step
            active.ready_ns = now_ns + compute_ns
            self._steps_planned += 1
            issue_ns = self._pace.issue_ns(active.ready_ns)
            heapq.heappush(self._due, (issue_ns, self._steps_planned, active))

    def _release(self) -> None:
        """Check the bytes of pieces that are there, and give their memory back."""
        landed, self._landed = self._landed, []
        for piece in landed:
            if self._arena is not None and piece.rows is not None:
                assert self._verifier is not None
                assert piece.read is not None
                status = piece.read.status
                self._verifier.check(piece.page_ids, status, self._arena[piece.rows])
                self._arena.give_back(piece.rows)

    # -- waiting ------------------------------------------------------------------------------

    async def _pause(self, arrival_ns: int | None) -> None:
        """Wait until a request was answered, or a step is due, or one comes at ``arrival_ns``."""
        await asyncio.sleep(0)  # hits in memory never wait, and others must have their turn
        while not self._answered:
            times = [] if arrival_ns is None else [arrival_ns]
            times += [issue_ns for issue_ns, _, _ in self._due[:1]]
            if times:
                next_ns = min(times)
                if next_ns <= self._meter.now_ns:
                    return
                self._wake_at(next_ns)
            await self._next_event()

    def _wake_at(self, t_ns: int) -> None:
        if t_ns not in self._alarms_ns:
            self._alarms_ns.add(t_ns)
            self._cache.driver.call_at(t_ns, partial(self._ring, t_ns))

    def _ring(self, t_ns: int) -> None:
        self._alarms_ns.remove(t_ns)
        self._event.set()

    async def _next_event(self) -> None:
        if self._failure is None:
            self._event.clear()
            await self._event.wait()
        if self._failure is not None:
            raise self._failure

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()
            self._event.set()


def _cut(owners: Sequence[_Active], page_ids: Sequence[U64], batch_pages: int) -> Iterator[_Piece]:
    """Put the pages of requests (u64[n] of each) into chain batches of bounded size."""
    sizes = np.array([len(ids) for ids in page_ids], np.int64)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    merged = np.concatenate(page_ids)
    for start in range(0, len(merged), batch_pages):
        end = min(start + batch_pages, len(merged))
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(starts, end, side="left"))
        held = np.minimum(ends[first:last], end) - np.maximum(starts[first:last], start)
        goes_on = bool(ends[last - 1] > end)
        yield _Piece(owners[first:last], held, merged[start:end], last - first, goes_on)
