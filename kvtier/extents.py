"""What is asked of a whole batch of extents at once, compiled: a pass or two over its columns.

NumPy needs some microseconds for each question of a small batch, and a server answers thousands of
batches a second.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.jit import jit, jit_inline
from kvtier.pages import U8, U32, U64, PageStatus
from kvtier.rows import memcpy

_OK: Final = np.uint8(PageStatus.OK)
_ABSENT: Final = np.uint8(PageStatus.ABSENT)


@jit
def bounds(
    key_index: U32, page_count: U32, row: U32
) -> tuple[np.int64, np.int64, np.int64, np.int64]:
    """Of at least one extent: the largest key, the fewest and most pages, the rows they need."""
    key_last = np.int64(0)
    pages_min = np.int64(page_count[0])
    pages_max = pages_min
    rows = np.int64(0)
    for at in range(len(page_count)):
        pages = np.int64(page_count[at])
        key_last = max(key_last, np.int64(key_index[at]))
        pages_min = min(pages_min, pages)
        pages_max = max(pages_max, pages)
        rows = max(rows, np.int64(row[at]) + pages)
    return key_last, pages_min, pages_max, rows


@jit
def lay_out(key_index: U32, page_count: U32, row: U32) -> tuple[np.int64, np.int64]:
    """Give extents the rows of a buffer that holds them one after the other.

    Args:
        key_index: u32[n].
        page_count: u32[n].
        row: u32[n], is written; of no use where there are 2**32 pages or more.

    Returns:
        The largest key, -1 where there is no extent, and the pages of all.
    """
    key_last = np.int64(-1)
    pages = np.int64(0)
    for at in range(len(page_count)):
        key_last = max(key_last, np.int64(key_index[at]))
        row[at] = np.uint32(pages & 0xFFFF_FFFF)
        pages += np.int64(page_count[at])
    return key_last, pages


@jit
def run(page_count: U32, row: U32) -> tuple[np.int64, np.int64]:
    """The pages of all extents, and whether their rows are one run (0 or 1)."""
    is_run = np.int64(1)
    pages = np.int64(0)
    for at in range(len(page_count)):
        if np.int64(row[at]) != np.int64(row[0]) + pages:
            is_run = np.int64(0)
        pages += np.int64(page_count[at])
    return pages, is_run


@jit_inline
def find(
    places: U64, versions: U64, key: int, first_page: int, page_count: int, page_bytes: int
) -> np.uint64:
    """The address of an extent, 0 where it is not there; arguments as those of :func:`copy`."""
    end = np.uint64(first_page) + np.uint64(page_count)
    if places[key, 0] != versions[key] or end > places[key, 1]:
        return np.uint64(0)
    start: np.uint64 = places[key, 2] + np.uint64(first_page) * np.uint64(page_bytes)
    return start


@jit
def copy(
    places: U64,
    versions: U64,
    key_index: U32,
    first_page: U32,
    page_count: U32,
    row: U32,
    target: int,
    page_bytes: int,
    status: U8,
) -> None:
    """Copy extents of objects in memory to rows of a buffer.

    Args:
        places: u64[k, 3], version, pages and address of each object; no pages where there is none.
        versions: u64[k], the version wanted of each.
        key_index: u32[n], the key of each extent.
        first_page: u32[n].
        page_count: u32[n].
        row: u32[n], inside ``target``.
        target: address of row 0.
        page_bytes: bytes of a page.
        status: u8[n], is written: a ``PageStatus``.
    """
    for at in range(len(page_count)):
        key, size = key_index[at], np.uint64(page_count[at]) * np.uint64(page_bytes)
        start = find(places, versions, key, first_page[at], page_count[at], page_bytes)
        if start == 0:
            status[at] = _ABSENT
        else:
            status[at] = _OK
            memcpy(np.uint64(target) + np.uint64(row[at]) * np.uint64(page_bytes), start, size)


def compile_all() -> None:
    """Compile what works on batches, so that no request waits for it; kept on disk."""
    zeros, ones, status = np.zeros(1, np.uint32), np.ones(1, np.uint32), np.zeros(1, np.uint8)
    places, versions = np.zeros((1, 3), np.uint64), np.zeros(1, np.uint64)
    bounds(zeros, ones, zeros)
    lay_out(zeros, ones, zeros)
    run(ones, zeros)
    copy(places, versions, zeros, zeros, ones, zeros, 0, 1, status)
