"""Keys as names of S3 objects: any bytes in, a plain ASCII name out, and back.

A key is written with letters, digits, ``_`` and ``-`` as they are and every other byte as ``=XX``
(as in quoted-printable, RFC 2045), so that a bucket can be read by a person, and no name holds
what S3, a gateway or a URL treats apart. Where that grows beyond one segment, the key is written
as ``==`` and its base64, in segments: stores that keep objects as files have a bound of 255 bytes
for each. All segments but the last end with ``=``, which no name does, so that none is both an
object and a folder.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

NAME_BYTES_MAX: Final = 1024
"""Longest name of an S3 object, its prefix included (Amazon S3 User Guide, object key names)."""

_SEGMENT_BYTES: Final = 240
_LONG_MARK: Final = "=="
_SEGMENT_END: Final = "=/"
_BYTE: Final = [
    chr(byte) if chr(byte).isascii() and (chr(byte).isalnum() or byte in b"_-") else f"={byte:02X}"
    for byte in range(256)
]
_ESCAPED: Final = re.compile(rb"=([0-9A-F]{2})")


def name_of(key: bytes) -> str:
    """The name of the object of ``key``."""
    name = "".join([_BYTE[byte] for byte in key])
    if len(name) <= _SEGMENT_BYTES:
        return name
    long = _LONG_MARK + base64.urlsafe_b64encode(key).decode().rstrip("=")
    return _SEGMENT_END.join(
        long[start : start + _SEGMENT_BYTES] for start in range(0, len(long), _SEGMENT_BYTES)
    )


def key_of(name: str) -> bytes | None:
    """The key whose object has that name; None where no key's has."""
    if not name.isascii():
        return None
    if name.startswith(_LONG_MARK):
        text = name[len(_LONG_MARK) :].replace(_SEGMENT_END, "")
        try:
            key = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except binascii.Error:
            return None
    else:
        key = _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), name.encode())
    return key if key and name_of(key) == name else None


def key_bytes_max(folder: str) -> int:
    """Longest key of any bytes whose name fits below ``folder``."""
    room = NAME_BYTES_MAX - len(folder) - len(_LONG_MARK)
    # Every full segment but the last costs its end as well.
    full, rest = divmod(room, _SEGMENT_BYTES + len(_SEGMENT_END))
    return (full * _SEGMENT_BYTES + min(rest, _SEGMENT_BYTES)) * 3 // 4
