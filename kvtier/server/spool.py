"""Unlinked files that take objects larger than a frame, and the disk that they share.

Nothing of an object stays in memory: its parts are written as they come, and the whole is mapped,
so that its pages can be reclaimed. A file has no name: whatever ends the process, the kernel
frees it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final, TypeVar

import numpy as np

from kvtier.pages import U8

T = TypeVar("T")

_LARGE: Final = "/var/tmp"  # noqa: S108 - TemporaryFile makes files that nobody can guess
"""Where large temporary files belong: unlike /tmp it is never in memory (FHS 3.0, 5.15)."""


class SpoolRoom:
    """The disk that all uploads of a server share.

    Args:
        bytes_max: what they may take of it together, as announced: what has not come yet counts.

    Attributes:
        folder: the directory of the files: ``TMPDIR``, or else ``/var/tmp``.
        spools: files that are open.
        held_bytes: what they were opened for.
        missing_bytes: of that, what does not lie on the disk yet.
    """

    def __init__(self, bytes_max: int) -> None:
        self.folder = Path(os.environ.get("TMPDIR") or _LARGE)
        self.bytes_max = bytes_max
        self.spools = 0
        self.held_bytes = 0
        self.missing_bytes = 0


class Spool:
    """Takes one object from front to back. Made by :meth:`open`, ended by :meth:`close`."""

    def __init__(self, room: SpoolRoom, size_bytes: int) -> None:
        self._room = room
        self._size_bytes = size_bytes
        self._missing_bytes = size_bytes
        self._written_bytes = 0
        self._file: IO[bytes] | None = None
        self._closed = False
        room.spools += 1
        room.held_bytes += size_bytes
        room.missing_bytes += size_bytes

    @classmethod
    async def open(cls, room: SpoolRoom, size_bytes: int) -> Spool:
        """A file that has room for ``size_bytes``, beside what the others still need.

        Raises:
            OSError: it cannot be made, the disk is too full, or others have what there may be.
        """
        if room.held_bytes + size_bytes > room.bytes_max:
            raise OSError(
                errno.ENOSPC,
                f"uploads hold {room.held_bytes} of the {room.bytes_max} bytes of serve.spool, and "
                f"this one needs {size_bytes}: raise it, or lower serve.upload_timeout",
            )
        spool = cls(room, size_bytes)
        try:
            await _in_thread(spool._make, room.missing_bytes)
        except BaseException:
            spool.close()
            raise
        return spool

    async def append(self, pages: U8) -> None:
        """Write the next pages. Raises OSError."""
        assert self._file is not None
        await _in_thread(_write_all, self._file.fileno(), pages, self._written_bytes)
        self._written_bytes += pages.nbytes
        self._missing_bytes -= pages.nbytes
        self._room.missing_bytes -= pages.nbytes

    def pages(self, page_bytes: int) -> U8:
        """What was written, mapped: u8[pages, page_bytes], valid beyond :meth:`close`."""
        assert self._file is not None
        shape = (self._written_bytes // page_bytes, page_bytes)
        return np.asarray(np.memmap(self._file, np.uint8, "r", shape=shape))

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._room.spools -= 1
        self._room.held_bytes -= self._size_bytes
        self._room.missing_bytes -= self._missing_bytes
        if self._file is not None:
            self._file.close()

    def _make(self, needed_bytes: int) -> None:
        self._file = tempfile.TemporaryFile(  # noqa: SIM115 - lives until close()
            buffering=0, dir=self._room.folder
        )
        disk = os.fstatvfs(self._file.fileno())
        free_bytes = disk.f_bavail * disk.f_frsize
        if needed_bytes > free_bytes:
            raise OSError(
                errno.ENOSPC,
                f"uploads need {needed_bytes} bytes in {self._room.folder}, {free_bytes} are free: "
                "set TMPDIR to a larger disk",
            )


async def _in_thread(function: Callable[..., T], *args: object) -> T:
    """What ``function`` returns; who is cancelled meanwhile waits for its end all the same."""
    future = asyncio.get_running_loop().run_in_executor(None, function, *args)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        future.exception()  # seen: nobody asks for it any more
        raise cancelled
    return future.result()


def _write_all(fd: int, pages: U8, at_bytes: int) -> None:
    rest = pages.reshape(-1).data
    while rest:
        count = os.pwrite(fd, rest, at_bytes)
        rest, at_bytes = rest[count:], at_bytes + count
