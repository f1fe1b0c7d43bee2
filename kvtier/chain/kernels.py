"""The compiled loops of the chain: what NumPy would take several passes for."""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.jit import jit
from kvtier.pages import I64, U8, Bool, PageState

_VALID: Final = np.uint8(PageState.VALID)


def split_hits(states: U8, slots: I64) -> tuple[I64, int, I64]:
    """Put the rows (n) that hit before those that did not.

    Returns:
        i64[n], the rows, both kinds ascending; how many hit; i64[n], the slot of each.
    """
    order = np.empty(len(states), np.int64)
    ordered_slots = np.empty(len(states), np.int64)
    hits = _split_hits(states, slots, order, ordered_slots)
    return order, hits, ordered_slots


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
    order: I64, ends: I64, positions: I64, rows: I64, unique: Bool
) -> tuple[list[int], I64, I64, Bool]:
    """Deal what waits for pages of a flight to the parts that the flight is cut into, in order.

    Args:
        order: i64[p], the pages of the flight, part after part.
        ends: i64[k], where each part ends.
        positions: i64[m], the page that is waited for.
        rows: i64[m], the row that waits for it.
        unique: bool[m], dealt along with the rows.

    Returns:
        Where each part begins, and the end; i64[m], places in the part; rows; unique.
    """
    starts = np.empty(len(ends) + 1, np.int64)
    dealt_places = np.empty(len(rows), np.int64)
    dealt_rows = np.empty(len(rows), np.int64)
    dealt_unique = np.empty(len(rows), np.bool_)
    _deal(order, ends, positions, rows, unique, starts, dealt_places, dealt_rows, dealt_unique)
    return starts.tolist(), dealt_places, dealt_rows, dealt_unique


def compile_all() -> None:
    """Run every kernel on an empty batch, so that no request waits for the compiler."""
    none, never = np.empty(0, np.int64), np.empty(0, np.bool_)
    split_hits(np.empty(0, np.uint8), none)
    number_leaders(none, none)
    deal(none, none, none, none, never)


@jit
def _split_hits(states: U8, slots: I64, order: I64, ordered_slots: I64) -> int:
    hits = 0
    for row in range(states.size):
        if states[row] == _VALID:
            order[hits] = row
            ordered_slots[hits] = slots[row]
            hits += 1
    at = hits
    for row in range(states.size):
        if states[row] != _VALID:
            order[at] = row
            ordered_slots[at] = slots[row]
            at += 1
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
    order: I64,
    ends: I64,
    positions: I64,
    rows: I64,
    unique: Bool,
    starts: I64,
    dealt_places: I64,
    dealt_rows: I64,
    dealt_unique: Bool,
) -> None:
    """A counting sort by part; it is stable."""
    part_of = np.empty(order.size, np.int64)
    place_of = np.empty(order.size, np.int64)
    begin = 0
    for part in range(ends.size):
        for at in range(begin, ends[part]):
            part_of[order[at]] = part
            place_of[order[at]] = at - begin
        begin = ends[part]
    starts[:] = 0
    for position in positions:
        starts[part_of[position] + 1] += 1
    for part in range(ends.size):
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
