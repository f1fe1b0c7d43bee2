"""The driver of the chain in virtual time: devices are modelled, and no bytes move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kvtier.answers import Parts
from kvtier.chain import (
    Action,
    Chain,
    Complete,
    Copy,
    Fetch,
    Fill,
    Move,
    Read,
    Write,
)
from kvtier.chain.driver import Index
from kvtier.directory import ObjectDirectory
from kvtier.emulator.loop import VirtualLoop
from kvtier.emulator.modelled import Hardware, ModelledDriver
from kvtier.emulator.timeline import Timeline
from kvtier.errors import LimitError
from kvtier.gpu import PageIds, Rows
from kvtier.gpu_memory import GpuMemory
from kvtier.pages import I64, U8, U64, PageStatus, Purpose


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """A batch that is not complete, and of a read with parts, who is told of them."""

    ticket: Read | Write
    start_ns: int
    parts: Parts | None = None

    def settle(self) -> None:
        """Find what was answered without a copy."""
        if self.parts is not None and isinstance(self.ticket, Read):
            self.parts.settle(self.ticket)


class VirtualDriver(ModelledDriver):
    """Performs a chain's actions in virtual time, for whoever waits.

    Its coroutines run on a :class:`kvtier.emulator.VirtualLoop` of the same timeline, where
    waiting lets virtual time pass.

    Args:
        chain: the state machine.
        indexes: of the tiers, in the chain's order.
        hardware: that stands for the levels.
        directory: says which pages the origin has.
        timeline: virtual time, which drivers may share.
    """

    def __init__(
        self,
        chain: Chain,
        indexes: Sequence[Index],
        hardware: Hardware,
        directory: ObjectDirectory,
        timeline: Timeline,
    ) -> None:
        super().__init__(chain, indexes, hardware, timeline)
        self.gpu_memory = GpuMemory(None, 0)
        self._directory = directory
        self._batches: dict[int, _Batch] = {}
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._gate = asyncio.Lock()

    # -- batches ------------------------------------------------------------------------------

    def rows(self, count: int) -> U8 | None:  # noqa: ARG002  # the interface of all drivers
        """No memory: no bytes move."""
        return None

    async def read(
        self,
        page_ids: PageIds,
        out: Rows | None,  # noqa: ARG002  # the interface of all drivers
        deadline_s: float | None = None,
        purpose: Purpose = Purpose.UNSTATED,
    ) -> U8:
        """Read a batch; returns a ``PageStatus`` per page (u8[n])."""
        read: Read | None = None
        try:
            async with asyncio.timeout(deadline_s):
                read = await self._start(page_ids, wants_bytes=True, purpose=purpose)
                await self._finish(read)
        except TimeoutError:
            if read is None:  # it found no room in time
                self.chain.turn_away(len(page_ids), purpose)
                return np.full(len(page_ids), PageStatus.LATE, np.uint8)
        return self.chain.expire(read) if read.unresolved else read.status

    async def prepare(self, requests: int) -> None:
        """Let the time pass that it takes to collect the batches of so many requests."""
        if self.hardware.host is not None:
            await self._reach(self.hardware.host.prepare(self.timeline.now_ns, requests))

    async def submit(
        self,
        page_ids: U64,
        out: U8 | None,  # noqa: ARG002  # the interface of all drivers
        parts: Parts,
        purpose: Purpose = Purpose.UNSTATED,
    ) -> Read:
        """As the asyncio driver's."""
        return await self._start(page_ids, wants_bytes=True, purpose=purpose, parts=parts)

    async def prefetch(self, page_ids: PageIds) -> U8:
        """Fill the tiers with a batch; returns a ``PageStatus`` per page (u8[n])."""
        read = await self._start(page_ids, wants_bytes=False)
        await self._finish(read)
        return read.status

    async def hold(self, page_ids: PageIds) -> tuple[Read, I64]:
        """As the asyncio driver's."""
        read = await self._start(page_ids, wants_bytes=False, held=True)
        await self._finish(read)
        return read, self.indexes[0].peek(read.page_ids)

    async def write(
        self,
        page_ids: U64,
        objects: int,
        payload: U8 | None,  # noqa: ARG002  # the interface of all drivers
    ) -> None:
        """Fill the tiers with new objects' pages."""
        start_ns = self.timeline.now_ns
        await self._pass_host()
        writes_shut = self.chain.writes_shut(self.timeline.now_ns)
        write, actions = self.chain.write(page_ids, objects, writes_shut=writes_shut)
        self._batches[write.epoch] = _Batch(write, start_ns)
        self.perform(actions)
        await self._until(lambda: write.epoch not in self._batches)

    async def put(self, pages: I64) -> None:
        """Let virtual time pass until whole objects (pages of each) have reached the last level."""
        arrived = _future()

        def end() -> None:
            if not arrived.done():
                arrived.set_result(None)

        self.put_objects(pages, end)
        await arrived

    async def drain(self) -> None:
        """Wait until every batch is answered and every fill has ended."""
        await self._until(lambda: self.chain.idle)

    async def close(self) -> None:
        """Nothing to let go of."""

    def check(self) -> None:
        """Never closed, never broken."""

    def call_at(self, t_ns: int, call: Callable[[], None]) -> None:
        """As the asyncio driver's."""
        self.timeline.at(max(t_ns, self.timeline.now_ns), call)

    def perform(self, actions: Iterable[Action]) -> None:
        """Perform actions, and let those go on who waited for what they did."""
        super().perform(actions)
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for done, future in waiting:
                if future.done():
                    continue  # it was cancelled
                if done():
                    future.set_result(None)
                else:
                    self._waiting.append((done, future))

    async def _start(
        self,
        page_ids: PageIds,
        *,
        wants_bytes: bool,
        held: bool = False,
        purpose: Purpose = Purpose.UNSTATED,
        parts: Parts | None = None,
    ) -> Read:
        assert isinstance(page_ids, np.ndarray), "in virtual time there is no GPU"
        start_ns = self.timeline.now_ns
        await self._pass_host()
        if self.chain.room_pages < len(page_ids) or self._gate.locked():
            async with self._gate:  # first come, first
                await self._until(lambda: self.chain.room_pages >= len(page_ids))
        read, actions = self.chain.read(
            page_ids,
            wants_bytes=wants_bytes,
            held=held,
            purpose=purpose,
            writes_shut=self.chain.writes_shut(self.timeline.now_ns),
        )
        batch = self._batches[read.epoch] = _Batch(read, start_ns, parts)
        self.perform(actions)
        batch.settle()
        return read

    async def _pass_host(self) -> None:
        """Wait until the host's software has begun a batch."""
        if self.hardware.host is not None:
            await self._reach(self.hardware.host.begin(self.timeline.now_ns))

    async def _reach(self, t_ns: int) -> None:
        """Wait until ``t_ns``."""
        reached = _future()

        def reach() -> None:
            if not reached.done():
                reached.set_result(None)

        self.timeline.at(t_ns, reach)
        await reached

    async def _finish(self, read: Read) -> None:
        """Wait for a batch; who leaves before its end is not answered any more."""
        try:
            await self._until(lambda: read.unresolved == 0)
        except BaseException:
            self.chain.leave(read)
            if read.held:
                self.chain.release(read)
            raise

    async def _until(self, done: Callable[[], bool]) -> None:
        """Wait until ``done``, which is asked whenever actions were performed."""
        if not done():
            future = _future()
            self._waiting.append((done, future))
            await future

    # -- actions ------------------------------------------------------------------------------

    def copy(self, action: Copy) -> Iterable[Action]:
        """Pages take the time of the memory that they are in: a tier's, or that of staging."""
        in_staging = action.flight is not None and action.flight.buffer >= 0
        route = self.hardware.staging if in_staging else self.hardware.routes[action.level]
        if not route.reads:
            return self._copied(action)

        def end() -> None:
            self.perform(self._copied(action))

        self.travel(route, action.sources, None, end, is_write=False)
        return ()

    def fill(self, action: Fill) -> Iterable[Action]:
        """Pages take the time of the tier's device to be written."""

        def end() -> None:
            self.perform(self.chain.filled(action))

        route = self.hardware.routes[action.level]
        if self.chain.is_in_memory(action.level):
            self.travel(route, action.slots, None, end, is_write=True)
        else:
            self.travel_runs(route, action.slots, end, is_write=True)
        return ()

    def move(self, action: Move) -> None:
        """Moved pages take the time of the tier's device to be read and written."""
        self.travel_moves(action, lambda: self.end_move(action))

    def fetch(self, action: Fetch) -> None:
        """A device read takes the time of its level's device."""
        flight, issued = action.flight, action.extents
        status = np.zeros(len(flight), np.uint8)
        if action.level == len(self.indexes):
            _, _, existing = self._directory.clip(issued.first, issued.count)
            found = np.zeros(len(issued), np.uint8)
            status = issued.page_status(found, existing, flight.rows)
            issued = issued.clipped(existing)

        def end() -> None:
            self.perform(self.chain.fetched(flight, status, issued))
            if np.count_nonzero(status):
                for batch in self._batches.values():
                    batch.settle()

        self.travel(
            self.hardware.routes[action.level], issued.first, issued.count, end, is_write=False
        )

    def complete(self, action: Complete) -> None:
        """Note how long the batch took."""
        batch = self._batches.pop(action.ticket.epoch)
        if isinstance(action.ticket, Read):
            elapsed_ns = self.timeline.now_ns - batch.start_ns
            self.measurements[action.ticket.purpose].batch(elapsed_ns)
            batch.settle()

    def _copied(self, action: Copy) -> Iterable[Action]:
        read = action.read
        batch = self._batches[read.epoch]
        if not read.detached:
            elapsed_ns = self.timeline.now_ns - batch.start_ns
            self.measurements[read.purpose].served(action.level, elapsed_ns, len(action.sources))
        actions = self.chain.copied(action)
        if batch.parts is not None:
            batch.parts.copied(action.rows)
        return actions


def _future() -> asyncio.Future[None]:
    """A future of the running loop, which must be one in which virtual time passes."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualLoop):
        raise LimitError(
            "an emulated cache was awaited where no virtual time passes: run it on "
            "kvtier.emulator.VirtualLoop(driver.timeline)"
        )
    return loop.create_future()
