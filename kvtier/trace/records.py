"""What a trace is made of: requests of blocks, and requests of pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from kvtier.pages import I64, U8, U32, U64

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
class PageRequest:
    """One request's page I/O: ``b`` batches of ``n`` extents in all.

    The extents of a batch were issued together; a later batch depends on the one before. Batch
    ``k`` has extents ``ends[k - 1]`` (0 for the first) up to ``ends[k]``.

    Attributes:
        request: its number, which is its position in the trace.
        t_ns: i64[b], when each batch was issued, in ns from an arbitrary start; b is at least 1.
        ops: u8[b], what each batch does, 0 (read) or 1 (write).
        ends: i64[b], ascending, the last is ``n``; a batch has at least one extent.
        objects: u32[n], index into the trace's objects.
        pages: u32[n], the extent's first page inside the object.
        counts: u32[n], its pages, at least 1.
        purposes: u8[b], what each batch's reads are for, a :class:`kvtier.pages.Purpose`.
    """

    request: int
    t_ns: I64
    ops: U8
    ends: I64
    objects: U32
    pages: U32
    counts: U32
    purposes: U8

    def page_ends(self) -> I64:
        """i64[b], where each batch ends among the request's pages, as ``ends`` among extents."""
        totals: I64 = np.cumsum(self.counts, dtype=np.int64)[self.ends - 1]
        return totals


def encode_runs(ids: U64) -> tuple[U64, U32]:
    """Run-length code of ids: where each ascending run begins, and how long it is."""
    breaks = (np.diff(ids) != 1) | (ids[1:] == 0)  # u64 wraps: a run ends at its largest id
    starts = np.flatnonzero(np.concatenate(([len(ids) > 0], breaks)))
    lengths = np.diff(np.append(starts, len(ids)))
    return ids[starts], lengths.astype(np.uint32)
