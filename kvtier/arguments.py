"""What callers of a cache hand over, checked before anything is done with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kvtier.errors import LimitError
from kvtier.pages import I64


def checked_keys(keys: Iterable[object]) -> tuple[bytes, ...]:
    """The keys of objects; text and the like would name others than their bytes do.

    Raises:
        LimitError: they are a single key, or one of them is not ``bytes``.
    """
    if isinstance(keys, bytes | str):
        raise LimitError(f"keys is the single key {keys!r:.50}: give a list of keys")
    checked: tuple[Any, ...] = tuple(keys)
    if not set(map(type, checked)) <= {bytes}:
        for key in checked:
            if not isinstance(key, bytes):
                raise LimitError(
                    f"the key {key!r:.50} is a {type(key).__name__}: "
                    "keys are bytes, such as b'kv/block-17'"
                )
    return checked


def checked_counts(page_counts: Sequence[int] | I64) -> I64:
    """Page counts of objects, as i64[k].

    Raises:
        LimitError: they are no whole numbers, or not one for each object.
    """
    counts = np.asarray(page_counts)
    if counts.ndim != 1 or (counts.dtype.kind not in "iu" and len(counts)):
        raise LimitError(
            f"page_counts is {counts.dtype}{list(counts.shape)}: "
            "give a whole number of pages for each key"
        )
    return counts.astype(np.int64, copy=False)


def check_rows(what: str, rows: Any, expected: tuple[int, int], *, written: bool) -> None:
    """Refuse what is no C-contiguous u8[n, page_bytes], wherever it lies.

    Args:
        what: the call and the argument, for the message.
        rows: what was given.
        expected: its shape.
        written: it shall be written to.

    Raises:
        LimitError: it is no array, has another type, shape or layout, or is read-only.
    """
    if not hasattr(rows, "flags"):
        raise LimitError(f"{what} is a {type(rows).__name__}: give a NumPy uint8{list(expected)}")
    flaws = []
    if not rows.flags.c_contiguous:
        flaws.append("not contiguous")
    if written and not getattr(rows.flags, "writeable", True):  # CuPy's flags have no such thing
        flaws.append("read-only")
    if flaws or rows.dtype != np.uint8 or rows.shape != expected:
        found = ", ".join([f"{rows.dtype}{list(rows.shape)}", *flaws])
        kind = "writable, C-contiguous" if written else "C-contiguous"
        raise LimitError(f"{what} is {found}: it must be a {kind} uint8{list(expected)}")
