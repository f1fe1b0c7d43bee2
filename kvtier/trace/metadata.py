"""What a trace file says of itself: :class:`TraceMetadata` and its JSON form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast
from urllib.parse import quote_from_bytes, unquote_to_bytes

from kvtier.errors import SettingsError, TraceError
from kvtier.pages import OBJECT_PAGES_MAX, check_page_bytes

SCHEMA_VERSION: Final = 1
OBJECTS_MAX: Final = 1 << 16
"""Most objects of a page I/O trace: their table is held in memory and in the file's footer."""
OBJECT_KEY_BYTES_MAX: Final = 1024

TraceKind: TypeAlias = Literal["requests", "page_io"]
IdScope: TypeAlias = Literal["", "global", "session"]

_SHA256: Final = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TraceObject:
    """One object of a page I/O trace.

    Attributes:
        key: 1 to 1024 bytes, distinct within the trace.
        pages: its length.
    """

    key: bytes
    pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceMetadata:
    """What a trace says of itself. Raises :class:`TraceError` for values that cannot be.

    Attributes:
        kind: ``requests`` or ``page_io``.
        block_tokens: tokens of a block (``requests`` only).
        id_scope: how far the source let equal blocks be seen (``requests`` only): ``global``, or
            ``session`` where it numbered each session's blocks apart. Either way, equal ids in
            the file are the same block.
        page_bytes: bytes of a page (``page_io`` only).
        objects: the table that column ``object`` indexes (``page_io`` only).
        licence: of the recorded data.
        source: where it came from; a name or an address.
        source_sha256: of the file that was imported, in hexadecimal; empty where there was none.
        time_quantum_ns: the source's time stamps were multiples of this.
        synthetic: what is not recorded, one text per thing; empty if everything was.
        provenance: how the trace was made, free text.
    """

    kind: TraceKind
    block_tokens: int = 0
    id_scope: IdScope = ""
    page_bytes: int = 0
    objects: tuple[TraceObject, ...] = ()
    licence: str = "not stated"
    source: str = ""
    source_sha256: str = ""
    time_quantum_ns: int = 1
    synthetic: tuple[str, ...] = ()
    provenance: str = ""

    def __post_init__(self) -> None:
        if self.kind == "requests":
            _check_request_fields(self)
        elif self.kind == "page_io":
            _check_page_fields(self)
        else:
            raise _bad("kind", self.kind, "it must be 'requests' or 'page_io'")
        if self.time_quantum_ns < 1:
            raise _bad("time_quantum_ns", self.time_quantum_ns, "it must be at least 1")
        if self.source_sha256 and not _SHA256.fullmatch(self.source_sha256):
            raise _bad("source_sha256", self.source_sha256, "it must be 64 hexadecimal digits")


def _bad(field: str, value: object, rule: str) -> TraceError:
    return TraceError(f"trace metadata: {field} is {value!r}; {rule}")


def _check_request_fields(metadata: TraceMetadata) -> None:
    if metadata.block_tokens < 1:
        raise _bad("block_tokens", metadata.block_tokens, "it must be at least 1")
    if metadata.id_scope not in ("global", "session"):
        raise _bad("id_scope", metadata.id_scope, "it must be 'global' or 'session'")
    if metadata.page_bytes or metadata.objects:
        raise _bad("kind", metadata.kind, "page_bytes and objects belong to kind 'page_io'")


def _check_page_fields(metadata: TraceMetadata) -> None:
    if metadata.block_tokens or metadata.id_scope:
        raise _bad("kind", metadata.kind, "block_tokens and id_scope belong to kind 'requests'")
    try:
        check_page_bytes(metadata.page_bytes)
    except SettingsError as error:
        raise TraceError(f"trace metadata: {error}") from error
    if not 1 <= len(metadata.objects) <= OBJECTS_MAX:
        raise _bad("objects", f"{len(metadata.objects)} long", f"it may have 1 to {OBJECTS_MAX}")
    if len({item.key for item in metadata.objects}) != len(metadata.objects):
        raise _bad("objects", "not distinct", "give each object a key of its own")
    for item in metadata.objects:
        if not 1 <= len(item.key) <= OBJECT_KEY_BYTES_MAX:
            raise _bad("objects", item.key, f"a key has 1 to {OBJECT_KEY_BYTES_MAX} bytes")
        if not 1 <= item.pages <= OBJECT_PAGES_MAX:
            raise _bad("objects", item.pages, f"an object has 1 to {OBJECT_PAGES_MAX} pages")


def encode_metadata(metadata: TraceMetadata) -> bytes:
    """The JSON form, as it stands in the file. Object keys are percent-encoded (RFC 3986)."""
    fields = {
        "schema_version": SCHEMA_VERSION,
        "kind": metadata.kind,
        "block_tokens": metadata.block_tokens,
        "id_scope": metadata.id_scope,
        "page_bytes": metadata.page_bytes,
        "licence": metadata.licence,
        "source": metadata.source,
        "source_sha256": metadata.source_sha256,
        "time_quantum_ns": metadata.time_quantum_ns,
        "synthetic": list(metadata.synthetic),
        "objects": {
            "keys": [quote_from_bytes(item.key, safe="/") for item in metadata.objects],
            "pages": [item.pages for item in metadata.objects],
        },
        "provenance": metadata.provenance,
    }
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def decode_metadata(encoded: bytes) -> TraceMetadata:
    """The inverse of :func:`encode_metadata`; fields it does not know are left aside.

    Raises:
        TraceError: it is no JSON object, of another schema version, or a field is missing or wrong.
    """
    try:
        fields = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"trace metadata: no valid JSON ({error}); write the file again") from None
    if not isinstance(fields, dict):
        raise TraceError("trace metadata: no JSON object; write the file again")
    version = _field(fields, "schema_version", int)
    if version != SCHEMA_VERSION:
        rule = f"this kvtier reads version {SCHEMA_VERSION}: import the source again"
        raise _bad("schema_version", version, rule)
    return TraceMetadata(
        kind=cast("TraceKind", _field(fields, "kind", str)),
        block_tokens=_field(fields, "block_tokens", int),
        id_scope=cast("IdScope", _field(fields, "id_scope", str)),
        page_bytes=_field(fields, "page_bytes", int),
        objects=_decode_objects(_field(fields, "objects", dict)),
        licence=_field(fields, "licence", str),
        source=_field(fields, "source", str),
        source_sha256=_field(fields, "source_sha256", str),
        time_quantum_ns=_field(fields, "time_quantum_ns", int),
        synthetic=tuple(_items(fields, "synthetic", str)),
        provenance=_field(fields, "provenance", str),
    )


def _field(fields: Mapping[str, Any], name: str, kind: type[T]) -> T:
    if name not in fields:
        raise TraceError(f"trace metadata: {name} is missing; write the file again")
    value = fields[name]
    if type(value) is not kind:
        raise _bad(name, value, f"it must be of JSON type {kind.__name__}")
    return value


def _items(fields: Mapping[str, Any], name: str, kind: type[T]) -> list[T]:
    items: list[Any] = _field(fields, name, list)
    for item in items:
        if type(item) is not kind:
            raise _bad(name, item, f"its items must be of JSON type {kind.__name__}")
    return items


def _decode_objects(table: Mapping[str, Any]) -> tuple[TraceObject, ...]:
    keys, pages = _items(table, "keys", str), _items(table, "pages", int)
    if len(keys) != len(pages):
        raise _bad("objects", f"{len(keys)} keys and {len(pages)} pages", "they belong together")
    return tuple(
        TraceObject(unquote_to_bytes(key), count) for key, count in zip(keys, pages, strict=True)
    )
