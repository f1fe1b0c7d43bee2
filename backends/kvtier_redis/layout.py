"""How an object lies in Redis: one hash, with a field for its header and one for each page.

The hash of a key is ``NAMESPACE:{KEY}``. Its field ``h`` holds version, page count and page size;
a page has its number as field, four bytes in network order. One ``HMGET`` reads the header and
any pages as of one moment, so a read knows the version of what it got; a hash is evicted whole,
so no part of an object can go missing; a ``SCAN`` passes one key per object. All that belongs to
a key shares a hash tag, hence a slot of a Cluster, where ``MULTI`` and ``RENAME`` work.
"""

from __future__ import annotations

import json
import secrets
import struct
from collections.abc import Iterator
from itertools import count
from typing import Final

import numpy as np

from kvtier.pages import I64, U8

HEADER_FIELD: Final = b"h"
PAGES_MAX: Final = (1 << 32) - 2
"""Pages of an object; the last number is the field that none has, and a hash counts in u32."""

FIELD_BYTES: Final = 10
"""A page's field in a command: ``$4``, four bytes, two line ends."""

_HEADER: Final = struct.Struct("<QII")
_FORMAT: Final = {"format": "kvtier-redis", "version": 1}
_GLOB: Final = str.maketrans({char: f"\\{char}" for char in "*?[]^-\\"})


class Layout:
    """The names of one namespace.

    Attributes:
        page_bytes: of its pages.
        format_name: the key that says what the namespace holds.
        pattern: of ``SCAN``, for the objects.
    """

    def __init__(self, namespace: str, page_bytes: int) -> None:
        self.page_bytes = page_bytes
        self.format_name = f"{namespace}:format".encode()
        self.pattern = f"{namespace.translate(_GLOB)}:{{*}}".encode()
        self._prefix = f"{namespace}:{{".encode()

    def name_of(self, key: bytes) -> bytes:
        """The hash of ``key``; ``}`` is escaped, for it would end the tag."""
        return b"%b%b}" % (self._prefix, key.replace(b"%", b"%25").replace(b"}", b"%7D"))

    def key_of(self, name: bytes) -> bytes:
        """The key of a name that fits ``pattern``."""
        return name[len(self._prefix) : -1].replace(b"%7D", b"}").replace(b"%25", b"%")

    def draft_name(self, name: bytes, version: int) -> bytes:
        """Where a large object is written before it is published: of its slot, never listed."""
        return b"%b:%016x" % (name, version)

    def probe_names(self) -> Iterator[bytes]:
        """Names that no object has, in ever other slots."""
        nonce = secrets.token_hex(8)
        return (b"%bprobe-%d}:%b" % (self._prefix, slot, nonce.encode()) for slot in count())

    def format_text(self) -> bytes:
        """What the key ``format_name`` holds."""
        return json.dumps(_FORMAT | {"page_bytes": self.page_bytes}).encode()

    def page_bytes_in(self, text: bytes) -> int | None:
        """The page size that a format text tells; None where it is of something else."""
        try:
            found = json.loads(text)
            held = found["page_bytes"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        matches = found == _FORMAT | {"page_bytes": held} and isinstance(held, int)
        return held if matches else None

    def header(self, version: int, pages: int) -> bytes:
        """The header of an object."""
        return _HEADER.pack(version, pages, self.page_bytes)

    def read_header(self, header: object) -> tuple[int, int] | None:
        """Pages and version of an object; None where its header is none, or of other pages."""
        if not isinstance(header, bytes) or len(header) != _HEADER.size:
            return None
        version, pages, page_bytes = _HEADER.unpack(header)
        return (pages, version) if page_bytes == self.page_bytes else None


def new_version() -> int:
    """A version that no object ever had, nor will have: 64 random bits, and not 0."""
    return secrets.randbelow((1 << 64) - 1) + 1


def pack_fields(pages: I64) -> bytes:
    """Page numbers as arguments of a command, ``FIELD_BYTES`` each."""
    packed = np.empty((len(pages), FIELD_BYTES), np.uint8)
    packed[:] = np.frombuffer(b"$4\r\n\0\0\0\0\r\n", np.uint8)
    packed[:, 4:8] = _big_endian(pages)
    return packed.tobytes()


def pack_pages(first: int, pages: U8) -> bytes:
    """Pages from number ``first`` on, as arguments of ``HSET``: field and value of each."""
    head = b"$4\r\n\0\0\0\0\r\n$%d\r\n" % pages.shape[1]
    packed = np.empty((len(pages), len(head) + pages.shape[1] + 2), np.uint8)
    packed[:, : len(head)] = np.frombuffer(head, np.uint8)
    packed[:, 4:8] = _big_endian(np.arange(first, first + len(pages)))
    packed[:, len(head) : -2] = pages
    packed[:, -2:] = np.frombuffer(b"\r\n", np.uint8)
    return packed.tobytes()


def _big_endian(pages: I64) -> U8:
    """Page numbers as u8[n, 4]; a number beyond all objects stays beyond all objects."""
    return np.minimum(pages, PAGES_MAX + 1).astype(">u4").view(np.uint8).reshape(-1, 4)
