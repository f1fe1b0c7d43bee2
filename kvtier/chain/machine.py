"""The chain: routes batches through the levels, joins what is on its way, fills what missed.

It is sans-I/O. A driver starts a batch, performs the actions it is given, and reports each with
the method that the action names; every report returns the next actions. The asyncio driver is
:mod:`kvtier.cache`, the one in virtual time :mod:`kvtier.emulator`.

Two rules keep it free of deadlock and of wrong bytes: a fetch waits for its device only, never
for another fetch; and whoever reads slots of a tier holds its epoch, so that they are not reused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from kvtier.chain.actions import (
    Abort,
    Action,
    Complete,
    Copy,
    Fetch,
    Fill,
    Invalidate,
    Lookup,
    Move,
    Publish,
)
from kvtier.chain.admission import AdmissionRule
from kvtier.chain.counters import Counters, no_counts, total
from kvtier.chain.epochs import Epochs
from kvtier.chain.extents import ExtentRules, Extents, plan_extents
from kvtier.chain.flight import NO_ROWS, UNRESOLVED, Flight, Read, Waiter, Write
from kvtier.chain.flights import Flights
from kvtier.chain.kernels import compile_all
from kvtier.chain.misses import fold, with_hits
from kvtier.chain.write_limit import WriteLimit
from kvtier.pages import (
    I64,
    U8,
    U64,
    Bool,
    LookupResult,
    Misses,
    Moves,
    PageState,
    PageStatus,
    Purpose,
)
from kvtier.settings import ChainSettings


@dataclass(frozen=True, slots=True)
class Level:
    """What the chain knows of a level.

    Attributes:
        name: for messages.
        in_memory: its slots can be copied from directly; a device is fetched from.
        admit: which missed pages reserve a slot.
        writes: written objects are kept here.
        rules: how its device reads are merged and packed.
        write_limit: what its device may be written; None: as much as it takes.
    """

    name: str
    in_memory: bool
    admit: AdmissionRule
    writes: bool
    rules: ExtentRules
    write_limit: WriteLimit | None = None


class Chain:
    """The state machine over tiers (fastest first) and, if there is one, the origin behind them.

    Args:
        tiers: cache tiers; tiers in memory come before devices.
        origin: the last level, which has no index.
        settings: bounds.
        page_bytes: bytes of a page, for the byte counters.
    """

    def __init__(
        self,
        tiers: Sequence[Level],
        origin: Level | None,
        settings: ChainSettings,
        page_bytes: int,
    ) -> None:
        self._tiers = tuple(tiers)
        self._levels = self._tiers if origin is None else (*self._tiers, origin)
        self._page_bytes = page_bytes
        self._coalesces = settings.coalesce
        limits = (tier.write_limit for tier in tiers)
        self._write_limits = [limit for limit in limits if limit is not None]
        self._epochs = Epochs()
        self._flights = Flights(settings.inflight_pages_max, self._epochs)
        # Of drives, and of the origin: flights that wait for a staging buffer.
        self._backlogs: tuple[deque[Flight], deque[Flight]] = (deque(), deque())
        buffers = settings.staging_bytes // (settings.device_batch_pages * page_bytes)
        self._free_buffers = list(range(buffers - 1, -1, -1))
        self._kept_buffers = _kept_buffers(buffers, tiers)
        self._open_batches = 0
        self._open_moves = 0
        self._last_move = 0
        compile_all()
        self.buffer_count = buffers
        self.by_purpose = {purpose: no_counts(len(self._levels)) for purpose in Purpose}

    # -- what a driver starts -----------------------------------------------------------------

    @property
    def room_pages(self) -> int:
        """Pages that can still be taken in flight; a batch that misses more has to wait."""
        return self._flights.room_pages

    @property
    def counters(self) -> Counters:
        """Everything counted so far, whatever it was for."""
        return total(self.by_purpose.values(), len(self._levels))

    @property
    def idle(self) -> bool:
        """No batch is unanswered, no page is on its way, and none is being moved."""
        return self._open_batches == 0 and self._open_moves == 0 and not self._flights

    def is_in_memory(self, level: int) -> bool:
        """Whether a level is a tier in memory, and no device."""
        return level < len(self._tiers) and self._tiers[level].in_memory

    def writes_shut(self, now_ns: int) -> bool:
        """Whether a drive has been written so much at ``now_ns`` that it takes nothing more."""
        return any(limit.is_reached(now_ns) for limit in self._write_limits)

    def read(
        self,
        page_ids: U64,
        *,
        wants_bytes: bool = True,
        held: bool = False,
        purpose: Purpose = Purpose.UNSTATED,
        origin_shut: bool = False,
        writes_shut: bool = False,
    ) -> tuple[Read, list[Action]]:
        """Start a batch of demand reads (u64[n], repeats allowed), counted by ``purpose``.

        What the index of a first tier in memory understands beside NumPy arrays may be given too.
        The caller makes sure that at most ``room_pages`` of them need a flight: those that miss a
        first tier in memory, or all where there is none. With ``wants_bytes=False``
        the batch only fills the tiers; with ``held`` its epoch, and so every slot of the first
        tier that it touched, is kept until :meth:`release`. With ``origin_shut`` the origin would
        refuse: it is not asked, pages that no tier has are FAILED at once, and none is evicted
        for them. With ``writes_shut`` tiers that have a write limit admit nothing.
        """
        self._open_batches += 1
        levels = len(self._levels)
        read = Read(
            epoch=self._epochs.begin(),
            page_ids=page_ids,
            purpose=purpose,
            counters=self.by_purpose[purpose],
            status=np.full(len(page_ids), UNRESOLVED, np.uint8),
            wants_bytes=wants_bytes,
            held=held,
            unresolved=len(page_ids),
            lookups=[0] * levels,
            hits=[0] * levels,
            origin_shut=origin_shut,
            writes_shut=writes_shut,
        )
        if len(page_ids) == 0:
            return read, self._complete_read(read)
        if self._tiers:
            return read, [self._lookup(0, read, page_ids)]
        rows = np.arange(len(page_ids))
        if not self._coalesces:
            waiter = Waiter(read, rows, rows, np.ones(len(rows), np.bool_), joined=False)
            return read, self._seek(
                self._flights.take_off(read.epoch, page_ids, waiter, lone=True), 0
            )
        return read, self._miss(read, fold(page_ids, rows))

    def write(
        self, page_ids: U64, objects: int, *, writes_shut: bool = False
    ) -> tuple[Write, list[Action]]:
        """Start filling the tiers with new pages (u64[n], distinct) of whole objects.

        ``writes_shut`` is as of :meth:`read`.
        """
        self._open_batches += 1
        counters = self.by_purpose[Purpose.UNSTATED]
        write = Write(self._epochs.begin(), page_ids, objects, counters, writes_shut)
        actions: list[Action] = [
            self._lookup(level, write, page_ids)
            for level, tier in enumerate(self._tiers)
            if tier.writes and len(page_ids)
        ]
        write.steps = len(actions)
        return write, actions or self._complete_write(write)

    def invalidate(self, page_ids: U64) -> list[Action]:
        """Forget pages (u64[n]) everywhere; those on their way are delivered, but not cached."""
        numbers, positions = self._flights.find(page_ids)
        for flight, chosen in self._flights.grouped(numbers):
            if flight.doomed is None:
                flight.doomed = np.zeros(len(flight), np.bool_)
            flight.doomed[positions[chosen]] = True
        return [Invalidate(level, page_ids) for level in range(len(self._tiers))]

    def expire(self, read: Read) -> U8:
        """Stop waiting for a read whose deadline passed; returns its status, LATE where unknown."""
        status = read.status.copy()
        late = status == UNRESOLVED
        status[late] = PageStatus.LATE
        read.late = int(late.sum())
        read.detached = True
        return status

    def leave(self, read: Read) -> None:
        """Bring a read no more pages: its caller has gone, and its memory with it."""
        read.detached = True

    def turn_away(self, pages: int, purpose: Purpose) -> None:
        """Count demand reads that found no room before their deadline, and never started."""
        self.by_purpose[purpose].late += pages

    def release(self, read: Read) -> None:
        """End the hold of a read that was started with ``held``."""
        if read.held and read.unresolved == 0:
            self._epochs.let_go(read.epoch)
        read.held = False

    # -- what a driver reports ----------------------------------------------------------------

    def looked_up(self, action: Lookup, result: LookupResult) -> list[Action]:
        """Go on with what a tier's index answered to ``action``."""
        counters = action.ticket.counters.levels[action.level]
        counters.evictions += len(result.evicted)
        counters.bypasses += result.bypasses
        if action.is_shut:
            states = result.misses.states
            counters.write_capped_pages += int(np.count_nonzero(states == PageState.EMPTY))
        self._charge(action.level, int(np.count_nonzero(result.misses.reserved >= 0)))
        actions = [] if result.moves is None else self._move(action, result.moves)
        match action.ticket:
            case Read() as read:
                return actions + self._first_lookup(read, result)
            case Flight() as flight:
                return actions + self._next_lookup(action.level, flight, result)
            case Write() as write:
                return actions + self._write_lookup(action.level, write, result)

    def not_looked_up(self, action: Lookup) -> list[Action]:
        """Go on with a read of which the page ids were lost, with the GPU that they were on."""
        read = action.ticket
        assert isinstance(read, Read)
        read.lookups[0] += len(read.page_ids)
        read.failed += len(read.page_ids)
        return self._resolve(read, None, PageStatus.FAILED)

    def lose_memory(self) -> None:
        """The memory of the first tier is lost: from now on its index misses everything."""

    def fetched(self, flight: Flight, status: U8, issued: Extents) -> list[Action]:
        """Go on with a fetch that ended.

        Args:
            flight: whose fetch it was.
            status: a ``PageStatus`` per page of the flight.
            issued: what the device was asked for: the flight's extents, less what does not exist.
        """
        counters = flight.counters.levels[flight.source]
        counters.device_reads += len(issued)
        counters.read_bytes += issued.pages * self._page_bytes
        counters.merged_extents += int(np.count_nonzero(issued.count > 1))
        if not status.any():
            return self._deliver(flight)
        return self._fetched_in_part(flight, status)

    def copied(self, copy: Copy) -> list[Action]:
        """Go on after pages were brought to the caller (or dropped, if it is detached)."""
        if not copy.read.detached:
            copy.read.delivered += len(copy.sources)
            copy.read.counters.levels[copy.level].rows_delivered += len(copy.sources)
        actions = self._resolve(copy.read, copy.rows, PageStatus.OK)
        if copy.flight is not None:
            copy.flight.steps -= 1
            actions += self._end_if_done(copy.flight)
        return actions

    def uncopied(self, copy: Copy, *, seek: bool) -> list[Action]:
        """Go on after a copy that failed because a memory is lost.

        Args:
            copy: it need not have begun.
            seek: the source is lost, slots of the first tier: they were no hits, and their pages
                are sought below. As many must find room in flight as for :meth:`read`. Otherwise
                it is the caller's memory that is lost, and its rows are FAILED.
        """
        read, level = copy.read, copy.read.counters.levels[copy.level]
        if not seek:
            actions = self._resolve(read, copy.rows, PageStatus.FAILED)
            if copy.flight is not None:
                copy.flight.steps -= 1
                actions += self._end_if_done(copy.flight)
            return actions
        assert copy.flight is None, "a flight's source is a level below the first"
        rows = np.arange(len(read.page_ids)) if copy.rows is None else copy.rows
        read.lookups[0] -= len(rows)
        read.hits[0] -= len(rows)
        level.rows_asked -= len(rows)
        misses = fold(read.page_ids[rows], rows)
        level.failures += len(misses.page_ids)
        return self._miss(read, misses)

    def filled(self, fill: Fill, ok: Bool | None = None) -> list[Action]:
        """Go on after slots were filled; ``ok`` says which of them (None: all)."""
        origin = fill.origin
        keep = ok
        if isinstance(origin, Flight) and origin.doomed is not None:
            spared = ~np.isin(fill.page_ids, origin.page_ids[origin.doomed])
            keep = spared if ok is None else ok & spared
        if not self._tiers[fill.level].in_memory:
            origin.counters.levels[fill.level].device_writes += len(fill.slots)
        actions: list[Action] = []
        if keep is None:
            actions.append(Publish(fill.level, fill.slots))
        else:
            actions += _if_any(Publish, fill.level, fill.slots[keep])
            actions += _if_any(Abort, fill.level, fill.slots[~keep])
        origin.steps -= 1
        if isinstance(origin, Flight):
            return actions + self._end_if_done(origin)
        return actions + (self._complete_write(origin) if origin.steps == 0 else [])

    def aborted(self, abort: Abort) -> None:
        """Slots were given back: what was to be written there will not be."""
        self._charge(abort.level, -len(abort.slots))

    def moved(self, move: Move, ok: Bool, lost: int) -> list[Action]:
        """Go on after pages were moved.

        Args:
            move: as asked for.
            ok: bool[m], which of its pages.
            lost: pages that left the tier because they could not be moved.
        """
        ticket = move.ticket
        counters = ticket.counters.levels[move.level]
        counters.moved_pages += len(ok)
        counters.device_writes += len(ok)
        counters.evictions += lost
        self._open_moves -= 1
        if not isinstance(ticket, Write):
            return []
        ticket.steps -= 1
        return self._complete_write(ticket) if ticket.steps == 0 else []

    # -- routing ------------------------------------------------------------------------------

    def _lookup(self, level: int, ticket: Read | Flight | Write, page_ids: U64) -> Lookup:
        # A flight that failed at one level comes late to the next one, behind younger batches:
        # the present epoch keeps the order, and protects as well, for the flight holds an older.
        match ticket:
            case Read():
                only_resident, shut = ticket.origin_shut, ticket.writes_shut
            case Flight():
                only_resident, shut = ticket.owner.origin_shut, ticket.owner.writes_shut
            case Write():
                only_resident, shut = False, ticket.writes_shut
        newest, oldest = self._epochs.newest, self._epochs.oldest
        tier = self._tiers[level]
        is_shut = shut and tier.write_limit is not None
        return Lookup(level, ticket, page_ids, newest, oldest, tier.admit, only_resident, is_shut)

    def _charge(self, level: int, pages: int) -> None:
        """Pages are to be written to a tier, or will not be (negative)."""
        limit = self._tiers[level].write_limit
        if limit is not None:
            limit.charge(pages * self._page_bytes)

    def _move(self, lookup: Lookup, moves: Moves) -> list[Action]:
        ticket = lookup.ticket
        if isinstance(ticket, Write):
            ticket.steps += 1  # so that writers are no faster than the log
        self._open_moves += 1
        self._last_move += 1
        self._charge(lookup.level, len(moves.page_ids))
        return [Move(lookup.level, self._last_move, ticket, moves)]

    def _first_lookup(self, read: Read, result: LookupResult) -> list[Action]:
        if not self._tiers[0].in_memory:
            # Hits need a device read too, so they are folded and joined like misses.
            return self._miss(read, with_hits(read.page_ids, result))
        actions = self._first_hits(read, result) if len(result.hits) else []
        return actions + (self._miss(read, result.misses) if len(result.misses.rows) else [])

    def _first_hits(self, read: Read, result: LookupResult) -> list[Action]:
        hits = len(result.hits)
        read.lookups[0] += hits
        read.hits[0] += hits
        read.counters.levels[0].rows_asked += hits
        if read.wants_bytes:
            return [Copy(0, read, None, result.hits, result.rows)]
        return self._resolve(read, result.rows, PageStatus.OK)

    def _miss(self, read: Read, misses: Misses) -> list[Action]:
        """Join pages on their way, let the others take flight.

        ``misses`` are what the first tier answered; without one, all that was asked for.
        """
        rows, leads, page_of, page_ids, states, slots = misses
        read.folded += len(rows) - len(page_ids)
        if self._tiers:
            read.lookups[0] += len(page_ids)
        numbers, positions = self._flights.find(page_ids)
        flying = numbers >= 0
        actions: list[Action] = []
        if flying.any():
            # The page was on its way without a slot here (bypassed, or not admitted).
            reserved = misses.reserved
            actions += _if_any(Abort, 0, reserved[flying & (reserved >= 0)])
            actions += self._join(read, rows, leads, numbers[page_of], positions[page_of])
            fresh = ~flying
            place = np.cumsum(fresh) - 1
            chosen = np.flatnonzero(fresh[page_of])
            rows, leads, page_of = rows[chosen], leads[chosen], place[page_of[chosen]]
            page_ids, states, slots = page_ids[fresh], states[fresh], slots[fresh]
        if len(page_ids):
            waiter = Waiter(read, rows, page_of, leads, joined=False)
            flight = self._flights.take_off(read.epoch, page_ids, waiter)
            if not self._tiers:
                return actions + self._seek(flight, 0)
            found = np.flatnonzero(states == PageState.VALID)
            rest = np.flatnonzero(states != PageState.VALID)
            reserved = np.where(states == PageState.EMPTY, slots, -1)
            actions += self._route(0, flight, found, slots[found], rest, reserved[rest])
        return actions

    def _join(
        self, read: Read, rows: I64, unique: Bool, numbers: I64, positions: I64
    ) -> list[Action]:
        actions: list[Action] = []
        read.joined += int(np.count_nonzero(unique & (numbers >= 0)))
        for flight, chosen in self._flights.grouped(numbers):
            waiter = Waiter(read, rows[chosen], positions[chosen], unique[chosen], joined=True)
            flight.waiters.append(waiter)
            if flight.landed:
                actions += self._serve(flight, waiter)
        return actions

    def _seek(self, flight: Flight, level: int) -> list[Action]:
        """Look for a flight's pages at ``level`` and below."""
        if level < len(self._tiers):
            return [self._lookup(level, flight, flight.page_ids)]
        if level == len(self._levels):
            return self._give_up(flight, PageStatus.ABSENT)
        flight.source = level
        flight.owner.lookups[level] += len(flight)
        if flight.owner.origin_shut:
            return self._give_up(flight, PageStatus.FAILED)
        return self._plan(flight, flight.page_ids)

    def _next_lookup(self, level: int, flight: Flight, result: LookupResult) -> list[Action]:
        flight.owner.lookups[level] += len(flight)
        found = np.arange(len(flight)) if result.rows is None else result.rows
        misses = result.misses  # as many rows as pages, for those of a flight are distinct
        return self._route(level, flight, found, result.hits, misses.rows, misses.reserved)

    def _route(
        self, level: int, flight: Flight, found: I64, slots: I64, rest: I64, reserved: I64
    ) -> list[Action]:
        """Send the pages that hit at ``level`` for their bytes, and the others further down.

        Args:
            level: a tier.
            flight: whose pages are meant by position.
            found: i64[h], those that hit, ascending.
            slots: i64[h], where they are.
            rest: i64[m], the others, ascending.
            reserved: i64[m], the slot reserved for each of them, or -1.
        """
        order = np.concatenate((found, rest))
        hit, missed = self._flights.divide(flight, order, [len(found), len(order)])
        actions: list[Action] = []
        if missed is not None:
            missed.fills.append(reserved)
            actions += self._seek(missed, level + 1)
        if hit is not None:
            hit.source = level
            hit.slots = slots
            if self._tiers[level].in_memory:
                actions += self._deliver(hit)
            else:
                actions += self._plan(hit, hit.slots.astype(np.uint64))
        return actions

    def _write_lookup(self, level: int, write: Write, result: LookupResult) -> list[Action]:
        reserved = result.misses.reserved
        chosen = reserved >= 0
        if chosen.any():
            rows = result.misses.rows[result.misses.leads][chosen]
            page_ids = result.misses.page_ids[chosen]
            return [Fill(level, write, rows, reserved[chosen], page_ids)]
        write.steps -= 1
        return self._complete_write(write) if write.steps == 0 else []

    # -- fetching -----------------------------------------------------------------------------

    def _plan(self, flight: Flight, locations: U64) -> list[Action]:
        plan = plan_extents(locations, self._levels[flight.source].rules)
        if len(plan.batches) == 1:
            flight.rows = np.empty(len(flight), np.int64)
            flight.rows[plan.order] = plan.page_rows
            flight.extents = plan.batches[0]
            self._backlogs[flight.source == len(self._tiers)].append(flight)
            return self._issue()
        parts = self._flights.divide(flight, plan.order, plan.ends)
        spans = pairwise((0, *plan.ends))
        for part, (start, end), extents in zip(parts, spans, plan.batches, strict=True):
            assert part is not None
            part.rows = plan.page_rows[start:end]
            part.extents = extents
            self._backlogs[part.source == len(self._tiers)].append(part)
        return self._issue()

    def _issue(self) -> list[Action]:
        """Send flights that wait for a staging buffer, while there are any.

        What comes from the origin keeps its buffer until a drive was written, and writes are slow.
        So it does not get all of them: reads of the drive are not to wait for writes.
        """
        actions: list[Action] = []
        of_drives, of_origin = self._backlogs
        while self._free_buffers:
            backlog = of_drives
            if of_origin and len(self._free_buffers) > self._kept_buffers:
                is_older = not of_drives or of_origin[0].number < of_drives[0].number
                backlog = of_origin if is_older else of_drives
            if not backlog:
                break
            flight = backlog.popleft()
            flight.buffer = self._free_buffers.pop()
            assert flight.extents is not None
            actions.append(Fetch(flight.source, flight, flight.extents, flight.buffer))
        return actions

    def _fetched_in_part(self, flight: Flight, status: U8) -> list[Action]:
        """Deliver what came; a tier's failures go on to the next level, the origin's end here."""
        outcomes = (PageStatus.OK, PageStatus.ABSENT, PageStatus.FAILED)
        level, buffer = flight.source, flight.buffer
        chosen = [np.flatnonzero(status == outcome) for outcome in outcomes]
        ends = np.cumsum([len(pages) for pages in chosen])
        parts = self._flights.divide(flight, np.concatenate(chosen), ends.tolist())
        actions: list[Action] = []
        if parts[0] is not None:
            actions += self._deliver(parts[0])
        else:
            self._free_buffers.append(buffer)
        for part, outcome in zip(parts[1:], outcomes[1:], strict=True):
            if part is None:
                continue
            part.buffer, part.rows, part.slots = -1, NO_ROWS, NO_ROWS
            if level < len(self._tiers):
                part.counters.levels[level].failures += len(part)
                actions.append(Invalidate(level, part.page_ids))
                part.fills.append(np.full(len(part), -1, np.int64))
                actions += self._seek(part, level + 1)
            else:
                actions += self._give_up(part, outcome)
        return actions + self._issue()

    def _deliver(self, flight: Flight) -> list[Action]:
        """The bytes are there: copy them to whoever waits, fill the tiers above."""
        flight.landed = True
        flight.owner.hits[flight.source] += len(flight)
        actions: list[Action] = []
        for waiter in flight.waiters:
            actions += self._serve(flight, waiter)
        sources, page_ids = flight.sources, flight.page_ids
        for level, slots in enumerate(flight.fills):
            chosen = slots >= 0
            if flight.doomed is not None:
                actions += _if_any(Abort, level, slots[chosen & flight.doomed])
                chosen &= ~flight.doomed
            if chosen.all():
                flight.steps += 1
                actions.append(Fill(level, flight, sources, slots, page_ids))
            elif chosen.any():
                flight.steps += 1
                where = sources[chosen]
                actions.append(Fill(level, flight, where, slots[chosen], page_ids[chosen]))
        return actions + self._end_if_done(flight)

    def _serve(self, flight: Flight, waiter: Waiter) -> list[Action]:
        read = waiter.read
        read.counters.levels[flight.source].rows_asked += len(waiter.rows)
        if not read.wants_bytes:
            return []  # resolved when the flight has ended, and with it the fills
        if read.detached:
            return self._resolve(read, waiter.rows, PageStatus.OK)
        flight.steps += 1
        sources = flight.sources[waiter.positions]
        return [Copy(flight.source, read, flight, sources, waiter.rows)]

    def _give_up(self, flight: Flight, status: PageStatus) -> list[Action]:
        """No level has the pages, or the last one failed: that is the answer of who waits."""
        actions: list[Action] = []
        for level, slots in enumerate(flight.fills):
            actions += _if_any(Abort, level, slots[slots >= 0])
        if status == PageStatus.ABSENT:
            flight.owner.absent += len(flight)
        else:
            flight.owner.failed += len(flight)
        for waiter in flight.waiters:
            waiter.read.counters.levels[-1].rows_asked += len(waiter.rows)
            actions += self._resolve(waiter.read, waiter.rows, status)
        self._flights.land(flight)
        return actions

    # -- endings ------------------------------------------------------------------------------

    def _end_if_done(self, flight: Flight) -> list[Action]:
        if flight.steps:
            return []
        actions: list[Action] = []
        for waiter in flight.waiters:
            if not waiter.read.wants_bytes:
                actions += self._resolve(waiter.read, waiter.rows, PageStatus.OK)
        self._flights.land(flight)
        if flight.buffer >= 0:
            self._free_buffers.append(flight.buffer)
        return actions + self._issue()

    def _resolve(self, read: Read, rows: I64 | None, status: PageStatus) -> list[Action]:
        read.status[slice(None) if rows is None else rows] = status
        read.unresolved -= len(read.page_ids) if rows is None else len(rows)
        return self._complete_read(read) if read.unresolved == 0 else []

    def _complete_read(self, read: Read) -> list[Action]:
        read.count()
        self._open_batches -= 1
        if not read.held:
            self._epochs.let_go(read.epoch)
        return [Complete(read)]

    def _complete_write(self, write: Write) -> list[Action]:
        write.counters.written_objects += write.objects
        write.counters.written_pages += len(write.page_ids)
        self._open_batches -= 1
        self._epochs.let_go(write.epoch)
        return [Complete(write)]


def _kept_buffers(buffers: int, tiers: Sequence[Level]) -> int:
    """Staging buffers that the origin does not get, where a drive needs some: an eighth."""
    if buffers < 4 or all(tier.in_memory for tier in tiers):
        return 0
    return -(-buffers // 8)


def _if_any(action: type[Publish] | type[Abort], level: int, slots: I64) -> list[Action]:
    return [action(level, slots)] if len(slots) else []
