"""The driver of the chain in virtual time: devices are modelled, and no bytes move."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence

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
from kvtier.clock import VirtualClock
from kvtier.directory import ObjectDirectory
from kvtier.emulator.device import ModelledDevice
from kvtier.measure import measurements_by_purpose
from kvtier.pages import I64, U8, U64, Purpose


class VirtualDriver(ChainDriver):
    """Performs a chain's actions on modelled devices.

    Its methods are coroutines because the cache calls them so; none of them ever waits: a call
    runs the events of virtual time until its own end. Calls must therefore not overlap.

    Args:
        chain: the state machine.
        indexes: of the tiers, in the chain's order.
        devices: one per level.
        directory: says which pages the origin has.
        page_bytes: bytes of a page.
        clock: moved by this driver only.
    """

    def __init__(
        self,
        chain: Chain,
        indexes: Sequence[Index],
        devices: Sequence[ModelledDevice],
        directory: ObjectDirectory,
        page_bytes: int,
        clock: VirtualClock,
    ) -> None:
        super().__init__(chain, indexes)
        self.measurements = measurements_by_purpose(len(devices))
        self.devices = tuple(devices)
        self._directory = directory
        self._page_bytes = page_bytes
        self._clock = clock
        self._started_ns: dict[int, int] = {}
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._event_count = 0

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
        end_ns = None if deadline_s is None else self._clock.now_ns() + round(deadline_s * 1e9)
        self._run_until(lambda: read.unresolved == 0, end_ns)
        return self.chain.expire(read) if read.unresolved else read.status

    async def prefetch(self, page_ids: U64) -> U8:
        """Fill the tiers with a batch; returns a ``PageStatus`` per page (u8[n])."""
        read = self._start(page_ids, wants_bytes=False)
        self._run_until(lambda: read.unresolved == 0)
        return read.status

    async def hold(self, page_ids: U64) -> tuple[Read, I64]:
        """As the asyncio driver's."""
        read = self._start(page_ids, wants_bytes=False, held=True)
        self._run_until(lambda: read.unresolved == 0)
        return read, self.indexes[0].peek(page_ids)

    async def write(
        self,
        page_ids: U64,
        objects: int,
        payload: U8 | None,  # noqa: ARG002  # the interface of all drivers
    ) -> None:
        """Fill the tiers with new objects' pages."""
        write, actions = self.chain.write(page_ids, objects)
        self._started_ns[write.epoch] = self._clock.now_ns()
        self.perform(actions)
        self._run_until(lambda: write.epoch not in self._started_ns)

    async def drain(self) -> None:
        """Let everything that is under way end."""
        self._run_until(lambda: False)

    async def close(self) -> None:
        """Nothing to let go of."""

    def check(self) -> None:
        """Never closed, never broken."""

    def spend(self, level: int, operations: int, size_bytes: int) -> None:
        """Let virtual time pass until a device has served something outside the chain."""
        end_ns = self.devices[level].serve(self._clock.now_ns(), operations, size_bytes)
        done: list[None] = []
        self._at(end_ns, lambda: done.append(None))
        self._run_until(lambda: bool(done))

    def _start(
        self,
        page_ids: U64,
        *,
        wants_bytes: bool,
        held: bool = False,
        purpose: Purpose = Purpose.UNSTATED,
    ) -> Read:
        self._run_until(lambda: self.chain.room_pages >= len(page_ids))
        read, actions = self.chain.read(
            page_ids, wants_bytes=wants_bytes, held=held, purpose=purpose
        )
        self._started_ns[read.epoch] = self._clock.now_ns()
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

        self._serve(action.level, len(action.sources), len(action.sources), end)
        return ()

    def fill(self, action: Fill) -> Iterable[Action]:
        """Pages take the time of the tier's device to be written."""
        pages = len(action.slots)
        self._serve(action.level, pages, pages, lambda: self.perform(self.chain.filled(action)))
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
        self._serve(
            action.level,
            len(issued),
            issued.pages,
            lambda: self.perform(self.chain.fetched(flight, status, issued)),
        )

    def complete(self, action: Complete) -> None:
        """Note how long the batch took."""
        elapsed_ns = self._clock.now_ns() - self._started_ns.pop(action.ticket.epoch)
        if isinstance(action.ticket, Read):
            self.measurements[action.ticket.purpose].batch(elapsed_ns)

    def _measure(self, action: Copy) -> None:
        if not action.read.detached:
            elapsed_ns = self._clock.now_ns() - self._started_ns[action.read.epoch]
            measurements = self.measurements[action.read.purpose]
            measurements.served(action.level, elapsed_ns, len(action.sources))

    # -- virtual time -------------------------------------------------------------------------

    def _serve(self, level: int, operations: int, pages: int, end: Callable[[], None]) -> None:
        now_ns = self._clock.now_ns()
        self._at(self.devices[level].serve(now_ns, operations, pages * self._page_bytes), end)

    def _at(self, t_ns: int, event: Callable[[], None]) -> None:
        # The count keeps events of the same moment in the order in which they were planned.
        self._event_count += 1
        heapq.heappush(self._events, (t_ns, self._event_count, event))

    def _run_until(self, done: Callable[[], bool], end_ns: int | None = None) -> None:
        """Let events happen until ``done``, or none is left, or ``end_ns`` has come."""
        while not done() and self._events:
            if end_ns is not None and self._events[0][0] > end_ns:
                self._clock.advance_to(end_ns)
                return
            t_ns, _, event = heapq.heappop(self._events)
            self._clock.advance_to(t_ns)
            event()
