"""Rows of page I/O to requests: the rows are cut all at once, a request is slices of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

from kvtier.pages import U32, Bool
from kvtier.trace.columns import PageColumns, join_pages
from kvtier.trace.records import PageRequest


def page_requests(parts: Iterable[PageColumns]) -> Iterator[PageRequest]:
    """The requests in rows that keep the laws, given part by part in file order."""
    held: list[PageColumns] = []  # the rows, so far, of the request that the last part cut
    for part in parts:
        if not len(part):
            continue
        held.append(part)
        if part.request[-1] == held[0].request[0]:
            continue
        rows = join_pages(held)
        cut = int(np.searchsorted(rows.request, rows.request[-1]))
        yield from _whole_requests(rows.rows(0, cut))
        held = [rows.rows(cut, len(rows))]
    if held:
        yield from _whole_requests(join_pages(held))


def _whole_requests(rows: PageColumns) -> Iterator[PageRequest]:
    begins_request = _begins(rows.request)
    first_rows = np.flatnonzero(begins_request)
    batch_rows = np.flatnonzero(begins_request | _begins(rows.batch))
    first_batches = np.searchsorted(batch_rows, first_rows)
    batch_counts = np.diff(first_batches, append=len(batch_rows))

    t_ns, ops = rows.t_ns[batch_rows], rows.op[batch_rows]
    purposes = rows.purpose[batch_rows]
    ends = np.append(batch_rows[1:], len(rows)) - np.repeat(first_rows, batch_counts)
    spans = zip(
        rows.request[first_rows].tolist(),
        pairwise([*first_batches.tolist(), len(batch_rows)]),
        pairwise([*first_rows.tolist(), len(rows)]),
        strict=True,
    )
    for number, batch_span, row_span in spans:
        batches, extents = slice(*batch_span), slice(*row_span)
        yield PageRequest(
            number,
            t_ns[batches],
            ops[batches],
            ends[batches],
            rows.object[extents],
            rows.page[extents],
            rows.pages[extents],
            purposes[batches],
        )


def _begins(numbers: U32) -> Bool:
    """Which rows have another number than the one before; the first has."""
    return np.concatenate((np.ones(1, np.bool_), numbers[1:] != numbers[:-1]))
