"""Objects as files: how one is found, read, published and removed. Blocking; run in threads.

A file holds the pages of its object and nothing else, so pages stay aligned. Its version is made
of its inode, size and modification time. Every object is a new file, and its time is set to a
moment that no earlier file of this machine got, so no two contents of a key share a version. A
reader that has the file open keeps it, whatever is published meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple

from kvtier.errors import BackendError
from kvtier.pages import OBJECT_PAGES_MAX, U8, PageStatus
from kvtier_file.failures import Failures
from kvtier_file.layout import Layout, open_incoming
from kvtier_file.names import path_of

_IDENTITY: Final = struct.Struct("<QQq")


class Found(NamedTuple):
    """What is known of an object."""

    pages: int
    version: int


class Opened(NamedTuple):
    """An object that can be read: a descriptor, and its pages."""

    fd: int
    pages: int


class _Stamps:
    """Modification times: the present, never the same twice, never going back."""

    def __init__(self) -> None:
        self._last_ns = 0
        self._lock = threading.Lock()

    def next_ns(self) -> int:
        with self._lock:
            # Wall time, not a Clock: it must go on rising over restarts and between processes.
            self._last_ns = max(self._last_ns + 1, time.time_ns())
            return self._last_ns


_STAMPS: Final = _Stamps()


class ObjectFiles:
    """The objects of one store.

    Attributes:
        folder: what holds the folders of objects.
        failures: where threads tell what they met.

    Args:
        layout: where they lie.
        page_bytes: bytes of a page.
        sync: whether an object is on the disk before it is published, and its name before
            ``put`` and ``delete`` return.
    """

    def __init__(self, layout: Layout, page_bytes: int, sync: bool) -> None:
        self.folder = Path(layout.objects)
        self.failures = Failures(self.folder)
        self._layout = layout
        self._page_bytes = page_bytes
        self._sync = sync

    def find(self, key: bytes) -> Found | None:
        """Pages and version of an object, None where there is none."""
        try:
            return self._found(os.stat(self._path_of(key)))  # noqa: PTH116 - a Path costs more than the call
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BackendError(
                f"{self._path_of(key)} cannot be looked at: {error.strerror}"
            ) from error

    def open(self, key: bytes, version: int) -> Opened | None:
        """Open an object; None where it is not there in that version. May raise."""
        try:
            fd = os.open(self._path_of(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        found = self._found(os.fstat(fd))
        if found is not None and found.version == version:
            return Opened(fd, found.pages)
        os.close(fd)
        return None

    def publish(self, key: bytes, pages: U8) -> int:
        """Write an object whole and give it its name; returns its version. Raises OSError."""
        fd, path = open_incoming(self._layout)
        try:
            _write_all(fd, pages)
            stamp_ns = _STAMPS.next_ns()
            os.utime(fd, ns=(stamp_ns, stamp_ns))
            if self._sync:
                os.fsync(fd)
            found = self._found(os.fstat(fd))
            assert found is not None
            self._rename(path, self._path_of(key))
        except BaseException:
            Path(path).unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        return found.version

    def remove(self, key: bytes) -> PageStatus:
        """Remove an object: OK, ABSENT or FAILED."""
        path = self._path_of(key)
        try:
            Path(path).unlink()
            if self._sync:
                _sync(Path(path).parent)
        except FileNotFoundError:
            return PageStatus.ABSENT
        except OSError as error:
            self.failures.note("removed", error)
            return PageStatus.FAILED
        return PageStatus.OK

    def _path_of(self, key: bytes) -> str:
        return f"{self._layout.objects}/{path_of(key)}"

    def _found(self, status: os.stat_result) -> Found | None:
        """What a file says of its object; a file without one whole page, or no file, is none."""
        pages = min(status.st_size // self._page_bytes, OBJECT_PAGES_MAX)
        if pages == 0 or not stat.S_ISREG(status.st_mode):
            return None
        identity = _IDENTITY.pack(status.st_ino, status.st_size, status.st_mtime_ns)
        version = int.from_bytes(hashlib.blake2b(identity, digest_size=8).digest(), "little")
        return Found(pages, version or 1)  # 0 stands for no object

    def _rename(self, path: str, target: str) -> None:
        try:
            Path(path).rename(target)
        except FileNotFoundError:  # the first object in its folder
            folder = Path(target).parent
            folder.mkdir(exist_ok=True)
            if self._sync:
                _sync(folder.parent)
            Path(path).rename(target)
        if self._sync:
            _sync(Path(target).parent)


def _write_all(fd: int, pages: U8) -> None:
    rest = pages.reshape(-1).data
    while rest:
        rest = rest[os.write(fd, rest) :]


def _sync(folder: Path) -> None:
    """Make the names in a folder outlive a crash."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
