"""What a trace touches, and facts about it."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_traces import Batch, page_request

from kvtier.pages import Purpose
from kvtier.trace import (
    READ,
    WRITE,
    Footprint,
    PageRequest,
    Request,
    TraceMetadata,
    TraceObject,
    footprint,
    inspect_trace,
    open_trace,
    write_page_io,
    write_requests,
)
from kvtier.trace.footprint import page_ids_of
from kvtier.trace.seen import SeenIds

REQUESTS = TraceMetadata(kind="requests", block_tokens=16, id_scope="session")
PAGE_IO = TraceMetadata(
    kind="page_io",
    page_bytes=512,
    objects=(TraceObject(b"a", 100), TraceObject(b"b", 1 << 22)),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 40) | st.integers(0, (1 << 64) - 1), max_size=40)))
def test_seen_ids_are_a_set(batches: list[list[int]]) -> None:
    seen, model = SeenIds(), set[int]()
    for batch in batches:
        fresh = seen.add(np.array(batch, np.uint64))
        for id_, new in zip(batch, fresh.tolist(), strict=True):
            assert new == (id_ not in model)
            model.add(id_)
    assert len(seen) == len(model)


def test_seen_ids_grow_to_a_million() -> None:
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 1 << 20, 1_500_000, dtype=np.uint64) << np.uint64(32)
    seen = SeenIds()
    assert int(seen.add(ids).sum()) == len(seen) == len(np.unique(ids))
    assert not seen.add(ids).any()


@pytest.fixture
def request_trace(tmp_path: Path) -> Path:
    blocks = [[1, 2, 3], [1, 2, 9], [4, 1, 2], [1, 2, 3, 4, 4]]
    requests = [
        Request(i * 500, i % 2, -1, 0, "m" * (i % 2), 50, 2, np.array(ids, np.uint64))
        for i, ids in enumerate(blocks)
    ]
    write_requests(tmp_path / "r.parquet", REQUESTS, requests)
    return tmp_path / "r.parquet"


@pytest.fixture
def page_trace(tmp_path: Path) -> Path:
    requests = [
        page_request(
            0,
            Batch(READ, 0, [(0, 5, 3)], Purpose.PREFIX),
            Batch(READ, 9, [(1, 5, 3), (0, 7, 2)], Purpose.SPARSE),
        ),
        page_request(1, Batch(WRITE, 5, [(0, 5, 1)])),
    ]
    write_page_io(tmp_path / "p.parquet", PAGE_IO, requests)
    return tmp_path / "p.parquet"


def test_footprint_of_blocks(request_trace: Path) -> None:
    trace = open_trace(request_trace)
    assert footprint(trace) == Footprint(requests=4, references=14, unique=5, largest=5)
    assert footprint(trace, 2) == Footprint(requests=2, references=6, unique=4, largest=3)


def test_footprint_of_pages(page_trace: Path) -> None:
    trace = open_trace(page_trace)
    assert footprint(trace) == Footprint(requests=2, references=9, unique=7, largest=8)


def test_facts_of_requests(request_trace: Path) -> None:
    facts = inspect_trace(request_trace)
    assert facts["requests"] == facts["requests_read"] == 4
    assert facts["prefix_hits"] == 0 + 2 + 0 + 5  # the third's known blocks follow a new one
    assert facts["sessions"] == 2
    assert facts["models"] == ["m"]
    assert facts["duration_s"] == 1.5e-6
    assert facts["blocks_per_request"] == {"mean": 3.5, "p50": 3, "p90": 5, "p99": 5, "max": 5}
    json.dumps(facts)


def test_facts_of_page_io(page_trace: Path) -> None:
    facts = inspect_trace(page_trace)
    assert (facts["read_pages"], facts["written_pages"], facts["extents"]) == (8, 1, 4)
    assert facts["purposes"] == {"prefix": 3, "sparse": 5}
    assert facts["unique_bytes"] == 7 * 512
    assert facts["reuse"] == 2 / 9
    assert facts["batches_per_request"]["max"] == 2
    assert facts["pages_per_batch"] == {"mean": 3.0, "p50": 3, "p90": 5, "p99": 5, "max": 5}
    assert facts["pages_per_request"]["mean"] == 4.5
    json.dumps(facts)


def test_facts_of_no_requests_are_zeros(request_trace: Path, page_trace: Path) -> None:
    for path in (request_trace, page_trace):
        facts = inspect_trace(path, 0)
        assert facts["requests_read"] == facts["references"] == facts["unique"] == 0


def test_extents_beyond_one_chunk_are_counted_whole(tmp_path: Path) -> None:
    million = 1 << 20
    extents = [(1, 0, million), (1, 5, million), (1, 2 * million, million), (0, 0, 1)]
    written = [page_request(0, Batch(READ, 0, extents))]
    write_page_io(tmp_path / "p.parquet", PAGE_IO, written)
    counted = footprint(open_trace(tmp_path / "p.parquet"))
    assert counted.references == 3 * million + 1
    assert counted.unique == 2 * million + 5 + 1


def test_a_request_beyond_any_memory_comes_in_bounded_arrays() -> None:
    million = 1 << 20
    request = PageRequest(
        request=0,
        t_ns=np.zeros(1, np.int64),
        ops=np.zeros(1, np.uint8),
        ends=np.array([million]),
        objects=np.zeros(million, np.uint32),
        pages=np.zeros(million, np.uint32),
        counts=np.full(million, million, np.uint32),
        purposes=np.zeros(1, np.uint8),
    )
    assert request.page_ends().tolist() == [1 << 40]
    sizes = [len(ids) for ids in islice(page_ids_of(request), 3)]
    assert max(sizes) <= 2 * million
