"""Writes traces: streamed, checked by the laws, and whole or not at all."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvtier.errors import TraceError
from kvtier.trace.arrow import load_parquet
from kvtier.trace.columns import Place
from kvtier.trace.encode import encode_pages, encode_requests, gather_pages, gather_requests
from kvtier.trace.laws import PageLaws, RequestLaws
from kvtier.trace.metadata import TraceKind, TraceMetadata
from kvtier.trace.parquet import as_trace_error
from kvtier.trace.records import PageRequest, Request
from kvtier.trace.schema import arrow_schema

# What the writer holds in memory and makes one row group. Arrow decodes a page of a column at once,
# and a group may be one page: so these bound the reader as well.
_GROUP_REQUESTS: Final = 1 << 13
_GROUP_BLOCKS: Final = 1 << 19
_GROUP_PAGE_ROWS: Final = 1 << 15
_ZSTD_LEVEL: Final = 9

# Times, counters and ids differ little from row to row; `model` alone is dictionary-coded.
_DELTA: Final = "DELTA_BINARY_PACKED"
_ENCODINGS: Final[dict[TraceKind, dict[str, str]]] = {
    "requests": {
        "t_ns": _DELTA,
        "session": _DELTA,
        "parent": _DELTA,
        "turn": _DELTA,
        "in_tokens": _DELTA,
        "out_tokens": _DELTA,
        "run_start.list.element": _DELTA,
        "run_len.list.element": _DELTA,
    },
    "page_io": dict.fromkeys(("t_ns", "request", "batch", "object", "page", "pages"), _DELTA),
}


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """What was written.

    Attributes:
        path: the file.
        kind: its kind.
        requests: its requests.
        references: block references (``requests``), or pages read and written (``page_io``).
        file_bytes: its size.
    """

    path: Path
    kind: TraceKind
    requests: int
    references: int
    file_bytes: int


def write_requests(
    path: str | Path, metadata: TraceMetadata, requests: Iterable[Request]
) -> TraceSummary:
    """Write a trace of kind ``requests``, or leave nothing behind.

    Raises:
        TraceError: a request breaks a law of the schema, there is none, or the file cannot be
            written. Whatever ``requests`` raises passes through.
    """
    path = _checked_target(path, metadata, "requests")
    laws = RequestLaws()
    request_count = references = 0
    with _written_whole(path, metadata) as sink:
        for group in _request_groups(requests):
            place = Place(path, request_count)
            columns = gather_requests(group, place)
            laws.check(columns, place)
            sink.write(encode_requests(columns, sink.schema))
            request_count += len(group)
            references += int(columns.run_len.sum(dtype="int64"))
        _refuse_empty(path, request_count)
    return TraceSummary(path, "requests", request_count, references, path.stat().st_size)


def write_page_io(
    path: str | Path, metadata: TraceMetadata, requests: Iterable[PageRequest]
) -> TraceSummary:
    """Write a trace of kind ``page_io``, or leave nothing behind.

    Raises:
        TraceError: a request breaks a law of the schema, there is none, or the file cannot be
            written. Whatever ``requests`` raises passes through.
    """
    path = _checked_target(path, metadata, "page_io")
    laws = PageLaws(metadata.objects)
    row = request_count = references = 0
    with _written_whole(path, metadata) as sink:
        for group in _page_groups(requests):
            place = Place(path, row)
            columns = gather_pages(group, place)
            laws.check(columns, place)
            sink.write(encode_pages(columns, sink.schema))
            row += len(columns)
            request_count += len(group)
            references += int(columns.pages.sum(dtype="int64"))
        _refuse_empty(path, request_count)
    return TraceSummary(path, "page_io", request_count, references, path.stat().st_size)


def _checked_target(path: str | Path, metadata: TraceMetadata, kind: TraceKind) -> Path:
    path = Path(path)
    if metadata.kind != kind:
        raise TraceError(f"{path}: metadata of kind {metadata.kind!r} for a trace of {kind!r}")
    if path.is_dir():
        raise TraceError(f"{path}: cannot be written, it is a directory; name a file")
    if not path.parent.is_dir():
        raise TraceError(f"{path}: there is no directory {path.parent}; create it first")
    return path


def _refuse_empty(path: Path, request_count: int) -> None:
    if request_count == 0:
        raise TraceError(f"{path}: not written, there are no requests; check the source")


def _request_groups(requests: Iterable[Request]) -> Iterator[list[Request]]:
    group: list[Request] = []
    blocks = 0
    for request in requests:
        group.append(request)
        blocks += len(request.block_ids)
        if len(group) >= _GROUP_REQUESTS or blocks >= _GROUP_BLOCKS:
            yield group
            group, blocks = [], 0
    if group:
        yield group


def _page_groups(requests: Iterable[PageRequest]) -> Iterator[list[PageRequest]]:
    group: list[PageRequest] = []
    rows = 0
    for request in requests:
        group.append(request)
        rows += len(request.objects)
        if rows >= _GROUP_PAGE_ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group


@dataclass(frozen=True, slots=True)
class _Sink:
    path: Path
    schema: Any
    writer: Any

    def write(self, batch: Any) -> None:
        with as_trace_error(self.path):
            self.writer.write_batch(batch)


@contextmanager
def _written_whole(path: Path, metadata: TraceMetadata) -> Iterator[_Sink]:
    """A sink whose file gets its name once it is complete, and is removed if it never is."""
    schema = arrow_schema(metadata)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with as_trace_error(path):
            writer = _open_writer(temporary, schema, metadata.kind)
        try:
            yield _Sink(path, schema, writer)
        finally:
            with as_trace_error(path):
                writer.close()
        with as_trace_error(path):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _open_writer(path: Path, schema: Any, kind: TraceKind) -> Any:
    return load_parquet().ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        use_dictionary=["model"] if kind == "requests" else False,
        column_encoding=_ENCODINGS[kind],
        write_page_checksum=True,
    )
