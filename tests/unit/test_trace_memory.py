"""A trace is never held in memory whole."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kvtier.trace import (
    PageRequest,
    Request,
    TraceMetadata,
    TraceObject,
    open_trace,
    write_page_io,
    write_requests,
)

MIB = 1 << 20
REQUEST_COUNT = 16_000
BLOCKS = 256
PAGE_REQUEST_COUNT = 3000
PAGES = 200


def block_requests() -> Iterator[Request]:
    rng = np.random.default_rng(1)
    for i in range(REQUEST_COUNT):
        ids = rng.integers(0, 1 << 63, BLOCKS, dtype=np.uint64)
        yield Request(i, i, -1, 0, "", BLOCKS * 16, 1, ids)


def page_requests() -> Iterator[PageRequest]:
    rng = np.random.default_rng(1)
    for i in range(PAGE_REQUEST_COUNT):
        pages = rng.integers(0, 1 << 30, 2 * PAGES, dtype=np.uint32)
        yield PageRequest(
            request=i,
            t_ns=np.full(2, i, np.int64),
            ops=np.zeros(2, np.uint8),
            ends=np.array([PAGES, 2 * PAGES]),
            objects=np.zeros_like(pages),
            pages=pages,
            counts=np.ones_like(pages),
            purposes=np.zeros(2, np.uint8),
        )


def peak_bytes(work: Callable[[], Iterator[Any]]) -> int:
    """Most bytes in use, NumPy's and Python's by tracemalloc, Arrow's by its pool."""
    before = pa.total_allocated_bytes()
    arrow_peak = 0
    tracemalloc.start()
    try:
        for i, _ in enumerate(work()):
            if i % 50 == 0:
                arrow_peak = max(arrow_peak, pa.total_allocated_bytes() - before)
        return arrow_peak + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def request_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "r.parquet"
    metadata = TraceMetadata(kind="requests", block_tokens=16, id_scope="global")
    write_requests(path, metadata, block_requests())
    return path


@pytest.fixture(scope="module")
def page_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "p.parquet"
    objects = (TraceObject(b"file", 1 << 30),)
    metadata = TraceMetadata(kind="page_io", page_bytes=4096, objects=objects)
    write_page_io(path, metadata, page_requests())
    return path


def test_reading_requests_takes_the_same_memory_however_many(request_trace: Path) -> None:
    trace = open_trace(request_trace)
    some = peak_bytes(lambda: trace.requests(REQUEST_COUNT // 4))
    whole = peak_bytes(trace.requests)
    assert whole < some + 2 * MIB
    assert whole < REQUEST_COUNT * BLOCKS * 8 / 2


def test_reading_page_io_takes_the_same_memory_however_much(page_trace: Path) -> None:
    trace = open_trace(page_trace)
    some = peak_bytes(lambda: trace.requests(PAGE_REQUEST_COUNT // 4))
    whole = peak_bytes(trace.requests)
    assert whole < some + 2 * MIB
    assert whole < PAGE_REQUEST_COUNT * PAGES * 2 * 30 / 2
