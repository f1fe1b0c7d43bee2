"""Cuts batches into requests that a frame can hold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtier.backend import ExtentBatch
from kvtier.pages import U32


def cut_items(count: int, items_max: int) -> list[slice]:
    """``count`` keys, in parts of what one request may name."""
    return [slice(start, start + items_max) for start in range(0, count, items_max)]


def cut_pages(page_counts: U32, pages_max: int, items_max: int) -> list[slice]:
    """Items of so many pages each, in parts of at most ``pages_max``, or of one larger item."""
    ends = np.cumsum(page_counts, dtype=np.int64)
    parts: list[slice] = []
    start, before = 0, 0
    while start < len(ends):
        fitting = int(np.searchsorted(ends, before + pages_max, side="right"))
        stop = min(max(fitting, start + 1), start + items_max)
        parts.append(slice(start, stop))
        start, before = stop, int(ends[stop - 1])
    return parts


def part_of(batch: ExtentBatch, part: slice) -> ExtentBatch:
    """Some extents of a batch, with only the keys that they name."""
    named: NDArray[np.integer]
    named, key_index = np.unique(batch.key_index[part], return_inverse=True)
    return ExtentBatch(
        keys=tuple(batch.keys[index] for index in named.tolist()),
        versions=batch.versions[named],
        key_index=key_index.astype(np.uint32),
        first_page=batch.first_page[part],
        page_count=batch.page_count[part],
        row=batch.row[part],
    )
