"""How an object lies in Mooncake Store, whose values cannot be changed half.

An object is *chunks*, values of a name that is used once, and a *head*: a small record that names
them. Chunks are written first, then the head is put in place of the one before, so that an object
appears at once. A version is part of the names of its chunks: pages of two never mix.

Names are ``NAMESPACE/PAGE_BYTES/KEY`` of heads, and ``HEAD@VERSION.NUMBER`` of chunks, with every
byte of a key that is no letter, digit or one of ``_.-~`` written as ``%XX``.

Mooncake may write a head while it is read, and reuse the memory of one that was removed. So a head
ends with a checksum over itself and its name: what does not match is no head.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import quote_from_bytes

_MAGIC: Final = b"kvtier-1"
_FIELDS: Final = struct.Struct("<8sQII")
_CHECKSUM_BYTES: Final = 16
HEAD_BYTES: Final = _FIELDS.size + _CHECKSUM_BYTES


class Head(NamedTuple):
    """What is known of an object.

    Attributes:
        version: never given twice, over 0.
        pages: of the object.
        chunk_pages: pages of each of its chunks; the last may have fewer.
    """

    version: int
    pages: int
    chunk_pages: int

    def chunk_count(self) -> int:
        return -(-self.pages // self.chunk_pages)


NamedHead: TypeAlias = tuple[str, Head]
"""A head and its name."""


class Names:
    """The names of one store's objects.

    Attributes:
        prefix: that they all have.

    Args:
        namespace: tells stores apart that share a Mooncake.
        page_bytes: bytes of a page; objects of another page size have other names.
    """

    def __init__(self, namespace: str, page_bytes: int) -> None:
        self.prefix = f"{quote_from_bytes(namespace.encode(), safe='')}/{page_bytes}/"

    def head(self, key: bytes) -> str:
        return self.prefix + quote_from_bytes(key, safe="")


def chunk_name(head_name: str, version: int, number: int) -> str:
    return f"{head_name}@{version:016x}.{number}"


def chunk_names(head_name: str, head: Head) -> list[str]:
    """The names of all chunks of an object."""
    return [chunk_name(head_name, head.version, number) for number in range(head.chunk_count())]


def new_version() -> int:
    """One that no object ever had: random, for its writers do not know each other."""
    return secrets.randbits(64) or 1


def pack_head(name: str, head: Head) -> bytes:
    fields = _FIELDS.pack(_MAGIC, head.version, head.pages, head.chunk_pages)
    return fields + _checksum(name, fields)


def unpack_head(name: str, record: bytes) -> Head | None:
    """None where the bytes are no head of that name."""
    fields = record[: _FIELDS.size]
    if record[_FIELDS.size :] != _checksum(name, fields):
        return None
    magic, version, pages, chunk_pages = _FIELDS.unpack(fields)
    if magic != _MAGIC or version == 0 or pages == 0 or chunk_pages == 0:
        return None
    return Head(version, pages, chunk_pages)


def _checksum(name: str, fields: bytes) -> bytes:
    return hashlib.blake2b(name.encode() + fields, digest_size=_CHECKSUM_BYTES).digest()
