"""The driver of the chain in virtual time: devices are modelled, and no bytes move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from kvtier.chain import (
    Action,
    Chain,
    ChainDriver,
    Complete,
    Copy,
    Fetch,
    Fill,
    Read,
)
from kvtier.chain.driver import Index
from kvtier.directory import ObjectDirectory
from kvtier.emulator.station import Route, Work
from kvtier.emulator.timeline import Event, Timeline
from kvtier.measure import measurements_by_purpose
from kvtier.pages import I64, U8, U64, Purpose


class VirtualDriver(ChainDriver):
    """Performs a chain's actions on modelled devices.

    Its methods are coroutines because the cache calls them so; none of them ever waits: a call
    runs the events of virtual time until its own end. Calls must therefore not overlap.

    Args:
        chain: the state machine.
        indexes: of the tiers, in the chain's order.
        routes: of every level.
        directory: says which pages the origin has.
        page_bytes: bytes of a page.
        timeline: virtual time, which drivers may share.
    """

    def __init__(
        self,
        chain: Chain,
        indexes: Sequence[Index],
        routes: Sequence[Route],
        directory: ObjectDirectory,
        page_bytes: int,
        timeline: Timeline,
    ) -> None:
        super().__init__(chain, indexes)
        self.measurements = measurements_by_purpose(len(routes))
        self.routes = tuple(routes)
        self._directory = directory
        self._page_bytes = page_bytes
        self._timeline = timeline
        self._started_ns: dict[int, int] = {}

    # -- batches ------------------------------------------------------------------------------

    def rows(self, count: int) -> U8 | None:  # noqa: ARG002  # the interface of all drivers
        """No memory: no bytes move."""
        return None

    async def read(
        self,
        page_ids: U64,
        out: U8 | None,  # noqa: ARG002  # the interface of all drivers
        deadline_s: float | None = None,
        purpose: Purpose = Purpose.UNSTATED,
    ) -> U8:
        """Read a batch; returns a ``PageStatus`` per page (u8[n])."""
        read = self._start(page_ids, wants_bytes=True, purpose=purpose)
        end_ns = None if deadline_s is None else self._timeline.now_ns + round(deadline_s * 1e9)
        self._timeline.run_until(lambda: read.unresolved == 0, end_ns)
        return self.chain.expire(read) if read.unresolved else read.status

    async def prefetch(self, page_ids: U64) -> U8:
        """Fill the tiers with a batch; returns a ``PageStatus`` per page (u8[n])."""
        read = self._start(page_ids, wants_bytes=False)
        self._timeline.run_until(lambda: read.unresolved == 0)
        return read.status

    async def hold(self, page_ids: U64) -> tuple[Read, I64]:
        """As the asyncio driver's."""
        read = self._start(page_ids, wants_bytes=False, held=True)
        self._timeline.run_until(lambda: read.unresolved == 0)
        return read, self.indexes[0].peek(page_ids)

    async def write(
        self,
        page_ids: U64,
        objects: int,
        payload: U8 | None,  # noqa: ARG002  # the interface of all drivers
    ) -> None:
        """Fill the tiers with new objects' pages."""
        write, actions = self.chain.write(page_ids, objects)
        self._started_ns[write.epoch] = self._timeline.now_ns
        self.perform(actions)
        self._timeline.run_until(lambda: write.epoch not in self._started_ns)

    async def drain(self) -> None:
        """Let everything that is under way end."""
        self._timeline.run_until(lambda: False)

    async def close(self) -> None:
        """Nothing to let go of."""

    def check(self) -> None:
        """Never closed, never broken."""

    def put(self, pages: I64) -> None:
        """Let virtual time pass until whole objects (pages of each) have reached the last level."""
        done: list[None] = []
        firsts = np.zeros(len(pages), np.uint64)
        self._travel(len(self.routes) - 1, firsts, pages, lambda: done.append(None), is_write=True)
        self._timeline.run_until(lambda: bool(done))

    def _start(
        self,
        page_ids: U64,
        *,
        wants_bytes: bool,
        held: bool = False,
        purpose: Purpose = Purpose.UNSTATED,
    ) -> Read:
        self._timeline.run_until(lambda: self.chain.room_pages >= len(page_ids))
        read, actions = self.chain.read(
            page_ids, wants_bytes=wants_bytes, held=held, purpose=purpose
        )
        self._started_ns[read.epoch] = self._timeline.now_ns
        self.perform(actions)
        return read

    # -- actions ------------------------------------------------------------------------------

    def copy(self, action: Copy) -> Iterable[Action]:
        """Pages of a memory tier take the time of its device; those in staging are there."""
        if action.flight is not None and action.flight.buffer >= 0:
            self._measure(action)
            return self.chain.copied(action)

        def end() -> None:
            self._measure(action)
            self.perform(self.chain.copied(action))

        self._travel(action.level, action.sources, None, end, is_write=False)
        return ()

    def fill(self, action: Fill) -> Iterable[Action]:
        """Pages take the time of the tier's device to be written."""

        def end() -> None:
            self.perform(self.chain.filled(action))

        self._travel(action.level, action.slots, None, end, is_write=True)
        return ()

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

        self._travel(action.level, issued.first, issued.count, end, is_write=False)

    def complete(self, action: Complete) -> None:
        """Note how long the batch took."""
        elapsed_ns = self._timeline.now_ns - self._started_ns.pop(action.ticket.epoch)
        if isinstance(action.ticket, Read):
            self.measurements[action.ticket.purpose].batch(elapsed_ns)

    def _measure(self, action: Copy) -> None:
        if not action.read.detached:
            elapsed_ns = self._timeline.now_ns - self._started_ns[action.read.epoch]
            measurements = self.measurements[action.read.purpose]
            measurements.served(action.level, elapsed_ns, len(action.sources))

    # -- virtual time -------------------------------------------------------------------------

    def _travel(
        self, level: int, locations: U64 | I64, pages: I64 | None, end: Event, *, is_write: bool
    ) -> None:
        work = Work(locations, pages, self._page_bytes, is_write)
        self.routes[level].travel(self._timeline, work, end)
