"""The compiled loops of a log's index."""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.jit import jit_in_place
from kvtier.pages import I64, U64, Bool
from kvtier.prefetch import prefetch

_PREFETCH_ROWS: Final = 32
"""Twice as far as the probe looks: what is asked for here lies in memory, in no cache."""


def compile_all() -> None:
    """Run every kernel on an empty batch, so that no request waits for the compiler."""
    none, epochs, never = np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, np.bool_)
    touch(none, never, epochs, 1, np.uint64(1), none)
    count(none, none, 1, 1)
    slots_at(none, none, none)
    place(none, none, none, none)


@jit_in_place
def touch(
    location_of: I64,
    touched: Bool,
    touched_at: U64,
    segment_pages: int,
    epoch: np.uint64,
    slots: I64,
) -> None:
    """Replace slots by the locations of their pages, and mark those as touched in ``epoch``."""
    for row in range(slots.size):
        ahead = slots[min(row + _PREFETCH_ROWS, slots.size - 1)]
        prefetch(location_of, ahead)
        prefetch(touched, ahead)
        slot = slots[row]
        location = location_of[slot]
        slots[row] = location
        touched[slot] = True
        touched_at[location // segment_pages] = epoch


@jit_in_place
def count(counts: I64, locations: I64, segment_pages: int, step: int) -> None:
    """Add ``step`` to the count of each location's segment."""
    for location in locations:
        counts[location // segment_pages] += step


@jit_in_place
def slots_at(slot_of: I64, locations: I64, slots: I64) -> None:
    """The slot of the page at each location, or -1, also where there is no such location."""
    for row in range(locations.size):
        location = locations[row]
        slots[row] = slot_of[location] if 0 <= location < slot_of.size else -1


@jit_in_place
def place(location_of: I64, slot_of: I64, slots: I64, locations: I64) -> int:
    """Bring slots and locations together; lists in ``slots`` those whose location is taken.

    Slots below 0 are passed over. Returns how many are listed.
    """
    refused = 0
    for row in range(locations.size):
        prefetch(location_of, max(0, slots[min(row + _PREFETCH_ROWS, slots.size - 1)]))
        slot = slots[row]
        if slot < 0:
            continue
        if slot_of[locations[row]] >= 0:
            slots[refused] = slot
            refused += 1
        else:
            slot_of[locations[row]] = slot
            location_of[slot] = locations[row]
    return refused
