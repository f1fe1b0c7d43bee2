"""The file that a calibration reads and writes, and what is really below it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from kvtier.calibration.running import LoadEngine, choose_engine
from kvtier.environment import read_text
from kvtier.errors import DeviceError, SettingsError
from kvtier.io.file import OpenFile, open_file
from kvtier.rows import aligned_rows
from kvtier.units import format_bytes

SIZE_BYTES_MIN: Final = 64 << 20
"""Of a file that is measured: a smaller one may lie in the drive's own cache."""

_CHUNK_BYTES: Final = 4 << 20
_MEMORY_SYSTEMS: Final = frozenset({"tmpfs", "ramfs", "hugetlbfs", "devtmpfs"})
_MEMORY_DEVICES: Final = ("/dev/ram", "/dev/zram", "/dev/pmem")


@dataclass(frozen=True, slots=True)
class Target:
    """What is measured.

    Attributes:
        file: open, direct where its file system can.
        size_bytes: how much of it is used.
        device: the file system's kind and where it comes from, e.g. ``ext4 on /dev/vda``.
        engine: that moves loads.
        notes: sentences about why the figures may not be those of a device.
    """

    file: OpenFile
    size_bytes: int
    device: str
    engine: LoadEngine
    notes: tuple[str, ...]


@contextmanager
def open_target(
    path: Path, size_bytes: int, page_bytes: int, *, write: bool, rng: np.random.Generator
) -> Iterator[Target]:
    """A temporary file in a directory, filled with random bytes; or a file that is there.

    The temporary file has no name from the moment it is open, so nothing can leave it behind.

    Args:
        path: a directory or a file.
        size_bytes: of the temporary file; of an existing one, at most so much is used.
        page_bytes: unit of the smallest operations.
        write: an existing file may be overwritten.
        rng: makes the content.

    Raises:
        SettingsError: there is nothing at ``path``, or not the room, or too little of it.
        DeviceError: the file cannot be made, opened or written.
    """
    if not path.exists():
        raise SettingsError(f"{path}: there is no such file or directory; name one on the device")
    if not (path.is_dir() or path.is_file()):
        raise SettingsError(f"{path}: is neither a directory nor a regular file; name one of these")
    if not path.is_dir():
        size_bytes = min(size_bytes, path.stat().st_size)
    if size_bytes < SIZE_BYTES_MIN:
        raise SettingsError(
            f"{path}: {format_bytes(size_bytes)} would be measured: it must be "
            f"{format_bytes(SIZE_BYTES_MIN)} at least, so that no cache of the drive holds it all"
        )
    if path.is_dir():
        file = _make_file(path, size_bytes, page_bytes, rng)
    else:
        file = open_file(path, direct=True, size_bytes=None, create=False, page_bytes=page_bytes)
        if write:
            file = _for_writing(file)
    try:
        kind, source = _mounted(os.fstat(file.fd).st_dev)
        notes = tuple(_doubts(file, kind, source))
        yield Target(file, size_bytes, f"{kind} on {source}", choose_engine(), notes)
    finally:
        os.close(file.fd)


def _make_file(
    directory: Path, size_bytes: int, page_bytes: int, rng: np.random.Generator
) -> OpenFile:
    free_bytes = shutil.disk_usage(directory).free
    if size_bytes > free_bytes:
        raise SettingsError(
            f"{directory}: {format_bytes(free_bytes)} are free, and --size is "
            f"{format_bytes(size_bytes)}; lower it or name another directory"
        )
    path = directory / f".kvtier-calibrate-{os.getpid()}"
    file = open_file(path, direct=True, size_bytes=None, create=True, page_bytes=page_bytes)
    path.unlink()
    try:
        _fill(file, size_bytes, rng)
    except BaseException:
        os.close(file.fd)
        raise
    return file


def _fill(file: OpenFile, size_bytes: int, rng: np.random.Generator) -> None:
    """Random bytes, which no drive or hypervisor can compress or share."""
    chunk = aligned_rows(1, _CHUNK_BYTES)
    try:
        for first in range(0, size_bytes, _CHUNK_BYTES):
            chunk[0] = np.frombuffer(rng.bytes(_CHUNK_BYTES), np.uint8)
            left = chunk[0, : size_bytes - first].data
            while left:
                left = left[os.pwrite(file.fd, left, first + _CHUNK_BYTES - len(left)) :]
        os.fsync(file.fd)
    except OSError as error:
        raise DeviceError(
            f"cannot write {file.path}: {error.strerror}; lower --size or name another directory"
        ) from error


def _for_writing(file: OpenFile) -> OpenFile:
    """The same file, open for writing too, its content kept until it is written."""
    flags = os.O_RDWR | (os.O_DIRECT if file.direct else 0)
    try:
        fd = os.open(file.path, flags)
    except OSError as error:
        os.close(file.fd)
        raise DeviceError(
            f"cannot write {file.path}: {error.strerror}; leave --write out, or name another file"
        ) from error
    os.close(file.fd)
    return OpenFile(fd, file.path, True, file.direct, file.alignment_bytes)


def _doubts(file: OpenFile, kind: str, source: str) -> Iterator[str]:
    if kind in _MEMORY_SYSTEMS or source.startswith(_MEMORY_DEVICES):
        yield f"{file.path.parent} is {kind} on {source}: this is memory, not a device"
    elif not file.direct:
        yield f"{kind} has no O_DIRECT: this is the page cache in front of the device"


def _mounted(device: int, mountinfo: Path = Path("/proc/self/mountinfo")) -> tuple[str, str]:
    """Kind and source of the mounted file system; both unknown where the system does not say."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in read_text(mountinfo).splitlines():
        mount, _, system = line.partition(" - ")
        if mount.split()[2] == number:
            kind, source = system.split()[:2]
            return kind, source
    return "an unknown file system", "an unknown device"
