"""The directory of a store: what lies where in it, and how it is made.

``format.json`` says that this is a store, and the size of its pages; ``objects/FFF/NAME`` are the
objects, spread over 4096 folders by a hash of their key; ``incoming/`` holds files that are being
written, on the same file system, so that a rename publishes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvtier.errors import BackendError, SettingsError

_FORMAT: Final = "kvtier-file"
_FORMAT_VERSION: Final = 1
_TIME_PROBE_NS: Final = 1_000_000_000_123_456_789


@dataclass(frozen=True, slots=True)
class Layout:
    """The directories of a store.

    Attributes:
        objects: published objects.
        incoming: files being written.
    """

    objects: str
    incoming: str


def open_layout(root: Path, page_bytes: int) -> Layout:
    """Open the store in ``root``, or make one if ``root`` is empty or not there.

    Raises:
        SettingsError: ``root`` is a file, holds something else, or pages of another size.
        BackendError: it cannot be read or made.
    """
    layout = Layout(str(root / "objects"), str(root / "incoming"))
    marker = root / "format.json"
    try:
        if root.exists() and not root.is_dir():
            raise SettingsError(
                f"{root} is a file, and a file store is a directory: name another root"
            )
        root.mkdir(parents=True, exist_ok=True)
        if not marker.exists():
            _check_empty(root, marker)
            Path(layout.objects).mkdir(exist_ok=True)
            Path(layout.incoming).mkdir(exist_ok=True)
            _write_marker(marker, layout, page_bytes)
        _check_marker(marker, page_bytes)
        _remove_leftovers(layout)
    except OSError as error:
        if isinstance(error, BackendError):
            raise
        raise BackendError(f"{root} cannot be a file store: {error.strerror or error}") from error
    return layout


def open_incoming(layout: Layout) -> tuple[int, str]:
    """A new, empty, locked file in ``incoming``: its descriptor and path.

    The lock tells the file from a leftover, whose writer is dead and whose lock went with it.
    """
    while True:
        path = f"{layout.incoming}/{secrets.token_hex(16)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink == 1:
                return fd, path
        except BlockingIOError:
            pass  # taken for a leftover before it was locked: another name
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _remove_leftovers(layout: Layout) -> None:
    """Remove what killed writers left; a file that is locked has a living writer."""
    for path in Path(layout.incoming).iterdir():
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(fd)


def _check_empty(root: Path, marker: Path) -> None:
    """Nothing but the beginnings of a store may be there, which another process may be making."""
    foreign = {entry.name for entry in root.iterdir()} - {"objects", "incoming", marker.name}
    if foreign:
        raise SettingsError(
            f"{root} holds {sorted(foreign)[0]!r} and is no file store: give an empty directory"
        )


def _write_marker(marker: Path, layout: Layout, page_bytes: int) -> None:
    """Write ``format.json``, whole or not at all; another process may be doing the same."""
    text = json.dumps(
        {"format": _FORMAT, "version": _FORMAT_VERSION, "page_bytes": page_bytes}, indent=2
    )
    fd, path = open_incoming(layout)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(fd)
            _check_times(fd, marker)
            with contextlib.suppress(FileExistsError):
                marker.hardlink_to(path)
    finally:
        Path(path).unlink(missing_ok=True)


def _check_times(fd: int, marker: Path) -> None:
    """Versions are made of modification times, so these must be kept to the nanosecond."""
    os.utime(fd, ns=(_TIME_PROBE_NS, _TIME_PROBE_NS))
    if os.fstat(fd).st_mtime_ns != _TIME_PROBE_NS:
        raise BackendError(
            f"the file system of {marker.parent} rounds times, so that a rewritten object might "
            "pass for its old self: take a directory on ext4, xfs, btrfs or tmpfs"
        )


def _check_marker(marker: Path, page_bytes: int) -> None:
    try:
        found: Any = json.loads(marker.read_bytes())
        kind, version, held = found["format"], found["version"], found["page_bytes"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SettingsError(f"{marker} is damaged: it is no description of a store") from error
    if (kind, version) != (_FORMAT, _FORMAT_VERSION):
        raise SettingsError(
            f"{marker} describes a {kind!r} of version {version}: "
            f"this kvtier reads {_FORMAT!r} of version {_FORMAT_VERSION}"
        )
    if held != page_bytes:
        raise SettingsError(
            f"{marker.parent} holds pages of {held} bytes, not {page_bytes}: "
            f"set page_bytes to {held}, or take another directory"
        )
