"""File I/O in batches: several engines behind one interface."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Final

from kvtier.errors import SettingsError
from kvtier.io.aio import AiofilesEngine
from kvtier.io.engine import FileEngine
from kvtier.io.file import open_file
from kvtier.io.threads import ThreadEngine
from kvtier.pages import PAGE_BYTES_DEFAULT

__all__ = ["ENGINE_NAMES", "QUEUE_DEPTH_MAX", "FileEngine", "open_engine"]

QUEUE_DEPTH_MAX: Final = 1024
"""Operations in flight at one file; both engines keep a thread for each."""

_ENGINES: Final = {engine.name: engine for engine in (ThreadEngine, AiofilesEngine)}
ENGINE_NAMES: Final = tuple(_ENGINES)


def open_engine(
    name: str,
    path: Path,
    *,
    direct: bool,
    queue_depth: int,
    size_bytes: int | None,
    create: bool,
    page_bytes: int = PAGE_BYTES_DEFAULT,
) -> FileEngine:
    """Open a file for batched I/O.

    Args:
        name: the engine, one of ``ENGINE_NAMES``.
        path: a regular file.
        direct: bypass the page cache (O_DIRECT) where the file system and the device can do that
            for pages of ``page_bytes``; ``FileEngine.direct`` says what came of it.
        queue_depth: operations in flight at the device, 1 to ``QUEUE_DEPTH_MAX``.
        size_bytes: with ``create``: disk space to reserve; None reserves none.
        create: take the file for this engine alone, emptied. Otherwise it must exist, and is
            opened for reading: a write is then answered ``-EBADF``.
        page_bytes: what every offset, length and row of a direct file is a multiple of.

    Raises:
        SettingsError: an unknown engine, or a queue depth out of range.
        DeviceError: the file cannot be opened, another process has it, or the disk is full.
    """
    if name not in _ENGINES:
        near = difflib.get_close_matches(name, ENGINE_NAMES, n=1) or ENGINE_NAMES
        raise SettingsError(f"I/O engine {name!r} is unknown: did you mean {near[0]!r}?")
    if not 1 <= queue_depth <= QUEUE_DEPTH_MAX:
        raise SettingsError(f"queue_depth is {queue_depth}: it must be 1 to {QUEUE_DEPTH_MAX}")
    file = open_file(
        path, direct=direct, size_bytes=size_bytes, create=create, page_bytes=page_bytes
    )
    return _ENGINES[name](file, queue_depth)
