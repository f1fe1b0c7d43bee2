"""The recorded KV sample that comes with the repository."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kvtier.trace import PageRequest, PageTrace, inspect_trace, open_trace

SAMPLE = Path(__file__).parents[2] / "traces" / "kv-sample.parquet"
BLOCK_PAGES = 16
KV_HEADS = 2
BUDGET = 8


def sample() -> PageTrace:
    trace = open_trace(SAMPLE)
    assert isinstance(trace, PageTrace)
    return trace


def batches(request: PageRequest) -> Iterator[slice]:
    starts = np.concatenate(([0], request.ends[:-1]))
    for start, end in zip(starts.tolist(), request.ends.tolist(), strict=True):
        yield slice(start, end)


def sparse_batches(request: PageRequest) -> list[slice]:
    return [one for one in batches(request) if request.counts[one][0] == 1]
