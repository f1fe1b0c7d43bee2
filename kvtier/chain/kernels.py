"""The compiled loops of the chain: what NumPy would take several passes for."""

from __future__ import annotations

import numpy as np

from kvtier.folding import number_leaders
from kvtier.jit import jit
from kvtier.pages import I64, Bool


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
    number_leaders(none)
    deal(none, none, none, none, never)


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
