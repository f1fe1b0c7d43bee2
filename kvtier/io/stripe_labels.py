"""What each file of a striped set begins with, so that none is mistaken for another, or lost.

A label is a block of 4096 bytes, little-endian: magic (8 bytes), format (u32), the file's number
(u32), how many there are (u32), 4 bytes of 0, bytes of a stripe (u64), a random id of the set (16
bytes), and BLAKE2b-128 of all that; then zeros.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from kvtier.errors import DeviceError, SettingsError
from kvtier.units import format_bytes

LABEL_BYTES: Final = 4096

_MAGIC: Final = b"KVTSTRIP"
_FORMAT: Final = 1
_FIELDS: Final = struct.Struct("<8sIIIxxxxQ16s")
_SUM_BYTES: Final = 16
_ADVICE: Final = "give all files of the set, in their order, or have them made anew (rebuild)"


class Label(NamedTuple):
    """What a label says."""

    number: int
    files: int
    stripe_bytes: int
    set_id: bytes


def new_labels(files: int, stripe_bytes: int) -> list[bytes]:
    """The labels of a new set."""
    set_id = secrets.token_bytes(16)
    return [encode_label(Label(number, files, stripe_bytes, set_id)) for number in range(files)]


def encode_label(label: Label) -> bytes:
    """The block in which a file says what it is."""
    fields = _FIELDS.pack(
        _MAGIC, _FORMAT, label.number, label.files, label.stripe_bytes, label.set_id
    )
    return (fields + _sum(fields)).ljust(LABEL_BYTES, b"\0")


def decode_label(block: bytes) -> Label | None:
    """The inverse of :func:`encode_label`; None of what it does not give."""
    fields, checksum = block[: _FIELDS.size], block[_FIELDS.size :][:_SUM_BYTES]
    if len(fields) < _FIELDS.size or checksum != _sum(fields):
        return None
    magic, version, *rest = _FIELDS.unpack(fields)
    return Label(*rest) if (magic, version) == (_MAGIC, _FORMAT) else None


def is_whole_set(paths: Sequence[Path], stripe_bytes: int, *, rebuild: bool) -> bool:
    """Whether the files are a set that may be used as it is; False: it is to be made.

    A set is made from its last file to its first: without the first, there is none.

    Args:
        paths: the files, in their order.
        stripe_bytes: as they are to be striped.
        rebuild: a set is made anew, whatever there is of one.

    Raises:
        SettingsError: a file is there and is of no set, or of another place or set.
        DeviceError: a file cannot be read.
    """
    labels = [_read_label(path) for path in paths]
    if rebuild or labels[0] is None:
        return False
    for number, (path, label) in enumerate(zip(paths, labels, strict=True)):
        if label is None:
            raise SettingsError(f"{path} is missing, and {paths[0]} is there: {_ADVICE}")
        if label.set_id != labels[0].set_id:
            raise SettingsError(f"{path} is not of the set of {paths[0]}: {_ADVICE}")
        if (label.number, label.files) != (number, len(paths)):
            raise SettingsError(
                f"{path} is file {label.number + 1} of {label.files}, and it would be "
                f"{number + 1} of {len(paths)} now: {_ADVICE}"
            )
        if label.stripe_bytes != stripe_bytes:
            raise SettingsError(
                f"{path} has stripes of {format_bytes(label.stripe_bytes)}, and they would be of "
                f"{format_bytes(stripe_bytes)} now: change that back, or have the set made anew "
                "(rebuild)"
            )
    return True


def _read_label(path: Path) -> Label | None:
    """None of a file that is not there, or is empty."""
    try:
        with path.open("rb") as file:
            block = file.read(LABEL_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeviceError(f"cannot open {path}: {error.strerror}; choose another path") from error
    label = decode_label(block)
    if block and label is None:
        raise SettingsError(
            f"{path} is there and is no file of a striped tier of kvtier: "
            "remove it, or name another file"
        )
    return label


def _sum(fields: bytes) -> bytes:
    return hashlib.blake2b(fields, digest_size=_SUM_BYTES).digest()
