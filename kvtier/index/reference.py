"""The page index in plain Python: slow, obviously right, and the oracle of every other engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kvtier.hashing import fmix64_int, seed_word
from kvtier.index.epochs import base_for
from kvtier.index.interface import IndexSnapshot, check_pending, hint_column, sets_for
from kvtier.pages import I64, U32, U64, Bool, LookupResult, Misses, PageState
from kvtier.rows import as_column


@dataclass(slots=True)
class _Slot:
    page: int = 0
    state: PageState = PageState.EMPTY
    epoch: int = 0
    """Epoch of the last touch, 0 for none; absolute, where other engines keep a u32 stamp."""
    priority: int = 0

    def clear(self) -> None:
        self.page = 0
        self.state = PageState.EMPTY
        self.priority = 0


class ReferenceIndex:
    """A :class:`kvtier.index.interface.PageIndex`; see there for what the methods promise."""

    def __init__(self, slots: int, ways: int = 16, seed: int = 1) -> None:
        self.sets = sets_for(slots, ways)
        self.ways = ways
        self.slots = self.sets * ways
        self._seed_word = seed_word(seed)
        self._base = 0
        self._newest = 0
        self._slots = [_Slot() for _ in range(self.slots)]

    def lookup(
        self,
        page_ids: U64,
        epoch: int,
        oldest_epoch: int,
        *,
        admit: Bool | None = None,
        priorities: U32 | None = None,
    ) -> LookupResult:
        pages: list[int] = as_column(page_ids, np.uint64, "page_ids").tolist()
        count = len(pages)
        admitted = hint_column(admit, np.bool_, "admit", count).tolist() or [True] * count
        ranks = hint_column(priorities, np.uint32, "priorities", count).tolist() or [0] * count
        self._enter(epoch, oldest_epoch)

        slots = [self._find(page) for page in pages]
        states = [self._slots[slot].state if slot >= 0 else PageState.EMPTY for slot in slots]
        for slot in slots:
            if slot >= 0:
                self._slots[slot].epoch = epoch

        leaders = _fold(pages, states)
        missing = [
            row
            for row, state in enumerate(states)
            if state == PageState.EMPTY and leaders[row] == row and admitted[row]
        ]
        evicted: list[int] = []
        bypasses = 0
        for row in sorted(missing, key=lambda row: self._hash(pages[row])):
            slots[row] = self._victim(pages[row], oldest_epoch)
            if slots[row] < 0:
                bypasses += 1
                continue
            victim = self._slots[slots[row]]
            if victim.state == PageState.VALID:
                evicted.append(victim.page)
            self._slots[slots[row]] = _Slot(pages[row], PageState.PENDING, epoch, ranks[row])
        hits = [row for row, state in enumerate(states) if state == PageState.VALID]
        return LookupResult(
            hits=np.array([slots[row] for row in hits], np.int64),
            rows=None if len(hits) == count else np.array(hits, np.int64),
            misses=_misses(pages, states, slots, leaders),
            evicted=np.array(evicted, np.uint64),
            bypasses=bypasses,
        )

    def publish(self, slots: I64) -> None:
        for slot in self._pending(slots, "publish"):
            slot.state = PageState.VALID

    def abort(self, slots: I64) -> None:
        for slot in self._pending(slots, "abort"):
            slot.clear()
            slot.epoch = 0

    def invalidate(self, page_ids: U64) -> I64:
        dropped = []
        for page in as_column(page_ids, np.uint64, "page_ids").tolist():
            slot = self._find(page)
            if slot >= 0 and self._slots[slot].state == PageState.VALID:
                self._slots[slot].clear()
                dropped.append(slot)
        return np.array(dropped, np.int64)

    def peek(self, page_ids: U64) -> I64:
        slots = [self._find(page) for page in as_column(page_ids, np.uint64, "page_ids").tolist()]
        valid = [slot >= 0 and self._slots[slot].state == PageState.VALID for slot in slots]
        return np.where(np.array(valid, bool), np.array(slots, np.int64), -1)

    def pages_in(self, slots: I64) -> U64:
        """As of the Numba engine."""
        return np.array([self._slots[slot].page for slot in slots.tolist()], np.uint64)

    def touched_at(self, slots: I64) -> U64:
        """As of the Numba engine."""
        return np.array([self._slots[slot].epoch for slot in slots.tolist()], np.uint64)

    def drop(self, slots: I64) -> None:
        """As of the Numba engine."""
        for slot in slots.tolist():
            self._slots[slot].clear()
            self._slots[slot].epoch = 0

    def restore(self, page_ids: U64) -> I64:
        """As of the Numba engine."""
        slots = []
        for page in page_ids.tolist():
            empty = [slot for slot in self._set(page) if self._slots[slot].state == PageState.EMPTY]
            slots.append(-1 if self._find(page) >= 0 or not empty else empty[0])
            if slots[-1] >= 0:
                self._slots[slots[-1]] = _Slot(page, PageState.VALID)
        return np.array(slots, np.int64)

    def snapshot(self) -> IndexSnapshot:
        slots = self._slots
        digests = [0 if s.state == PageState.EMPTY else self._hash(s.page) & 0xFF for s in slots]
        return IndexSnapshot(
            tags=np.array([slot.page for slot in slots], np.uint64),
            digests=np.array(digests, np.uint8),
            states=np.array([slot.state for slot in slots], np.uint8),
            stamps=np.array([slot.epoch for slot in slots], np.uint64),
            priorities=np.array([slot.priority for slot in slots], np.uint32),
        )

    def _enter(self, epoch: int, oldest_epoch: int) -> None:
        self._base = base_for(self._base, self._newest, epoch, oldest_epoch)
        self._newest = epoch
        for slot in self._slots:
            if slot.epoch <= self._base:
                slot.epoch = 0

    def _hash(self, page: int) -> int:
        return fmix64_int(page ^ self._seed_word)

    def _set(self, page: int) -> range:
        first = (self._hash(page) * self.sets >> 64) * self.ways
        return range(first, first + self.ways)

    def _find(self, page: int) -> int:
        for slot in self._set(page):
            if self._slots[slot].state != PageState.EMPTY and self._slots[slot].page == page:
                return slot
        return -1

    def _victim(self, page: int, oldest_epoch: int) -> int:
        def rank(slot: int) -> tuple[bool, int, int, int]:
            held = self._slots[slot]
            return held.state != PageState.EMPTY, held.priority, held.epoch, slot

        usable = [
            slot
            for slot in self._set(page)
            if self._slots[slot].state != PageState.PENDING
            and self._slots[slot].epoch < oldest_epoch
        ]
        return min(usable, key=rank, default=-1)

    def _pending(self, slots: I64, action: str) -> Iterable[_Slot]:
        numbers = as_column(slots, np.int64, "slots").tolist()
        wrong = [
            slot
            for slot in numbers
            if not 0 <= slot < self.slots or self._slots[slot].state != PageState.PENDING
        ]
        check_pending(len(wrong), len(numbers), action)
        return [self._slots[slot] for slot in numbers]


def _fold(pages: Sequence[int], states: Sequence[PageState]) -> list[int]:
    """The leader of each row: the first row of its page, or itself if it hit."""
    first_rows: dict[int, int] = {}
    return [
        row if state == PageState.VALID else first_rows.setdefault(page, row)
        for row, (page, state) in enumerate(zip(pages, states, strict=True))
    ]


def _misses(
    pages: Sequence[int], states: Sequence[PageState], slots: Sequence[int], leaders: Sequence[int]
) -> Misses:
    rows = [row for row, state in enumerate(states) if state != PageState.VALID]
    first = [row for row in rows if leaders[row] == row]
    return Misses(
        rows=np.array(rows, np.int64),
        leads=np.array([row in first for row in rows], np.bool_),
        page_of=np.array([first.index(leaders[row]) for row in rows], np.int64),
        page_ids=np.array([pages[row] for row in first], np.uint64),
        states=np.array([states[row] for row in first], np.uint8),
        slots=np.array([slots[row] for row in first], np.int64),
    )
