"""The asyncio driver of the chain: moves the bytes, on the loop's own thread.

Copies between memories are done at once, inside :meth:`ChainDriver.perform`; reads and writes of
devices are tasks. Whoever waits for a batch waits for one future.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, cast

import numpy as np

from kvtier.answers import Parts
from kvtier.chain import (
    Action,
    Chain,
    ChainDriver,
    Complete,
    Copy,
    Fetch,
    Fill,
    Flight,
    Move,
    Read,
    Write,
)
from kvtier.clock import Clock
from kvtier.errors import ClosedError, LoopError
from kvtier.gpu import PageIds, Rows
from kvtier.levels import Levels
from kvtier.measure import measurements_by_purpose
from kvtier.pages import I64, U8, U64, PageStatus, Purpose
from kvtier.tasks import Tasks, through_cancellation
from kvtier.tiers import Tier

logger = logging.getLogger(__name__)

YIELD_PAGES: Final = 4096
"""Pages served without waiting for anything before other tasks get their turn."""

TIMER_ERROR_NS: Final = 2_000_000
"""Timers of event loops are right to a millisecond; what is left then is waited for by polling."""

CLOSE_PATIENCE_S: Final = 10.0
"""How long ``close`` waits for device reads under way before it cancels them."""


@dataclass(slots=True, eq=False)
class _Job:
    """A batch somebody waits for, and the memory it reads into or writes from."""

    ticket: Read | Write
    rows: Rows | None
    start_ns: int
    parts: Parts | None = None
    future: asyncio.Future[None] | None = None

    def settle(self) -> None:
        """Of a read with parts: find what was answered without a copy."""
        if self.parts is not None and isinstance(self.ticket, Read):
            self.parts.settle(self.ticket)


class AsyncDriver(ChainDriver):
    """Performs a chain's actions on real tiers and a real origin.

    Args:
        chain: the state machine.
        levels: what the chain's levels stand for.
        page_bytes: bytes of a page.
        clock: for latencies.
        deadline_s: of reads that name none; None: they wait for every page.
    """

    def __init__(
        self,
        chain: Chain,
        levels: Levels,
        page_bytes: int,
        clock: Clock,
        deadline_s: float | None = None,
    ) -> None:
        super().__init__(chain, [tier.index for tier in levels.tiers])
        self.measurements = measurements_by_purpose(len(levels))
        self.gpu_memory = levels.gpu_memory
        self._levels = levels
        self._page_bytes = page_bytes
        self._clock = clock
        self._opened_ns = clock.now_ns()
        self._deadline_s = deadline_s
        self._jobs: dict[int, _Job] = {}
        self._tasks = Tasks(self._ended)
        self._loop = asyncio.get_running_loop()
        self._gate = asyncio.Lock()
        self._progress = asyncio.Event()
        self._unyielded_pages = 0
        self._failing: set[int] = set()
        self._broken: BaseException | None = None

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """In the chain's order."""
        return self._levels.tiers

    @property
    def age_s(self) -> float:
        """How long it has been open."""
        return (self._clock.now_ns() - self._opened_ns) / 1e9

    # -- batches ------------------------------------------------------------------------------

    def rows(self, count: int) -> U8:
        """Memory for ``count`` pages."""
        return np.empty((count, self._page_bytes), np.uint8)

    async def read(
        self,
        page_ids: PageIds,
        out: Rows | None,
        deadline_s: float | None = None,
        purpose: Purpose = Purpose.UNSTATED,
    ) -> U8:
        """Read a batch into ``out`` (u8[n, page_bytes]); returns a ``PageStatus`` per page."""
        read: Read | None = None
        try:
            async with asyncio.timeout(self._deadline_s if deadline_s is None else deadline_s):
                read = await self._start(page_ids, out, purpose=purpose)
                await self._finish(read)
        except TimeoutError:
            if read is None:  # it found no room in time
                self.chain.turn_away(len(page_ids), purpose)
                return np.full(len(page_ids), PageStatus.LATE, np.uint8)
        return self.chain.expire(read) if read.unresolved else read.status

    async def prepare(self, requests: int) -> None:
        """Nothing: whoever collects the batches of so many requests has taken the time."""

    async def submit(
        self,
        page_ids: U64,
        out: U8 | None,
        parts: Parts,
        purpose: Purpose = Purpose.UNSTATED,
    ) -> Read:
        """Start a batch, as soon as there is room for it, and wait for no page of it.

        Args:
            page_ids: u64[n].
            out: u8[n, page_bytes], written until every part is answered.
            parts: is told what is answered, possibly before this returns; all that is left, should
                the driver break down.
            purpose: what the pages are for.

        Returns:
            The batch; its ``status`` says what became of each page that is answered.
        """
        return await self._start(page_ids, out, purpose=purpose, parts=parts)

    async def prefetch(self, page_ids: PageIds) -> U8:
        """Fill the tiers with a batch; returns a ``PageStatus`` per page."""
        read = await self._start(page_ids, None)
        await self._finish(read)
        return read.status

    async def hold(self, page_ids: PageIds) -> tuple[Read, I64]:
        """Fill the tiers with a batch and keep its epoch until ``chain.release``.

        Returns:
            The read to be released, and i64[n], each page's slot in the first tier or -1.
        """
        ids = cast("U64", page_ids).copy()
        read = await self._start(ids, None, held=True)
        await self._finish(read)
        return read, self.indexes[0].peek(ids)

    async def write(self, page_ids: U64, objects: int, payload: U8 | None) -> None:
        """Fill the tiers with new objects' pages; ``payload`` is not read after the return."""
        self.check()
        assert payload is not None
        writes_shut = self.chain.writes_shut(self._clock.now_ns())
        write, actions = self.chain.write(page_ids, objects, writes_shut=writes_shut)
        job = self._jobs[write.epoch] = _Job(write, payload, self._clock.now_ns())
        self._perform_safely(actions)
        if write.epoch in self._jobs:
            job.future = asyncio.get_running_loop().create_future()
            await through_cancellation(job.future)

    async def drain(self) -> None:
        """Wait until every batch is answered and every fill has ended."""
        while self._tasks or not self.chain.idle:
            self.check()
            self._progress.clear()
            await self._progress.wait()
        self.check()

    async def close(self) -> None:
        """Wait for what is under way, then refuse everything.

        A backend that does not answer within :data:`CLOSE_PATIENCE_S` is cancelled, and whoever
        still waits for it gets a ClosedError.
        """
        if isinstance(self._broken, ClosedError):
            return
        await self._tasks.end(CLOSE_PATIENCE_S)
        self._broken = ClosedError("the cache is closed")
        self._progress.set()

    def call_at(self, t_ns: int, call: Callable[[], None]) -> None:
        """Call something on the loop at ``t_ns`` of the clock, or when it next comes round."""
        loop = asyncio.get_running_loop()
        early_ns = t_ns - self._clock.now_ns() - TIMER_ERROR_NS

        def poll() -> None:
            if self._clock.now_ns() < t_ns:
                loop.call_soon(poll)
            else:
                call()

        if early_ns > 0:
            loop.call_later(early_ns / 1e9, poll)
        else:
            loop.call_soon(poll)

    def check(self) -> None:
        """Raise ClosedError if the cache was closed or has broken down, LoopError elsewhere."""
        if isinstance(self._broken, ClosedError):
            raise self._broken
        if self._broken is not None:
            raise ClosedError(f"the cache broke down: {self._broken!r}") from self._broken
        if asyncio.get_running_loop() is not self._loop:
            raise LoopError(
                "the cache was opened in another event loop: from there, "
                "call asyncio.run_coroutine_threadsafe(cache.read(...), loop)"
            )

    async def _start(
        self,
        page_ids: PageIds,
        out: Rows | None,
        *,
        held: bool = False,
        purpose: Purpose = Purpose.UNSTATED,
        parts: Parts | None = None,
    ) -> Read:
        start_ns = self._clock.now_ns()
        if self._unyielded_pages >= YIELD_PAGES:
            self._unyielded_pages = 0
            await asyncio.sleep(0)
        self.check()
        if self.chain.room_pages < len(page_ids) or self._gate.locked():
            await self._find_room(page_ids)
        # The chain hands them to the index, and looks at those that missed.
        asked_for = cast("U64", page_ids)
        read, actions = self.chain.read(
            asked_for,
            wants_bytes=out is not None,
            held=held,
            purpose=purpose,
            origin_shut=not self._levels.origin_available,
            writes_shut=self.chain.writes_shut(self._clock.now_ns()),
        )
        job = self._jobs[read.epoch] = _Job(read, out, start_ns, parts)
        self._perform_safely(actions)
        job.settle()
        self._unyielded_pages += len(page_ids)
        return read

    async def _find_room(self, page_ids: PageIds) -> None:
        """Wait until the in-flight table can take what the batch will miss; first come, first."""
        if self._flying(page_ids) == 0:
            return
        async with self._gate:
            self.check()
            while self.chain.room_pages < self._flying(page_ids):
                self._progress.clear()
                await self._progress.wait()
                self.check()

    def _flying(self, page_ids: PageIds) -> int:
        """Pages of a batch that will need a flight, at most; hits in memory need none."""
        if not self.tiers or not self.tiers[0].in_memory:
            return len(page_ids)
        return int(np.count_nonzero(self.indexes[0].peek(cast("U64", page_ids)) < 0))

    async def _finish(self, read: Read) -> None:
        """Wait for a batch that was not answered at once."""
        job = self._jobs.get(read.epoch)
        if job is None:
            return
        job.future = asyncio.get_running_loop().create_future()
        self._unyielded_pages = 0
        try:
            await job.future
        except BaseException:
            # The caller leaves: its memory is not touched again; the fetches go on.
            self.chain.leave(read)
            job.rows = None
            if read.held:
                self.chain.release(read)
            raise

    def _perform_safely(self, actions: Iterable[Action]) -> None:
        """Perform what a caller started; a defect there must not leave others waiting."""
        try:
            self.perform(actions)
        except BaseException as error:
            self._break(error)
            raise

    # -- actions ------------------------------------------------------------------------------

    def copy(self, action: Copy) -> Iterable[Action]:
        """Copy pages into the caller's rows, unless it has left."""
        job = self._jobs[action.read.epoch]
        if job.rows is not None:
            self._levels.copy(action, job.rows)
            elapsed_ns = self._clock.now_ns() - job.start_ns
            measurements = self.measurements[action.read.purpose]
            measurements.served(action.level, elapsed_ns, len(action.sources))
        actions = self.chain.copied(action)
        if job.parts is not None:
            job.parts.copied(action.rows)
        return actions

    def fill(self, action: Fill) -> Iterable[Action]:
        """Copy pages into a tier in memory at once, or start writing them to a device."""
        if not self.tiers[action.level].in_memory:
            self._tasks.spawn(self._fill_device(action))
            return ()
        self._levels.fill(action, self._written(action.origin))
        return self.chain.filled(action)

    def fetch(self, action: Fetch) -> None:
        """Start a device read as a task."""
        self._tasks.spawn(self._fetch(action))

    def move(self, action: Move) -> None:
        """Start moving pages of a device as a task."""
        self._tasks.spawn(self._move(action))

    def complete(self, action: Complete) -> None:
        """Resolve the future of the batch."""
        job = self._jobs.pop(action.ticket.epoch)
        if isinstance(action.ticket, Read):
            elapsed_ns = self._clock.now_ns() - job.start_ns
            self.measurements[action.ticket.purpose].batch(elapsed_ns)
            job.settle()
        if job.future is not None and not job.future.done():
            job.future.set_result(None)
        self._progress.set()

    async def _fetch(self, action: Fetch) -> None:
        flight, level = action.flight, action.level
        try:
            status, issued = await self._levels.read(action)
        except (Exception, asyncio.CancelledError) as error:
            self._note_failure(level, error)
            status = np.full(len(flight), PageStatus.FAILED, np.uint8)
            issued = action.extents
        else:
            self._failing.discard(level)
        self.perform(self.chain.fetched(flight, status, issued))
        if status.any():
            for job in self._jobs.values():
                job.settle()

    async def _fill_device(self, action: Fill) -> None:
        try:
            status = await self._levels.write(action, self._written(action.origin))
        except (Exception, asyncio.CancelledError) as error:
            self._note_failure(action.level, error)
            status = np.full(len(action.slots), PageStatus.FAILED, np.uint8)
        self.perform(self.chain.filled(action, status == PageStatus.OK))

    async def _move(self, action: Move) -> None:
        try:
            status = await self._levels.move(action)
        except (Exception, asyncio.CancelledError) as error:
            self._note_failure(action.level, error)
            status = np.full(len(action.moves.page_ids), PageStatus.FAILED, np.uint8)
        self.end_move(action, status == PageStatus.OK)

    def _written(self, origin: Flight | Write) -> U8 | None:
        """The payload of a write, which is read until its fills have ended."""
        if isinstance(origin, Flight):
            return None
        rows = self._jobs[origin.epoch].rows
        assert isinstance(rows, np.ndarray)
        return rows

    # -- tasks, failures ----------------------------------------------------------------------

    def _ended(self, error: BaseException | None) -> None:
        self._progress.set()
        if error is not None:
            self._break(error)

    def _break(self, error: BaseException) -> None:
        """A defect of ours or a loop shut down: nobody may wait for ever."""
        self._broken = self._broken or error
        self._progress.set()
        for job in self._jobs.values():
            if job.future is not None and not job.future.done():
                job.future.set_exception(ClosedError(f"the cache broke down: {error!r}"))
            if job.parts is not None:
                job.parts.abandon()

    def _note_failure(self, level: int, error: BaseException) -> None:
        """Say once that a level fails, and again only after it has worked in between.

        A device fails its own pages only, whatever a plugin raises; a CancelledError too, unless
        it is this task that is being cancelled.
        """
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise error
        if level not in self._failing:
            self._failing.add(level)
            name = self._levels.name(level)
            logger.warning("%s fails: %s: %s", name, type(error).__name__, error)
