"""Small traces of both kinds, made from a seed, and page requests said batch by batch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvtier.pages import Purpose
from kvtier.trace import (
    NO_PARENT,
    READ,
    PageRequest,
    Request,
    TraceMetadata,
    TraceObject,
    write_page_io,
    write_requests,
)

PAGE_BYTES = 4096
GRAPH = TraceObject(b"graph", 3000)


class Batch(NamedTuple):
    """One batch of a page request; its extents are (object, page, pages)."""

    op: int
    t_ns: int
    extents: list[tuple[int, int, int]]
    purpose: int = Purpose.UNSTATED


def page_request(number: int, *batches: Batch) -> PageRequest:
    """A page request of these batches."""
    extents = [extent for batch in batches for extent in batch.extents]
    objects, pages, counts = np.array(extents, np.uint32).reshape(-1, 3).T.copy()
    return PageRequest(
        request=number,
        t_ns=np.array([batch.t_ns for batch in batches], np.int64),
        ops=np.array([batch.op for batch in batches], np.uint8),
        ends=np.cumsum([len(batch.extents) for batch in batches], dtype=np.int64),
        objects=objects,
        pages=pages,
        counts=counts,
        purposes=np.array([batch.purpose for batch in batches], np.uint8),
    )


def batches_of(request: PageRequest) -> list[Batch]:
    """The inverse of :func:`page_request`."""
    columns = (request.objects, request.pages, request.counts)
    extents = list(zip(*(column.tolist() for column in columns), strict=True))
    ends = request.ends.tolist()
    return [
        Batch(op, t_ns, extents[start:end], purpose)
        for op, t_ns, purpose, start, end in zip(
            request.ops.tolist(),
            request.t_ns.tolist(),
            request.purposes.tolist(),
            [0, *ends[:-1]],
            ends,
            strict=True,
        )
    ]


def write_graph_search(path: Path, requests: int = 120, seed: int = 3) -> Path:
    """Skewed reads of one object, in dependent batches of 1 to 5 extents of 1 or 2 pages."""
    rng = np.random.default_rng(seed)

    def batch(t_ns: int) -> Batch:
        extents = int(rng.integers(1, 6))
        pages = rng.zipf(1.3, extents) % (GRAPH.pages - 2)
        counts = rng.integers(1, 3, extents)
        rows = zip(pages.tolist(), counts.tolist(), strict=True)
        return Batch(READ, t_ns, [(0, page, count) for page, count in rows])

    made = [
        page_request(number, *(batch(number) for _ in range(int(rng.integers(2, 9)))))
        for number in range(requests)
    ]
    metadata = TraceMetadata(kind="page_io", page_bytes=PAGE_BYTES, objects=(GRAPH,))
    write_page_io(path, metadata, made)
    return path


def write_conversations(path: Path, sessions: int = 12, seed: int = 5) -> Path:
    """Sessions of growing prompts over one shared system prompt."""
    rng = np.random.default_rng(seed)
    system = list(range(4))
    prompts = [[*system] for _ in range(sessions)]
    fresh = 100
    made = []
    for turn in range(6):
        for session, prompt in enumerate(prompts):
            grown = int(rng.integers(1, 4))
            prompt.extend(range(fresh, fresh + grown))
            fresh += grown
            made.append(
                Request(
                    t_ns=len(made) * 1000,
                    session=session,
                    parent=NO_PARENT if turn == 0 else len(made) - sessions,
                    turn=turn,
                    model="",
                    in_tokens=len(prompt) * 16,
                    out_tokens=10,
                    block_ids=np.array(prompt, np.uint64),
                )
            )
    metadata = TraceMetadata(kind="requests", block_tokens=16, id_scope="global")
    write_requests(path, metadata, made)
    return path
