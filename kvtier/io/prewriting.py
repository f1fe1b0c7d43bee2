"""A new file, written once from end to end before it is used."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Final

import numpy as np

from kvtier.io.engine import FileEngine
from kvtier.io.file import explained
from kvtier.rows import aligned_rows

PREWRITTEN_BYTES_MAX: Final = 2 << 30
"""Up to this size it is done; a larger file is spared that, for it would take longer, and wear the
drive."""

PIECE_BYTES: Final = 4 << 20


async def write_zeros(file: FileEngine, path: Path, first_bytes: int, size_bytes: int) -> None:
    """Write zeros from ``first_bytes`` to the end of a file that is merely reserved.

    Each page written into such space splits it in two, and a file system may take a minute to
    remove a file of 40,000 such pieces. The engine writes piece after piece, for that takes
    seconds, in which a loop has other things to do.

    Raises:
        DeviceError: the file cannot be written.
    """
    zeros = aligned_rows(1, PIECE_BYTES)
    row = np.zeros(1, np.int64)
    for first in range(first_bytes, size_bytes, PIECE_BYTES):
        length = min(PIECE_BYTES, size_bytes - first)
        (done,) = await file.write(np.array([first]), np.array([length]), zeros, row)
        await asyncio.sleep(0)  # an engine that writes to the page cache may not have waited
        if done != length:
            number = errno.ENOSPC if done >= 0 else -int(done)
            with explained(f"cannot create {path}"):
                raise OSError(number, os.strerror(number))
