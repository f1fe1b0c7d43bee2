"""Turns extents into ranged requests: merged where they meet, cut where they are long."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvtier.backend import ExtentBatch
from kvtier.pages import I64

_PAGE_BITS = 34
"""Bits for a page of an object beside its key: an extent may end beyond what a u32 can say."""


@dataclass(frozen=True, slots=True, eq=False)
class ReadPlan:
    """``m`` requests, and the ``p`` pieces of extents that they bring.

    Attributes:
        key_index: i64[m], the request's key in the batch.
        first_page: i64[m], its first page.
        stop_page: i64[m], the page after its last.
        pieces: i64[m + 1], where its pieces begin; those of the next one follow.
        extent: i64[p], the extent that a piece is of.
        offset: i64[p], its first page, from that of its request.
        page_count: i64[p], its pages.
        row: i64[p], the row of its first page.
    """

    key_index: I64
    first_page: I64
    stop_page: I64
    pieces: I64
    extent: I64
    offset: I64
    page_count: I64
    row: I64

    def __len__(self) -> int:
        return len(self.key_index)


def plan_requests(batch: ExtentBatch, merge_gap_pages: int, request_pages_max: int) -> ReadPlan:
    """Plan the reads of a batch.

    Args:
        batch: the extents; they may overlap.
        merge_gap_pages: extents of an object with at most so many pages between them become one
            request; those between are read and thrown away.
        request_pages_max: a longer request is cut into several, which travel side by side.
    """
    key = batch.key_index.astype(np.int64)
    first = batch.first_page.astype(np.int64) | key << _PAGE_BITS
    stop = first + batch.page_count.astype(np.int64)
    order = np.argsort(first, kind="stable")
    first, stop = first[order], stop[order]
    reach = np.maximum.accumulate(stop)
    # A run of extents ends where the next one begins beyond all of them. Other keys are far away.
    begins = np.flatnonzero(np.concatenate(([True], first[1:] > reach[:-1] + merge_gap_pages)))
    run_first = first[begins]
    run_stop = reach[np.concatenate((begins[1:], [len(first)])) - 1]
    run_requests = -((run_first - run_stop) // request_pages_max)
    before = np.cumsum(run_requests) - run_requests
    run_of = np.repeat(np.arange(len(begins)), np.diff(np.concatenate((begins, [len(first)]))))

    number = _counted(run_requests)
    request_run = np.repeat(np.arange(len(begins)), run_requests)
    request_first = run_first[request_run] + number * request_pages_max
    request_stop = np.minimum(request_first + request_pages_max, run_stop[request_run])

    from_request = (first - run_first[run_of]) // request_pages_max
    to_request = (stop - 1 - run_first[run_of]) // request_pages_max
    count = to_request - from_request + 1
    piece = np.repeat(np.arange(len(first)), count)
    request = (before[run_of] + from_request)[piece] + _counted(count)
    piece_first = np.maximum(first[piece], request_first[request])
    piece_stop = np.minimum(stop[piece], request_stop[request])
    row = batch.row.astype(np.int64)[order][piece] + piece_first - first[piece]

    by_request = np.argsort(request, kind="stable")
    return ReadPlan(
        key_index=request_first >> _PAGE_BITS,
        first_page=request_first & (1 << _PAGE_BITS) - 1,
        stop_page=request_stop - (request_first >> _PAGE_BITS << _PAGE_BITS),
        pieces=np.searchsorted(request[by_request], np.arange(len(request_first) + 1)),
        extent=order[piece][by_request],
        offset=(piece_first - request_first[request])[by_request],
        page_count=(piece_stop - piece_first)[by_request],
        row=row[by_request],
    )


def _counted(counts: I64) -> I64:
    """0 to ``count - 1`` for each count, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(int(counts.sum())) - np.repeat(ends - counts, counts)
