"""Rows of bytes: memory for them, and the copy that moves them.

Every arena, staging buffer and answer of the package is ``u8[rows, row_bytes]``, and a page is one
row of it. Which rows are meant is said by a column of i64 row numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Callable, Iterator
from typing import Final, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from kvtier.errors import DeviceError
from kvtier.jit import JIT_DISABLED, jit
from kvtier.pages import I64, U8

CALL_BYTES_MAX: Final = 64 << 20
"""Bytes that one compiled call works through: a few ms, so that Ctrl-C is heard between calls."""

HUGE_PAGE_BYTES: Final = 2 << 20
"""Of x86-64, and of arm64 with pages of 4 KiB."""

Scalar = TypeVar("Scalar", bound=np.generic)


def _memcpy_in_python(target: np.uint64, source: np.uint64, count: np.uint64) -> None:
    ctypes.memmove(int(target), int(source), int(count))


_ADDRESS = numba.types.uint64

# The C library's copy, for compiled code: there, slice assignment becomes a loop that is about 30 %
# slower.
memcpy = cast(
    "Callable[[np.uint64, np.uint64, np.uint64], None]",
    _memcpy_in_python
    if JIT_DISABLED
    else numba.types.ExternalFunction("memcpy", _ADDRESS(_ADDRESS, _ADDRESS, _ADDRESS)),
)


def copy_rows(target: U8, target_rows: I64 | None, source: U8, source_rows: I64 | None) -> None:
    """Copy row ``source_rows[i]`` of ``source`` to row ``target_rows[i]`` of ``target``, for all i.

    Args:
        target: u8[t, row_bytes], C-contiguous, writable; it must not overlap ``source``.
        target_rows: i64[n], distinct, or None for rows 0 to n-1.
        source: u8[s, row_bytes], C-contiguous.
        source_rows: i64[n], or None for rows 0 to n-1. Where both are None, n is s.

    Raises:
        ValueError: a shape, a dtype or a row number does not fit; nothing was copied then.
    """
    count = _row_count(target_rows, source_rows, len(source))
    origin = select_rows(source, source_rows, "source", count)
    to = select_rows(target, target_rows, "target", count)
    row_bytes = source.shape[1]
    if target.shape[1] != row_bytes:
        raise ValueError(
            f"target rows are {target.shape[1]} bytes and source rows {row_bytes}: "
            "they must be equal"
        )
    if not target.flags.writeable:
        raise ValueError("target is read-only: copy_rows needs a writable array")
    for first, last in call_spans(count, row_bytes):
        _copy(target.ctypes.data, to, source.ctypes.data, origin, row_bytes, first, last)


def aligned_rows(rows: int, row_bytes: int) -> U8:
    """Zeroed memory for u8[rows, row_bytes] that starts on a memory page (4096 bytes).

    The memory is mapped, so it takes space only where it is touched, and it is unmapped when the
    last array over it dies. From 2 MiB on it starts on a huge page (2 MiB), and the kernel is
    asked for such: without them, gathering random rows waits for the TLB, and to pin the memory
    for I/O takes 512 times as many steps.

    Raises:
        DeviceError: the memory cannot be mapped.
    """
    size = rows * row_bytes
    if rows < 0 or row_bytes < 0:
        raise ValueError(f"cannot make {rows} rows of {row_bytes} bytes: both must be 0 or more")
    is_huge = size >= HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE")
    # What is mapped beyond the size takes no memory, but for the rest of the last huge page.
    mapped = size + HUGE_PAGE_BYTES if is_huge else max(size, 1)
    try:
        memory = mmap.mmap(-1, mapped, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise DeviceError(
            f"cannot map {size} bytes of memory ({rows} rows of {row_bytes}): {error}; ask for less"
        ) from error
    start = 0
    if is_huge:
        # A kernel built without transparent huge pages refuses; small pages work as well.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        start = -np.frombuffer(memory, np.uint8).ctypes.data % HUGE_PAGE_BYTES
    return np.frombuffer(memory, np.uint8, size, start).reshape(rows, row_bytes)


def select_rows(rows: U8, row_index: I64 | None, name: str, count: int) -> I64:
    """The row numbers that select ``count`` rows of ``rows``, fit to be given to a compiled loop.

    Args:
        rows: u8[any, row_bytes], C-contiguous.
        row_index: i64[count], or None for rows 0 to count-1.
        name: what to call ``rows`` in an error.
        count: how many are needed.

    Raises:
        ValueError: ``rows`` is no such array, or a row number lies outside it.
    """
    if rows.ndim != 2 or rows.dtype != np.uint8 or not rows.flags.c_contiguous:
        raise ValueError(
            f"{name} is {rows.dtype}{list(rows.shape)}: "
            "it must be uint8[rows, row_bytes], C-contiguous"
        )
    if row_index is None:
        if count > len(rows):
            raise ValueError(f"{name} has {len(rows)} rows, but {count} are needed")
        return np.arange(count, dtype=np.int64)
    column = as_column(row_index, np.int64, f"the row numbers of {name}")
    if column.size != count:
        raise ValueError(f"{name} has {column.size} row numbers, but {count} are needed")
    outside = _first_outside(column, len(rows))
    if outside >= 0:
        raise ValueError(
            f"row number {column[outside]} (at {outside}) is outside {name}, "
            f"which has {len(rows)} rows"
        )
    return column


def as_column(values: NDArray[Scalar], dtype: type[Scalar], name: str) -> NDArray[Scalar]:
    """``values`` as compiled code takes it: one dimension, contiguous, writable, exact dtype.

    A strided or read-only array is copied, because each further layout would be compiled anew, in
    the middle of a request.

    Raises:
        ValueError: another dtype or more dimensions; ``name`` says in which argument.
    """
    if values.ndim != 1 or values.dtype != dtype:
        raise ValueError(
            f"{name} is {values.dtype}{list(values.shape)}: it must be {np.dtype(dtype)}[n]"
        )
    flags = values.flags
    return values if flags.c_contiguous and flags.writeable and flags.aligned else values.copy()


def call_spans(count: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut rows 0 to count-1 into ranges (first, last) of at most ``CALL_BYTES_MAX`` bytes."""
    step = max(1, CALL_BYTES_MAX // max(row_bytes, 1))
    for first in range(0, count, step):
        yield first, min(first + step, count)


def _row_count(target_rows: I64 | None, source_rows: I64 | None, otherwise: int) -> int:
    if target_rows is not None:
        return len(target_rows)
    return otherwise if source_rows is None else len(source_rows)


@jit
def _first_outside(rows: I64, limit: int) -> int:
    for at in range(rows.size):
        if rows[at] < 0 or rows[at] >= limit:
            return at
    return -1


@jit
def _copy(
    target: int,
    target_rows: I64,
    source: int,
    source_rows: I64,
    row_bytes: int,
    first: int,
    last: int,
) -> None:
    # Addresses, not arrays: a read-only source needs no second compilation.
    for at in range(first, last):
        memcpy(
            np.uint64(target + target_rows[at] * row_bytes),
            np.uint64(source + source_rows[at] * row_bytes),
            np.uint64(row_bytes),
        )
