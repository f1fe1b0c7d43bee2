"""Finds the level that has each page: lookups tier by tier, joining what is on its way already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvtier.chain.actions import Abort, Action, Copy, Fill, Invalidate, Lookup, if_any
from kvtier.chain.batches import Batches
from kvtier.chain.fetching import Fetching
from kvtier.chain.flight import Flight, Read, Waiter, Write
from kvtier.chain.flights import Flights
from kvtier.chain.level import Level
from kvtier.chain.misses import fold, with_hits
from kvtier.pages import EMPTY, I64, U64, VALID, Bool, LookupResult, Misses, PageStatus


class Routing:
    """Sends pages down the levels until one has them; :class:`Fetching` goes on from there.

    Args:
        tiers: the levels that have an index.
        origin: the level behind them, if there is one.
        flights: what is on its way.
        batches: whose rows are answered.
        fetching: brings the pages that are found.
        coalesces: whether what passes no tier is folded and joined.
    """

    def __init__(
        self,
        tiers: Sequence[Level],
        origin: Level | None,
        flights: Flights,
        batches: Batches,
        fetching: Fetching,
        *,
        coalesces: bool,
    ) -> None:
        self._tiers = tuple(tiers)
        self._has_origin = origin is not None
        self._flights = flights
        self._batches = batches
        self._fetching = fetching
        self._coalesces = coalesces

    # -- where a batch begins -----------------------------------------------------------------

    def read(self, read: Read) -> list[Action]:
        """Look for the pages of a read."""
        if self._tiers:
            return [self._lookup(0, read, read.page_ids)]
        rows = np.arange(len(read.page_ids))
        if self._coalesces:
            return self.miss(read, fold(read.page_ids, rows))
        waiter = Waiter(read, rows, rows, np.ones(len(rows), np.bool_), joined=False)
        flight = self._flights.take_off(read.epoch, read.page_ids, waiter, lone=True)
        return self._seek(flight, 0)

    def write(self, write: Write) -> list[Action]:
        """Reserve slots for the pages of a write, in every tier that keeps written objects."""
        actions: list[Action] = [
            self._lookup(level, write, write.page_ids)
            for level, tier in enumerate(self._tiers)
            if tier.writes
        ]
        write.steps = len(actions)
        return actions or self._batches.complete_write(write)

    # -- where it goes from a level -----------------------------------------------------------

    def looked_up(self, action: Lookup, result: LookupResult) -> list[Action]:
        """Go on with what a tier's index answered."""
        match action.ticket:
            case Read() as read:
                return self._first_lookup(read, result)
            case Flight() as flight:
                return self._next_lookup(action.level, flight, result)
            case Write() as write:
                return self._write_lookup(action.level, write, result)

    def not_read(self, flight: Flight) -> list[Action]:
        """Look further down for pages that a tier failed to read."""
        level = flight.source
        no_slots = np.full(len(flight), -1, np.int64)
        return [Invalidate(level, flight.page_ids), *self._pass_down(level, flight, no_slots)]

    def miss(self, read: Read, misses: Misses) -> list[Action]:
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
        if np.count_nonzero(flying):
            # The page was on its way without a slot here (bypassed, or not admitted).
            reserved = misses.reserved
            actions += if_any(Abort, 0, reserved[flying & (reserved >= 0)])
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
            reserved = np.where(states == EMPTY, slots, -1)
            is_found = states == VALID
            if np.count_nonzero(is_found) == 0:  # as always behind a first tier in memory
                return actions + self._pass_down(0, flight, reserved)
            found, rest = np.flatnonzero(is_found), np.flatnonzero(~is_found)
            actions += self._route(0, flight, found, slots[found], rest, reserved[rest])
        return actions

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
        newest, oldest = self._batches.epochs.newest, self._batches.epochs.oldest
        tier = self._tiers[level]
        is_shut = shut and tier.write_limit is not None
        return Lookup(level, ticket, page_ids, newest, oldest, tier.admit, only_resident, is_shut)

    def _first_lookup(self, read: Read, result: LookupResult) -> list[Action]:
        if not self._tiers[0].in_memory:
            # Hits need a device read too, so they are folded and joined like misses.
            return self.miss(read, with_hits(read.page_ids, result))
        actions = self._first_hits(read, result) if len(result.hits) else []
        return actions + (self.miss(read, result.misses) if len(result.misses.rows) else [])

    def _first_hits(self, read: Read, result: LookupResult) -> list[Action]:
        hits = len(result.hits)
        read.lookups[0] += hits
        read.hits[0] += hits
        read.counters.levels[0].rows_asked += hits
        if read.wants_bytes:
            return [Copy(0, read, None, result.hits, result.rows)]
        return self._batches.resolve(read, result.rows, PageStatus.OK)

    def _join(
        self, read: Read, rows: I64, unique: Bool, numbers: I64, positions: I64
    ) -> list[Action]:
        actions: list[Action] = []
        read.joined += int(np.count_nonzero(unique & (numbers >= 0)))
        for flight, chosen in self._flights.grouped(numbers):
            waiter = Waiter(read, rows[chosen], positions[chosen], unique[chosen], joined=True)
            flight.waiters.append(waiter)
            if flight.landed:
                actions += self._fetching.serve(flight, waiter)
        return actions

    def _seek(self, flight: Flight, level: int) -> list[Action]:
        """Look for a flight's pages at ``level`` and below."""
        if level < len(self._tiers):
            return [self._lookup(level, flight, flight.page_ids)]
        if not self._has_origin:
            return self._fetching.give_up(flight, PageStatus.ABSENT)
        flight.source = level
        flight.owner.lookups[level] += len(flight)
        if flight.owner.origin_shut:
            return self._fetching.give_up(flight, PageStatus.FAILED)
        return self._fetching.fetch(flight, flight.page_ids)

    def _next_lookup(self, level: int, flight: Flight, result: LookupResult) -> list[Action]:
        flight.owner.lookups[level] += len(flight)
        if result.rows is None:
            return self._bring(level, flight, result.hits)
        misses = result.misses  # as many rows as pages, for those of a flight are distinct
        return self._route(level, flight, result.rows, result.hits, misses.rows, misses.reserved)

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
            actions += self._pass_down(level, missed, reserved)
        if hit is not None:
            actions += self._bring(level, hit, slots)
        return actions

    def _bring(self, level: int, flight: Flight, slots: I64) -> list[Action]:
        """Get the bytes of a flight's pages: all are at ``level``, in those slots (i64[m])."""
        flight.source = level
        flight.slots = slots
        if self._tiers[level].in_memory:
            return self._fetching.deliver(flight)
        return self._fetching.fetch(flight, slots.astype(np.uint64))

    def _pass_down(self, level: int, flight: Flight, reserved: I64) -> list[Action]:
        """Look below ``level`` for a flight's pages, which have those slots (i64[m]) there."""
        flight.fills.append(reserved)
        return self._seek(flight, level + 1)

    def _write_lookup(self, level: int, write: Write, result: LookupResult) -> list[Action]:
        reserved = result.misses.reserved
        chosen = reserved >= 0
        if chosen.any():
            rows = result.misses.rows[result.misses.leads][chosen]
            page_ids = result.misses.page_ids[chosen]
            return [Fill(level, write, rows, reserved[chosen], page_ids)]
        return self._batches.end_step(write)
