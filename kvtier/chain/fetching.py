"""Brings the bytes of pages whose level is known: device reads, then copies and fills from them.

Flights come here from :mod:`kvtier.chain.routing`, which has found the level of their pages. They
end here, unless a tier fails to read them: what it failed goes back, to be sought further down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from kvtier.chain.actions import Abort, Action, Copy, Fetch, Fill, if_any
from kvtier.chain.batches import Batches
from kvtier.chain.extents import Extents, plan_extents
from kvtier.chain.flight import NO_ROWS, Flight, Waiter
from kvtier.chain.flights import Flights
from kvtier.chain.level import Level
from kvtier.pages import U8, U64, PageStatus
from kvtier.settings import ChainSettings

_OUTCOMES: Final = (PageStatus.OK, PageStatus.ABSENT, PageStatus.FAILED)


class Fetching:
    """Owns the staging buffers, and the backlogs of flights that wait for one.

    Args:
        tiers: the levels that have an index.
        origin: the level behind them, if there is one.
        flights: those that are given here are among them, and land there.
        batches: whose rows are answered.
        settings: bounds.
        page_bytes: bytes of a page.

    Attributes:
        buffer_count: staging buffers.
    """

    def __init__(
        self,
        tiers: Sequence[Level],
        origin: Level | None,
        flights: Flights,
        batches: Batches,
        settings: ChainSettings,
        page_bytes: int,
    ) -> None:
        levels = tiers if origin is None else (*tiers, origin)
        self._rules = [level.rules for level in levels]
        self._tiers = len(tiers)
        self._flights = flights
        self._batches = batches
        self._page_bytes = page_bytes
        # Of drives, and of the origin: flights that wait for a staging buffer.
        self._backlogs: tuple[deque[Flight], deque[Flight]] = (deque(), deque())
        self.buffer_count = settings.staging_bytes // (settings.device_batch_pages * page_bytes)
        self._free_buffers = list(range(self.buffer_count - 1, -1, -1))
        self._kept_buffers = _kept_buffers(self.buffer_count, tiers)

    @property
    def free_buffers(self) -> int:
        """Staging buffers that no flight has."""
        return len(self._free_buffers)

    # -- device reads -------------------------------------------------------------------------

    def fetch(self, flight: Flight, locations: U64) -> list[Action]:
        """Read a flight's pages from the device of its level, where they lie at ``locations``.

        Args:
            flight: divided, if one staging buffer cannot take all of it.
            locations: u64[m], PageIds at the origin, slots of a tier.
        """
        plan = plan_extents(locations, self._rules[flight.source], distinct=not flight.lone)
        if len(plan.batches) == 1:
            flight.rows = np.empty(len(flight), np.int64)
            flight.rows[plan.order] = plan.page_rows
            flight.extents = plan.batches[0]
            self._backlogs[flight.source == self._tiers].append(flight)
            return self.issue()
        parts = self._flights.divide(flight, plan.order, plan.ends)
        spans = pairwise((0, *plan.ends))
        for part, (start, end), extents in zip(parts, spans, plan.batches, strict=True):
            assert part is not None
            part.rows = plan.page_rows[start:end]
            part.extents = extents
            self._backlogs[part.source == self._tiers].append(part)
        return self.issue()

    def issue(self) -> list[Action]:
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

    def fetched(
        self, flight: Flight, status: U8, issued: Extents
    ) -> tuple[list[Action], list[Flight]]:
        """Deliver what a fetch brought; arguments as of :meth:`kvtier.chain.Chain.fetched`.

        Returns:
            What follows, and the flights of what a tier failed, to be sought further down; their
            buffer is free, and :meth:`issue` is to give it to whoever waits. What the origin
            failed ends here.
        """
        counters = flight.counters.levels[flight.source]
        counters.device_reads += len(issued)
        counters.read_bytes += issued.pages * self._page_bytes
        counters.merged_extents += int(np.count_nonzero(issued.count > 1))
        if np.count_nonzero(status) == 0:
            return self.deliver(flight), []
        level, buffer = flight.source, flight.buffer
        chosen = [np.flatnonzero(status == outcome) for outcome in _OUTCOMES]
        ends = np.cumsum([len(pages) for pages in chosen])
        came, *others = self._flights.divide(flight, np.concatenate(chosen), ends.tolist())
        actions: list[Action] = []
        if came is not None:
            actions += self.deliver(came)
        else:
            self._free_buffers.append(buffer)
        failed: list[Flight] = []
        for part, outcome in zip(others, _OUTCOMES[1:], strict=True):
            if part is None:
                continue
            part.buffer, part.rows, part.slots = -1, NO_ROWS, NO_ROWS
            if level < self._tiers:
                part.counters.levels[level].failures += len(part)
                failed.append(part)
            else:
                actions += self.give_up(part, outcome)
        return actions, failed

    # -- what is there ------------------------------------------------------------------------

    def deliver(self, flight: Flight) -> list[Action]:
        """The bytes are there: copy them to whoever waits, fill the tiers above."""
        flight.landed = True
        flight.owner.hits[flight.source] += len(flight)
        actions: list[Action] = []
        for waiter in flight.waiters:
            actions += self.serve(flight, waiter)
        sources, page_ids = flight.sources, flight.page_ids
        for level, slots in enumerate(flight.fills):
            chosen = slots >= 0
            if flight.doomed is not None:
                actions += if_any(Abort, level, slots[chosen & flight.doomed])
                chosen &= ~flight.doomed
            fills = np.count_nonzero(chosen)
            if fills == len(slots):
                flight.steps += 1
                actions.append(Fill(level, flight, sources, slots, page_ids))
            elif fills:
                flight.steps += 1
                where = sources[chosen]
                actions.append(Fill(level, flight, where, slots[chosen], page_ids[chosen]))
        return actions + self._end_if_done(flight)

    def serve(self, flight: Flight, waiter: Waiter) -> list[Action]:
        """Copy pages of a flight that has landed to one who waits for them."""
        read = waiter.read
        read.counters.levels[flight.source].rows_asked += len(waiter.rows)
        if not read.wants_bytes:
            return []  # resolved when the flight has ended, and with it the fills
        if read.detached:
            return self._batches.resolve(read, waiter.rows, PageStatus.OK)
        flight.steps += 1
        sources = flight.sources[waiter.positions]
        return [Copy(flight.source, read, flight, sources, waiter.rows)]

    def give_up(self, flight: Flight, status: PageStatus) -> list[Action]:
        """No level has the pages, or the last one failed: that is the answer of who waits."""
        actions: list[Action] = []
        for level, slots in enumerate(flight.fills):
            actions += if_any(Abort, level, slots[slots >= 0])
        if status == PageStatus.ABSENT:
            flight.owner.absent += len(flight)
        else:
            flight.owner.failed += len(flight)
        for waiter in flight.waiters:
            waiter.read.counters.levels[-1].rows_asked += len(waiter.rows)
            actions += self._batches.resolve(waiter.read, waiter.rows, status)
        self._flights.land(flight)
        return actions

    def end_step(self, flight: Flight) -> list[Action]:
        """A copy or fill of a flight has ended; the flight ends with the last of them."""
        flight.steps -= 1
        return self._end_if_done(flight)

    def _end_if_done(self, flight: Flight) -> list[Action]:
        if flight.steps:
            return []
        actions: list[Action] = []
        for waiter in flight.waiters:
            if not waiter.read.wants_bytes:
                actions += self._batches.resolve(waiter.read, waiter.rows, PageStatus.OK)
        self._flights.land(flight)
        if flight.buffer >= 0:
            self._free_buffers.append(flight.buffer)
        return actions + self.issue()


def _kept_buffers(buffers: int, tiers: Sequence[Level]) -> int:
    """Staging buffers that the origin does not get, where a drive needs some: an eighth."""
    if buffers < 4 or all(tier.in_memory for tier in tiers):
        return 0
    return -(-buffers // 8)
