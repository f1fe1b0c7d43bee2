"""Every engine of the page index, the one for GPUs also compiled for a CPU."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cuda_on_cpu import CpuKernels, find_compiler

from kvtier.cuda import find_cuda_trouble
from kvtier.gpu import DeviceHits
from kvtier.index import PageIndex, create_index
from kvtier.index.cuda import SOURCE, CudaIndex
from kvtier.pages import I64, U8, U64, LookupResult, PageState
from kvtier.tiers.cuda_index import StreamIndex

CUDA_ON_CPU = "cuda on a CPU"
ENGINES = ["reference", "numba", CUDA_ON_CPU, pytest.param("cuda", marks=pytest.mark.gpu)]

# Flags that let g++ watch the kernels (see `make sanitize`), and how many warps run at once.
FLAGS = tuple(os.environ.get("KVTIER_CUDA_ON_CPU_FLAGS", "").split())
WORKERS = int(os.environ.get("KVTIER_CUDA_ON_CPU_WORKERS", "1"))


def open_index(slots: int, ways: int = 16, seed: int = 1, engine: str = "numba") -> Any:
    """An index of an engine, which takes and gives NumPy arrays whatever its own are."""
    if engine == CUDA_ON_CPU:
        return OnHost(CudaIndex(slots, ways, seed, index_kernels(ways)))
    if engine == "cuda":
        trouble = find_cuda_trouble()
        if trouble is not None:
            pytest.skip(trouble)
        return OnHost(CudaIndex(slots, ways, seed))
    return create_index(slots, ways, seed, engine)  # type: ignore[arg-type]


def open_index_by_row(slots: int, ways: int = 16, seed: int = 1, engine: str = "numba") -> Any:
    """The same, with answers of one value per row."""
    return ByRow(open_index(slots, ways, seed, engine))


def index_kernels(ways: int) -> CpuKernels:
    """The index's kernels for a CPU; a number of ways that is impossible takes those of 16."""
    return cpu_kernels(SOURCE, WAYS=ways if ways in (8, 16, 32) else 16)


@cache
def cpu_kernels(source: Path, **defines: int) -> CpuKernels:
    """Kernels of a file, compiled once for a test run."""
    assert find_compiler() is not None, "these tests need g++: install it"
    return CpuKernels(source, defines, _build(), FLAGS, WORKERS)


@cache
def _build() -> Path:
    return Path(tempfile.mkdtemp(prefix="kvtier-cuda-on-cpu-"))


class OnHost:
    """An index on a GPU, with its answers brought to the host."""

    def __init__(self, index: CudaIndex | StreamIndex) -> None:
        self._index = index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    def lookup(self, *arguments: Any, **hints: Any) -> LookupResult:
        found = self._index.lookup(*arguments, **hints)
        hits = found.hits
        assert isinstance(hits, DeviceHits)
        assert (found.rows is None) == (hits.rows is None)
        if hits.rows is not None:
            np.testing.assert_array_equal(on_host(hits.rows), found.rows)
        return found._replace(hits=on_host(hits.slots))

    def invalidate(self, page_ids: Any) -> Any:
        return on_host(self._index.invalidate(page_ids))

    def peek(self, page_ids: Any) -> Any:
        return on_host(self._index.peek(page_ids))


def on_host(values: Any) -> Any:
    """A NumPy array of an array of whatever kind."""
    return values.get() if hasattr(values, "get") else values


class RowAnswer(NamedTuple):
    """What a lookup tells, of each row: its state, slot and leader (no leaders if all hit)."""

    states: U8
    slots: I64
    leaders: I64 | None
    evicted: U64
    bypasses: int


class ByRow:
    """An index that answers lookups with a :class:`RowAnswer`."""

    def __init__(self, index: PageIndex) -> None:
        self._index = index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    def lookup(self, page_ids: U64, *arguments: Any, **hints: Any) -> RowAnswer:
        hits, rows, misses, evicted, bypasses, _ = self._index.lookup(page_ids, *arguments, **hints)
        count = len(page_ids)
        states = np.full(count, PageState.VALID, np.uint8)
        slots = np.full(count, -2)
        slots[slice(None) if rows is None else rows] = hits
        states[misses.rows] = misses.states[misses.page_of]
        slots[misses.rows] = misses.slots[misses.page_of]
        leaders = np.arange(count)
        leaders[misses.rows] = misses.rows[misses.leads][misses.page_of]
        np.testing.assert_array_equal(page_ids[misses.rows], misses.page_ids[misses.page_of])
        return RowAnswer(states, slots, None if rows is None else leaders, evicted, bypasses)


def assert_same_slots(one: PageIndex, other: PageIndex) -> None:
    """Two indexes hold the same pages in the same slots, touched at the same times."""
    ours, theirs = one.snapshot(), other.snapshot()
    for name in ours._fields:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)


def assert_same_answer(ours: LookupResult, theirs: LookupResult) -> None:
    """Two lookups answer alike, to the last row and dtype."""
    assert ours.bypasses == theirs.bypasses
    assert (ours.rows is None) == (theirs.rows is None)
    pairs = [(ours.hits, theirs.hits), (ours.rows, theirs.rows), (ours.evicted, theirs.evicted)]
    for mine, expected in [*pairs, *zip(ours.misses, theirs.misses, strict=True)]:
        if expected is not None:
            assert mine.dtype == expected.dtype  # type: ignore[union-attr]
            np.testing.assert_array_equal(mine, expected)
