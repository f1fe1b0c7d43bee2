"""Every engine of the page index, the one for GPUs also compiled for a CPU."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_on_cpu import CpuKernels, find_compiler

from kvtier.cuda import find_cuda_trouble
from kvtier.index import PageIndex, create_index
from kvtier.index.cuda import SOURCE, CudaIndex
from kvtier.pages import LookupResult

CUDA_ON_CPU = "cuda on a CPU"
ENGINES = ["reference", "numba", CUDA_ON_CPU, pytest.param("cuda", marks=pytest.mark.gpu)]

# Flags that let g++ watch the kernels (see `make sanitize`), and how many warps run at once.
FLAGS = tuple(os.environ.get("KVTIER_CUDA_ON_CPU_FLAGS", "").split())
WORKERS = int(os.environ.get("KVTIER_CUDA_ON_CPU_WORKERS", "1"))


def open_index(slots: int, ways: int = 16, seed: int = 1, engine: str = "numba") -> Any:
    """An index of an engine, which takes and gives NumPy arrays whatever its own are."""
    if engine == CUDA_ON_CPU:
        return CudaIndex(slots, ways, seed, index_kernels(ways))
    if engine == "cuda":
        trouble = find_cuda_trouble()
        if trouble is not None:
            pytest.skip(trouble)
        return OnHost(CudaIndex(slots, ways, seed))
    return create_index(slots, ways, seed, engine)  # type: ignore[arg-type]


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

    def __init__(self, index: CudaIndex) -> None:
        self._index = index

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    def lookup(self, *arguments: Any, **hints: Any) -> LookupResult:
        found = self._index.lookup(*arguments, **hints)
        leaders = None if found.leaders is None else found.leaders.get()
        return LookupResult(
            found.states.get(), found.slots.get(), leaders, found.evicted.get(), found.bypasses
        )

    def invalidate(self, page_ids: Any) -> Any:
        return self._index.invalidate(page_ids).get()

    def peek(self, page_ids: Any) -> Any:
        return self._index.peek(page_ids).get()


def assert_same_slots(one: PageIndex, other: PageIndex) -> None:
    """Two indexes hold the same pages in the same slots, touched at the same times."""
    ours, theirs = one.snapshot(), other.snapshot()
    for name in ours._fields:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)


def assert_same_answer(ours: LookupResult, theirs: LookupResult) -> None:
    """Two lookups answer alike, to the last row and dtype."""
    assert (ours.leaders is None) == (theirs.leaders is None)
    assert ours.bypasses == theirs.bypasses
    for name in ("states", "slots", "leaders", "evicted"):
        mine, expected = getattr(ours, name), getattr(theirs, name)
        if expected is not None:
            assert mine.dtype == expected.dtype
            np.testing.assert_array_equal(mine, expected, name)
