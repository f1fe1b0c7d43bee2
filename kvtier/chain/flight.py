"""What is on its way: batches of reads and writes, and the flights that bring their pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np

from kvtier.chain.counters import Counters
from kvtier.chain.extents import Extents
from kvtier.chain.kernels import deal
from kvtier.pages import I64, U8, U64, Bool, Purpose

NO_ROWS: Final = np.empty(0, np.int64)

UNRESOLVED: Final = 255
"""Status of a row of which nothing is known yet."""


@dataclass(slots=True, eq=False)
class Read:
    """One batch of demand reads.

    Attributes:
        epoch: its place in the order of batches.
        page_ids: u64[n].
        purpose: what it is for.
        counters: where it is counted.
        status: u8[n], a ``PageStatus`` per row, ``UNRESOLVED`` until known.
        wants_bytes: False for a prefetch, which is done when the tiers are filled.
        held: the epoch stays unreleased after completion, until ``Chain.release``.
        origin_shut: the origin is not asked; what no tier has is FAILED, and takes no slot.
        writes_shut: it takes no slot of a tier that has a write limit.
        detached: nobody waits any more; its bytes are not copied.
        unresolved: rows without a status.
        lookups, hits: per level, for the counters.
    """

    epoch: int
    page_ids: U64
    purpose: Purpose
    counters: Counters
    status: U8
    wants_bytes: bool
    held: bool
    unresolved: int
    lookups: list[int]
    hits: list[int]
    origin_shut: bool = False
    writes_shut: bool = False
    detached: bool = False
    delivered: int = 0
    folded: int = 0
    joined: int = 0
    absent: int = 0
    failed: int = 0
    late: int = 0

    def count(self) -> None:
        """Count it, now that it is complete."""
        reads = len(self.page_ids)
        counters = self.counters
        counters.batches += 1
        counters.reads += reads
        counters.delivered += self.delivered
        counters.unique += reads - self.folded
        counters.folded += self.folded
        counters.joined += self.joined
        counters.absent += self.absent
        counters.failed += self.failed
        counters.late += self.late
        for level, lookups, hits in zip(counters.levels, self.lookups, self.hits, strict=True):
            level.lookups += lookups
            level.hits += hits
        if self.failed:
            counters.levels[-1].failures += self.failed


@dataclass(slots=True, eq=False)
class Write:
    """One batch of whole objects to publish: its pages, all of them new to every tier.

    Attributes:
        counters: where it is counted.
        writes_shut: it takes no slot of a tier that has a write limit.
        steps: lookups, fills and moves not yet answered.
    """

    epoch: int
    page_ids: U64
    objects: int
    counters: Counters
    writes_shut: bool = False
    steps: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Waiter:
    """Rows of a read that wait for pages of a flight.

    Attributes:
        rows: i64[m], rows of the read, folded ones included.
        positions: i64[m], the page of the flight that each row waits for.
        unique: rows of them that count as unique reads.
        joined: the read found these pages already on their way.
    """

    read: Read
    rows: I64
    positions: I64
    unique: Bool
    joined: bool


@dataclass(slots=True, eq=False)
class TakeOff:
    """Pages that took off together, whichever flights have them now.

    Attributes:
        berth: its name in the in-flight table, -1 if it is not there.
        pages_left: pages that have not landed.
        numbers: i64[m], the flight that has each page now.
        positions: i64[m], its position there.
    """

    berth: int
    pages_left: int
    numbers: I64
    positions: I64


@dataclass(slots=True, eq=False)
class Flight:
    """Pages that are being looked for or fetched together, and who waits for them.

    Attributes:
        number: its name.
        epoch: held until the flight has ended, so that no slot it uses is reused.
        page_ids: u64[m].
        fills: per level above the source, i64[m]: the slot reserved for each page, or -1.
        waiters: rows that wait for the pages, those of the read that asked first in front.
        take_off: what its pages took off with.
        spots: i64[m], where each page stands there.
        source: the level that has the pages, -1 while unknown.
        slots: i64[m], where the pages are in a source that is a tier.
        extents, rows: what its device is asked for, and i64[m], the buffer row of each page.
        buffer: the staging buffer, -1 while there is none, as for a source in memory.
        steps: copies and fills not yet done.
        landed: the bytes are there.
        doomed: bool[m], pages invalidated on the way: they are delivered, but not cached.
        lone: nobody may join it, and its pages may repeat.
    """

    number: int
    epoch: int
    page_ids: U64
    fills: list[I64]
    waiters: list[Waiter]
    take_off: TakeOff
    spots: I64
    source: int = -1
    slots: I64 = field(default_factory=lambda: NO_ROWS)
    rows: I64 = field(default_factory=lambda: NO_ROWS)
    extents: Extents | None = None
    buffer: int = -1
    steps: int = 0
    landed: bool = False
    doomed: Bool | None = None
    lone: bool = False

    def __len__(self) -> int:
        return len(self.page_ids)

    def take(self, number: int, pages: I64, waiters: list[Waiter]) -> Flight:
        """A flight of a part of the pages (i64[k], positions), with its own waiters."""
        return Flight(
            number=number,
            epoch=self.epoch,
            page_ids=self.page_ids[pages],
            fills=[slots[pages] for slots in self.fills],
            waiters=waiters,
            take_off=self.take_off,
            spots=self.spots[pages],
            source=self.source,
            slots=self.slots[pages] if len(self.slots) else NO_ROWS,
            rows=self.rows[pages] if len(self.rows) else NO_ROWS,
            buffer=self.buffer,
            doomed=None if self.doomed is None else self.doomed[pages],
            lone=self.lone,
        )

    @property
    def sources(self) -> I64:
        """Where each page's bytes are: rows of the staging buffer, or slots of the source."""
        return self.rows if self.buffer >= 0 else self.slots

    @property
    def owner(self) -> Read:
        """The read that asked first; every page of a flight has the same."""
        return self.waiters[0].read

    @property
    def counters(self) -> Counters:
        """Where its lookups and device reads are counted."""
        return self.owner.counters

    def split_waiters(self, order: I64, ends: I64) -> list[list[Waiter]]:
        """The waiters of each part, if the flight is cut up; arguments as of ``Flights.divide``."""
        waiters: list[list[Waiter]] = [[] for _ in ends]
        for waiter in self.waiters:
            starts, places, rows, unique = deal(
                order, ends, waiter.positions, waiter.rows, waiter.unique
            )
            for (start, end), mine in zip(pairwise(starts), waiters, strict=True):
                if end > start:
                    span = slice(start, end)
                    mine.append(
                        Waiter(waiter.read, rows[span], places[span], unique[span], waiter.joined)
                    )
        return waiters


def group(labels: I64) -> Iterator[tuple[int, I64]]:
    """Each distinct label with the indices (ascending) at which it stands."""
    order = np.argsort(labels, kind="stable")
    sorted_labels = labels[order]
    starts = np.flatnonzero(np.diff(sorted_labels, prepend=sorted_labels[:1] - 1))
    ends = np.append(starts[1:], len(labels))[: len(starts)]
    for start, end in zip(starts, ends, strict=True):
        yield int(sorted_labels[start]), order[start:end]
