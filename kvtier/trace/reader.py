"""Opens a trace, and streams its requests: memory holds one bounded batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeAlias

from kvtier.errors import TraceError
from kvtier.pages import expand_runs
from kvtier.trace.arrow import load_pyarrow
from kvtier.trace.columns import PageColumns, RequestColumns
from kvtier.trace.decode import decode_pages, decode_requests
from kvtier.trace.grouping import page_requests
from kvtier.trace.laws import PageLaws, RequestLaws
from kvtier.trace.metadata import TraceKind, TraceMetadata, TraceObject, decode_metadata
from kvtier.trace.parquet import first_line, open_parquet, stream_batches
from kvtier.trace.records import PageRequest, Request
from kvtier.trace.schema import COLUMNS, METADATA_KEY, check_columns

_BATCH_ROWS: Final[dict[TraceKind, int]] = {"requests": 512, "page_io": 1 << 14}


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """An opened trace of kind ``requests``.

    Attributes:
        path: its file.
        metadata: what the file says of itself.
        request_count: its requests, from the file's footer.
    """

    path: Path
    metadata: TraceMetadata
    request_count: int

    @property
    def kind(self) -> TraceKind:
        return self.metadata.kind

    def requests(self, limit: int | None = None) -> Iterator[Request]:
        """The first ``limit`` requests (None: all), streamed from the file.

        Raises:
            TraceError: at the row that is damaged or breaks a law of the schema.
        """
        return islice(_stream_requests(self.path), check_limit(limit))


@dataclass(frozen=True, slots=True)
class PageTrace:
    """An opened trace of kind ``page_io``.

    Attributes:
        path: its file.
        metadata: what the file says of itself.
        request_count: its requests: they are numbered from 0, so the last row group tells.
    """

    path: Path
    metadata: TraceMetadata
    request_count: int

    @property
    def kind(self) -> TraceKind:
        return self.metadata.kind

    @property
    def objects(self) -> tuple[TraceObject, ...]:
        """The objects that its batches index."""
        return self.metadata.objects

    @property
    def page_bytes(self) -> int:
        return self.metadata.page_bytes

    def requests(self, limit: int | None = None) -> Iterator[PageRequest]:
        """The first ``limit`` requests (None: all), streamed from the file.

        Raises:
            TraceError: at the row that is damaged or breaks a law of the schema.
        """
        parts = _stream_pages(self.path, self.objects)
        return islice(page_requests(parts), check_limit(limit))


Trace: TypeAlias = RequestTrace | PageTrace


def check_limit(limit: int | None) -> int | None:
    """Return ``limit``, or raise :class:`TraceError` where it is negative."""
    if limit is not None and limit < 0:
        raise TraceError(f"a limit of {limit} requests; give 0 or more, or none for all")
    return limit


def open_trace(path: str | Path) -> Trace:
    """Open a trace and check its schema; the rows are checked when they are read.

    Raises:
        TraceError: the file is missing, truncated, no trace, or of another schema.
    """
    path = Path(path)
    with open_parquet(path) as file:
        schema = file.schema_arrow
        encoded = (schema.metadata or {}).get(METADATA_KEY)
        if encoded is None:
            raise TraceError(
                f"{path}: a Parquet file, but no kvtier trace (no metadata key 'kvtier'); "
                "convert it with 'kvtier import FORMAT SRC DST'"
            )
        try:
            metadata = decode_metadata(encoded)
            check_columns(schema, metadata.kind)
        except TraceError as error:
            raise TraceError(f"{path}: {error}") from error
        if file.metadata.num_rows == 0:
            raise TraceError(f"{path}: holds no requests; record or import it again")
        if metadata.kind == "requests":
            return RequestTrace(path, metadata, file.metadata.num_rows)
        return PageTrace(path, metadata, _last_request(file, path) + 1)


def _last_request(file: Any, path: Path) -> int:
    groups = [i for i in range(file.num_row_groups) if file.metadata.row_group(i).num_rows]
    group = file.metadata.row_group(groups[-1])
    for i in range(group.num_columns):
        column = group.column(i)
        statistics = column.statistics if column.path_in_schema == "request" else None
        if statistics is not None and statistics.has_min_max:
            return int(statistics.max)
    try:
        numbers = file.read_row_group(groups[-1], columns=["request"]).column(0)
    except (load_pyarrow().ArrowException, OSError) as error:
        raise TraceError(f"{path}: damaged ({first_line(error)}); get it again") from error
    return int(numbers[-1].as_py() or 0)


def _stream_requests(path: Path) -> Iterator[Request]:
    laws = RequestLaws()
    names = list(COLUMNS["requests"])
    for batch, place in stream_batches(path, names, _BATCH_ROWS["requests"]):
        columns = decode_requests(batch, place)
        laws.check(columns, place)
        yield from _requests_of(columns)


def _requests_of(columns: RequestColumns) -> Iterator[Request]:
    rows = zip(
        columns.t_ns.tolist(),
        columns.session.tolist(),
        columns.parent.tolist(),
        columns.turn.tolist(),
        columns.model.tolist(),
        columns.in_tokens.tolist(),
        columns.out_tokens.tolist(),
        columns.run_offsets[:-1].tolist(),
        columns.run_offsets[1:].tolist(),
        strict=True,
    )
    for t_ns, session, parent, turn, model, in_tokens, out_tokens, start, stop in rows:
        block_ids = expand_runs(columns.run_start[start:stop], columns.run_len[start:stop])
        name = columns.models[model]
        yield Request(t_ns, session, parent, turn, name, in_tokens, out_tokens, block_ids)


def _stream_pages(path: Path, objects: tuple[TraceObject, ...]) -> Iterator[PageColumns]:
    laws = PageLaws(objects)
    names = list(COLUMNS["page_io"])
    for batch, place in stream_batches(path, names, _BATCH_ROWS["page_io"]):
        columns = decode_pages(batch, place)
        laws.check(columns, place)
        yield columns
