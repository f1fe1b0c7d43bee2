"""Pages whose bytes tell what they are, so that a wrong page is never taken for a right one."""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np

from kvtier.hashing import GOLDEN
from kvtier.pages import U8, U64

_MIX_1: Final = np.uint64(0xBF58_476D_1CE4_E5B9)
_MIX_2: Final = np.uint64(0x94D0_49BB_1331_11EB)


def make_pages(key: bytes, generation: int, count: int, page_bytes: int) -> U8:
    """Pages of an object, different for each key, generation, page and position.

    Args:
        key: of the object.
        generation: tells the contents that one key has had apart.
        count: pages.
        page_bytes: bytes of a page, a multiple of 8.

    Returns:
        u8[count, page_bytes], words of splitmix64 (Steele, Lea, Flood 2014) seeded by the page.
    """
    seed = np.uint64((zlib.crc32(key) << 32 | generation & 0xFFFF_FFFF) & (1 << 64) - 1)
    words = np.arange(page_bytes // 8, dtype=np.uint64)
    pages = _mix(seed + np.arange(count, dtype=np.uint64) * GOLDEN)
    return _mix(pages[:, None] + words * GOLDEN).view(np.uint8)


def _mix(words: U64) -> U64:
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return words ^ (words >> np.uint64(31))
