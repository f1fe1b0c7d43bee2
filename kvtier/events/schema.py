"""The columns of an event log: one row for each thing that a chain was told, in order.

A log is a Parquet file. Its Arrow schema carries one metadata key, ``kvtier.events``: the JSON form
of a :class:`kvtier.events.header.LogHeader`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from kvtier.errors import TraceError
from kvtier.trace.arrow import load_pyarrow

METADATA_KEY: Final = b"kvtier.events"


class EventKind(enum.IntEnum):
    """What happened; ``name`` says to whom."""

    BEGIN = 0
    """A request came (``name``), ``ns`` after the run began by its recorded arrival."""
    COMPUTE = 1
    """A request (``name``) that was answered computes for ``ns``."""
    READ = 2
    """A batch of pages was asked for; its epoch is ``name``, and requests own parts of it."""
    PUT = 3
    """A request (``name``) began to store objects of ``counts`` pages at the origin."""
    WRITE = 4
    """Pages of ``count`` new objects began to fill the tiers, in epoch ``name``."""
    FETCHED = 5
    """The device read of a flight (``name``) ended."""
    FILLED = 6
    """The pages of a flight (``name``) were written to the device of ``level``."""
    STORED = 7
    """The pages of a write (epoch ``name``) were written to the device of ``level``."""
    INVALIDATE = 8
    """Pages were forgotten."""
    LEAVE = 9
    """The caller of a read (epoch ``name``) went away before its answer."""
    EXPIRE = 10
    """The deadline of a read (epoch ``name``) passed."""
    RELEASE = 11
    """The hold of a read (epoch ``name``) ended."""
    TURN_AWAY = 12
    """A batch of ``count`` pages found no room before its deadline."""
    END = 13
    """A request (``name``) had its last answer."""
    LAST = 14
    """The run ended; always the last row, with a ``summary``."""
    MOVED = 15
    """Pages were moved (``name``) on the device of ``level``."""


class Flag(enum.IntFlag):
    """What else there is to say of a READ, and the last of them of a WRITE."""

    WANTS_BYTES = 1
    HELD = 2
    GOES_ON = 4
    """The last owner waits for pages of the next READ as well."""
    ORIGIN_SHUT = 8
    """The origin was not to be asked."""
    WRITES_SHUT = 16
    """A write limit was reached."""


NUMBERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "event": "uint8",
        "name": "uint64",
        "ns": "int64",
        "level": "uint8",
        "purpose": "uint8",
        "flags": "uint8",
        "count": "uint32",
    }
)
"""Columns with one number per event, and their types."""

LISTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "run_start": "uint64",
        "run_len": "uint32",
        "counts": "uint32",
        "status": "uint8",
        "owners": "uint32",
        "owner_pages": "uint32",
    }
)
"""Columns with a list per event, and the types of their items.

``run_start`` and ``run_len`` are PageIds as runs. ``counts`` of FETCHED are the pages of each
extent that exist, ``status`` the ``PageStatus`` of each page; of FILLED, STORED and MOVED it is 0
for each page that was written. They are empty where nothing failed and all was there. ``owners``
are the requests for which a READ or WRITE is, ``owner_pages`` the pages of each, in the order of a
READ.
"""

SUMMARY: Final = "summary"
"""A text, empty in every row but the last: JSON with ``complete`` and the chain's ``counters``."""

COLUMNS: Final = (*NUMBERS, *LISTS, SUMMARY)


def arrow_schema(header: bytes) -> Any:
    """The ``pyarrow.Schema`` of a log with this header."""
    pa = load_pyarrow()
    fields = [pa.field(name, getattr(pa, kind)(), nullable=False) for name, kind in NUMBERS.items()]
    for name, kind in LISTS.items():
        item = pa.field("element", getattr(pa, kind)(), nullable=False)
        fields.append(pa.field(name, pa.list_(item), nullable=False))
    fields.append(pa.field(SUMMARY, pa.string(), nullable=False))
    return pa.schema(fields, metadata={METADATA_KEY: header})


def check_columns(schema: Any) -> None:
    """Raise :class:`TraceError` unless a ``pyarrow.Schema`` has the columns of a log."""
    wanted = arrow_schema(b"")
    for field in wanted:
        if schema.names.count(field.name) != 1:
            raise TraceError(f"column {field.name} is missing, or there twice")
        found = schema.field(field.name).type
        if found != field.type:
            raise TraceError(f"column {field.name} has type {found}, not {field.type}")
