"""Opening the one file behind an engine: creation, its lock, its space, and O_DIRECT."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvtier.errors import DeviceError
from kvtier.units import format_bytes

_REMEDIES: Final = {
    errno.ENOENT: "make its directory first",
    errno.EACCES: "give this user the right to, or choose another path",
    errno.EPERM: "give this user the right to, or choose another path",
    errno.ENOSPC: "free disk space, or ask for less",
    errno.EDQUOT: "free disk space, or ask for less",
    errno.EFBIG: "ask for less, or choose another file system",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
_REFUSED: Final = (errno.EINVAL, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open file; whoever has it closes ``fd``.

    Attributes:
        fd: the descriptor.
        path: where it was opened; the file may have been renamed or removed since.
        writable: opened for writing too.
        direct: O_DIRECT is set.
        alignment_bytes: what a memory address must be a multiple of; 1 if not direct.
    """

    fd: int
    path: Path
    writable: bool
    direct: bool
    alignment_bytes: int


def open_file(
    path: Path,
    *,
    direct: bool,
    size_bytes: int | None,
    create: bool,
    page_bytes: int,
    keep: bool = False,
    head: bytes = b"",
) -> OpenFile:
    """Open ``path``; arguments and errors as in :func:`kvtier.io.open_engine`.

    A created file is locked before it is emptied, so that a second opener harms nothing. Its head
    is the first thing that is written. When this fails, a file that was not there before is not
    there afterwards.
    """
    with (
        explained(f"cannot {'create' if create else 'open'} {path}"),
        contextlib.ExitStack() as undo,
    ):
        if path.exists() and not path.is_file():
            raise DeviceError(f"{path} is no regular file: name a file")
        fd = _create(path, undo, keep=keep) if create else os.open(path, os.O_RDONLY)
        undo.callback(os.close, fd)
        direct = direct and _set_direct(fd, page_bytes, writable=create and not keep)
        if head and not keep:
            _write_head(fd, head)
        if create and os.fstat(fd).st_size < (size_bytes or 0):
            _reserve(fd, path, size_bytes or 0)
        undo.pop_all()
    alignment_bytes = math.gcd(page_bytes, mmap.PAGESIZE) if direct else 1
    return OpenFile(fd, path, create, direct, alignment_bytes)


def _create(path: Path, undo: contextlib.ExitStack, *, keep: bool) -> int:
    """A locked file, emptied if not kept; ``undo`` then removes it, unless it was there before."""
    # What is to be kept is not made: whoever had it may have removed it a moment ago.
    new = 0 if keep else os.O_CREAT | os.O_EXCL
    try:
        fd = os.open(path, os.O_RDWR | new, 0o600)
        created = not keep
    except FileExistsError:
        fd = os.open(path, os.O_RDWR)
        created = False
    try:
        _lock(fd, path)
        if not keep:
            os.ftruncate(fd, 0)
    except OSError:
        os.close(fd)
        raise
    if created:
        undo.callback(os.unlink, path)
    return fd


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DeviceError(f"{path} is in use by another cache: give each its own path") from error


def _set_direct(fd: int, page_bytes: int, *, writable: bool) -> bool:
    """Set O_DIRECT if pages of this size can be moved with it; leaves a writable file empty.

    File systems refuse it at once, or only at the first access that is not aligned to the
    device's logical block, so one page is moved to see: with offset, length and address no better
    aligned than every later access will be.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    memory = mmap.mmap(-1, 2 * page_bytes)
    page = memoryview(memory)[page_bytes:]
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        if writable:
            os.pwritev(fd, [page], page_bytes)
        os.preadv(fd, [page], page_bytes)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        return False
    finally:
        page.release()
        memory.close()
    if writable:
        os.ftruncate(fd, 0)
    return True


def _write_head(fd: int, head: bytes) -> None:
    """Write the first bytes of a file, a multiple of the device's block."""
    memory = mmap.mmap(-1, len(head))  # on a memory page, as O_DIRECT wants it
    memory[:] = head
    written = os.pwrite(fd, memory, 0)
    if written != len(head):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _reserve(fd: int, path: Path, size_bytes: int) -> None:
    """Reserve disk space now, so that a full disk shows here and not in the middle of a run."""
    disk = os.fstatvfs(fd)
    free_bytes = disk.f_bavail * disk.f_frsize + os.fstat(fd).st_blocks * 512
    if size_bytes > free_bytes:
        raise DeviceError(
            f"cannot create {path}: it needs {format_bytes(size_bytes)} and its disk has "
            f"{format_bytes(free_bytes)} free; free disk space, or ask for less"
        )
    try:
        if size_bytes:
            os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        os.ftruncate(fd, size_bytes)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an OSError into one line that says what failed, why, and what to do."""
    try:
        yield
    except DeviceError:
        raise
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "choose another path")
        raise DeviceError(f"{what}: {error.strerror}; {remedy}") from error
