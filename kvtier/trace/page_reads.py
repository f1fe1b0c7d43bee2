"""Reads recorded page I/O: Parquet rows ``t_ns, query, batch, offset, length``.

One read of one file a row: when (ns), for which query, in which batch, and which bytes. Rows of a
query stand together, queries ascend, and so do the batches of a query: the reads of a batch were
issued together, and a later batch of the query depended on it. A read maps to the pages that
cover it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from kvtier.errors import SettingsError, TraceError
from kvtier.pages import I64, OBJECT_PAGES_MAX, PAGE_BYTES_DEFAULT, U32, Purpose, check_page_bytes
from kvtier.trace.arrow import load_pyarrow
from kvtier.trace.columns import PageColumns, Place
from kvtier.trace.decode import decode_numbers
from kvtier.trace.grouping import page_requests
from kvtier.trace.laws import PageLaws
from kvtier.trace.metadata import TraceMetadata, TraceObject
from kvtier.trace.parquet import open_parquet, stream_batches
from kvtier.trace.records import READ
from kvtier.trace.schema import EXTENT_PAGES_MAX
from kvtier.trace.sources import SourceFile, check_option, check_word
from kvtier.trace.writer import TraceSummary, write_page_io

_COLUMNS: Final = ("t_ns", "query", "batch", "offset", "length")
_WRITE_PARQUET: Final = (
    f"recorded reads are Parquet, with the columns {', '.join(_COLUMNS)}: convert them with pandas"
)
_PURPOSES: Final = {purpose.word: purpose for purpose in Purpose}
_BATCH_ROWS: Final = 1 << 14
_U32_MAX: Final = (1 << 32) - 1
_I64_MAX: Final = (1 << 63) - 1


def import_page_reads(
    source: SourceFile,
    target: Path,
    *,
    page_bytes: int = PAGE_BYTES_DEFAULT,
    object_bytes: int = 0,
    purpose: str = "unstated",
) -> TraceSummary:
    """Write recorded reads as kind ``page_io``, with one object, named like the source.

    Args:
        source: the Parquet file.
        target: the trace to write.
        page_bytes: bytes of a page.
        object_bytes: length of the file that was read; 0 ends it after the last byte read.
        purpose: what the reads were for: ``prefix``, ``sparse`` or ``unstated``.

    Raises:
        TraceError: the source is no such file, a row is malformed, time goes backwards, or the
            target cannot be written.
    """
    check_option("page_bytes", page_bytes, 1)
    check_option("object_bytes", object_bytes, 0)
    check_word("purpose", purpose, list(_PURPOSES))
    try:
        check_page_bytes(page_bytes)
    except SettingsError as error:
        raise TraceError(f"option {error}") from error
    _check_schema(source.path)
    pages = -(-object_bytes // page_bytes) or _last_page(source.path, page_bytes) + 1
    objects = (TraceObject(source.path.stem.encode(), pages),)
    metadata = TraceMetadata(
        kind="page_io",
        page_bytes=page_bytes,
        objects=objects,
        licence=source.licence,
        source=source.name,
        source_sha256=source.sha256,
        provenance="imported by kvtier from recorded reads of one file (Parquet)",
    )
    columns = _page_columns(source.path, page_bytes, objects, _PURPOSES[purpose])
    return write_page_io(target, metadata, page_requests(columns))


def _check_schema(path: Path) -> None:
    with open_parquet(path, _WRITE_PARQUET) as file:
        schema = file.schema_arrow
        rows = file.metadata.num_rows
    for name in _COLUMNS:
        if schema.names.count(name) != 1:
            what = f"no column {name}" if name not in schema.names else f"two columns {name}"
            raise TraceError(f"{path}: {what}; recorded reads have {', '.join(_COLUMNS)}")
        found = schema.field(name).type
        if not load_pyarrow().types.is_integer(found):
            raise TraceError(f"{path}: column {name} has type {found}; write whole numbers")
    if rows == 0:
        raise TraceError(f"{path}: holds no reads; record it again")


def _last_page(path: Path, page_bytes: int) -> int:
    last = 0
    for batch, place in stream_batches(path, ["offset", "length"], _BATCH_ROWS):
        first, count = _extents(batch, page_bytes, place)
        last = max(last, int((first + count).max(initial=1)) - 1)
    return last


def _page_columns(
    path: Path, page_bytes: int, objects: tuple[TraceObject, ...], purpose: Purpose
) -> Iterator[PageColumns]:
    numbering = _Numbering()
    laws = PageLaws(objects)
    for batch, place in stream_batches(path, list(_COLUMNS), _BATCH_ROWS):
        first, count = _extents(batch, page_bytes, place)
        columns = PageColumns(
            t_ns=_whole(batch, "t_ns", 0, _I64_MAX, place),
            request=numbering.number(_whole(batch, "query", 0, _I64_MAX, place), place),
            batch=_whole(batch, "batch", 0, _U32_MAX, place).astype(np.uint32),
            op=np.full(len(first), READ, np.uint8),
            object=np.zeros(len(first), np.uint32),
            page=first.astype(np.uint32),
            pages=count.astype(np.uint32),
            purpose=np.full(len(first), purpose, np.uint8),
        )
        laws.check(columns, place)
        yield columns


@dataclass(slots=True)
class _Numbering:
    """Numbers queries from 0, whatever they were called."""

    query: int = -1
    request: int = -1

    def number(self, queries: I64, place: Place) -> U32:
        before = np.concatenate((np.array([self.query], np.int64), queries[:-1]))
        back = np.flatnonzero(queries < before)
        if len(back):
            row = int(back[0])
            what = f"{queries[row]} is less than {before[row]}; sort the rows by query"
            raise place.error(row, "query", what)
        numbers = self.request + np.cumsum(queries != before)
        if len(queries):
            self.query, self.request = int(queries[-1]), int(numbers[-1])
        return numbers.astype(np.uint32)


def _extents(batch: Any, page_bytes: int, place: Place) -> tuple[I64, I64]:
    """First page and number of pages of each read."""
    offset = _whole(batch, "offset", 0, (OBJECT_PAGES_MAX - EXTENT_PAGES_MAX) * page_bytes, place)
    length = _whole(batch, "length", 1, (EXTENT_PAGES_MAX - 1) * page_bytes, place)
    first = offset // page_bytes
    return first, (offset + length - 1) // page_bytes - first + 1


def _whole(batch: Any, name: str, least: int, most: int, place: Place) -> I64:
    numbers = decode_numbers(batch, name, place)
    beyond = np.flatnonzero((numbers < least) | (numbers > most))
    if len(beyond):
        row = int(beyond[0])
        raise place.error(row, name, f"{numbers[row]} is not from {least} to {most}; correct it")
    return numbers.astype(np.int64)
