"""The driver in virtual time that repeats what another driver told its chain.

Decisions are those of the asyncio driver, because the chain is told the same in the same order:
copies, and fills of tiers in memory, at once; the ends of device reads and writes when whoever
feeds this driver says so. Time is modelled: what was told at once has still a way to go, and
whoever waits for it is answered when it has arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from kvtier.chain import (
    Action,
    Chain,
    Complete,
    Copy,
    Fetch,
    Fill,
    Flight,
    Move,
    Read,
    Write,
)
from kvtier.chain.driver import Index
from kvtier.emulator.modelled import Hardware, ModelledDriver
from kvtier.emulator.station import Route
from kvtier.emulator.timeline import Event, Timeline
from kvtier.pages import I64, U8, U64, Bool, PageStatus, Purpose

Answered = Callable[[I64], None]
ActionT = TypeVar("ActionT", Fetch, Fill, Move)


@dataclass(slots=True, eq=False)
class DeviceWork(Generic[ActionT]):
    """A read (``Fetch``), a write (``Fill``) or both (``Move``) that the chain asked a device for.

    Attributes:
        is_over: by its model it has ended; the chain may be told.
    """

    action: ActionT
    is_over: bool = False

    def end(self) -> None:
        """By its model it has ended."""
        self.is_over = True


class _Parts:
    """Which parts of a batch, each of one owner, have all their rows.

    Args:
        sizes: i64[k], rows of each part, in the order of the batch.
        answered: called with the numbers of parts (i64[m]) that are answered now.
    """

    def __init__(self, sizes: I64, answered: Answered) -> None:
        self._part_of = np.repeat(np.arange(len(sizes)), sizes)
        self._rows_left = sizes.astype(np.int64)
        self._refused = np.zeros_like(self._rows_left)
        self._answered = answered

    def arrived(self, rows: I64 | None) -> None:
        """The bytes of rows (i64[m], None for all) are there."""
        parts = self._part_of if rows is None else self._part_of[rows]
        self._take(np.bincount(parts, minlength=len(self._rows_left)))

    def refuse(self, read: Read) -> None:
        """Count the rows for which no bytes will come, if there are more of them."""
        without = (read.status == PageStatus.ABSENT) | (read.status == PageStatus.FAILED)
        refused = np.bincount(self._part_of[without], minlength=len(self._rows_left))
        self._refused, before = refused, self._refused
        self._take(refused - before)

    def end(self) -> None:
        """Nothing more will come."""
        self._take(self._rows_left)

    def _take(self, rows: I64) -> None:
        before = self._rows_left
        self._rows_left = before - rows
        done = np.flatnonzero((self._rows_left == 0) & (before > 0))
        if len(done):
            self._answered(done)


@dataclass(slots=True, eq=False)
class _Batch:
    """A batch that is not answered.

    Attributes:
        travelling: copies and fills that count for the chain as done, and are on their way.
        is_complete: it is, for the chain.
        parts: of a read that has owners.
        done: of a write, called when it has ended.
    """

    ticket: Read | Write
    start_ns: int
    travelling: int = 0
    is_complete: bool = False
    parts: _Parts | None = None
    done: Event | None = None


class RepeatingDriver(ModelledDriver):
    """Performs a chain's actions in virtual time, and is told when those of devices end.

    Args:
        chain: the state machine.
        indexes: of the tiers, in the chain's order.
        hardware: that stands for the levels.
        timeline: virtual time.

    Attributes:
        reads: by their epoch, those that are unresolved or held.
        fetches: device reads under way, by the number of their flight.
        fills: writes of devices under way, by what they are of (a write or a flight), its epoch or
            number, and the level.
        moves: moves under way, by their number.
    """

    def __init__(
        self, chain: Chain, indexes: Sequence[Index], hardware: Hardware, timeline: Timeline
    ) -> None:
        super().__init__(chain, indexes, hardware, timeline)
        self.reads: dict[int, Read] = {}
        self.fetches: dict[int, DeviceWork[Fetch]] = {}
        self.fills: dict[tuple[type[Flight | Write], int, int], DeviceWork[Fill]] = {}
        self.moves: dict[int, DeviceWork[Move]] = {}
        self._batches: dict[int, _Batch] = {}
        self._travelling = 0

    @property
    def is_still(self) -> bool:
        """Nothing that the chain takes for done is still on its way."""
        return self._travelling == 0

    # -- what is repeated ---------------------------------------------------------------------

    def read(
        self,
        page_ids: U64,
        *,
        purpose: Purpose = Purpose.UNSTATED,
        wants_bytes: bool = True,
        held: bool = False,
        origin_shut: bool = False,
        writes_shut: bool = False,
        sizes: I64 | None = None,
        answered: Answered | None = None,
    ) -> Read:
        """Start a batch of reads.

        Args:
            page_ids: u64[n].
            purpose: as of :meth:`kvtier.chain.Chain.read`.
            wants_bytes: the same.
            held: the same.
            origin_shut: the same.
            writes_shut: the same.
            sizes: i64[k], rows of each owner, in the order of the batch.
            answered: called with the numbers of owners (i64[m]) whose pages are all there, possibly
                before this returns. It must not start a batch.

        Raises:
            LimitError: the in-flight table has no room for it.
        """
        self._occupy_host(0 if sizes is None else len(sizes))
        read, actions = self.chain.read(
            page_ids,
            wants_bytes=wants_bytes,
            held=held,
            purpose=purpose,
            origin_shut=origin_shut,
            writes_shut=writes_shut,
        )
        batch = self._batches[read.epoch] = _Batch(read, self.timeline.now_ns)
        self.reads[read.epoch] = read
        if sizes is not None and answered is not None:
            batch.parts = _Parts(sizes, answered)
        self.perform(actions)
        if batch.parts is not None and read.status.any():
            batch.parts.refuse(read)
        return read

    def write(
        self,
        page_ids: U64,
        objects: int,
        done: Event | None = None,
        *,
        writes_shut: bool = False,
    ) -> Write:
        """Start filling the tiers with new objects' pages; ``done`` is called at the end."""
        self._occupy_host(0)
        write, actions = self.chain.write(page_ids, objects, writes_shut=writes_shut)
        self._batches[write.epoch] = _Batch(write, self.timeline.now_ns, done=done)
        self.perform(actions)
        return write

    def put(self, pages: I64, done: Event) -> None:
        """Send whole objects (pages of each) to the last level."""
        self.put_objects(pages, done)

    def expire(self, read: Read) -> None:
        """The deadline of a read passed."""
        self.chain.expire(read)

    def leave(self, read: Read) -> None:
        """The caller of a read went away."""
        self.chain.leave(read)

    def release(self, read: Read) -> None:
        """The hold of a read ended."""
        self.chain.release(read)
        if read.unresolved == 0:
            self.reads.pop(read.epoch, None)

    def fetched(self, work: DeviceWork[Fetch], status: U8 | None, existing: I64 | None) -> None:
        """A device read ended.

        Args:
            work: which; one of ``fetches``.
            status: u8[n], a ``PageStatus`` per page of its flight; None: all are OK.
            existing: i64[e], pages that exist of each of its extents; None: all.
        """
        flight, issued = work.action.flight, work.action.extents
        del self.fetches[flight.number]
        if existing is not None:
            issued = issued.clipped(existing)
        if status is None:
            status = np.zeros(len(flight), np.uint8)
        self.perform(self.chain.fetched(flight, status, issued))
        if status.any():
            for batch in list(self._batches.values()):
                if batch.parts is not None and isinstance(batch.ticket, Read):
                    batch.parts.refuse(batch.ticket)

    def filled(self, work: DeviceWork[Fill], ok: Bool | None) -> None:
        """Slots of a device were written (one of ``fills``); ``ok`` says which (None: all)."""
        del self.fills[_name_of(work.action)]
        self.perform(self.chain.filled(work.action, ok))

    def moved(self, work: DeviceWork[Move], ok: Bool | None) -> None:
        """Pages of a device were moved (one of ``moves``); ``ok`` says which (None: all)."""
        del self.moves[work.action.number]
        self.end_move(work.action, ok)

    # -- actions ------------------------------------------------------------------------------

    def copy(self, action: Copy) -> Iterable[Action]:
        """Copied for the chain; pages of a memory tier arrive when its device has served them."""
        batch = self._batches[action.read.epoch]
        is_wanted = not action.read.detached

        def arrive() -> None:
            if is_wanted:
                elapsed_ns = self.timeline.now_ns - batch.start_ns
                measurements = self.measurements[action.read.purpose]
                measurements.served(action.level, elapsed_ns, len(action.sources))
            if batch.parts is not None:
                batch.parts.arrived(action.rows)

        in_staging = action.flight is not None and action.flight.buffer >= 0
        route = self.hardware.staging if in_staging else self.hardware.routes[action.level]
        if route.reads:
            self._send([batch], route, action.sources, arrive, is_write=False)
        else:
            arrive()
        return self.chain.copied(action)

    def fill(self, action: Fill) -> Iterable[Action]:
        """Filled for the chain, if the tier is in memory; else :meth:`filled` says when."""
        if self.chain.is_in_memory(action.level):
            waiting = self._waiting_for(action.origin)
            route = self.hardware.routes[action.level]
            self._send(waiting, route, action.slots, _nothing, is_write=True)
            return self.chain.filled(action)
        work = self.fills[_name_of(action)] = DeviceWork(action)
        route = self.hardware.routes[action.level]
        self.travel_runs(route, action.slots, work.end, is_write=True)
        return ()

    def fetch(self, action: Fetch) -> None:
        """A device read takes the time of its level's device, and then waits to be told."""
        work = self.fetches[action.flight.number] = DeviceWork(action)
        route, extents = self.hardware.routes[action.level], action.extents
        self.travel(route, extents.first, extents.count, work.end, is_write=False)

    def move(self, action: Move) -> None:
        """Moved pages take the time of their device, and then wait for :meth:`moved`."""
        work = self.moves[action.number] = DeviceWork(action)
        self.travel_moves(action, work.end)

    def complete(self, action: Complete) -> None:
        """Answer the batch, as soon as all of it has arrived."""
        batch = self._batches[action.ticket.epoch]
        batch.is_complete = True
        if not (isinstance(batch.ticket, Read) and batch.ticket.held):
            self.reads.pop(batch.ticket.epoch, None)
        self._end_if_done(batch)

    def _end_if_done(self, batch: _Batch) -> None:
        if not batch.is_complete or batch.travelling:
            return
        ticket = batch.ticket
        del self._batches[ticket.epoch]
        if isinstance(ticket, Read):
            elapsed_ns = self.timeline.now_ns - batch.start_ns
            self.measurements[ticket.purpose].batch(elapsed_ns)
        if batch.parts is not None:
            batch.parts.end()
        if batch.done is not None:
            batch.done()

    def _waiting_for(self, origin: Flight | Write) -> list[_Batch]:
        """The batches that are answered when the tiers are filled."""
        if isinstance(origin, Write):
            return [self._batches[origin.epoch]]
        reads = [waiter.read for waiter in origin.waiters if not waiter.read.wants_bytes]
        return [self._batches[epoch] for epoch in {read.epoch: None for read in reads}]

    # -- virtual time -------------------------------------------------------------------------

    def _send(
        self, batches: Sequence[_Batch], route: Route, slots: I64, arrive: Event, *, is_write: bool
    ) -> None:
        """Let slots of a tier in memory travel, for which batches wait."""

        def end() -> None:
            arrive()
            self._travelling -= 1
            for batch in batches:
                batch.travelling -= 1
                self._end_if_done(batch)

        self._travelling += 1
        for batch in batches:
            batch.travelling += 1
        self.travel(route, slots, None, end, is_write=is_write)

    def _occupy_host(self, requests: int) -> None:
        """Let the host's software begin a batch of so many requests; what it asks for is later."""
        if self.hardware.host is not None:
            self.hardware.host.prepare(self.timeline.now_ns, requests)
            self.hardware.host.begin(self.timeline.now_ns)


def _name_of(fill: Fill) -> tuple[type[Flight | Write], int, int]:
    if isinstance(fill.origin, Flight):
        return Flight, fill.origin.number, fill.level
    return Write, fill.origin.epoch, fill.level


def _nothing() -> None:
    """What happens when pages have arrived that nobody counts."""
