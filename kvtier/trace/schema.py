"""The columns of the two kinds of trace files, and the bounds of what a file may hold.

A trace is a Parquet file. Its Arrow schema carries one metadata key, ``kvtier``: the JSON form of a
:class:`kvtier.trace.metadata.TraceMetadata`. ``docs/traces.md`` describes the format for people who
write their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from kvtier.errors import TraceError
from kvtier.trace.arrow import load_pyarrow
from kvtier.trace.metadata import TraceKind, TraceMetadata, encode_metadata

METADATA_KEY: Final = b"kvtier"

BLOCKS_PER_REQUEST_MAX: Final = 1 << 20
EXTENT_PAGES_MAX: Final = 1 << 20
"""Most pages of one row of a page I/O trace."""
ROWS_PER_REQUEST_MAX: Final = 1 << 20
"""Most rows of one request of a page I/O trace."""

TEXT: Final = "text"
COLUMNS: Final[Mapping[TraceKind, Mapping[str, str]]] = MappingProxyType(
    {
        "requests": MappingProxyType(
            {
                "t_ns": "int64",
                "session": "uint32",
                "parent": "int64",
                "turn": "uint32",
                "model": TEXT,
                "in_tokens": "uint32",
                "out_tokens": "uint32",
                "run_start": "list<uint64>",
                "run_len": "list<uint32>",
            }
        ),
        "page_io": MappingProxyType(
            {
                "t_ns": "int64",
                "request": "uint32",
                "batch": "uint32",
                "op": "uint8",
                "object": "uint32",
                "page": "uint32",
                "pages": "uint32",
                "purpose": "uint8",
            }
        ),
    }
)
"""Columns of each kind, with their Arrow types; ``text`` is a string, dictionary-coded or not."""
OPTIONAL_COLUMNS: Final = frozenset({"purpose"})
"""Columns that are always written, and need not be there to be read."""


def arrow_schema(metadata: TraceMetadata) -> Any:
    """The ``pyarrow.Schema`` of a trace, its metadata included."""
    pa = load_pyarrow()
    types = {
        "text": pa.dictionary(pa.int32(), pa.string()),
        "list<uint64>": pa.list_(pa.field("element", pa.uint64(), nullable=False)),
        "list<uint32>": pa.list_(pa.field("element", pa.uint32(), nullable=False)),
    }
    fields = [
        pa.field(name, types[spec] if spec in types else getattr(pa, spec)(), nullable=False)
        for name, spec in COLUMNS[metadata.kind].items()
    ]
    return pa.schema(fields, metadata={METADATA_KEY: encode_metadata(metadata)})


def check_columns(schema: Any, kind: TraceKind) -> None:
    """Raise :class:`TraceError` unless a ``pyarrow.Schema`` has the columns of ``kind``."""
    for name, spec in COLUMNS[kind].items():
        if name in OPTIONAL_COLUMNS and name not in schema.names:
            continue
        if schema.names.count(name) != 1:
            what = "is missing" if name not in schema.names else "is there twice"
            raise TraceError(f"column {name} {what}; kind {kind!r} has {', '.join(COLUMNS[kind])}")
        found = _spec_of(schema.field(name).type)
        if found != spec:
            raise TraceError(f"column {name} has type {found}, not {spec}; write it as {spec}")


def _spec_of(arrow_type: Any) -> str:
    """The type as :data:`COLUMNS` names it: 64-bit offsets and dictionaries make no difference."""
    types = load_pyarrow().types
    if types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    if types.is_string(arrow_type) or types.is_large_string(arrow_type):
        return TEXT
    if types.is_list(arrow_type) or types.is_large_list(arrow_type):
        return f"list<{arrow_type.value_type}>"
    return str(arrow_type)
