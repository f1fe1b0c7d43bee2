"""Recorded reads of one file become a page I/O trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_traces import batches_of

from kvtier.errors import TraceError
from kvtier.pages import Purpose
from kvtier.trace import PageRequest, PageTrace, TraceObject, import_trace, open_trace

TYPES = {
    "t_ns": pa.int64(),
    "query": pa.uint32(),
    "batch": pa.uint32(),
    "offset": pa.uint64(),
    "length": pa.uint32(),
}


def columns() -> dict[str, list[Any]]:
    return {
        "t_ns": [10, 20, 20, 30, 50],
        "query": [4, 4, 4, 9, 9],  # queries may be missing
        "batch": [1, 2, 2, 3, 8],
        "offset": [4096, 0, 8192, 4095, 100],
        "length": [4096, 1, 8192, 2, 12288],
    }


def write(path: Path, values: dict[str, Any], types: dict[str, pa.DataType] | None = None) -> Path:
    arrays = {name: pa.array(values[name], kind) for name, kind in (types or TYPES).items()}
    pq.write_table(pa.table(arrays), path)
    return path


def imported(folder: Path, values: dict[str, Any], **options: int | str) -> PageTrace:
    source = write(folder / "index.parquet", values)
    import_trace("page-reads", source, folder / "t.parquet", **options)
    trace = open_trace(folder / "t.parquet")
    assert isinstance(trace, PageTrace)
    return trace


def extents(requests: list[PageRequest]) -> list[list[list[tuple[int, int]]]]:
    return [
        [[(page, count) for _, page, count in batch.extents] for batch in batches_of(request)]
        for request in requests
    ]


def test_reads_map_to_the_pages_that_cover_them(tmp_path: Path) -> None:
    requests = list(imported(tmp_path, columns()).requests())
    assert extents(requests) == [[[(1, 1)], [(0, 1), (2, 2)]], [[(0, 2)], [(0, 4)]]]


def test_queries_are_numbered_from_zero_and_keep_their_times(tmp_path: Path) -> None:
    requests = list(imported(tmp_path, columns()).requests())
    times = [(request.request, request.t_ns.tolist()) for request in requests]
    assert times == [(0, [10, 20]), (1, [30, 50])]


def test_the_object_ends_after_the_last_byte_read(tmp_path: Path) -> None:
    assert imported(tmp_path, columns()).objects == (TraceObject(b"index", 4),)


def test_the_object_may_be_longer_than_what_was_read(tmp_path: Path) -> None:
    trace = imported(tmp_path, columns(), object_bytes=10 * 4096 + 1)
    assert trace.objects == (TraceObject(b"index", 11),)


def test_pages_may_have_another_size(tmp_path: Path) -> None:
    trace = imported(tmp_path, columns(), page_bytes=512)
    assert trace.page_bytes == 512
    assert extents(list(trace.requests()))[0] == [[(8, 8)], [(0, 1), (16, 16)]]


def purposes(trace: PageTrace) -> set[int]:
    return {purpose for request in trace.requests() for purpose in request.purposes.tolist()}


def test_the_purpose_of_the_reads_is_unstated(tmp_path: Path) -> None:
    assert purposes(imported(tmp_path, columns())) == {Purpose.UNSTATED}


@pytest.mark.parametrize("purpose", Purpose)
def test_the_purpose_of_the_reads_may_be_stated(tmp_path: Path, purpose: Purpose) -> None:
    trace = imported(tmp_path, columns(), purpose=purpose.word)
    assert purposes(trace) == {purpose}


@pytest.mark.parametrize("word", ["Sparse", "decode", "", 2])
def test_another_purpose_is_refused(tmp_path: Path, word: int | str) -> None:
    message = f"option purpose is {word!r}; it must be one of unstated, prefix, sparse"
    with pytest.raises(TraceError, match=message):
        imported(tmp_path, columns(), purpose=word)
    assert [path.name for path in tmp_path.iterdir()] == ["index.parquet"]


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 1 << 40), st.integers(1, 1 << 20), st.sampled_from([512, 1536, 4096]))
def test_the_covering_pages_cover_and_no_page_is_spare(
    offset: int, length: int, page_bytes: int
) -> None:
    from kvtier.trace.columns import Place
    from kvtier.trace.page_reads import _extents

    batch = pa.RecordBatch.from_pydict({"offset": [offset], "length": [length]})
    first, count = (int(array[0]) for array in _extents(batch, page_bytes, Place(Path(), 0)))
    assert first * page_bytes <= offset < (first + 1) * page_bytes
    end = (first + count) * page_bytes
    assert end - page_bytes < offset + length <= end


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("t_ns", 1, 5, "row 1, column t_ns: 5 is less than 10"),
        ("t_ns", 0, -1, "row 0, column t_ns: -1 is not from 0"),
        ("t_ns", 3, 5, "row 3, column t_ns: 5 is less than 10"),
        ("query", 3, 3, "row 3, column query: 3 is less than 4"),
        ("batch", 2, 1, "row 2, column batch: 1 is less than 2"),
        ("length", 0, 0, "row 0, column length: 0 is not from 1"),
        ("offset", 4, (1 << 64) - 1, "row 4, column offset: 18446744073709551615 is not from 0"),
        ("offset", 4, None, "row 4, column offset: is null"),
    ],
)
def test_a_malformed_row_is_named(
    tmp_path: Path, column: str, row: int, value: object, message: str
) -> None:
    values = columns()
    values[column][row] = value
    with pytest.raises(TraceError, match=message) as caught:
        imported(tmp_path, values)
    assert "index.parquet" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["index.parquet"]


def test_a_negative_offset_is_named(tmp_path: Path) -> None:
    values = columns()
    values["offset"][2] = -4096
    source = write(tmp_path / "index.parquet", values, TYPES | {"offset": pa.int64()})
    with pytest.raises(TraceError, match="row 2, column offset: -4096 is not from 0"):
        import_trace("page-reads", source, tmp_path / "t.parquet")


def test_a_read_beyond_the_stated_end_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="row 2, column page: ends at page 4 of an object of 3"):
        imported(tmp_path, columns(), object_bytes=3 * 4096)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    types = {name: kind for name, kind in TYPES.items() if name != "batch"}
    source = write(tmp_path / "index.parquet", columns(), types)
    with pytest.raises(TraceError, match="no column batch; recorded reads have t_ns, query"):
        import_trace("page-reads", source, tmp_path / "t.parquet")


def test_a_column_of_fractions_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "index.parquet", columns(), TYPES | {"t_ns": pa.float64()})
    with pytest.raises(TraceError, match="column t_ns has type double; write whole numbers"):
        import_trace("page-reads", source, tmp_path / "t.parquet")


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="holds no reads"):
        imported(tmp_path, {name: [] for name in TYPES})


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("t_ns,query\n1,2\n")
    with pytest.raises(TraceError, match=r"no Parquet file; recorded reads are .*t_ns, query"):
        import_trace("page-reads", tmp_path / "s.csv", tmp_path / "t.parquet")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "index.parquet", columns())
    source.write_bytes(source.read_bytes()[:-20])
    with pytest.raises(TraceError, match="truncated"):
        import_trace("page-reads", source, tmp_path / "t.parquet")


def test_long_files_keep_their_queries_whole(tmp_path: Path) -> None:
    rows = 50_000
    values = {
        "t_ns": np.arange(rows),
        "query": np.arange(rows) // 7,
        "batch": np.arange(rows) // 3,
        "offset": np.arange(rows) * 4096,
        "length": np.full(rows, 4096),
    }
    requests = list(imported(tmp_path, values).requests())
    assert [len(request.pages) for request in requests[:-1]] == [7] * (rows // 7)
    assert np.concatenate([request.pages for request in requests]).tolist() == [*range(rows)]
    whole = [np.unique(np.arange(at, at + 7) // 3, return_counts=True)[1] for at in (0, 7, 14)]
    for request in requests[:-1]:
        sizes = np.diff(request.ends, prepend=0).tolist()
        assert sizes == whole[request.request % 3].tolist()
