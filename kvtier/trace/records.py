"""What a trace is made of: requests of blocks, and requests of pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvtier.pages import U32, U64

READ: Final = 0
WRITE: Final = 1
NO_PARENT: Final = -1


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One request to a language model.

    Attributes:
        t_ns: its arrival, in ns from an arbitrary start.
        session: u32, the conversation that it belongs to.
        parent: the number (position in the trace) of the request that it continues, or -1.
        turn: u32, its place in the session.
        model: the model's name; may be empty.
        in_tokens, out_tokens: u32, tokens of the prompt and of the answer.
        block_ids: u64[n], the blocks of the prompt, first token first; n is at least 1.
    """

    t_ns: int
    session: int
    parent: int
    turn: int
    model: str
    in_tokens: int
    out_tokens: int
    block_ids: U64


@dataclass(frozen=True, slots=True, eq=False)
class PageBatch:
    """Extents that were issued together.

    Attributes:
        op: 0 (read) or 1 (write).
        t_ns: when, in ns from an arbitrary start.
        objects: u32[n], index into the trace's objects; n is at least 1.
        pages: u32[n], the extent's first page inside the object.
        counts: u32[n], its pages, at least 1.
    """

    op: int
    t_ns: int
    objects: U32
    pages: U32
    counts: U32

    def __len__(self) -> int:
        return len(self.objects)


@dataclass(frozen=True, slots=True, eq=False)
class PageRequest:
    """One request's page I/O: each batch depends on the one before.

    Attributes:
        request: its number, which is its position in the trace.
        t_ns: when its first batch was issued.
        batches: at least one.
    """

    request: int
    t_ns: int
    batches: tuple[PageBatch, ...]


def encode_runs(ids: U64) -> tuple[U64, U32]:
    """Run-length code of ids: where each ascending run begins, and how long it is."""
    breaks = (np.diff(ids) != 1) | (ids[1:] == 0)  # u64 wraps: a run ends at its largest id
    starts = np.flatnonzero(np.concatenate(([len(ids) > 0], breaks)))
    lengths = np.diff(np.append(starts, len(ids)))
    return ids[starts], lengths.astype(np.uint32)


def expand_runs(starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> U64:
    """The inverse of :func:`encode_runs`; starts and lengths may have any integer dtype."""
    counts = lengths.astype(np.int64)
    total = int(counts.sum())
    firsts: U64 = starts.astype(np.uint64) - (np.cumsum(counts) - counts).astype(np.uint64)
    ids: U64 = np.repeat(firsts, counts)
    ids += np.arange(total, dtype=np.uint64)
    return ids
