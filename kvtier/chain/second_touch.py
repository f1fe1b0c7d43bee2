"""Admission at the second touch: a page takes a slot when it was missed before.

Most of what passes a cache is asked for once; a tier that wears out by being written need not take
it. The rule is known as "reject first" (CacheLib, Berg et al., OSDI 2020, its ``RejectFirstAP``):
the first miss of a page is only noted, the next one is admitted.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.hashing import GOLDEN, U64_MASK
from kvtier.jit import jit, jit_inline
from kvtier.pages import EMPTY, U8, U32, U64, Bool, Misses

WAYS: Final = 8
"""Tags of a set: half a cache line."""

_SETS_MAX: Final = (1 << 32) - 1
_HALF: Final = np.uint64(32)
_LOW_HALF: Final = np.uint64(0xFFFF_FFFF)
_FREE: Final = np.uint32(0)


class SecondTouch:
    """Remembers about as many missed pages as a tier has slots, the latest of each set.

    A page is known by 32 bits of a hash in one of the sets, so of 500 million pages that were never
    missed one is taken for known. A set has its tags in the order of their last miss, and forgets
    the oldest: 4 bytes per slot of the tier.

    Duplicates of a batch are one touch: it is asked what was remembered before the batch, and then
    told what the batch missed.

    Args:
        slots: pages that the tier holds.
        seed: of the hash.
    """

    def __init__(self, slots: int, seed: int) -> None:
        self._tags = np.zeros((min(max(1, slots // WAYS), _SETS_MAX), WAYS), np.uint32)
        self._seed = np.uint64((seed + 1) * int(GOLDEN) & U64_MASK)
        # Compiled now, not inside the first request.
        none = np.empty(0, np.uint64)
        _remembered(self._tags, none, self._seed, np.empty(0, np.bool_))
        _note(self._tags, none, np.empty(0, np.uint8), self._seed)

    def remembered(self, page_ids: U64) -> Bool:
        """Which pages (u64[n]) were missed before, as far as it is remembered."""
        found = np.empty(len(page_ids), np.bool_)
        _remembered(self._tags, np.ascontiguousarray(page_ids), self._seed, found)
        return found

    def note(self, misses: Misses) -> None:
        """Remember what a batch missed; pages that have a slot already are none of it."""
        _note(self._tags, misses.page_ids, misses.states, self._seed)


@jit_inline
def _hash(page_id: np.uint64, seed: np.uint64) -> np.uint64:
    """Two rounds of Fibonacci hashing (Knuth vol. 3, 6.4)."""
    word = (page_id ^ seed) * GOLDEN
    word ^= word >> _HALF
    word *= GOLDEN
    return word ^ (word >> _HALF)


@jit_inline
def _set_of(hashed: np.uint64, sets: int) -> int:
    """By the high half of the hash (Lemire, 2019), for the low half is the tag."""
    return int(np.int64((hashed >> _HALF) * np.uint64(sets) >> _HALF))


@jit_inline
def _tag_of(hashed: np.uint64) -> np.uint32:
    tag = np.uint32(hashed & _LOW_HALF)
    return tag if tag != _FREE else np.uint32(1)


@jit
def _remembered(tags: U32, page_ids: U64, seed: np.uint64, found: Bool) -> None:
    for row in range(page_ids.size):
        hashed = _hash(page_ids[row], seed)
        of_set, tag = _set_of(hashed, tags.shape[0]), _tag_of(hashed)
        known = False
        for way in range(WAYS):
            known = known or tags[of_set, way] == tag
        found[row] = known


@jit
def _note(tags: U32, page_ids: U64, states: U8, seed: np.uint64) -> None:
    """Move each missed page to the front of its set; whoever was there before moves back."""
    for row in range(page_ids.size):
        if states[row] != EMPTY:
            continue
        hashed = _hash(page_ids[row], seed)
        of_set, tag = _set_of(hashed, tags.shape[0]), _tag_of(hashed)
        moved = tag
        for way in range(WAYS):
            present = tags[of_set, way]
            tags[of_set, way] = moved
            if present == tag:
                break
            moved = present
