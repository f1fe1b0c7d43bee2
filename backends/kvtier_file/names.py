"""Keys as file names: any bytes in, a name that is never a path out, and back.

A key is written with letters, digits, ``_`` and ``-`` as they are and every other byte as ``%XX``,
so that a directory can be read by a person. Where that grows too long for a file name, the key is
written as ``=`` and its base64, which bounds the longest key.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

_NAME_BYTES_MAX: Final = 255
KEY_BYTES_MAX: Final = (_NAME_BYTES_MAX - 1) // 4 * 3
_BASE64_MARK: Final = "="
_FOLDER: Final = re.compile(r"[0-9a-f]{3}")


def path_of(key: bytes) -> str:
    """Where the object of ``key`` lies below the folder of objects: ``folder/name``."""
    return f"{zlib.crc32(key) & 0xFFF:03x}/{_name_of(key)}"


def key_of(folder: str, name: str) -> bytes | None:
    """The key whose object is ``folder/name``; None where no key's is."""
    try:
        if name.startswith(_BASE64_MARK):
            key = base64.b64decode(name[1:], altchars=b"-_", validate=True)
        else:
            key = unquote_to_bytes(name)
    except binascii.Error:
        return None
    return key if 0 < len(key) <= KEY_BYTES_MAX and path_of(key) == f"{folder}/{name}" else None


def is_folder(name: str) -> bool:
    """Whether objects lie in a folder of that name."""
    return _FOLDER.fullmatch(name) is not None


def _name_of(key: bytes) -> str:
    # quote leaves "." and "~" alone; a name of dots would be a path, and "~" is home to a shell.
    name = quote_from_bytes(key, safe="").replace(".", "%2E").replace("~", "%7E")
    if len(name) <= _NAME_BYTES_MAX:
        return name
    return _BASE64_MARK + base64.urlsafe_b64encode(key).decode()
