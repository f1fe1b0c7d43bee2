"""The loop that moves extents, compiled: no Python, and no GIL, per extent."""

from __future__ import annotations

import ctypes
import errno
from typing import Any, Final

import numba
import numpy as np

from kvtier.io.engine import LENGTH, OFFSET, RESULT, ROW
from kvtier.jit import JIT_DISABLED, jit
from kvtier.pages import I64

_EINTR: Final = errno.EINTR
_EINVAL: Final = errno.EINVAL

_pread: Any
_pwrite: Any

if JIT_DISABLED:
    _libc = ctypes.CDLL(None, use_errno=True)
    _pread, _pwrite = _libc.pread, _libc.pwrite
    for _function in (_pread, _pwrite):
        _function.restype = ctypes.c_ssize_t
        _function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)

    def _errno_location() -> tuple[int]:
        return (ctypes.get_errno(),)

else:
    # Symbols of the C library, found by name when cached code is loaded. An address fits an i64.
    _types: Any = numba.types
    _MOVE: Final = _types.int64(_types.int32, _types.int64, _types.int64, _types.int64)
    _pread = _types.ExternalFunction("pread", _MOVE)
    _pwrite = _types.ExternalFunction("pwrite", _MOVE)
    _errno_location = _types.ExternalFunction("__errno_location", _types.CPointer(_types.int32)())


@jit
def move_extents(
    writing: bool, fd: int, address: int, row_bytes: int, table: I64, first: int, last: int
) -> None:
    """Read or write extents ``first`` to ``last - 1`` of a batch, one after the other.

    It blocks in the kernel for as long as the device takes.

    Args:
        writing: memory to file; otherwise file to memory.
        fd: the file.
        address: of row 0 of the memory.
        row_bytes: bytes of a row.
        table: i64[4, n] of :func:`kvtier.io.engine.pack_extents`; its results are filled in.
        first: the first extent to move.
        last: the first not to move.
    """
    for extent in range(first, last):
        start = address + table[ROW, extent] * row_bytes
        offset = table[OFFSET, extent]
        length = table[LENGTH, extent]
        done = np.int64(0)
        while done < length:
            if writing:
                moved = _pwrite(np.int32(fd), start + done, length - done, offset + done)
            else:
                moved = _pread(np.int32(fd), start + done, length - done, offset + done)
            if moved > 0:
                done += moved
                continue
            if moved == 0:
                break
            error = np.int64(_errno_location()[0])
            if error == _EINTR:
                continue
            # A direct read that met the end of the file inside a block cannot go on from there.
            if writing or error != _EINVAL or done == 0:
                done = -error
            break
        table[RESULT, extent] = done
