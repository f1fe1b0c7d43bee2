"""Admission: which missed pages may reserve a slot."""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np

from kvtier.chain.second_touch import SecondTouch
from kvtier.hashing import GOLDEN, U64_MASK
from kvtier.pages import U64, Bool

AdmissionRule: TypeAlias = float | SecondTouch
"""A share of the missed pages, 0 to 1, or those that were missed before."""

_HIGH_HALF: Final = np.uint64(32)


def admitted(page_ids: U64, epoch: int, rule: AdmissionRule) -> Bool | None:
    """Which of the pages (u64[n]) a tier takes by its rule; None: all.

    A share is chosen by a hash of page and epoch (Fibonacci hashing, Knuth vol. 3, 6.4), in
    integers: the same run chooses the same pages, and a page refused once may be taken the next
    time.
    """
    if isinstance(rule, SecondTouch):
        return rule.remembered(page_ids)
    if rule >= 1.0:
        return None
    key = (page_ids ^ np.uint64((epoch * int(GOLDEN)) & U64_MASK)) * GOLDEN
    key ^= key >> _HIGH_HALF
    key *= GOLDEN
    return (key >> _HIGH_HALF) < np.uint64(int(rule * (1 << 32)))
