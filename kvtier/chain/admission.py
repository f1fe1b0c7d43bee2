"""Admission: which missed pages may reserve a slot."""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.pages import U64, Bool

_GOLDEN: Final = 0x9E37_79B9_7F4A_7C15
_U64: Final = (1 << 64) - 1
_HIGH_HALF: Final = np.uint64(32)


def admitted(page_ids: U64, epoch: int, share: float) -> Bool | None:
    """Which of the pages (u64[n]) a tier that admits ``share`` of them takes; None: all.

    The choice is a hash of page and epoch (Fibonacci hashing, Knuth vol. 3, 6.4), in integers: the
    same run chooses the same pages, and a page refused once may be taken the next time.
    """
    if share >= 1.0:
        return None
    golden = np.uint64(_GOLDEN)
    key = (page_ids ^ np.uint64((epoch * _GOLDEN) & _U64)) * golden
    key ^= key >> _HIGH_HALF
    key *= golden
    return (key >> _HIGH_HALF) < np.uint64(int(share * (1 << 32)))
