"""The compiled loops of the chain: what NumPy would take several passes for."""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.jit import jit
from kvtier.pages import I64, U8, Bool, PageState

_VALID: Final = np.uint8(PageState.VALID)


def split_hits(states: U8, slots: I64) -> tuple[I64, I64, I64]:
    """Rows that hit (i64), their slots (i64), and rows that did not (i64), all ascending."""
    hit_rows = np.empty(len(states), np.int64)
    hit_slots = np.empty(len(states), np.int64)
    miss_rows = np.empty(len(states), np.int64)
    hits = _split_hits(states, slots, hit_rows, hit_slots, miss_rows)
    return hit_rows[:hits], hit_slots[:hits], miss_rows[: len(states) - hits]


def number_leaders(rows: I64, leaders: I64) -> tuple[I64, Bool, I64]:
    """Number the distinct pages among some rows of a batch.

    Args:
        rows: i64[m], ascending.
        leaders: i64[n], the first row of the batch that asks for the same page; it is in ``rows``
            if the row is.

    Returns:
        i64[k], the rows that lead; bool[m], which of ``rows`` do; i64[m], the number of the page
        that each of ``rows`` asks for.
    """
    first_rows = np.empty(len(rows), np.int64)
    leads = np.empty(len(rows), np.bool_)
    page_of = np.empty(len(rows), np.int64)
    number = np.empty(len(leaders), np.int64)
    count = _number_leaders(rows, leaders, number, first_rows, leads, page_of)
    return first_rows[:count], leads, page_of


def deal(
    part_of: I64, place_of: I64, positions: I64, rows: I64, unique: Bool, parts: int
) -> tuple[list[int], I64, I64, Bool]:
    """Deal what waits for pages of a flight to the parts that the flight is cut into, in order.

    Args:
        part_of: i64[p], the part that each page goes to.
        place_of: i64[p], the page's place there.
        positions: i64[m], the page that is waited for.
        rows: i64[m], the row that waits for it.
        unique: bool[m], dealt along with the rows.
        parts: how many there are.

    Returns:
        Where each part begins, and the end; i64[m], places in the part; rows; unique.
    """
    starts = np.empty(parts + 1, np.int64)
    dealt_places = np.empty(len(rows), np.int64)
    dealt_rows = np.empty(len(rows), np.int64)
    dealt_unique = np.empty(len(rows), np.bool_)
    _deal(
        part_of, place_of, positions, rows, unique, starts, dealt_places, dealt_rows, dealt_unique
    )
    return starts.tolist(), dealt_places, dealt_rows, dealt_unique


def compile_all() -> None:
    """Run every kernel on an empty batch, so that no request waits for the compiler."""
    none, never = np.empty(0, np.int64), np.empty(0, np.bool_)
    split_hits(np.empty(0, np.uint8), none)
    number_leaders(none, none)
    deal(none, none, none, none, never, 1)


@jit
def _split_hits(states: U8, slots: I64, hit_rows: I64, hit_slots: I64, miss_rows: I64) -> int:
    hits = 0
    for row in range(states.size):
        if states[row] == _VALID:
            hit_rows[hits] = row
            hit_slots[hits] = slots[row]
            hits += 1
        else:
            miss_rows[row - hits] = row
    return hits


@jit
def _number_leaders(
    rows: I64, leaders: I64, number: I64, first_rows: I64, leads: Bool, page_of: I64
) -> int:
    count = 0
    for at in range(rows.size):
        row = rows[at]
        leads[at] = leaders[row] == row
        if leads[at]:
            first_rows[count] = row
            number[row] = count
            count += 1
        page_of[at] = number[leaders[row]]
    return count


@jit
def _deal(
    part_of: I64,
    place_of: I64,
    positions: I64,
    rows: I64,
    unique: Bool,
    starts: I64,
    dealt_places: I64,
    dealt_rows: I64,
    dealt_unique: Bool,
) -> None:
    """A counting sort by part; it is stable."""
    starts[:] = 0
    for position in positions:
        starts[part_of[position] + 1] += 1
    for part in range(starts.size - 1):
        starts[part + 1] += starts[part]
    next_at = starts[:-1].copy()
    for at in range(rows.size):
        position = positions[at]
        part = part_of[position]
        to = next_at[part]
        next_at[part] = to + 1
        dealt_places[to] = place_of[position]
        dealt_rows[to] = rows[at]
        dealt_unique[to] = unique[at]
