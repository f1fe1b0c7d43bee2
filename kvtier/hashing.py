"""The hashes of the package, and the constants that several of them share.

Pages are placed in sets by ``h = fmix64(page_id ^ seed_word)``, with the 64-bit finalizer of
MurmurHash3 (Austin Appleby, public domain,
https://github.com/aappleby/smhasher/blob/master/src/MurmurHash3.cpp). It is a bijection, so no two
pages share an ``h``. The set is the high half of the 128-bit product ``h * sets`` (Lemire, "Fast
Random Integer Generation in an Interval", 2019), so ``sets`` need not be a power of two; it grows
with ``h``, so pages sorted by ``h`` are sorted by set. The digest is ``h & 0xff``.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.jit import jit_inline

U64_MASK: Final = (1 << 64) - 1

GOLDEN: Final = np.uint64(0x9E37_79B9_7F4A_7C15)
"""2**64 divided by the golden ratio: Fibonacci hashing multiplies by it (Knuth, TAOCP 3, 6.4)."""

PRIME_1: Final = np.uint64(0x9E37_79B1_85EB_CA87)
PRIME_2: Final = np.uint64(0xC2B2_AE3D_27D4_EB4F)
PRIME_3: Final = np.uint64(0x1656_67B1_9E37_79F9)
PRIME_4: Final = np.uint64(0x85EB_CA77_C2B2_AE63)
"""The primes of XXH64."""

_FACTOR_1: Final = np.uint64(0xFF51_AFD7_ED55_8CCD)
_FACTOR_2: Final = np.uint64(0xC4CE_B9FE_1A85_EC53)
_SHIFT: Final = np.uint64(33)
_HALF: Final = np.uint64(32)
_LOW_HALF: Final = np.uint64(0xFFFF_FFFF)


def fmix64_int(word: int) -> int:
    """:func:`fmix64` of a Python integer."""
    word ^= word >> 33
    word = word * int(_FACTOR_1) & U64_MASK
    word ^= word >> 33
    word = word * int(_FACTOR_2) & U64_MASK
    return word ^ word >> 33


def seed_word(seed: int) -> int:
    """The u64 that is XORed into page ids.

    A small seed must not be XORed as it is: ids are dense, so seeds 1 and 2 would give the same
    set of hashes to different pages, and tiers would overflow in the same sets.
    """
    return fmix64_int((seed + int(GOLDEN)) & U64_MASK)


@jit_inline
def fmix64(word: np.uint64) -> np.uint64:
    """MurmurHash3's 64-bit finalizer."""
    word ^= word >> _SHIFT
    word *= _FACTOR_1
    word ^= word >> _SHIFT
    word *= _FACTOR_2
    word ^= word >> _SHIFT
    return word


@jit_inline
def set_of(hashed: np.uint64, sets: np.uint64) -> np.uint64:
    """The high 64 bits of ``hashed * sets``; exact, without overflow, for sets < 2**32."""
    low = (hashed & _LOW_HALF) * sets >> _HALF
    return (hashed >> _HALF) * sets + low >> _HALF
