"""The loop that moves extents, compiled: no Python, and no GIL, per extent."""

from __future__ import annotations

import errno
from typing import Final

import numpy as np

from kvtier.io.engine import LENGTH, OFFSET, RESULT, ROW
from kvtier.io.libc import errno_location, pread, pwrite
from kvtier.jit import jit
from kvtier.pages import I64

_EINTR: Final = errno.EINTR
_EINVAL: Final = errno.EINVAL


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
                moved = pwrite(np.int32(fd), start + done, length - done, offset + done)
            else:
                moved = pread(np.int32(fd), start + done, length - done, offset + done)
            if moved > 0:
                done += moved
                continue
            if moved == 0:
                break
            error = np.int64(errno_location()[0])
            if error == _EINTR:
                continue
            # A direct read that met the end of the file inside a block cannot go on from there.
            if writing or error != _EINVAL or done == 0:
                done = -error
            break
        table[RESULT, extent] = done
