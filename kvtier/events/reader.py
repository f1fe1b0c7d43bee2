"""Reads an event log, streamed; what cannot be is refused where it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvtier.errors import TraceError
from kvtier.events.header import LogHeader, decode_header
from kvtier.events.schema import (
    COLUMNS,
    LISTS,
    METADATA_KEY,
    NUMBERS,
    SUMMARY,
    EventKind,
    Flag,
    check_columns,
)
from kvtier.pages import I64, U8, U32, U64, Bool, PageStatus, Purpose, expand_runs
from kvtier.trace.parquet import open_parquet, stream_batches

_BATCH_EVENTS: Final = 1 << 10
_OF_NO_DEVICE: Final = ~np.isin(
    np.arange(256), (PageStatus.OK, PageStatus.ABSENT, PageStatus.FAILED)
)
_ADVICE: Final = "make one with 'kvtier replay … --events F'"


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """One row of a log; what its kind does not use is 0 or empty.

    Attributes:
        path, number: its file, and its place there, from 0.
        kind, name, ns, level, count: see :mod:`kvtier.events.schema`.
        purpose, flags: of a READ; flags of a WRITE too.
        run_start, run_len: u64[k] and u32[k], PageIds as runs.
        counts: u32[m].
        status: u8[n].
        owners, owner_pages: u32[o] each.
        summary: of the LAST.
    """

    path: Path
    number: int
    kind: EventKind
    name: int
    ns: int
    level: int
    purpose: Purpose
    flags: Flag
    count: int
    run_start: U64
    run_len: U32
    counts: U32
    status: U8
    owners: U32
    owner_pages: U32
    summary: str

    @property
    def pages(self) -> int:
        """How many PageIds it names."""
        return int(self.run_len.sum(dtype=np.int64))

    def page_ids(self) -> U64:
        """The PageIds that it names (u64[n])."""
        return expand_runs(self.run_start, self.run_len)

    def error(self, what: str) -> TraceError:
        """The refusal of it."""
        return TraceError(
            f"{self.path}: event {self.number} ({self.kind.name.lower()}): {what}; "
            "log the run again"
        )


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """An event log that was opened.

    Attributes:
        path: its file.
        header: what it says of its run.
    """

    path: Path
    header: LogHeader

    def events(self) -> Iterator[Event]:
        """Every event, in order; the last one is the only LAST.

        Raises:
            TraceError: the file is damaged, an event cannot be, or the end is missing.
        """
        kind = None
        for batch, place in stream_batches(self.path, list(COLUMNS), _BATCH_EVENTS):
            for event in _decode(batch, self.path, place.first_row):
                if kind is EventKind.LAST:
                    raise event.error("comes after the last one")
                kind = event.kind
                yield event
        if kind is not EventKind.LAST:
            raise TraceError(f"{self.path}: ends before its last event; log the run again")


def read_event_log(path: Path) -> LoggedRun:
    """Open a log and check its columns; events are checked when they are read.

    Raises:
        TraceError: the file is missing, truncated, no event log, or of another version.
    """
    with open_parquet(path, _ADVICE) as file:
        schema = file.schema_arrow
        encoded = (schema.metadata or {}).get(METADATA_KEY)
        if encoded is None:
            raise TraceError(f"{path}: a Parquet file, but no event log; {_ADVICE}")
        try:
            header = decode_header(encoded)
            check_columns(schema)
        except TraceError as error:
            raise TraceError(f"{path}: {error}") from error
    return LoggedRun(path, header)


def read_summary(event: Event) -> tuple[bool, Mapping[str, Any]]:
    """Of the LAST event: whether the run was complete, and what its chain had counted.

    Raises:
        TraceError: it does not say.
    """
    try:
        found = json.loads(event.summary)
        complete, counters = found["complete"], found["counters"]
    except (ValueError, TypeError, LookupError) as error:
        raise event.error("its summary cannot be read") from error
    if not isinstance(complete, bool) or not isinstance(counters, dict):
        raise event.error("its summary cannot be read")
    return complete, counters


def _decode(batch: Any, path: Path, first: int) -> Iterator[Event]:
    """The events of a ``pyarrow.RecordBatch``, of which ``first`` is the number of the first."""
    numbers = {name: _numbers(batch.column(name), name, path, first) for name in NUMBERS}
    lists = {name: _lists(batch.column(name), name, path, first) for name in LISTS}
    summaries = batch.column(SUMMARY).to_pylist()
    _check(numbers, lists, path, first)
    columns = [numbers[name].tolist() for name in NUMBERS]
    for row, (event, name, ns, level, purpose, flags, count) in enumerate(
        zip(*columns, strict=True)
    ):
        items = {
            column: values[offsets[row] : offsets[row + 1]]
            for column, (offsets, values) in lists.items()
        }
        yield Event(
            path=path,
            number=first + row,
            kind=EventKind(event),
            name=name,
            ns=ns,
            level=level,
            purpose=Purpose(purpose),
            flags=Flag(flags),
            count=count,
            summary=summaries[row] or "",
            **items,
        )


def _numbers(column: Any, name: str, path: Path, first: int) -> NDArray[Any]:
    if column.null_count:
        raise TraceError(f"{path}: column {name} has a null after event {first}")
    numbers: NDArray[Any] = column.to_numpy()
    return numbers


def _lists(column: Any, name: str, path: Path, first: int) -> tuple[I64, NDArray[Any]]:
    """Offsets i64[n + 1] into the items of a list column, and these items."""
    items = column.flatten()
    if column.null_count or items.null_count:
        raise TraceError(f"{path}: column {name} has a null after event {first}")
    lengths = column.value_lengths().to_numpy().astype(np.int64)
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths))), items.to_numpy()


def _check(
    numbers: Mapping[str, NDArray[Any]],
    lists: Mapping[str, tuple[I64, NDArray[Any]]],
    path: Path,
    first: int,
) -> None:
    """Refuse numbers that mean nothing, and lists that do not go together."""
    reads = numbers["event"] == EventKind.READ
    lengths = {name: np.diff(offsets) for name, (offsets, _) in lists.items()}
    pages = _sums(*lists["run_len"])
    owned = _sums(*lists["owner_pages"])
    has_owners = reads & (lengths["owners"] > 0)
    laws = {
        "is of a kind that is not known": numbers["event"] <= max(EventKind),
        "has a purpose that is not known": numbers["purpose"] <= max(Purpose),
        "has flags that are not known": numbers["flags"] < 2 * max(Flag),
        "has a time before the run": numbers["ns"] >= 0,
        "has a run without a length": lengths["run_start"] == lengths["run_len"],
        "has an empty run": _least(*lists["run_len"]) >= 1,
        "has an owner without pages": _least(*lists["owner_pages"]) >= 1,
        "has a status that no device gives": ~_holds(*lists["status"], _OF_NO_DEVICE),
        "does not say which owner its pages are for": ~has_owners
        | ((lengths["owners"] == lengths["owner_pages"]) & (pages == owned)),
        "goes on for nobody": has_owners | (numbers["flags"] & Flag.GOES_ON == 0),
    }
    for what, holds in laws.items():
        if not holds.all():
            number = first + int(np.argmin(holds))
            raise TraceError(f"{path}: event {number}: {what}; log the run again")


def _holds(offsets: I64, items: NDArray[Any], which: Bool) -> Bool:
    """Which lists of bytes hold one of those that ``which`` (bool[256]) marks."""
    return _sums(offsets, which[items]) > 0


def _sums(offsets: I64, items: NDArray[Any]) -> I64:
    sums = np.concatenate((np.zeros(1, np.int64), np.cumsum(items, dtype=np.int64)))
    return np.diff(sums[offsets])


def _least(offsets: I64, items: NDArray[Any]) -> I64:
    """The least item of each list; 1 where a list is empty."""
    found = np.ones(len(offsets) - 1, np.int64)
    filled = np.flatnonzero(np.diff(offsets))
    if len(filled):
        found[filled] = np.minimum.reduceat(items, offsets[filled])
    return found
