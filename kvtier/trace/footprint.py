"""How much a trace touches, counted in one streamed pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from kvtier.pages import U64, expand_runs
from kvtier.trace.reader import PageTrace, RequestTrace, Trace
from kvtier.trace.records import PageRequest
from kvtier.trace.seen import SeenIds

_CHUNK_PAGES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Footprint:
    """What (the first requests of) a trace touch.

    Attributes:
        requests: requests counted.
        references: block references (kind ``requests``), or pages read and written (``page_io``).
        unique: distinct blocks, or pages, among them.
        largest: most references of one request.
    """

    requests: int
    references: int
    unique: int
    largest: int


def footprint(trace: Trace, limit: int | None = None) -> Footprint:
    """Count what the first ``limit`` requests (None: all) touch.

    Memory grows with the unique blocks or pages, 18 to 36 bytes each, and with nothing else.

    Raises:
        TraceError: the trace is damaged or breaks a law of the schema.
    """
    if isinstance(trace, RequestTrace):
        return _footprint_of_blocks(trace, limit)
    return _footprint_of_pages(trace, limit)


def _footprint_of_blocks(trace: RequestTrace, limit: int | None) -> Footprint:
    seen = SeenIds()
    requests = references = largest = 0
    for request in trace.requests(limit):
        seen.add(request.block_ids)
        requests += 1
        references += len(request.block_ids)
        largest = max(largest, len(request.block_ids))
    return Footprint(requests, references, len(seen), largest)


def _footprint_of_pages(trace: PageTrace, limit: int | None) -> Footprint:
    seen = SeenIds()
    requests = references = largest = 0
    for request in trace.requests(limit):
        pages = 0
        for ids in page_ids_of(request):
            seen.add(ids)
            pages += len(ids)
        requests += 1
        references += pages
        largest = max(largest, pages)
    return Footprint(requests, references, len(seen), largest)


def page_ids_of(request: PageRequest) -> Iterator[U64]:
    """Every page of a request: its object's index in the high half, its own in the low.

    Yields bounded arrays, because the extents of one request may be beyond any memory.
    """
    firsts = (request.objects.astype(np.uint64) << np.uint64(32)) | request.pages
    counts = request.counts
    chunk = np.cumsum(counts, dtype=np.int64) // _CHUNK_PAGES
    cuts = (np.flatnonzero(chunk[1:] != chunk[:-1]) + 1).tolist()
    for start, stop in zip([0, *cuts], [*cuts, len(firsts)], strict=True):
        yield expand_runs(firsts[start:stop], counts[start:stop])
