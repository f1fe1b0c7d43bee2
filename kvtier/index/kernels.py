"""The compiled loops of the Numba engine, over a table of slots.

Arithmetic on hashes is u64 throughout, on slots and rows i64; the two never meet unconverted.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from kvtier.hashing import fmix64, set_of
from kvtier.index.prefetch import prefetch
from kvtier.jit import jit, jit_inline
from kvtier.pages import I64, U8, U32, U64, Bool, PageState

_EMPTY: Final = np.uint8(PageState.EMPTY)
_PENDING: Final = np.uint8(PageState.PENDING)
_VALID: Final = np.uint8(PageState.VALID)
_UNUSABLE: Final = np.uint8(255)
"""Ranks after every state, so that no slot is better than none."""

_PREFETCH_ROWS: Final = 16
"""How far ahead of the probe its cache lines are asked for; 8 to 32 made no difference."""

_ZERO: Final = np.uint64(0)
_ONE: Final = np.uint64(1)
_PRIORITY_SHIFT: Final = np.uint64(32)
_DIGEST_MASK: Final = np.uint64(0xFF)
_BYTE_ONES: Final = np.uint64(0x0101_0101_0101_0101)
_BYTE_HIGHS: Final = np.uint64(0x8080_8080_8080_8080)
_TOP_BYTE_SHIFT: Final = np.uint64(56)


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
def _first_slot(table: SlotTable, hashed: np.uint64) -> int:
    """First slot of the set that ``hashed`` belongs to."""
    return int(np.int64(set_of(hashed, table.sets))) * table.ways


@jit_inline
def _find(table: SlotTable, page_id: np.uint64, hashed: np.uint64) -> int:
    """The slot of a page, VALID or PENDING, or -1.

    Eight digests are compared at once: XOR makes equal bytes 0, and the lowest 0 byte of a word is
    the lowest bit of ``(x - 0x01..01) & ~x & 0x80..80`` (Warren, Hacker's Delight, 6-1). Bits above
    it may be false; the tag has the last word.
    """
    first = _first_slot(table, hashed)
    pattern = (hashed & _DIGEST_MASK) * _BYTE_ONES
    for eight in range(first, first + table.ways, 8):
        difference = table.digest_words[eight >> 3] ^ pattern
        marks = (difference - _BYTE_ONES) & ~difference & _BYTE_HIGHS
        while marks != _ZERO:
            below = (marks & (~marks + _ONE)) - _ONE
            bytes_up_to = (below & _BYTE_ONES) * _BYTE_ONES >> _TOP_BYTE_SHIFT
            slot = eight + np.int64(bytes_up_to) - 1
            if table.tags[slot] == page_id and table.states[slot] != _EMPTY:
                return int(slot)
            marks &= marks - _ONE
    return -1


@jit_inline
def _prefetch_set(table: SlotTable, page_id: np.uint64) -> None:
    first = _first_slot(table, fmix64(page_id ^ table.seed_word))
    prefetch(table.digests, first)
    prefetch(table.states, first)
    # One loop, though every second stamp lies in a line already asked for: with a second one Numba
    # no longer proves the arrays alive, and counts references for each row, five times slower.
    for slot in range(first, first + table.ways, 8):
        prefetch(table.tags, slot)
        prefetch(table.stamps, slot)


@jit
def probe(
    table: SlotTable,
    page_ids: U64,
    stamp: np.uint32,
    states: U8,
    slots: I64,
    miss_rows: I64,
    miss_hashes: U64,
) -> int:
    """Look every page up and stamp the slots found; no slot changes otherwise.

    Fills ``states`` and ``slots`` (-1 where EMPTY), and lists rows and hashes of the requests that
    did not hit. Returns how many those are.
    """
    misses = 0
    for row in range(page_ids.size):
        _prefetch_set(table, page_ids[min(row + _PREFETCH_ROWS, page_ids.size - 1)])
        page_id = page_ids[row]
        hashed = fmix64(page_id ^ table.seed_word)
        slot = _find(table, page_id, hashed)
        slots[row] = slot
        if slot >= 0:
            table.stamps[slot] = stamp
            states[row] = table.states[slot]
        else:
            states[row] = _EMPTY
        if states[row] != _VALID:
            miss_rows[misses] = row
            miss_hashes[misses] = hashed
            misses += 1
    return misses


@jit_inline
def _victim(table: SlotTable, hashed: np.uint64, oldest_stamp: np.uint32) -> int:
    """The slot to take in a set, or -1: least (state, priority, stamp, way) of the usable ones."""
    best = -1
    best_state = _UNUSABLE
    best_cost = _ZERO
    first = _first_slot(table, hashed)
    for slot in range(first, first + table.ways):
        # Selects, not branches: stamps lie in random order, so a branch would be guessed wrong.
        stamp = table.stamps[slot]
        usable = (table.states[slot] != _PENDING) & (stamp < oldest_stamp)
        state = table.states[slot] if usable else _UNUSABLE
        cost = (np.uint64(table.priorities[slot]) << _PRIORITY_SHIFT) | np.uint64(stamp)
        better = (state < best_state) | ((state == best_state) & (cost < best_cost))
        best = slot if better else best
        best_state = state if better else best_state
        best_cost = cost if better else best_cost
    return best


@jit_inline
def _reserve(
    table: SlotTable,
    slot: int,
    page_id: np.uint64,
    hashed: np.uint64,
    stamp: np.uint32,
    priority: np.uint32,
) -> None:
    table.tags[slot] = page_id
    table.digests[slot] = np.uint8(hashed & _DIGEST_MASK)
    table.states[slot] = _PENDING
    table.stamps[slot] = stamp
    table.priorities[slot] = priority


@jit
def fold_and_plan(
    table: SlotTable,
    page_ids: U64,
    miss_rows: I64,
    order: I64,
    hashes: U64,
    admit: Bool,
    priorities: U32,
    stamp: np.uint32,
    oldest_stamp: np.uint32,
    states: U8,
    slots: I64,
    leaders: I64,
    evicted: U64,
) -> tuple[int, int]:
    """Give each page that did not hit one leader, and each missing one a slot if it can.

    ``miss_rows`` are those of :func:`probe`, and ``order`` their positions there in ascending order
    of the hash, in which the rows of a page are neighbours; ``hashes`` are in that order. An empty
    ``admit`` admits all, empty ``priorities`` are 0. Completes the ``slots`` of leaders, fills
    ``leaders`` (of each position in ``miss_rows``, the first of its page) and ``evicted``; returns
    (evictions, bypasses).
    """
    evictions = 0
    bypasses = 0
    first = 0
    while first < order.size:
        ahead = min(first + _PREFETCH_ROWS, order.size - 1)
        prefetch(table.priorities, _first_slot(table, hashes[ahead]))
        prefetch(table.stamps, _first_slot(table, hashes[ahead]))
        lead = order[first]
        last = first + 1
        while last < order.size and hashes[last] == hashes[first]:
            lead = min(lead, order[last])
            last += 1
        leader = miss_rows[lead]
        if states[leader] == _EMPTY and (admit.size == 0 or admit[leader]):
            slot = _victim(table, hashes[first], oldest_stamp)
            slots[leader] = slot
            if slot < 0:
                bypasses += 1
            else:
                if table.states[slot] == _VALID:
                    evicted[evictions] = table.tags[slot]
                    evictions += 1
                priority = priorities[leader] if priorities.size else np.uint32(0)
                _reserve(table, slot, page_ids[leader], hashes[first], stamp, priority)
        for at in range(first, last):
            leaders[order[at]] = lead
        first = last
    return evictions, bypasses


@jit
def list_hits(states: U8, slots: I64, hit_rows: I64, hit_slots: I64) -> None:
    """The rows that hit, ascending, and the slot of each."""
    at = 0
    for row in range(states.size):
        if states[row] == _VALID:
            hit_rows[at] = row
            hit_slots[at] = slots[row]
            at += 1


@jit
def publish(table: SlotTable, slots: I64) -> int:
    """PENDING slots become VALID. Returns how many were not PENDING; above 0 nothing changed."""
    wrong = _count_not_pending(table, slots)
    if wrong == 0:
        for slot in slots:
            table.states[slot] = _VALID
    return wrong


@jit
def abort(table: SlotTable, slots: I64) -> int:
    """PENDING slots become EMPTY, unstamped. Returns as :func:`publish` does."""
    wrong = _count_not_pending(table, slots)
    if wrong == 0:
        for slot in slots:
            _clear(table, slot)
            table.stamps[slot] = np.uint32(0)
    return wrong


@jit
def invalidate(table: SlotTable, page_ids: U64, dropped: I64) -> int:
    """VALID pages become EMPTY, stamps kept. Lists their slots in ``dropped``, returns how many."""
    count = 0
    for page_id in page_ids:
        slot = _find(table, page_id, fmix64(page_id ^ table.seed_word))
        if slot >= 0 and table.states[slot] == _VALID:
            _clear(table, slot)
            dropped[count] = slot
            count += 1
    return count


@jit
def drop(table: SlotTable, slots: I64) -> None:
    """Slots become EMPTY, unstamped."""
    for slot in slots:
        _clear(table, slot)
        table.stamps[slot] = np.uint32(0)


@jit
def restore(table: SlotTable, page_ids: U64, slots: I64) -> None:
    """Pages take EMPTY slots of their sets and become VALID; -1 where there is none, or no need."""
    for row in range(page_ids.size):
        ahead = page_ids[min(row + _PREFETCH_ROWS, page_ids.size - 1)]
        begin = _first_slot(table, fmix64(ahead ^ table.seed_word))
        prefetch(table.digests, begin)
        prefetch(table.states, begin)
        for eight in range(begin, begin + table.ways, 8):
            prefetch(table.tags, eight)
        page_id = page_ids[row]
        hashed = fmix64(page_id ^ table.seed_word)
        slots[row] = -1
        if _find(table, page_id, hashed) >= 0:
            continue
        first = _first_slot(table, hashed)
        for slot in range(first, first + table.ways):
            if table.states[slot] == _EMPTY:
                table.tags[slot] = page_id
                table.digests[slot] = np.uint8(hashed & _DIGEST_MASK)
                table.states[slot] = _VALID
                slots[row] = slot
                break


@jit
def peek(table: SlotTable, page_ids: U64, slots: I64) -> None:
    """The slot of each VALID page, or -1."""
    for row in range(page_ids.size):
        page_id = page_ids[row]
        slot = _find(table, page_id, fmix64(page_id ^ table.seed_word))
        slots[row] = slot if slot >= 0 and table.states[slot] == _VALID else -1


@jit_inline
def _clear(table: SlotTable, slot: int) -> None:
    table.tags[slot] = _ZERO
    table.digests[slot] = np.uint8(0)
    table.states[slot] = _EMPTY
    table.priorities[slot] = np.uint32(0)


@jit_inline
def _count_not_pending(table: SlotTable, slots: I64) -> int:
    wrong = 0
    for slot in slots:
        if slot < 0 or slot >= table.states.size or table.states[slot] != _PENDING:
            wrong += 1
    return wrong
