"""An exact, growing set of u64 ids that answers whole arrays: which of these are new?

Open addressing with linear probing (Knuth, TAOCP 6.4, algorithm L) over a table of a power of two,
placed by the high bits of a multiplicative hash (Fibonacci hashing, same section), kept at most
half full: 18 to 36 bytes an id.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.hashing import GOLDEN
from kvtier.jit import jit
from kvtier.pages import U64, Bool

_SLOTS_MIN: Final = 1 << 12
_CHUNK_IDS: Final = 1 << 17
"""Ids inserted by one compiled call, so that it returns within milliseconds."""

_ONE: Final = np.uint64(1)


class SeenIds:
    """The ids seen so far."""

    def __init__(self) -> None:
        self._count = 0
        self._ids = np.empty(_SLOTS_MIN, np.uint64)
        self._used = np.zeros(_SLOTS_MIN, np.bool_)

    def __len__(self) -> int:
        return self._count

    def add(self, ids: U64) -> Bool:
        """Remember ids.

        Args:
            ids: u64[n].

        Returns:
            bool[n], which of them were new; of equal ones in the same call, the first.
        """
        fresh = np.empty(len(ids), np.bool_)
        for start in range(0, len(ids), _CHUNK_IDS):
            part = slice(start, start + _CHUNK_IDS)
            self._reserve(len(ids[part]))
            self._count += self._insert(ids[part], fresh[part])
        return fresh

    def _insert(self, ids: U64, fresh: Bool) -> int:
        shift = np.uint64(64 - (len(self._ids).bit_length() - 1))
        return int(insert_ids(self._ids, self._used, shift, ids, fresh))

    def _reserve(self, more: int) -> None:
        slots = len(self._ids)
        while (self._count + more) * 2 > slots:
            slots *= 2
        if slots == len(self._ids):
            return
        old_ids, old_used = self._ids, self._used
        self._ids = np.empty(slots, np.uint64)
        self._used = np.zeros(slots, np.bool_)
        for start in range(0, len(old_ids), _CHUNK_IDS):
            part = slice(start, start + _CHUNK_IDS)
            kept = old_ids[part][old_used[part]]
            self._insert(kept, np.empty(len(kept), np.bool_))


@jit
def insert_ids(slots: U64, used: Bool, shift: np.uint64, ids: U64, fresh: Bool) -> int:
    """Insert ids into a table that has room, mark the new ones, and return how many they are."""
    mask = np.uint64(len(slots) - 1)
    added = 0
    for i in range(len(ids)):
        slot = (ids[i] * GOLDEN) >> shift
        while used[slot] and slots[slot] != ids[i]:
            slot = (slot + _ONE) & mask
        fresh[i] = not used[slot]
        if fresh[i]:
            used[slot] = True
            slots[slot] = ids[i]
            added += 1
    return added
