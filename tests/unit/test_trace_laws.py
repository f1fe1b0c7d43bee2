"""Every law of the trace schema has a row that breaks it, and an error that names the row."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvtier.errors import TraceError
from kvtier.pages import Purpose
from kvtier.trace import TraceMetadata, TraceObject, open_trace
from kvtier.trace.metadata import encode_metadata
from kvtier.trace.schema import BLOCKS_PER_REQUEST_MAX, EXTENT_PAGES_MAX

U64_MAX = (1 << 64) - 1
REQUESTS = TraceMetadata(kind="requests", block_tokens=16, id_scope="global")
PAGE_IO = TraceMetadata(
    kind="page_io",
    page_bytes=4096,
    objects=(TraceObject(b"a", 10), TraceObject(b"b", 1 << 22)),
)
REQUEST_TYPES = {
    "t_ns": pa.int64(),
    "session": pa.uint32(),
    "parent": pa.int64(),
    "turn": pa.uint32(),
    "model": pa.string(),
    "in_tokens": pa.uint32(),
    "out_tokens": pa.uint32(),
    "run_start": pa.list_(pa.uint64()),
    "run_len": pa.list_(pa.uint32()),
}
PAGE_TYPES = {
    "t_ns": pa.int64(),
    "request": pa.uint32(),
    "batch": pa.uint32(),
    "op": pa.uint8(),
    "object": pa.uint32(),
    "page": pa.uint32(),
    "pages": pa.uint32(),
    "purpose": pa.uint8(),
}


def request_columns() -> dict[str, list[Any]]:
    return {
        "t_ns": [0, 5, 5],
        "session": [0, 0, 1],
        "parent": [-1, 0, -1],
        "turn": [0, 1, 0],
        "model": ["", "", "m"],
        "in_tokens": [16, 48, 16],
        "out_tokens": [1, 1, 1],
        "run_start": [[1], [1, 7], [U64_MAX]],
        "run_len": [[1], [2, 1], [1]],
    }


def page_columns() -> dict[str, list[Any]]:
    return {
        "t_ns": [3, 3, 9, 4],
        "request": [0, 0, 0, 1],
        "batch": [0, 0, 2, 1],
        "op": [0, 0, 1, 0],
        "object": [0, 1, 0, 0],
        "page": [9, 0, 0, 2],
        "pages": [1, 5, 10, 1],
        "purpose": [1, 1, 0, 2],
    }


def write(
    path: Path,
    metadata: TraceMetadata,
    columns: dict[str, list[Any]],
    types: dict[str, pa.DataType],
    row_group_size: int = 2,
) -> None:
    arrays = [pa.array(columns[name], type_) for name, type_ in types.items()]
    schema = pa.schema(types.items(), metadata={b"kvtier": encode_metadata(metadata)})
    pq.write_table(pa.table(arrays, schema=schema), path, row_group_size=row_group_size)


def read_requests(path: Path, columns: dict[str, list[Any]]) -> list[Any]:
    write(path, REQUESTS, columns, REQUEST_TYPES)
    return list(open_trace(path).requests())


def read_pages(path: Path, columns: dict[str, list[Any]]) -> list[Any]:
    write(path, PAGE_IO, columns, PAGE_TYPES)
    return list(open_trace(path).requests())


def test_a_file_of_another_writer_is_read(tmp_path: Path) -> None:
    requests = read_requests(tmp_path / "t.parquet", request_columns())
    assert [request.block_ids.tolist() for request in requests] == [[1], [1, 2, 7], [U64_MAX]]
    assert [request.model for request in requests] == ["", "", "m"]


def test_large_lists_and_dictionaries_are_read(tmp_path: Path) -> None:
    types = REQUEST_TYPES | {
        "model": pa.dictionary(pa.int8(), pa.string()),
        "run_start": pa.large_list(pa.uint64()),
    }
    write(tmp_path / "t.parquet", REQUESTS, request_columns(), types)
    requests = list(open_trace(tmp_path / "t.parquet").requests())
    assert requests[1].block_ids.tolist() == [1, 2, 7]
    assert requests[2].model == "m"


def test_requests_may_overlap_in_time(tmp_path: Path) -> None:
    requests = read_pages(tmp_path / "t.parquet", page_columns())
    assert [request.t_ns.tolist() for request in requests] == [[3, 9], [4]]


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("t_ns", 0, -1, "row 0, column t_ns: -1 is less than 0"),
        ("t_ns", 2, 4, "row 2, column t_ns: 4 is less than 5"),
        ("t_ns", 1, None, "row 1, column t_ns: is null"),
        ("parent", 1, 1, "row 1, column parent: 1 is no earlier request"),
        ("parent", 0, -2, "row 0, column parent: -2"),
        ("model", 2, None, "row 2, column model: is null"),
        ("run_start", 1, [1], "row 1, column run_len: is not as long as run_start"),
        ("run_start", 1, [1, None], "row 1, column run_start: has a null inside"),
        ("run_start", 1, None, "row 1, column run_start: is null"),
        ("run_len", 1, [2, 0], "row 1, column run_len: 0; a run has at least one block"),
        ("run_len", 2, [2], "row 2, column run_start: 18446744073709551615 and its length exceed"),
        ("run_len", 0, [BLOCKS_PER_REQUEST_MAX + 1], "row 0, column run_len: 1048577 blocks"),
    ],
)
def test_a_broken_request_is_named(
    tmp_path: Path, column: str, row: int, value: object, message: str
) -> None:
    columns = request_columns()
    columns[column][row] = value
    with pytest.raises(TraceError, match=message) as caught:
        read_requests(tmp_path / "t.parquet", columns)
    assert "t.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_request_without_blocks_is_named(tmp_path: Path) -> None:
    columns = request_columns()
    columns["run_start"][1] = columns["run_len"][1] = []
    with pytest.raises(TraceError, match="row 1, column run_start: is empty"):
        read_requests(tmp_path / "t.parquet", columns)


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("t_ns", 0, -1, "row 0, column t_ns: -1 is less than 0"),
        ("t_ns", 2, 2, "row 2, column t_ns: 2 is less than 3"),
        ("t_ns", 3, 2, "row 3, column t_ns: 2 is less than 3"),
        ("t_ns", 3, None, "row 3, column t_ns: is null"),
        ("request", 0, 1, "row 0, column request: 1; number requests 0, 1, 2"),
        ("request", 3, 2, "row 3, column request: 2; number requests 0, 1, 2"),
        ("request", 1, 1, "row 2, column request: 0; .* keep their rows together"),
        ("batch", 1, 3, "row 2, column batch: 2 is less than 3"),
        ("op", 0, 2, r"row 0, column op: 2; it must be 0 \(read\) or 1 \(write\)"),
        ("op", 1, 1, "row 1, column op: differs within a batch"),
        (
            "purpose",
            3,
            3,
            r"row 3, column purpose: 3; .* 0 \(unstated\), 1 \(prefix\), 2 \(sparse\)",
        ),
        ("purpose", 1, 2, "row 1, column purpose: differs within a batch; begin a new batch"),
        ("purpose", 2, None, "row 2, column purpose: is null"),
        ("object", 3, 2, "row 3, column object: 2; the file's table has 2 objects"),
        ("pages", 3, 0, "row 3, column pages: 0; a row has 1 to 1048576 pages"),
        ("pages", 1, EXTENT_PAGES_MAX + 1, "row 1, column pages: 1048577"),
        ("page", 3, 10, "row 3, column page: ends at page 11 of an object of 10"),
        ("page", 3, 0xFFFF_FFFF, "row 3, column page: ends at page 4294967296"),
    ],
)
def test_a_broken_page_row_is_named(
    tmp_path: Path, column: str, row: int, value: object, message: str
) -> None:
    columns = page_columns()
    columns[column][row] = value
    with pytest.raises(TraceError, match=message) as caught:
        read_pages(tmp_path / "t.parquet", columns)
    assert "t.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_laws_hold_across_the_batches_of_a_long_file(tmp_path: Path) -> None:
    rows = 40_000
    columns: dict[str, Any] = {
        "t_ns": np.arange(rows),
        "request": np.zeros(rows, np.uint32),
        "batch": np.arange(rows),
        "op": np.zeros(rows, np.uint8),
        "object": np.zeros(rows, np.uint32),
        "page": np.zeros(rows, np.uint32),
        "pages": np.ones(rows, np.uint32),
        "purpose": np.zeros(rows, np.uint8),
    }
    columns["batch"][16_384:] -= 2  # where a new batch of rows begins
    write(tmp_path / "t.parquet", PAGE_IO, columns, PAGE_TYPES, row_group_size=7000)
    with pytest.raises(TraceError, match="row 16384, column batch: 16382 is less than 16383"):
        list(open_trace(tmp_path / "t.parquet").requests())


def test_a_purpose_that_changes_where_a_batch_is_cut_is_named(tmp_path: Path) -> None:
    rows = 40_000
    columns: dict[str, Any] = {
        "t_ns": np.zeros(rows, np.int64),
        "request": np.zeros(rows, np.uint32),
        "batch": np.zeros(rows, np.uint32),
        "op": np.zeros(rows, np.uint8),
        "object": np.zeros(rows, np.uint32),
        "page": np.zeros(rows, np.uint32),
        "pages": np.ones(rows, np.uint32),
        "purpose": np.ones(rows, np.uint8),
    }
    columns["purpose"][16_384:] = 0  # where a new batch of rows begins
    write(tmp_path / "t.parquet", PAGE_IO, columns, PAGE_TYPES, row_group_size=7000)
    with pytest.raises(TraceError, match="row 16384, column purpose: differs within a batch"):
        list(open_trace(tmp_path / "t.parquet").requests())


def test_reads_of_a_file_without_purposes_are_unstated(tmp_path: Path) -> None:
    types = {name: kind for name, kind in PAGE_TYPES.items() if name != "purpose"}
    write(tmp_path / "t.parquet", PAGE_IO, page_columns(), types)
    requests = open_trace(tmp_path / "t.parquet").requests()
    purposes = [request.purposes for request in requests]
    assert [array.tolist() for array in purposes] == [[Purpose.UNSTATED] * 2, [Purpose.UNSTATED]]
    assert {array.dtype for array in purposes} == {np.dtype(np.uint8)}


def test_a_request_with_too_many_rows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvtier.trace.laws.ROWS_PER_REQUEST_MAX", 2)
    with pytest.raises(TraceError, match="row 2, column request: more than 2 rows in one request"):
        read_pages(tmp_path / "t.parquet", page_columns())


def test_rows_before_the_broken_one_are_delivered(tmp_path: Path) -> None:
    rows = 1500
    columns = {name: [value[0]] * rows for name, value in request_columns().items()}
    columns["t_ns"] = [*range(rows - 1), 0]
    write(tmp_path / "t.parquet", REQUESTS, columns, REQUEST_TYPES)
    requests = open_trace(tmp_path / "t.parquet").requests()
    assert len(list(islice(requests, 1000))) == 1000
    with pytest.raises(TraceError, match="row 1499, column t_ns"):
        list(requests)
