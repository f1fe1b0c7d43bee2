"""The index of a log: which page lies at which location, and which pages must make room.

Locations are given in order (:mod:`kvtier.index.log_ring`), so that pages that come together lie
together. Segments are let go in that order too, ahead of need. Their pages leave the index; those
that were asked for since they were written are *moved*: written again at the head of the log, up
to half of a segment, the youngest first. So the log is a FIFO with reinsertion (as CLOCK, or the
reinsertion of CacheLib's flash cache, Berg et al., OSDI 2020), written sequentially.

Where the pages are is decided by a set-associative index with half as many slots again as the log
has locations, so that sets rarely overflow, and eviction is the log's.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.index import log_kernels
from kvtier.index.cpu import NumbaIndex
from kvtier.index.interface import IndexSnapshot
from kvtier.index.log_geometry import LogGeometry
from kvtier.index.log_ring import LogRing
from kvtier.pages import EMPTY, I64, PENDING, U32, U64, Bool, LookupResult, Moves
from kvtier.rows import aligned_rows, as_column

_RESTORED_AT_ONCE: Final = 1 << 17
"""Pages that one compiled call restores, so that Ctrl-C is heard between calls."""


class LogIndex:
    """Answers like a :class:`kvtier.index.interface.PageIndex`, with locations for slots.

    Beyond that, a lookup that makes room may ask for *moves*, each of which is ended by
    :meth:`moved`; until then the page is found at its old location. A location is given again only
    when its segment was let go and nobody reads there: no page of it is PENDING or being moved, and
    the newest epoch that touched the segment is released. Locations that were aborted are given
    again at once. Pages for which there is no room are bypassed.

    Args:
        geometry: of the log.
        ways: slots of a set.
        seed: of the hash.

    Raises:
        SettingsError: as of :func:`kvtier.index.create_index`.
    """

    def __init__(self, geometry: LogGeometry, ways: int = 16, seed: int = 1) -> None:
        self.geometry = geometry
        self.slots = geometry.locations
        slots = geometry.locations + geometry.locations // 2
        self._index = NumbaIndex(-(-slots // ways) * ways, ways, seed)
        self._ring = LogRing(geometry)
        self._location_of = _nowhere(self._index.slots)
        """Of each slot that is not EMPTY."""
        self._slot_of = _nowhere(geometry.locations)
        """Of each location at which a page is, or will be when its slot is VALID."""
        self._touched = aligned_rows(self._index.slots, 1).reshape(-1).view(np.bool_)
        """The page in the slot was asked for since it was given its location."""
        self._touched_at = np.zeros(geometry.segments, np.uint64)
        """The newest epoch that found a page in the segment, or was given a location there."""
        self._pending = np.zeros(geometry.segments, np.int64)
        """Locations of the segment that were given, and not published, aborted or moved to."""
        self._moving = np.zeros(geometry.segments, np.int64)
        """Pages of the segment that are being moved."""
        log_kernels.compile_all()

    @property
    def generations(self) -> U64:
        """u64[segments], see :class:`LogRing`; not to be written."""
        return self._ring.generations

    def lookup(
        self,
        page_ids: U64,
        epoch: int,
        oldest_epoch: int,
        *,
        admit: Bool | None = None,
        priorities: U32 | None = None,
    ) -> LookupResult:
        """See :meth:`PageIndex.lookup`. Pages are given locations in the order of their rows."""
        found = self._index.lookup(
            page_ids, epoch, oldest_epoch, admit=admit, priorities=priorities
        )
        self._touch(found.hits, epoch)
        if found.rows is None:
            return found
        states, slots = found.misses.states, found.misses.slots
        joined = slots[states == PENDING]
        self._touch(joined, epoch)
        locations = np.full(len(slots), -1)
        locations[states == PENDING] = joined
        reserved = np.flatnonzero((states == EMPTY) & (slots >= 0))
        evicted, moves = found.evicted, None
        if len(reserved):
            self._forget(slots[reserved])
            dropped, moves = self._make_room(len(reserved), oldest_epoch)
            evicted = np.concatenate((evicted, dropped))
            given = self._ring.take(len(reserved))
            placed, rest = reserved[: len(given)], reserved[len(given) :]
            locations[placed] = given
            self._location_of[slots[placed]] = given
            self._slot_of[given] = slots[placed]
            self._touched[slots[placed]] = False
            self._count(self._pending, given, 1)
            self._touched_at[given // self.geometry.segment_pages] = epoch
            self._index.abort(slots[rest])
            found = found._replace(bypasses=found.bypasses + len(rest))
        misses = found.misses._replace(slots=locations)
        return found._replace(misses=misses, evicted=evicted, moves=moves)

    def publish(self, slots: I64) -> None:
        """See :meth:`PageIndex.publish`."""
        locations = as_column(slots, np.int64, "slots")
        self._index.publish(self._slots_at(locations))
        self._count(self._pending, locations, -1)

    def abort(self, slots: I64) -> None:
        """See :meth:`PageIndex.abort`."""
        locations = as_column(slots, np.int64, "slots")
        held = self._slots_at(locations)
        self._index.abort(held)
        self._forget(held)
        self._count(self._pending, locations, -1)
        self._ring.give_back(locations)

    def invalidate(self, page_ids: U64) -> I64:
        """See :meth:`PageIndex.invalidate`."""
        return self._forget(self._index.invalidate(page_ids))

    def peek(self, page_ids: U64) -> I64:
        """See :meth:`PageIndex.peek`."""
        slots = self._index.peek(page_ids)
        return np.where(slots >= 0, self._location_of[slots], -1)

    def moved(self, sources: I64, targets: I64, ok: Bool) -> int:
        """End moves that a lookup asked for, each once.

        Args:
            sources: i64[m], where the pages were.
            targets: i64[m], where they were to go.
            ok: bool[m], whether they are there; others are forgotten, if they still were here.

        Returns:
            How many pages were forgotten.
        """
        slots = self._slot_of[sources]
        is_here = slots >= 0
        goes = is_here & ok
        self._slot_of[sources] = -1
        self._slot_of[targets[goes]] = slots[goes]
        self._location_of[slots[goes]] = targets[goes]
        # Who asks where a page is that was touched before it moved, reads at the target.
        pages = self.geometry.segment_pages
        np.maximum.at(self._touched_at, targets // pages, self._touched_at[sources // pages])
        lost = slots[is_here & ~ok]
        self._index.drop(lost)
        self._location_of[lost] = -1
        self._count(self._pending, targets, -1)
        self._count(self._moving, sources, -1)
        return len(lost)

    def restore(self, page_ids: U64, locations: I64, generations: U64) -> None:
        """Fill an empty index with what a file has; the log goes on after the newest segment.

        Of a page that occurs twice the newest is taken; of two pages at one location, either.

        Args:
            page_ids: u64[n], in any order.
            locations: i64[n].
            generations: u64[segments], 0 for segments that were never written.
        """
        ranks = np.argsort(np.argsort(generations))
        if len(ranks) <= 1 << 16:
            ranks = ranks.astype(np.uint16)  # these are sorted by their digits, in one pass each
        ages = ranks[locations // self.geometry.segment_pages]
        newest_first = np.argsort(ages, kind="stable")[::-1]
        for first in range(0, len(newest_first), _RESTORED_AT_ONCE):
            rows = newest_first[first : first + _RESTORED_AT_ONCE]
            slots = self._index.restore(page_ids[rows])
            refused = log_kernels.place(self._location_of, self._slot_of, slots, locations[rows])
            self._index.drop(slots[:refused])
        self._ring.restore(generations)

    def snapshot(self) -> IndexSnapshot:
        """As of :meth:`PageIndex.snapshot`, by location; what is given and empty reads as 0."""
        by_slot = self._index.snapshot()
        found = IndexSnapshot(
            tags=by_slot.tags[self._slot_of],
            digests=by_slot.digests[self._slot_of],
            states=by_slot.states[self._slot_of],
            stamps=by_slot.stamps[self._slot_of],
            priorities=by_slot.priorities[self._slot_of],
        )
        for column in found:
            column[self._slot_of < 0] = 0
        return found

    # -- making room --------------------------------------------------------------------------

    def _make_room(self, pages: int, oldest_epoch: int) -> tuple[U64, Moves | None]:
        """Let segments go until so many pages leave enough of them spare.

        Returns:
            The pages that were dropped (u64[k]), and those that must be moved.
        """
        dropped: list[U64] = []
        sources: list[I64] = []
        targets: list[I64] = []
        self._free_drained(oldest_epoch)
        for _ in range(self._ring.full_segments):
            oldest = self._ring.oldest
            if not self._ring.is_short_of(pages) or self._pending[oldest]:
                break
            hot, cold = self._divide(oldest)
            dropped.append(self._index.pages_in(self._slot_of[cold]))
            self._index.drop(self._slot_of[cold])
            self._forget(self._slot_of[cold])
            sources.append(hot)
            targets.append(self._ring.take_new(len(hot)))
            self._count(self._pending, targets[-1], 1)
            self._touched[self._slot_of[hot]] = False
            self._count(self._moving, hot, 1)
            self._ring.let_go()
            self._free_drained(oldest_epoch)
        if not dropped:
            return np.empty(0, np.uint64), None
        moving = np.concatenate(sources)
        page_ids = self._index.pages_in(self._slot_of[moving])
        moves = Moves(page_ids, moving, np.concatenate(targets)) if len(moving) else None
        return np.concatenate(dropped), moves

    def _divide(self, segment: int) -> tuple[I64, I64]:
        """Locations of a segment's pages: those that stay in the log, and those that leave it."""
        pages = self.geometry.segment_pages
        slots = self._slot_of[segment * pages : (segment + 1) * pages]
        stays = (slots >= 0) & self._touched[slots]
        hot = np.flatnonzero(stays)
        stay_max = min(pages // 2, self._ring.room)
        if len(hot) > stay_max:
            epochs = self._index.touched_at(slots[hot])
            stays[hot[np.argsort(~epochs, kind="stable")[stay_max:]]] = False
        leaves = (slots >= 0) & ~stays
        return segment * pages + np.flatnonzero(stays), segment * pages + np.flatnonzero(leaves)

    def _free_drained(self, oldest_epoch: int) -> None:
        """Segments that were let go are free when nobody is there any more, one after the other."""
        ring = self._ring
        while ring.draining_segments:
            segment = ring.first_draining
            if self._moving[segment] or self._touched_at[segment] >= oldest_epoch:
                break
            ring.free()

    # -- small steps --------------------------------------------------------------------------

    def _touch(self, slots: I64, epoch: int) -> None:
        """Turn slots into the locations of their pages, in place, and mark those as asked for."""
        log_kernels.touch(
            self._location_of,
            self._touched,
            self._touched_at,
            self.geometry.segment_pages,
            np.uint64(epoch),
            slots,
        )

    def _forget(self, slots: I64) -> I64:
        """Slots have no location any more; returns those they had."""
        locations = self._location_of[slots]
        self._location_of[slots] = -1
        self._slot_of[locations[locations >= 0]] = -1
        return locations

    def _slots_at(self, locations: I64) -> I64:
        """The slot of the page at each location, or -1."""
        slots = np.empty(len(locations), np.int64)
        log_kernels.slots_at(self._slot_of, locations, slots)
        return slots

    def _count(self, counts: I64, locations: I64, step: int) -> None:
        log_kernels.count(counts, locations, self.geometry.segment_pages, step)


def _nowhere(count: int) -> I64:
    """i64[count] of -1, in memory that is read at random."""
    numbers = aligned_rows(count, 8).view(np.int64).reshape(-1)
    numbers[:] = -1
    return numbers
