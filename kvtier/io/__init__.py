"""File I/O in batches: several engines behind one interface."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Final

import numpy as np

from kvtier.errors import SettingsError
from kvtier.io.aio import AiofilesEngine
from kvtier.io.engine import FileEngine, pack_extents
from kvtier.io.file import open_file
from kvtier.io.ring import Ring, explain
from kvtier.io.threads import ThreadEngine
from kvtier.io.uring import UringEngine
from kvtier.pages import PAGE_BYTES_DEFAULT

__all__ = ["AUTO", "ENGINE_NAMES", "QUEUE_DEPTH_MAX", "FileEngine", "open_engine"]

QUEUE_DEPTH_MAX: Final = 1024
"""Operations in flight at one file; ``threads`` and ``aiofiles`` keep a thread for each."""

AUTO: Final = "auto"
"""The name that stands for ``uring`` where the system allows it, and for ``threads`` elsewhere."""

_NONE: Final = np.empty(0, np.int64)
_THREADED: Final = {engine.name: engine for engine in (ThreadEngine, AiofilesEngine)}
ENGINE_NAMES: Final = (UringEngine.name, *_THREADED)


def open_engine(
    name: str,
    path: Path,
    *,
    direct: bool,
    queue_depth: int,
    size_bytes: int | None,
    create: bool,
    page_bytes: int = PAGE_BYTES_DEFAULT,
    keep: bool = False,
    head: bytes = b"",
) -> FileEngine:
    """Open a file for batched I/O.

    Args:
        name: the engine, one of ``ENGINE_NAMES``, or ``AUTO``.
        path: a regular file.
        direct: bypass the page cache (O_DIRECT) where the file system and the device can do that
            for pages of ``page_bytes``; ``FileEngine.direct`` says what came of it.
        queue_depth: operations in flight at the device, 1 to ``QUEUE_DEPTH_MAX``.
        size_bytes: with ``create``: disk space to reserve; None reserves none.
        create: take the file for this engine alone, emptied. Otherwise it must exist, and is
            opened for reading: a write is then answered ``-EBADF``.
        page_bytes: what every offset, length and row of a direct file is a multiple of.
        keep: with ``create``: leave what the file holds, if it is there.
        head: with ``create``, and without ``keep``: what the file begins with from the moment that
            it is there; a multiple of 4096 bytes.

    Raises:
        SettingsError: an unknown engine, one that this system forbids, or a queue depth out of
            range.
        DeviceError: the file cannot be opened, another process has it, or the disk is full.
    """
    names = (AUTO, *ENGINE_NAMES)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1) or names
        raise SettingsError(f"I/O engine {name!r} is unknown: did you mean {near[0]!r}?")
    if not 1 <= queue_depth <= QUEUE_DEPTH_MAX:
        raise SettingsError(f"queue_depth is {queue_depth}: it must be 1 to {QUEUE_DEPTH_MAX}")
    ring = _open_ring(name, queue_depth)
    try:
        file = open_file(
            path,
            direct=direct,
            size_bytes=size_bytes,
            create=create,
            page_bytes=page_bytes,
            keep=keep,
            head=head,
        )
    except BaseException:
        if ring is not None:
            ring.close()
        raise
    # Compiled now, not inside the first request; the engines do the same with their own.
    pack_extents(_NONE, _NONE, np.empty((0, 1), np.uint8), _NONE, 1)
    if ring is not None:
        return UringEngine(file, queue_depth, ring)
    return _THREADED[ThreadEngine.name if name == AUTO else name](file, queue_depth)


def _open_ring(name: str, queue_depth: int) -> Ring | None:
    """The ring that the engine needs, before its file is touched; None for another engine."""
    if name not in (AUTO, UringEngine.name):
        return None
    try:
        return Ring(queue_depth)
    except OSError as error:
        if name == AUTO:
            return None
        raise SettingsError(
            f"I/O engine 'uring' is not possible here: {explain(error)}; take 'auto' or 'threads'"
        ) from error
