"""Planning of device reads: neighbouring pages become extents, extents become device batches."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from kvtier.jit import jit
from kvtier.pages import I64, U8, U64, PageStatus


@dataclass(frozen=True, slots=True, eq=False)
class Extents:
    """Runs of adjacent pages to be read into a buffer, one device operation each.

    Attributes:
        first: u64[e], location of the first page: a PageId at the origin, a slot in a tier.
        count: i64[e], pages, unwanted ones that bridge a gap included.
        row: i64[e], the buffer row that takes the first page; the others follow.
    """

    first: U64
    count: I64
    row: I64

    def __len__(self) -> int:
        return len(self.first)

    @property
    def pages(self) -> int:
        """Pages read, gaps included."""
        return int(self.count.sum())

    def clipped(self, existing: I64) -> Extents:
        """The extents, cut to the pages of each that exist (i64[e]); empty ones are left out."""
        kept = existing > 0
        return Extents(self.first[kept], existing[kept], self.row[kept])

    def page_status(self, status: U8, existing: I64, page_rows: I64) -> U8:
        """A ``PageStatus`` for each of the buffer rows ``page_rows`` (i64[m]).

        Args:
            status: u8[e], what became of each extent.
            existing: i64[e], pages of the extent that exist; those after them are ABSENT.
            page_rows: rows of wanted pages.
        """
        extent = np.searchsorted(self.row, page_rows, side="right") - 1
        absent = page_rows - self.row[extent] >= existing[extent]
        return np.where(absent, np.uint8(PageStatus.ABSENT), status[extent])


@dataclass(frozen=True, slots=True)
class ExtentRules:
    """How a level's reads may be merged and packed.

    Attributes:
        merge_gap_pages: unwanted pages that may be read to join two extents.
        extent_pages_max: most pages of one extent.
        batch_pages: most pages of one device batch (one staging buffer).
        batch_extents: most extents of one device batch.
    """

    merge_gap_pages: int
    extent_pages_max: int
    batch_pages: int
    batch_extents: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Device batches that bring pages.

    Attributes:
        order: i64[n], the wanted pages, batch after batch, as indices into the planned locations.
        page_rows: i64[n], the row of its batch's buffer for each, in that order.
        ends: where each batch ends in them.
        batches: what the device is asked for.
    """

    order: I64
    page_rows: I64
    ends: list[int]
    batches: list[Extents]


def plan_extents(locations: U64, rules: ExtentRules, *, distinct: bool = False) -> Plan:
    """Merge locations (u64[n], any order) into extents and pack those into batches.

    Locations whose high halves differ are never merged, so an extent stays inside one object; nor
    are equal ones, each is read by itself. Whoever knows that there are none says ``distinct``.
    """
    # Equal ones keep their order; without such, a sort that need not is faster.
    order = locations.argsort(kind=None if distinct else "stable")
    count = len(locations)
    first = np.empty(count, np.uint64)
    pages = np.empty(count, np.int64)
    row = np.empty(count, np.int64)
    page_row = np.empty(count, np.int64)
    batch_extent = np.empty(count + 1, np.int64)
    batch_page = np.empty(count + 1, np.int64)
    batches = _plan(
        locations[order],
        rules.merge_gap_pages,
        rules.extent_pages_max,
        rules.batch_pages,
        rules.batch_extents,
        first,
        pages,
        row,
        page_row,
        batch_extent,
        batch_page,
    )
    spans = pairwise(batch_extent[: batches + 1].tolist())
    return Plan(
        order,
        page_row,
        batch_page[1 : batches + 1].tolist(),
        [Extents(first[start:end], pages[start:end], row[start:end]) for start, end in spans],
    )


@jit
def _plan(
    locations: U64,
    merge_gap_pages: int,
    extent_pages_max: int,
    batch_pages: int,
    batch_extents: int,
    first: U64,
    pages: I64,
    row: I64,
    page_row: I64,
    batch_extent: I64,
    batch_page: I64,
) -> int:
    """Fill the arrays for ascending ``locations``; returns the number of batches."""
    half = np.uint64(32)
    extents = 0
    batches = 0
    rows_used = 0
    for i in range(locations.shape[0]):
        location = locations[i]
        if i > 0:
            last = locations[i - 1]
            step = np.int64(location - last)
            length = np.int64(location - first[extents - 1]) + 1
            if (
                (location >> half) == (last >> half)
                and 0 < step <= merge_gap_pages + 1
                and length <= extent_pages_max
                and rows_used + step <= batch_pages
            ):
                pages[extents - 1] = length
                rows_used += int(step)
                page_row[i] = rows_used - 1
                continue
        if (
            i == 0
            or rows_used == batch_pages
            or extents - batch_extent[batches - 1] == batch_extents
        ):
            batch_extent[batches] = extents
            batch_page[batches] = i
            batches += 1
            rows_used = 0
        first[extents] = location
        pages[extents] = 1
        row[extents] = rows_used
        page_row[i] = rows_used
        extents += 1
        rows_used += 1
    batch_extent[batches] = extents
    batch_page[batches] = locations.shape[0]
    return batches
