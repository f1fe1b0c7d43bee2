"""The chain: routes batches through the levels, joins what is on its way, fills what missed.

It is sans-I/O. A driver starts a batch, performs the actions it is given, and reports each with
the method that the action names; every report returns the next actions. The asyncio driver is
:mod:`kvtier.cache`, the one in virtual time :mod:`kvtier.emulator`.

:class:`Chain` is what a driver sees: it counts what it is told and hands it on. The level of a
page is found by :mod:`kvtier.chain.routing`, its bytes are brought by :mod:`kvtier.chain.fetching`.

Two rules keep it free of deadlock and of wrong bytes: a fetch waits for its device only, never
for another fetch; and whoever reads slots of a tier holds its epoch, so that they are not reused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvtier.chain.actions import (
    Abort,
    Action,
    Copy,
    Fill,
    Invalidate,
    Lookup,
    Move,
    Publish,
    if_any,
)
from kvtier.chain.batches import Batches
from kvtier.chain.counters import Counters, total
from kvtier.chain.extents import Extents
from kvtier.chain.fetching import Fetching
from kvtier.chain.flight import UNRESOLVED, Flight, Read, Write
from kvtier.chain.flights import Flights
from kvtier.chain.kernels import compile_all
from kvtier.chain.level import Level
from kvtier.chain.misses import fold
from kvtier.chain.routing import Routing
from kvtier.pages import (
    EMPTY,
    U8,
    U64,
    Bool,
    LookupResult,
    Moves,
    PageStatus,
    Purpose,
)
from kvtier.settings import ChainSettings


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
        limits = (tier.write_limit for tier in tiers)
        self._write_limits = [limit for limit in limits if limit is not None]
        self._batches = batches = Batches(len(self._levels))
        self._flights = flights = Flights(settings.inflight_pages_max, batches.epochs)
        self._fetching = Fetching(tiers, origin, flights, batches, settings, page_bytes)
        self._routing = Routing(
            tiers, origin, flights, batches, self._fetching, coalesces=settings.coalesce
        )
        self._open_moves = 0
        self._last_move = 0
        compile_all()
        self.buffer_count = self._fetching.buffer_count
        self.by_purpose = batches.by_purpose

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
        return self._batches.open == 0 and self._open_moves == 0 and not self._flights

    @property
    def free_buffers(self) -> int:
        """Staging buffers that no fetch has, of ``buffer_count``."""
        return self._fetching.free_buffers

    @property
    def unreleased_epochs(self) -> int:
        """Epochs that a batch, a flight or a lease still holds."""
        return len(self._batches.epochs)

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
        read = self._batches.begin_read(
            page_ids,
            wants_bytes=wants_bytes,
            held=held,
            purpose=purpose,
            origin_shut=origin_shut,
            writes_shut=writes_shut,
        )
        if len(page_ids) == 0:
            return read, self._batches.complete_read(read)
        return read, self._routing.read(read)

    def write(
        self, page_ids: U64, objects: int, *, writes_shut: bool = False
    ) -> tuple[Write, list[Action]]:
        """Start filling the tiers with new pages (u64[n], distinct) of whole objects.

        ``writes_shut`` is as of :meth:`read`.
        """
        write = self._batches.begin_write(page_ids, objects, writes_shut=writes_shut)
        if len(page_ids) == 0:
            return write, self._batches.complete_write(write)
        return write, self._routing.write(write)

    def invalidate(self, page_ids: U64) -> list[Action]:
        """Forget pages (u64[n]) everywhere; those on their way are delivered, but not cached."""
        self._flights.doom(page_ids)
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
            self._batches.epochs.let_go(read.epoch)
        read.held = False

    # -- what a driver reports ----------------------------------------------------------------

    def looked_up(self, action: Lookup, result: LookupResult) -> list[Action]:
        """Go on with what a tier's index answered to ``action``."""
        counters = action.ticket.counters.levels[action.level]
        counters.evictions += len(result.evicted)
        counters.bypasses += result.bypasses
        if action.is_shut:
            states = result.misses.states
            counters.write_capped_pages += int(np.count_nonzero(states == EMPTY))
        if self._tiers[action.level].write_limit is not None:
            self._charge(action.level, int(np.count_nonzero(result.misses.reserved >= 0)))
        actions = [] if result.moves is None else self._move(action, result.moves)
        return actions + self._routing.looked_up(action, result)

    def not_looked_up(self, action: Lookup) -> list[Action]:
        """Go on with a read of which the page ids were lost, with the GPU that they were on."""
        read = action.ticket
        assert isinstance(read, Read)
        read.lookups[0] += len(read.page_ids)
        read.failed += len(read.page_ids)
        return self._batches.resolve(read, None, PageStatus.FAILED)

    def lose_memory(self) -> None:
        """The memory of the first tier is lost: from now on its index misses everything."""

    def fetched(self, flight: Flight, status: U8, issued: Extents) -> list[Action]:
        """Go on with a fetch that ended.

        Args:
            flight: whose fetch it was.
            status: a ``PageStatus`` per page of the flight.
            issued: what the device was asked for: the flight's extents, less what does not exist.
        """
        actions, failed = self._fetching.fetched(flight, status, issued)
        for part in failed:
            actions += self._routing.not_read(part)
        return actions + self._fetching.issue()

    def copied(self, copy: Copy) -> list[Action]:
        """Go on after pages were brought to the caller (or dropped, if it is detached)."""
        if not copy.read.detached:
            copy.read.delivered += len(copy.sources)
            copy.read.counters.levels[copy.level].rows_delivered += len(copy.sources)
        actions = self._batches.resolve(copy.read, copy.rows, PageStatus.OK)
        if copy.flight is not None:
            actions += self._fetching.end_step(copy.flight)
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
            actions = self._batches.resolve(read, copy.rows, PageStatus.FAILED)
            if copy.flight is not None:
                actions += self._fetching.end_step(copy.flight)
            return actions
        assert copy.flight is None, "a flight's source is a level below the first"
        rows = np.arange(len(read.page_ids)) if copy.rows is None else copy.rows
        read.lookups[0] -= len(rows)
        read.hits[0] -= len(rows)
        level.rows_asked -= len(rows)
        misses = fold(read.page_ids[rows], rows)
        level.failures += len(misses.page_ids)
        return self._routing.miss(read, misses)

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
            actions += if_any(Publish, fill.level, fill.slots[keep])
            actions += if_any(Abort, fill.level, fill.slots[~keep])
        if isinstance(origin, Flight):
            return actions + self._fetching.end_step(origin)
        return actions + self._batches.end_step(origin)

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
        return self._batches.end_step(ticket) if isinstance(ticket, Write) else []

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
