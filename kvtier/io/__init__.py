"""File I/O in batches: several engines behind one interface."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kvtier.errors import SettingsError
from kvtier.io.aio import AiofilesEngine
from kvtier.io.engine import FileEngine, compile_all
from kvtier.io.file import open_file
from kvtier.io.prewriting import PREWRITTEN_BYTES_MAX, write_zeros
from kvtier.io.ring import Ring, explain
from kvtier.io.stripe_labels import new_labels
from kvtier.io.striped import StripedEngine, file_sizes
from kvtier.io.threads import ThreadEngine
from kvtier.io.uring import UringEngine
from kvtier.pages import PAGE_BYTES_DEFAULT

__all__ = ["AUTO", "ENGINE_NAMES", "QUEUE_DEPTH_MAX", "FileEngine", "open_engine", "open_striped"]

QUEUE_DEPTH_MAX: Final = 1024
"""Operations in flight at one file; ``threads`` and ``aiofiles`` keep a thread for each."""

AUTO: Final = "auto"
"""The name that stands for ``uring`` where the system allows it, and for ``threads`` elsewhere."""

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
        keep: with ``create``: leave what the file holds; it must exist.
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
    compile_all()
    if ring is not None:
        return UringEngine(file, queue_depth, ring)
    return _THREADED[ThreadEngine.name if name == AUTO else name](file, queue_depth)


async def open_striped(
    name: str,
    paths: Sequence[Path],
    *,
    stripe_bytes: int,
    direct: bool,
    queue_depth: int,
    size_bytes: int,
    page_bytes: int = PAGE_BYTES_DEFAULT,
    keep: bool = False,
    head: bytes = b"",
) -> FileEngine:
    """Open several files that are one (:class:`kvtier.io.striped.StripedEngine`), for writing.

    New ones that are not too large are written once from end to end
    (:func:`kvtier.io.prewriting.write_zeros`).

    Args:
        name: the engine of each file.
        paths: the files, at least one; of one alone this is :func:`open_engine`.
        stripe_bytes: of :func:`kvtier.io.striped.stripe_bytes_for`.
        direct: as of :func:`open_engine`.
        queue_depth: of each file.
        size_bytes: disk space to reserve, all files together.
        page_bytes: as of :func:`open_engine`.
        keep: leave what the files hold; they are a set then
            (:func:`kvtier.io.stripe_labels.is_whole_set`).
        head: without ``keep``: what the whole begins with; a multiple of 4096 bytes, at most a
            stripe.

    Raises:
        SettingsError, DeviceError: as of :func:`open_engine`, of one of the files. Those that were
            not there before are not there afterwards.
    """
    count = len(paths)
    labels = new_labels(count, stripe_bytes) if count > 1 else [b""]
    sizes = file_sizes(size_bytes, count, stripe_bytes) if count > 1 else [size_bytes]
    head_bytes = len(labels[0])
    files: list[FileEngine] = []
    made: list[Path] = []
    try:
        for number in reversed(range(count)):  # without the first file, there is no set
            path = paths[number]
            is_new = not path.exists()
            first_bytes = labels[number] + (head if number == 0 else b"")
            file = open_engine(
                name,
                path,
                direct=direct,
                queue_depth=queue_depth,
                size_bytes=head_bytes + sizes[number],
                create=True,
                page_bytes=page_bytes,
                keep=keep,
                head=b"" if keep else first_bytes,
            )
            files.append(file)
            if is_new:
                made.append(path)
            file_bytes = head_bytes + sizes[number]
            if not keep and file_bytes <= PREWRITTEN_BYTES_MAX:
                await write_zeros(file, path, len(first_bytes), file_bytes)
    except BaseException:
        for path in made:  # before the locks go: whoever waits for them must not keep these
            path.unlink(missing_ok=True)
        for file in files:
            await file.close()
        raise
    return files[0] if count == 1 else StripedEngine(files[::-1], stripe_bytes, head_bytes)


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
