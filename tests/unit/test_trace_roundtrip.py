"""What is written is what is read."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_traces import Batch, batches_of, page_request

from kvtier.errors import TraceError
from kvtier.pages import Purpose, expand_runs
from kvtier.trace import (
    READ,
    WRITE,
    PageRequest,
    PageTrace,
    Request,
    RequestTrace,
    TraceMetadata,
    TraceObject,
    open_trace,
    write_page_io,
    write_requests,
)
from kvtier.trace.columns import Place
from kvtier.trace.encode import gather_pages
from kvtier.trace.grouping import page_requests
from kvtier.trace.metadata import decode_metadata, encode_metadata
from kvtier.trace.records import encode_runs

U32_MAX = (1 << 32) - 1
U64_MAX = (1 << 64) - 1
TIME_MAX = (1 << 63) - 1

u32s = st.integers(0, U32_MAX)
# Ids from a small range fall into runs; ids at the top must not wrap into one.
block_ids = st.one_of(
    st.lists(st.integers(0, 12), min_size=1, max_size=30),
    st.lists(st.integers(U64_MAX - 3, U64_MAX), min_size=1, max_size=8),
    st.lists(st.sampled_from([0, 1, U64_MAX]), min_size=1, max_size=8),
)


@st.composite
def request_lists(draw: st.DrawFn) -> list[Request]:
    times = sorted(draw(st.lists(st.integers(0, TIME_MAX), min_size=1, max_size=12)))
    return [
        Request(
            t_ns=t_ns,
            session=draw(u32s),
            parent=draw(st.integers(-1, number - 1)),
            turn=draw(u32s),
            model=draw(st.sampled_from(["", "llama-3-8b", "ünï"])),
            in_tokens=draw(u32s),
            out_tokens=draw(u32s),
            block_ids=np.array(draw(block_ids), np.uint64),
        )
        for number, t_ns in enumerate(times)
    ]


OBJECTS = (TraceObject(b"a/b", 7), TraceObject(b"\xff\x00%", U32_MAX))


@st.composite
def page_batches(draw: st.DrawFn, t_ns: int) -> Batch:
    extents = []
    for _ in range(draw(st.integers(1, 5))):
        index = draw(st.integers(0, len(OBJECTS) - 1))
        page = draw(st.integers(0, OBJECTS[index].pages - 1))
        count = draw(st.integers(1, min(OBJECTS[index].pages - page, 1 << 20)))
        extents.append((index, page, count))
    op, purpose = draw(st.sampled_from([READ, WRITE])), draw(st.sampled_from(Purpose))
    return Batch(op, t_ns, extents, purpose)


@st.composite
def page_request_lists(draw: st.DrawFn) -> list[PageRequest]:
    begun = sorted(draw(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=6)))
    requests = []
    for number, t_ns in enumerate(begun):
        gaps = draw(st.lists(st.integers(0, 1 << 20), max_size=3))
        times = np.cumsum([t_ns, *gaps]).tolist()
        requests.append(page_request(number, *(draw(page_batches(time)) for time in times)))
    return requests


REQUESTS = TraceMetadata(kind="requests", block_tokens=16, id_scope="global")
PAGE_IO = TraceMetadata(kind="page_io", page_bytes=4096, objects=OBJECTS)


def as_values(record: Request | PageRequest) -> list[object]:
    values = [getattr(record, name) for name in record.__slots__]
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]


@settings(deadline=None, max_examples=60)
@given(request_lists())
def test_requests_round_trip(written: list[Request]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.parquet")
        summary = write_requests(path, REQUESTS, written)
        trace = open_trace(path)
        assert isinstance(trace, RequestTrace)
        assert trace.metadata == REQUESTS
        assert trace.request_count == summary.requests == len(written)
        assert summary.references == sum(len(request.block_ids) for request in written)
        read = list(trace.requests())
    assert [as_values(request) for request in read] == [as_values(request) for request in written]


@settings(deadline=None, max_examples=60)
@given(page_request_lists())
def test_page_io_round_trip(written: list[PageRequest]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.parquet")
        summary = write_page_io(path, PAGE_IO, written)
        trace = open_trace(path)
        assert isinstance(trace, PageTrace)
        assert trace.objects == OBJECTS
        assert trace.page_bytes == 4096
        assert trace.request_count == summary.requests == len(written)
        read = list(trace.requests())
    assert [as_values(request) for request in read] == [as_values(request) for request in written]


@settings(deadline=None, max_examples=100)
@given(page_request_lists(), st.lists(st.integers(0, 80), max_size=8))
def test_requests_are_the_same_however_their_rows_are_cut(
    written: list[PageRequest], cuts: list[int]
) -> None:
    columns = gather_pages(written, Place(Path("t.parquet"), 0))
    edges = [0, *sorted(min(cut, len(columns)) for cut in cuts), len(columns)]
    read = page_requests(columns.rows(start, stop) for start, stop in pairwise(edges))
    assert [as_values(request) for request in read] == [as_values(request) for request in written]


def test_a_request_that_spans_reading_batches_stays_whole(tmp_path: Path) -> None:
    sizes = [5, 20_000, 1, 40_000, 3]
    requests = [
        page_request(
            number,
            batch_of(size, number, Purpose.PREFIX),
            batch_of(size, number, Purpose.SPARSE),
        )
        for number, size in enumerate(sizes)
    ]
    metadata = TraceMetadata(
        kind="page_io", page_bytes=512, objects=(TraceObject(b"file", 1 << 20),)
    )
    write_page_io(tmp_path / "t.parquet", metadata, requests)
    trace = open_trace(tmp_path / "t.parquet")
    assert isinstance(trace, PageTrace)
    for before, after in zip(requests, trace.requests(), strict=True):
        assert batches_of(after) == batches_of(before)


def batch_of(size: int, t_ns: int, purpose: Purpose) -> Batch:
    return Batch(READ, t_ns, [(0, page, 1) for page in range(size)], purpose)


def test_a_limit_reads_the_first_requests_only(tmp_path: Path) -> None:
    requests = [Request(i, i, -1, 0, "", 16, 1, np.array([i], np.uint64)) for i in range(2000)]
    write_requests(tmp_path / "t.parquet", REQUESTS, requests)
    trace = open_trace(tmp_path / "t.parquet")
    assert [request.session for request in trace.requests(3)] == [0, 1, 2]
    assert list(trace.requests(0)) == []
    assert sum(1 for _ in trace.requests(5000)) == 2000


def test_a_negative_limit_is_refused(tmp_path: Path) -> None:
    request = Request(0, 0, -1, 0, "", 16, 1, np.array([1], np.uint64))
    write_requests(tmp_path / "t.parquet", REQUESTS, [request])
    with pytest.raises(TraceError, match="limit of -1"):
        open_trace(tmp_path / "t.parquet").requests(-1)


@settings(deadline=None, max_examples=200)
@given(block_ids)
def test_runs_round_trip(ids: list[int]) -> None:
    starts, lengths = encode_runs(np.array(ids, np.uint64))
    assert expand_runs(starts, lengths).tolist() == ids


def test_neighbouring_ids_become_one_run() -> None:
    starts, lengths = encode_runs(np.array([5, 6, 7, 9, 10, 3], np.uint64))
    assert starts.tolist() == [5, 9, 3]
    assert lengths.tolist() == [3, 2, 1]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=9, unique=True),
    st.lists(st.text(), max_size=3),
    st.text(),
)
def test_metadata_round_trips(keys: list[bytes], synthetic: list[str], provenance: str) -> None:
    metadata = TraceMetadata(
        kind="page_io",
        page_bytes=4096,
        objects=tuple(TraceObject(key, 1 + i) for i, key in enumerate(keys)),
        licence="CC0-1.0",
        source="somewhere",
        source_sha256="ab" * 32,
        time_quantum_ns=1000,
        synthetic=tuple(text.encode(errors="ignore").decode() for text in synthetic),
        provenance=provenance.encode(errors="ignore").decode(),
    )
    assert decode_metadata(encode_metadata(metadata)) == metadata
