"""Small traces of both kinds, made from a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kvtier.trace import (
    NO_PARENT,
    PageBatch,
    PageRequest,
    Request,
    TraceMetadata,
    TraceObject,
    write_page_io,
    write_requests,
)

PAGE_BYTES = 4096
GRAPH = TraceObject(b"graph", 3000)


def write_graph_search(path: Path, requests: int = 120, seed: int = 3) -> Path:
    """Skewed reads of one object, in dependent batches of 1 to 5 extents of 1 or 2 pages."""
    rng = np.random.default_rng(seed)

    def batch(t_ns: int) -> PageBatch:
        extents = int(rng.integers(1, 6))
        pages = rng.zipf(1.3, extents) % (GRAPH.pages - 2)
        return PageBatch(
            op=0,
            t_ns=t_ns,
            objects=np.zeros(extents, np.uint32),
            pages=pages.astype(np.uint32),
            counts=rng.integers(1, 3, extents).astype(np.uint32),
        )

    made = [
        PageRequest(number, number, tuple(batch(number) for _ in range(int(rng.integers(2, 9)))))
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
