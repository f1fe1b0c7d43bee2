"""Rows of page I/O to requests and their batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from kvtier.pages import U32
from kvtier.trace.columns import PageColumns, join_pages
from kvtier.trace.records import PageBatch, PageRequest


def page_requests(parts: Iterable[PageColumns]) -> Iterator[PageRequest]:
    """The requests in rows that keep the laws, given part by part in file order."""
    held: list[PageColumns] = []  # the rows, so far, of the request that the last part cut
    for part in parts:
        for piece in _split(part, part.request):
            if held and held[0].request[0] != piece.request[0]:
                yield _page_request(join_pages(held))
                held.clear()
            held.append(piece)
    if held:
        yield _page_request(join_pages(held))


def _split(columns: PageColumns, numbers: U32) -> Iterator[PageColumns]:
    """Views of the rows, cut wherever the number changes."""
    cuts = (np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist()
    for start, stop in zip([0, *cuts], [*cuts, len(columns)], strict=True):
        if stop > start:
            yield columns.rows(start, stop)


def _page_request(columns: PageColumns) -> PageRequest:
    batches = tuple(
        PageBatch(int(rows.op[0]), int(rows.t_ns[0]), rows.object, rows.page, rows.pages)
        for rows in _split(columns, columns.batch)
    )
    return PageRequest(int(columns.request[0]), batches[0].t_ns, batches)
