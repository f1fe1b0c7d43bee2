"""Files that are no traces, and traces that could not be written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_traces import Batch, page_request

from kvtier.errors import TraceError
from kvtier.trace import (
    READ,
    Request,
    TraceMetadata,
    TraceObject,
    open_trace,
    write_page_io,
    write_requests,
)
from kvtier.trace.metadata import encode_metadata

REQUESTS = TraceMetadata(kind="requests", block_tokens=16, id_scope="global")
PAGE_IO = TraceMetadata(kind="page_io", page_bytes=4096, objects=(TraceObject(b"a", 10),))
ZERO = np.zeros(1, np.uint32)


def request(t_ns: int = 0, **changed: Any) -> Request:
    fields: dict[str, Any] = {
        "t_ns": t_ns,
        "session": 0,
        "parent": -1,
        "turn": 0,
        "model": "",
        "in_tokens": 16,
        "out_tokens": 1,
        "block_ids": np.array([t_ns], np.uint64),
    }
    return Request(**(fields | changed))


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "t.parquet"
    write_requests(path, REQUESTS, [request(i) for i in range(5000)])
    return path


def refusal(path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        list(open_trace(path).requests())
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_a_missing_file(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.parquet")


def test_a_folder(tmp_path: Path) -> None:
    assert "Is a directory" in refusal(tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").touch()
    assert "no Parquet file" in refusal(tmp_path / "t.parquet")


def test_a_csv_named_parquet(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("TIMESTAMP,ContextTokens\n2023-11-16,4808\n")
    text = refusal(tmp_path / "t.parquet")
    assert "no Parquet file" in text
    assert "kvtier import" in text


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_file(trace_file: Path, share: float) -> None:
    whole = trace_file.read_bytes()
    trace_file.write_bytes(whole[: int(len(whole) * share)])
    assert "truncated" in refusal(trace_file)


def test_a_damaged_footer(trace_file: Path) -> None:
    whole = bytearray(trace_file.read_bytes())
    whole[-40:-8] = b"\xff" * 32
    trace_file.write_bytes(whole)
    assert "get it again" in refusal(trace_file)


def test_flipped_bits_in_the_rows(trace_file: Path) -> None:
    column = pq.read_metadata(trace_file).row_group(0).column(0)
    end = column.data_page_offset + column.total_compressed_size
    whole = bytearray(trace_file.read_bytes())
    whole[end - 8 : end] = bytes(255 - byte for byte in whole[end - 8 : end])
    trace_file.write_bytes(whole)
    assert "damaged at or after row 0" in refusal(trace_file)


def test_another_parquet_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"t_ns": [1]}), tmp_path / "t.parquet")
    assert "no kvtier trace" in refusal(tmp_path / "t.parquet")


def write_table(path: Path, fields: dict[str, Any], table: pa.Table) -> None:
    metadata = {b"kvtier": json.dumps(fields).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def metadata_fields(metadata: TraceMetadata) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(encode_metadata(metadata))
    return fields


PAGE_TABLE = pa.table(
    {
        "t_ns": pa.array([0], pa.int64()),
        "request": pa.array([0], pa.uint32()),
        "batch": pa.array([0], pa.uint32()),
        "op": pa.array([0], pa.uint8()),
        "object": pa.array([0], pa.uint32()),
        "page": pa.array([0], pa.uint32()),
        "pages": pa.array([1], pa.uint32()),
    }
)


def test_a_missing_column(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, metadata_fields(PAGE_IO), PAGE_TABLE.drop_columns(["batch"]))
    assert "column batch is missing" in refusal(path)


def test_a_column_of_a_wrong_type(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    page = PAGE_TABLE.schema.get_field_index("page")
    table = PAGE_TABLE.set_column(page, "page", pa.array([0], pa.int32()))
    write_table(path, metadata_fields(PAGE_IO), table)
    assert "column page has type int32, not uint32" in refusal(path)


def test_an_optional_column_of_a_wrong_type(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = PAGE_TABLE.append_column("purpose", pa.array(["sparse"]))
    write_table(path, metadata_fields(PAGE_IO), table)
    assert "column purpose has type text, not uint8" in refusal(path)


def test_an_optional_column_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    purpose = pa.array([1], pa.uint8())
    table = PAGE_TABLE.append_column("purpose", purpose).append_column("purpose", purpose)
    write_table(path, metadata_fields(PAGE_IO), table)
    assert "column purpose is there twice" in refusal(path)


def test_columns_it_does_not_know_are_left_aside(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = PAGE_TABLE.append_column("colour", pa.array(["red"]))
    write_table(path, metadata_fields(PAGE_IO) | {"later": 1}, table)
    assert len(list(open_trace(path).requests())) == 1


def test_a_trace_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, metadata_fields(PAGE_IO), PAGE_TABLE.slice(0, 0))
    assert "holds no requests" in refusal(path)


def test_requests_are_counted_without_statistics(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    metadata = {b"kvtier": encode_metadata(PAGE_IO)}
    table = PAGE_TABLE.replace_schema_metadata(metadata)
    pq.write_table(table, path, write_statistics=False)
    assert open_trace(path).request_count == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2; this kvtier reads version 1"),
        ({"schema_version": "1"}, "schema_version is '1'; it must be of JSON type int"),
        ({"kind": "pages"}, "kind is 'pages'; it must be"),
        ({"page_bytes": 4000}, "page_bytes is 4000"),
        ({"page_bytes": True}, "page_bytes is True"),
        ({"block_tokens": 16}, "block_tokens and id_scope belong to kind 'requests'"),
        ({"objects": {"keys": [], "pages": []}}, "objects is '0 long'"),
        ({"objects": {"keys": ["a"], "pages": []}}, "1 keys and 0 pages"),
        ({"objects": {"keys": ["a", "a"], "pages": [1, 1]}}, "not distinct"),
        ({"objects": {"keys": ["a"], "pages": [0]}}, "an object has 1 to"),
        ({"objects": {"keys": [""], "pages": [1]}}, "a key has 1 to"),
        ({"objects": {"keys": [1], "pages": [1]}}, "items must be of JSON type str"),
        ({"objects": [1]}, "objects is"),
        ({"time_quantum_ns": 0}, "time_quantum_ns is 0"),
        ({"source_sha256": "xyz"}, "64 hexadecimal digits"),
        ({"synthetic": "all"}, "synthetic is 'all'"),
    ],
)
def test_wrong_metadata(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, metadata_fields(PAGE_IO) | changed, PAGE_TABLE)
    assert message in refusal(path)


@pytest.mark.parametrize("name", sorted(metadata_fields(PAGE_IO)))
def test_missing_metadata(tmp_path: Path, name: str) -> None:
    fields = metadata_fields(PAGE_IO)
    del fields[name]
    write_table(tmp_path / "t.parquet", fields, PAGE_TABLE)
    assert f"{name} is missing" in refusal(tmp_path / "t.parquet")


@pytest.mark.parametrize("encoded", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_metadata_that_is_no_json_object(tmp_path: Path, encoded: bytes) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(PAGE_TABLE.replace_schema_metadata({b"kvtier": encoded}), path)
    assert "JSON" in refusal(path)


def folder_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError("the source broke")])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, interruption: BaseException | type[BaseException]
) -> None:
    def requests() -> Iterator[Request]:
        yield from (request(i) for i in range(20_000))
        raise interruption

    with pytest.raises((KeyboardInterrupt, OSError)) as caught:
        write_requests(tmp_path / "t.parquet", REQUESTS, requests())
    assert not isinstance(caught.value, TraceError)
    assert folder_names(tmp_path) == []


def test_a_failed_write_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"precious")
    with pytest.raises(TraceError, match="row 1, column t_ns: 3 is less than 4"):
        write_requests(path, REQUESTS, [request(4), request(3)])
    assert path.read_bytes() == b"precious"
    assert folder_names(tmp_path) == ["t.parquet"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"session": -1}, "row 1, column session: -1 is not from 0"),
        ({"in_tokens": 1 << 32}, "row 1, column in_tokens: 4294967296"),
        ({"out_tokens": 1 << 64}, "row 1, column out_tokens: .* does not fit in 64 bits"),
        ({"block_ids": np.array([1])}, "row 1, column run_start: block_ids must be"),
        ({"block_ids": np.array([], np.uint64)}, "row 1, column run_start: is empty"),
    ],
)
def test_a_request_that_does_not_fit_is_named(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        write_requests(tmp_path / "t.parquet", REQUESTS, [request(0), request(1, **changed)])
    assert folder_names(tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"request": -1}, "request -1: its number is not from 0"),
        ({"request": 1}, "row 0, column request: 1; number requests 0, 1, 2"),
        ({"t_ns": np.zeros(0, np.int64)}, "t_ns, ops, ends and purposes must be equal rows"),
        ({"t_ns": np.zeros(1, np.uint64)}, "t_ns, ops, ends and purposes must be equal rows"),
        ({"ops": np.zeros(1, np.int64)}, "t_ns, ops, ends and purposes must be equal rows"),
        ({"ends": np.ones((1, 1), np.int64)}, "t_ns, ops, ends and purposes must be equal rows"),
        ({"ops": np.full(1, 2, np.uint8)}, "row 0, column op: 2; it must be 0"),
        ({"purposes": np.zeros(1, np.int64)}, "t_ns, ops, ends and purposes must be equal rows"),
        ({"purposes": np.zeros(2, np.uint8)}, "t_ns, ops, ends and purposes must be equal rows"),
        ({"purposes": np.full(1, 3, np.uint8)}, "row 0, column purpose: 3; it must be one of 0"),
        ({"ends": np.full(1, 2, np.int64)}, "ends must ascend up to 1, its extents"),
        ({"ends": np.zeros(1, np.int64)}, "ends must ascend up to 1, its extents"),
        ({"pages": np.zeros(1, np.int64)}, "objects, pages and counts must be equal rows of u"),
        ({"counts": np.ones(2, np.uint32)}, "objects, pages and counts must be equal rows of u"),
        ({"pages": ZERO + 10}, "row 0, column page: ends at page 11"),
    ],
)
def test_a_page_request_that_does_not_fit_is_named(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    request = replace(page_request(0, Batch(READ, 0, [(0, 0, 1)])), **changed)
    with pytest.raises(TraceError, match=message):
        write_page_io(tmp_path / "t.parquet", PAGE_IO, [request])
    assert folder_names(tmp_path) == []


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "request 0 is empty; leave it out"),
        ([[]], "ends must ascend up to 0"),
        ([[(0, 0, 1)], []], "ends must ascend up to 1, its extents; leave empty batches out"),
        ([[], [(0, 0, 1)]], "ends must ascend up to 1, its extents; leave empty batches out"),
    ],
)
def test_an_empty_request_or_batch_is_refused(
    tmp_path: Path, batches: list[list[tuple[int, int, int]]], message: str
) -> None:
    request = page_request(0, *(Batch(READ, 0, extents) for extents in batches))
    with pytest.raises(TraceError, match=message):
        write_page_io(tmp_path / "t.parquet", PAGE_IO, [request])
    assert folder_names(tmp_path) == []


def test_no_requests_make_no_file(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="there are no requests"):
        write_requests(tmp_path / "t.parquet", REQUESTS, [])
    assert folder_names(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"there is no directory .*none; create it first"):
        write_requests(tmp_path / "none" / "t.parquet", REQUESTS, [request()])


def test_a_target_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="is a directory"):
        write_requests(tmp_path, REQUESTS, [request()])


def test_metadata_of_the_other_kind(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="metadata of kind 'page_io'"):
        write_requests(tmp_path / "t.parquet", PAGE_IO, [request()])


def test_the_file_has_the_permissions_of_any_new_file(trace_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    assert trace_file.stat().st_mode == other.stat().st_mode
