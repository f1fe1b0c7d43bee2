"""The compiled loops of the Numba engine, over a table of slots.

Arithmetic on hashes and on the slots of a set is u64, on rows i64; the two never meet unconverted.
Where slots are looked through one by one they are unsigned, because Numba asks of every signed
index whether it counts from the end, and that is twice the time.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

import numpy as np

from kvtier.hashing import fmix64, set_of
from kvtier.jit import jit_in_place, jit_inline
from kvtier.pages import EMPTY, I64, PENDING, U8, U32, U64, VALID, Bool
from kvtier.prefetch import prefetch

_UNUSABLE: Final = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
"""Ranks after every slot that can be taken."""

_PREFETCH_ROWS: Final = 16
"""How far ahead of the probe its cache lines are asked for; 8 to 32 made no difference."""

_NO_SLOT: Final = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
"""Becomes -1 where slots are i64."""

_ZERO: Final = np.uint64(0)
_ONE: Final = np.uint64(1)
_EIGHT: Final = np.uint64(8)
_SIXTEEN: Final = np.uint64(16)
_EIGHT_SHIFT: Final = np.uint64(3)
_STATE_SHIFT: Final = np.uint64(32)
_WAY_BITS: Final = np.uint64(8)
_WAY_MASK: Final = np.uint64(0xFF)
_DIGEST_MASK: Final = np.uint64(0xFF)
_BYTE_ONES: Final = np.uint64(0x0101_0101_0101_0101)
_BYTE_HIGHS: Final = np.uint64(0x8080_8080_8080_8080)
_TOP_BYTE_SHIFT: Final = np.uint64(56)


Slot: TypeAlias = int | np.uint64
"""An unsigned index into the columns of a table."""


class SlotTable(NamedTuple):
    """The slots as a struct of arrays, one element per slot, and how pages map to them.

    Attributes:
        tags: u64, page id of a slot that is not EMPTY.
        digests: u8, low byte of that page's hash.
        digest_words: u64, the same memory as ``digests``, eight at a time.
        states: u8, a :class:`kvtier.pages.PageState`.
        stamps: u32, last touch, counted from the base epoch of the owner.
        priorities: u32.
        sets: number of sets.
        ways: slots of a set, a multiple of 8.
        seed_word: XORed into a page id before it is hashed.
    """

    tags: U64
    digests: U8
    digest_words: U64
    states: U8
    stamps: U32
    priorities: U32
    sets: np.uint64
    ways: int
    seed_word: np.uint64


@jit_inline
def _first_slot(table: SlotTable, hashed: np.uint64) -> np.uint64:
    """First slot of the set that ``hashed`` belongs to."""
    return set_of(hashed, table.sets) * np.uint64(table.ways)


@jit_inline
def _find(table: SlotTable, page_id: np.uint64, hashed: np.uint64) -> Slot:
    """The slot of a page, VALID or PENDING, or ``_NO_SLOT``.

    Eight digests are compared at once: XOR makes equal bytes 0, and the lowest 0 byte of a word is
    the lowest bit of ``(x - 0x01..01) & ~x & 0x80..80`` (Warren, Hacker's Delight, 6-1). Bits above
    it may be false; the tag has the last word.
    """
    first = _first_slot(table, hashed)
    pattern = (hashed & _DIGEST_MASK) * _BYTE_ONES
    for eight in range(first, first + np.uint64(table.ways), _EIGHT):
        difference = table.digest_words[eight >> _EIGHT_SHIFT] ^ pattern
        marks = (difference - _BYTE_ONES) & ~difference & _BYTE_HIGHS
        while marks != _ZERO:
            below = (marks & (~marks + _ONE)) - _ONE
            bytes_up_to = (below & _BYTE_ONES) * _BYTE_ONES >> _TOP_BYTE_SHIFT
            slot: Slot = eight + bytes_up_to - _ONE
            if table.tags[slot] == page_id and table.states[slot] != EMPTY:
                return slot
            marks &= marks - _ONE
    return _NO_SLOT


@jit_inline
def _prefetch_set(table: SlotTable, hashed: np.uint64) -> None:
    first = _first_slot(table, hashed)
    prefetch(table.digests, first)
    prefetch(table.states, first)
    for slot in range(first, first + np.uint64(table.ways), _EIGHT):
        prefetch(table.tags, slot)
    for slot in range(first, first + np.uint64(table.ways), _SIXTEEN):
        prefetch(table.stamps, slot)


@jit_in_place
def probe(
    table: SlotTable,
    page_ids: U64,
    stamp: np.uint32,
    hit_rows: I64,
    hit_slots: I64,
    miss_rows: I64,
    hashes: U64,
    miss_states: U8,
    miss_slots: I64,
) -> int:
    """Look every page up and stamp the slots found; no slot changes otherwise.

    Lists row and slot of the requests that hit; row, hash, state and slot (-1 where EMPTY) of those
    that did not. All columns have room for every request. Returns how many did not hit.
    """
    for row in range(page_ids.size):
        hashes[row] = fmix64(page_ids[row] ^ table.seed_word)
    hits = 0
    misses = 0
    for row in range(page_ids.size):
        _prefetch_set(table, hashes[min(row + _PREFETCH_ROWS, page_ids.size - 1)])
        hashed = hashes[row]
        slot = _find(table, page_ids[row], hashed)
        state = EMPTY
        if slot != _NO_SLOT:
            table.stamps[slot] = stamp
            state = table.states[slot]
        if state == VALID:
            hit_rows[hits] = row
            hit_slots[hits] = np.int64(slot)
            hits += 1
        else:
            miss_rows[misses] = row
            hashes[misses] = hashed  # at or before this row, whose own hash is used up
            miss_states[misses] = state
            miss_slots[misses] = np.int64(slot)
            misses += 1
    return misses


@jit_inline
def _rank(table: SlotTable, slot: Slot, oldest_stamp: np.uint32) -> np.uint64:
    """(state, priority) as one number; ``_UNUSABLE`` if the slot must not be taken."""
    state = table.states[slot]
    usable = (state != PENDING) & (table.stamps[slot] < oldest_stamp)
    rank = (np.uint64(state) << _STATE_SHIFT) | np.uint64(table.priorities[slot])
    return rank if usable else _UNUSABLE


@jit_inline
def _victim(table: SlotTable, hashed: np.uint64, oldest_stamp: np.uint32) -> Slot:
    """The slot to take in a set, or ``_NO_SLOT``.

    It is the least (state, priority, stamp, way) of the usable ones.
    """
    first = _first_slot(table, hashed)
    ways = np.uint64(table.ways)
    # Two searches for a least number: LLVM makes vector instructions of each, and of one that
    # compares four columns it does not.
    best_rank = _UNUSABLE
    for slot in range(first, first + ways):
        best_rank = min(best_rank, _rank(table, slot, oldest_stamp))
    if best_rank == _UNUSABLE:
        return _NO_SLOT
    best = _UNUSABLE
    for way in range(_ZERO, ways):
        candidate = first + way
        touched = (np.uint64(table.stamps[candidate]) << _WAY_BITS) | way
        is_best = _rank(table, candidate, oldest_stamp) == best_rank
        best = min(best, touched if is_best else _UNUSABLE)
    return first + (best & _WAY_MASK)


@jit_inline
def _reserve(
    table: SlotTable,
    slot: Slot,
    page_id: np.uint64,
    hashed: np.uint64,
    stamp: np.uint32,
    priority: np.uint32,
) -> None:
    table.tags[slot] = page_id
    table.digests[slot] = np.uint8(hashed & _DIGEST_MASK)
    table.states[slot] = PENDING
    table.stamps[slot] = stamp
    table.priorities[slot] = priority


@jit_in_place
def fold_and_plan(
    table: SlotTable,
    page_ids: U64,
    order: I64,
    rows: I64,
    hashes: U64,
    states: U8,
    slots: I64,
    admit: Bool,
    priorities: U32,
    stamp: np.uint32,
    oldest_stamp: np.uint32,
    leaders: I64,
    evicted: U64,
) -> tuple[int, int]:
    """Give each page that did not hit one leader, and each missing one a slot if it can.

    ``rows``, ``hashes``, ``states`` and ``slots`` are those of :func:`probe`, and ``order`` the
    positions in them in ascending order of the hash, in which the rows of a page are neighbours. An
    empty ``admit`` admits all, empty ``priorities`` are 0. Completes the ``slots`` of leaders,
    fills ``leaders`` (of each position, the first of its page) and ``evicted``; returns
    (evictions, bypasses).
    """
    evictions = 0
    bypasses = 0
    first = 0
    while first < order.size:
        ahead = hashes[order[min(first + _PREFETCH_ROWS, order.size - 1)]]
        _prefetch_set(table, ahead)
        prefetch(table.priorities, _first_slot(table, ahead))
        lead = order[first]
        hashed = hashes[lead]
        last = first + 1
        while last < order.size and hashes[order[last]] == hashed:
            lead = min(lead, order[last])
            last += 1
        row = rows[lead]
        if states[lead] == EMPTY and (admit.size == 0 or admit[row]):
            slot = _victim(table, hashed, oldest_stamp)
            slots[lead] = np.int64(slot)
            if slot == _NO_SLOT:
                bypasses += 1
            else:
                if table.states[slot] == VALID:
                    evicted[evictions] = table.tags[slot]
                    evictions += 1
                priority = priorities[row] if priorities.size else np.uint32(0)
                _reserve(table, slot, page_ids[row], hashed, stamp, priority)
        for at in range(first, last):
            leaders[order[at]] = lead
        first = last
    return evictions, bypasses


@jit_in_place
def number_pages(
    page_ids: U64,
    rows: I64,
    states: U8,
    slots: I64,
    leaders: I64,
    leads: Bool,
    page_of: I64,
    missed: U64,
) -> int:
    """Number the pages that did not hit, in the order of the first row of each.

    Arguments are those of :func:`fold_and_plan`. Fills ``leads``, ``page_of`` and ``missed`` as
    :class:`kvtier.pages.Misses` has them, and moves ``states`` and ``slots`` of leaders together.
    Returns how many pages there are.
    """
    count = 0
    for at in range(rows.size):
        leads[at] = leaders[at] == at
        if leads[at]:
            page_of[at] = count
            missed[count] = page_ids[rows[at]]
            states[count] = states[at]
            slots[count] = slots[at]
            count += 1
        else:
            page_of[at] = page_of[leaders[at]]
    return count


@jit_in_place
def publish(table: SlotTable, slots: I64) -> int:
    """PENDING slots become VALID. Returns how many were not PENDING; above 0 nothing changed."""
    wrong = _count_not_pending(table, slots)
    if wrong == 0:
        for slot in slots:
            table.states[slot] = VALID
    return wrong


@jit_in_place
def abort(table: SlotTable, slots: I64) -> int:
    """PENDING slots become EMPTY, unstamped. Returns as :func:`publish` does."""
    wrong = _count_not_pending(table, slots)
    if wrong == 0:
        for slot in slots:
            _clear(table, slot)
            table.stamps[slot] = np.uint32(0)
    return wrong


@jit_in_place
def invalidate(table: SlotTable, page_ids: U64, dropped: I64) -> int:
    """VALID pages become EMPTY, stamps kept. Lists their slots in ``dropped``, returns how many."""
    count = 0
    for page_id in page_ids:
        slot = _find(table, page_id, fmix64(page_id ^ table.seed_word))
        if slot != _NO_SLOT and table.states[slot] == VALID:
            _clear(table, slot)
            dropped[count] = np.int64(slot)
            count += 1
    return count


@jit_in_place
def drop(table: SlotTable, slots: I64) -> None:
    """Slots become EMPTY, unstamped."""
    for slot in slots:
        _clear(table, slot)
        table.stamps[slot] = np.uint32(0)


@jit_in_place
def restore(table: SlotTable, page_ids: U64, slots: I64) -> None:
    """Pages take EMPTY slots of their sets and become VALID; -1 where there is none, or no need."""
    ways = np.uint64(table.ways)
    for row in range(page_ids.size):
        ahead = page_ids[min(row + _PREFETCH_ROWS, page_ids.size - 1)]
        begin = _first_slot(table, fmix64(ahead ^ table.seed_word))
        prefetch(table.digests, begin)
        prefetch(table.states, begin)
        for eight in range(begin, begin + ways, _EIGHT):
            prefetch(table.tags, eight)
        page_id = page_ids[row]
        hashed = fmix64(page_id ^ table.seed_word)
        slots[row] = -1
        if _find(table, page_id, hashed) != _NO_SLOT:
            continue
        first = _first_slot(table, hashed)
        for slot in range(first, first + ways):
            if table.states[slot] == EMPTY:
                table.tags[slot] = page_id
                table.digests[slot] = np.uint8(hashed & _DIGEST_MASK)
                table.states[slot] = VALID
                slots[row] = np.int64(slot)
                break


@jit_in_place
def peek(table: SlotTable, page_ids: U64, slots: I64) -> None:
    """The slot of each VALID page, or -1."""
    for row in range(page_ids.size):
        page_id = page_ids[row]
        slot = _find(table, page_id, fmix64(page_id ^ table.seed_word))
        is_valid = slot != _NO_SLOT and table.states[slot] == VALID
        slots[row] = np.int64(slot) if is_valid else -1


@jit_inline
def _clear(table: SlotTable, slot: Slot) -> None:
    table.tags[slot] = _ZERO
    table.digests[slot] = np.uint8(0)
    table.states[slot] = EMPTY
    table.priorities[slot] = np.uint32(0)


@jit_inline
def _count_not_pending(table: SlotTable, slots: I64) -> int:
    wrong = 0
    for slot in slots:
        if slot < 0 or slot >= table.states.size or table.states[slot] != PENDING:
            wrong += 1
    return wrong
