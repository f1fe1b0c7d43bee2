"""The page index on a CPU, compiled by Numba."""

from __future__ import annotations

import numpy as np

from kvtier.hashing import seed_word
from kvtier.index import kernels
from kvtier.index.epochs import STAMP_MAX, base_for
from kvtier.index.interface import IndexSnapshot, check_pending, hint_column, sets_for
from kvtier.index.kernels import SlotTable
from kvtier.pages import I64, U32, U64, Bool, LookupResult, Misses, all_hit
from kvtier.rows import aligned_rows, as_column


class NumbaIndex:
    """A :class:`kvtier.index.interface.PageIndex`; see there for what the methods promise.

    18 bytes per slot. A batch whose pages all hit costs one compiled call and two arrays.
    """

    def __init__(self, slots: int, ways: int = 16, seed: int = 1) -> None:
        self.sets = sets_for(slots, ways)
        self.ways = ways
        self.slots = self.sets * ways
        self._table = _empty_table(self.sets, ways, seed)
        self._base = 0
        self._newest = 0
        self._compile()

    def lookup(
        self,
        page_ids: U64,
        epoch: int,
        oldest_epoch: int,
        *,
        admit: Bool | None = None,
        priorities: U32 | None = None,
    ) -> LookupResult:
        page_ids = as_column(page_ids, np.uint64, "page_ids")
        count = page_ids.size
        admit = hint_column(admit, np.bool_, "admit", count)
        priorities = hint_column(priorities, np.uint32, "priorities", count)
        self._enter(epoch, oldest_epoch)
        stamp = np.uint32(epoch - self._base)

        hit_rows, hit_slots, rows, slots = (np.empty(count, np.int64) for _ in range(4))
        hashes, states = np.empty(count, np.uint64), np.empty(count, np.uint8)
        misses = kernels.probe(
            self._table, page_ids, stamp, hit_rows, hit_slots, rows, hashes, states, slots
        )
        if misses == 0:
            return all_hit(hit_slots)

        rows, hashes, states, slots = (
            rows[:misses],
            hashes[:misses],
            states[:misses],
            slots[:misses],
        )
        leaders, page_of = np.empty(misses, np.int64), np.empty(misses, np.int64)
        evicted, missed = np.empty(misses, np.uint64), np.empty(misses, np.uint64)
        leads = np.empty(misses, np.bool_)
        evictions, bypasses = kernels.fold_and_plan(
            self._table,
            page_ids,
            hashes.argsort(),
            rows,
            hashes,
            states,
            slots,
            admit,
            priorities,
            stamp,
            np.uint32(oldest_epoch - self._base),
            leaders,
            evicted,
        )
        pages = kernels.number_pages(page_ids, rows, states, slots, leaders, leads, page_of, missed)
        answer = Misses(rows, leads, page_of, missed[:pages], states[:pages], slots[:pages])
        hits = count - misses
        return LookupResult(
            hit_slots[:hits], hit_rows[:hits], answer, evicted[:evictions], bypasses
        )

    def publish(self, slots: I64) -> None:
        slots = as_column(slots, np.int64, "slots")
        check_pending(kernels.publish(self._table, slots), slots.size, "publish")

    def abort(self, slots: I64) -> None:
        slots = as_column(slots, np.int64, "slots")
        check_pending(kernels.abort(self._table, slots), slots.size, "abort")

    def invalidate(self, page_ids: U64) -> I64:
        page_ids = as_column(page_ids, np.uint64, "page_ids")
        dropped = np.empty(page_ids.size, np.int64)
        return dropped[: kernels.invalidate(self._table, page_ids, dropped)]

    def peek(self, page_ids: U64) -> I64:
        page_ids = as_column(page_ids, np.uint64, "page_ids")
        slots = np.empty(page_ids.size, np.int64)
        kernels.peek(self._table, page_ids, slots)
        return slots

    def pages_in(self, slots: I64) -> U64:
        """u64[n], the page of each slot; all of them VALID or PENDING."""
        return self._table.tags[slots]

    def touched_at(self, slots: I64) -> U64:
        """u64[n], the epoch in which each slot was last found or reserved; 0: long ago."""
        stamps = self._table.stamps[slots].astype(np.uint64)
        stamps[stamps > 0] += np.uint64(self._base)
        return stamps

    def drop(self, slots: I64) -> None:
        """Make VALID slots (i64[n]) EMPTY and free at once: nobody reads there."""
        kernels.drop(self._table, slots)

    def restore(self, page_ids: U64) -> I64:
        """Give pages (u64[n]) VALID slots, as if touched long ago; the first come first.

        Returns:
            i64[n], the slot of each page; -1 if its set is full, or it was there before.
        """
        slots = np.empty(page_ids.size, np.int64)
        kernels.restore(self._table, page_ids, slots)
        return slots

    def snapshot(self) -> IndexSnapshot:
        table = self._table
        epochs = table.stamps.astype(np.uint64)
        epochs[epochs > 0] += np.uint64(self._base)
        return IndexSnapshot(
            tags=table.tags.copy(),
            digests=table.digests.copy(),
            states=table.states.copy(),
            stamps=epochs,
            priorities=table.priorities.copy(),
        )

    def _enter(self, epoch: int, oldest_epoch: int) -> None:
        base = base_for(self._base, self._newest, epoch, oldest_epoch)
        if base != self._base:
            shift = np.uint32(min(base - self._base, STAMP_MAX))
            stamps = self._table.stamps
            np.maximum(stamps, shift, out=stamps)
            stamps -= shift
        self._base = base
        self._newest = epoch

    def _compile(self) -> None:
        """Run every kernel on an empty batch, so that no request waits for the compiler."""
        table, stamp = self._table, np.uint32(0)
        ids, slots = np.empty(0, np.uint64), np.empty(0, np.int64)
        states, admit, priorities = (
            np.empty(0, np.uint8),
            np.empty(0, np.bool_),
            np.empty(0, np.uint32),
        )
        kernels.probe(table, ids, stamp, slots, slots, slots, ids, states, slots)
        kernels.fold_and_plan(
            table,
            ids,
            slots,
            slots,
            ids,
            states,
            slots,
            admit,
            priorities,
            stamp,
            stamp,
            slots,
            ids,
        )
        kernels.number_pages(ids, slots, states, slots, slots, admit, slots, ids)
        kernels.publish(table, slots)
        kernels.abort(table, slots)
        kernels.invalidate(table, ids, slots)
        kernels.peek(table, ids, slots)
        kernels.drop(table, slots)
        kernels.restore(table, ids, slots)


def _empty_table(sets: int, ways: int, seed: int) -> SlotTable:
    digests = aligned_rows(sets, ways).reshape(-1)
    return SlotTable(
        tags=aligned_rows(sets, ways * 8).view(np.uint64).reshape(-1),
        digests=digests,
        digest_words=digests.view(np.uint64),
        states=aligned_rows(sets, ways).reshape(-1),
        stamps=aligned_rows(sets, ways * 4).view(np.uint32).reshape(-1),
        priorities=aligned_rows(sets, ways * 4).view(np.uint32).reshape(-1),
        sets=np.uint64(sets),
        ways=ways,
        seed_word=np.uint64(seed_word(seed)),
    )
