"""Writes an event log: streamed, and whole or not at all."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvtier.chain import Counters
from kvtier.errors import TraceError
from kvtier.events.header import LogHeader, encode_header
from kvtier.events.owners import present_owners
from kvtier.events.schema import LISTS, NUMBERS, SUMMARY, EventKind, Flag, arrow_schema
from kvtier.pages import I64, U8, U32, U64, Purpose
from kvtier.trace.arrow import load_parquet, load_pyarrow
from kvtier.trace.parquet import as_trace_error, first_line

# What is held in memory and makes one row group: writing it must not hold up the run for long.
_GROUP_EVENTS: Final = 1 << 12
_GROUP_ITEMS: Final = 1 << 16

_RUNS: Final = ("run_start", "run_len")
_NO_PAGES: Final = np.empty(0, np.uint64)

I32 = NDArray[np.int32]
_Items = NDArray[Any] | Sequence[int]


class EventLog:
    """Takes the events of a run, in the order in which they are told.

    Nothing that is told raises: a run under way is not broken by a full disk, and hears of it from
    :meth:`check`.

    Args:
        path: for messages.
        writer: a ``pyarrow.parquet.ParquetWriter``.
        schema: of its rows.
    """

    def __init__(self, path: Path, writer: Any, schema: Any) -> None:
        self._path = path
        self._writer = writer
        self._schema = schema
        self._numbers: list[tuple[int, ...]] = []
        self._page_ids: list[U64] = []
        self._lists: dict[str, list[_Items]] = {name: [] for name in LISTS if name not in _RUNS}
        self._items = 0
        self._is_over = False
        self._failure: Exception | None = None

    # -- requests -----------------------------------------------------------------------------

    def begin(self, request: int, arrival_ns: int) -> None:
        """A request came, by its recorded arrival so long after the run began."""
        self._add(EventKind.BEGIN, request, ns=arrival_ns)

    def compute(self, request: int, compute_ns: int) -> None:
        """A request that was answered computes."""
        if compute_ns:
            self._add(EventKind.COMPUTE, request, ns=compute_ns)

    def put(self, page_counts: I64) -> None:
        """The present owner stores objects of so many pages (i64[k]) at the origin."""
        self._add(EventKind.PUT, present_owners().requests[0], counts=page_counts)

    def end(self, request: int) -> None:
        """A request had its last answer."""
        self._add(EventKind.END, request)

    # -- what the chain is told ---------------------------------------------------------------

    def read(
        self,
        epoch: int,
        page_ids: U64,
        purpose: Purpose,
        flags: Flag,
        owners: Sequence[int],
        owner_pages: Sequence[int],
    ) -> None:
        """A batch of pages (u64[n]) is asked for."""
        self._add(
            EventKind.READ,
            epoch,
            purpose=purpose,
            flags=flags,
            page_ids=page_ids,
            owners=owners,
            owner_pages=owner_pages,
        )

    def write(
        self, epoch: int, page_ids: U64, objects: int, flags: Flag, owners: Sequence[int]
    ) -> None:
        """Pages (u64[n]) of new objects begin to fill the tiers."""
        self._add(
            EventKind.WRITE,
            epoch,
            flags=flags,
            count=objects,
            page_ids=page_ids,
            owners=owners,
        )

    def fetched(self, flight: int, status: U8 | None, counts: I64 | None) -> None:
        """A device read ended.

        Args:
            flight: its number.
            status: u8[n], a ``PageStatus`` per page; None: all are OK.
            counts: i64[e], pages of each extent that exist; None: all.
        """
        self._add(
            EventKind.FETCHED,
            flight,
            status=() if status is None else status,
            counts=() if counts is None else counts,
        )

    def filled(self, kind: EventKind, name: int, level: int, status: U8 | None) -> None:
        """Pages were written (FILLED, STORED, MOVED); ``status`` (u8[n]) of those is 0."""
        self._add(kind, name, level=level, status=() if status is None else status)

    def invalidate(self, page_ids: U64) -> None:
        """Pages (u64[n]) are forgotten."""
        self._add(EventKind.INVALIDATE, 0, page_ids=page_ids)

    def batch(self, kind: EventKind, epoch: int) -> None:
        """Something became of a read: LEAVE, EXPIRE or RELEASE."""
        self._add(kind, epoch)

    def turn_away(self, pages: int, purpose: Purpose) -> None:
        """A batch found no room before its deadline."""
        self._add(EventKind.TURN_AWAY, 0, count=pages, purpose=purpose)

    # -- the end ------------------------------------------------------------------------------

    def last(self, counters: Counters, *, complete: bool) -> None:
        """The run ended; what is told after that is no part of it."""
        if not self._is_over:
            self._add(EventKind.LAST, 0)
            self._flush(json.dumps({"complete": complete, "counters": asdict(counters)}))
            self._is_over = True

    def check(self) -> None:
        """Raise :class:`TraceError` if the log cannot be written."""
        if self._failure is not None:
            what = f"cannot be written ({first_line(self._failure)})"
            raise TraceError(
                f"{self._path}: {what}; check the folder and its free space"
            ) from self._failure

    def close(self) -> None:
        """Write what is left, and the end of the file; a second call does nothing.

        Raises:
            TraceError: it cannot be written, or the run never ended.
        """
        assert self._is_over or self._failure is not None, "the run has not ended"
        self._guarded(self._writer.close)
        self.check()

    # -- inside -------------------------------------------------------------------------------

    def _add(
        self,
        kind: EventKind,
        name: int,
        *,
        ns: int = 0,
        level: int = 0,
        purpose: int = 0,
        flags: int = 0,
        count: int = 0,
        page_ids: U64 = _NO_PAGES,
        **lists: _Items,
    ) -> None:
        if self._is_over or self._failure is not None:
            return
        self._numbers.append((kind, name, ns, level, purpose, flags, count))
        self._page_ids.append(page_ids.copy())
        self._items += len(page_ids)
        for column, rows in self._lists.items():
            items = lists.get(column, ())
            rows.append(items)
            self._items += len(items)
        if len(self._numbers) >= _GROUP_EVENTS or self._items >= _GROUP_ITEMS:
            self._flush("")

    def _flush(self, summary: str) -> None:
        """Write a row group; the summary is of its last row."""
        rows = len(self._numbers)
        pa = load_pyarrow()
        columns = [
            pa.array(np.array(column, np.dtype(kind)))
            for column, kind in zip(zip(*self._numbers, strict=True), NUMBERS.values(), strict=True)
        ]
        lists = dict(zip(_RUNS, _runs_of(self._page_ids), strict=True))
        lists |= {name: _joined(items, LISTS[name]) for name, items in self._lists.items()}
        for name in LISTS:
            offsets, items = (pa.array(array) for array in lists[name])
            array = pa.ListArray.from_arrays(offsets, items)
            columns.append(array.cast(self._schema.field(name).type))
        columns.append(pa.array([""] * (rows - 1) + [summary], pa.string()))
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        self._numbers.clear()
        self._page_ids.clear()
        for rows_of_column in self._lists.values():
            rows_of_column.clear()
        self._items = 0
        self._guarded(lambda: self._writer.write_batch(batch))

    def _guarded(self, write: Any) -> None:
        try:
            write()
        except (load_pyarrow().ArrowException, OSError) as error:
            self._failure = self._failure or error


@contextmanager
def open_event_log(path: Path, header: LogHeader) -> Iterator[EventLog]:
    """A log whose file gets its name when the block ends, and is removed if that fails.

    :meth:`EventLog.last` must have been called by then.

    Raises:
        TraceError: it cannot be written.
    """
    if path.exists() and not path.is_file():
        raise TraceError(f"{path}: a log needs a file of its own; name one")
    path = path.resolve()
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    schema = arrow_schema(encode_header(header))
    try:
        with as_trace_error(path):
            writer = _open_writer(draft, schema)
        try:
            log = EventLog(path, writer, schema)
            yield log
            log.close()
        finally:
            # Closed already where all went well; a second fault would hide the first.
            with suppress(load_pyarrow().ArrowException, OSError):
                writer.close()
        with as_trace_error(path):
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _runs_of(parts: Sequence[U64]) -> tuple[tuple[I32, U64], tuple[I32, U32]]:
    """PageIds of events as runs of neighbours.

    Args:
        parts: u64[n] of each event, in any order.

    Returns:
        The first id of each run, and the length of each; with both, where those of each event
        begin and end: i32[events + 1].
    """
    ends, page_ids = _joined(parts, "uint64")
    breaks = np.ones(len(page_ids) + 1, np.bool_)
    breaks[1:-1] = page_ids[1:] != page_ids[:-1] + np.uint64(1)
    breaks[ends] = True
    starts = np.flatnonzero(breaks)
    offsets = np.searchsorted(starts, ends).astype(np.int32)
    lengths = np.diff(starts).astype(np.uint32)
    return (offsets, page_ids[starts[:-1]]), (offsets, lengths)


def _joined(rows: Sequence[_Items], kind: str) -> tuple[I32, NDArray[Any]]:
    """Lists of events one after the other, and where each begins and ends: i32[events + 1]."""
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(items) for items in rows], out=offsets[1:])
    dtype = np.dtype(kind)
    parts = [np.asarray(items, dtype) for items in rows if len(items)]
    return offsets, np.concatenate(parts) if parts else np.empty(0, dtype)


def _open_writer(path: Path, schema: Any) -> Any:
    packed = ["name", "ns", "count", *(f"{name}.list.element" for name in LISTS)]
    packed.remove("status.list.element")
    return load_parquet().ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=["level", "purpose", "flags", SUMMARY],
        column_encoding=dict.fromkeys(packed, "DELTA_BINARY_PACKED"),
        write_page_checksum=True,
    )
