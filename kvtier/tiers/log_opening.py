"""Opening the ``nvme`` tier: its file is made, or taken up again, or refused."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from kvtier.errors import DeviceError, SettingsError
from kvtier.identities import Identities
from kvtier.index import LogIndex, log_geometry
from kvtier.io import FileEngine, open_striped
from kvtier.io.faults import FaultyEngine
from kvtier.io.stripe_labels import LABEL_BYTES, is_whole_set
from kvtier.io.striped import stripe_bytes_for
from kvtier.pages import U64
from kvtier.settings import TierSettings
from kvtier.tiers.log_format import (
    BLOCK_BYTES,
    FORMAT_VERSION,
    Blocks,
    LogLayout,
    find_superblock,
    layout_of,
    new_superblock,
)
from kvtier.tiers.log_retired import RetiredKeys
from kvtier.tiers.nvme import NvmeTier

_ATTEMPTS: Final = 20
_PAUSE_S: Final = 0.05
"""For so long a file may still be locked by a process that was killed."""

_ADVICE: Final = "change it back, name another file, or set tiers.nvme.rebuild = true to lose it"


async def open_nvme(
    settings: TierSettings, slots: int, page_bytes: int, seed: int, identities: Identities
) -> NvmeTier:
    """Open the tier's file; arguments and errors as in :func:`kvtier.tiers.open_tier`.

    The file is locked, so that no second cache can take it. With a path, what it holds is taken up
    again. Without one it is a temporary file that has no name any more once it is open: its space
    returns however the process ends.
    """
    geometry = log_geometry(slots, page_bytes, settings.segment_bytes)
    index = LogIndex(geometry, settings.ways, seed)
    layout = layout_of(geometry, page_bytes)
    file_id = np.frombuffer(secrets.token_bytes(16), np.uint64)
    stripe_bytes = stripe_bytes_for(settings.stripe_bytes, page_bytes)
    if not settings.files:
        path = _temporary_path()
        try:
            file = await _open_file(settings, [path], stripe_bytes, layout, b"", keep=False)
        finally:
            path.unlink()
        drive = _drive(settings, file, layout)
        return NvmeTier(drive, index, layout, identities, file_id, settings.write_buffer_bytes)
    head = new_superblock(layout, seed, file_id)
    file, found = await _open_free_files(settings, stripe_bytes, layout, seed, head)
    file_id = file_id if found is None else found
    paths = [path.absolute() for path in settings.files]
    drive = _drive(settings, file, layout)
    retired = RetiredKeys(drive, paths, layout, file_id)
    try:
        if found is None:
            await RetiredKeys(file, paths, layout, file_id).make()
        elif not _is_same(found, _found_file_id(settings, stripe_bytes, layout, seed)):
            raise DeviceError(
                f"{paths[0]} was made anew by another process meanwhile: open it again"
            )
        tier = NvmeTier(
            drive, index, layout, identities, file_id, settings.write_buffer_bytes, retired
        )
        if found is not None:
            await tier.restore()
    except BaseException:
        await drive.close()
        raise
    return tier


def check_files(settings: TierSettings, page_bytes: int) -> None:
    """See whether there is anything else in the place of the tier's files; nothing is changed.

    Raises:
        SettingsError: there is, and opening them would be refused.
        DeviceError: they cannot be read.
    """
    if settings.files:
        _found_superblock(settings, stripe_bytes_for(settings.stripe_bytes, page_bytes))


def _drive(settings: TierSettings, file: FileEngine, layout: LogLayout) -> FileEngine:
    """The file once it is made, as the drive that it is said to be on."""
    faults = settings.faults
    return file if faults is None else FaultyEngine(file, faults, layout.file_bytes)


def _is_same(file_id: U64, other: U64 | None) -> bool:
    return other is not None and bool((file_id == other).all())


def _found_file_id(
    settings: TierSettings, stripe_bytes: int, layout: LogLayout, seed: int
) -> U64 | None:
    """The id of a log that is to be taken up again; None: the file is to be made anew.

    Raises:
        SettingsError: the file is no log, or one that does not fit.
        DeviceError: it cannot be read.
    """
    superblock = _found_superblock(settings, stripe_bytes)
    if superblock is None or settings.rebuild:
        return None
    for name, wanted in (
        ("format", FORMAT_VERSION),
        ("page_bytes", layout.page_bytes),
        ("segment_pages", layout.segment_pages),
        ("segments", layout.segments),
        ("seed", seed),
    ):
        if int(superblock[name]) != wanted:
            raise SettingsError(
                f"{_key_of(settings)}: {settings.files[0]} holds a log with {name} "
                f"{superblock[name]}, and it would be {wanted} now: {_ADVICE}"
            )
    return _words(superblock)


def _found_superblock(settings: TierSettings, stripe_bytes: int) -> Blocks | None:
    """That of the log that is there; None: there is none. Errors as of :func:`check_files`."""
    path, rebuild = settings.files[0], settings.rebuild
    start = 0
    if len(settings.files) > 1:
        try:
            if not is_whole_set(settings.paths, stripe_bytes, rebuild=rebuild):
                return None
        except SettingsError as error:
            raise SettingsError(f"tiers.nvme.paths: {error}") from error
        start = LABEL_BYTES
    try:
        with path.open("rb") as file:
            file.seek(start)
            head = file.read(2 * BLOCK_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DeviceError(f"cannot open {path}: {error.strerror}; choose another path") from error
    if not head:
        return None
    superblock = find_superblock(head)
    if superblock is None:
        raise SettingsError(
            f"{_key_of(settings)}: {path} is there and is no log of kvtier: remove it, or name "
            "another file"
        )
    return superblock


def _key_of(settings: TierSettings) -> str:
    return "tiers.nvme.paths" if settings.paths else "tiers.nvme.path"


def _words(superblock: Blocks) -> U64:
    file_id: U64 = np.array(superblock["file_id"], np.uint64)
    return file_id


async def _open_free_files(
    settings: TierSettings, stripe_bytes: int, layout: LogLayout, seed: int, head: bytes
) -> tuple[FileEngine, U64 | None]:
    """As :func:`_open_found`; if another has them, see for a moment whether that is at its end.

    The kernel takes an io_uring down after its process is gone, and with it the lock of the file.
    """
    for _ in range(_ATTEMPTS):
        try:
            return await _open_found(settings, stripe_bytes, layout, seed, head)
        except DeviceError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
        await asyncio.sleep(_PAUSE_S)
    return await _open_found(settings, stripe_bytes, layout, seed, head)


async def _open_found(
    settings: TierSettings, stripe_bytes: int, layout: LogLayout, seed: int, head: bytes
) -> tuple[FileEngine, U64 | None]:
    """The files, and the id of the log that they hold; None: they were made anew."""
    found = _found_file_id(settings, stripe_bytes, layout, seed)
    keep = found is not None
    file = await _open_file(settings, settings.files, stripe_bytes, layout, head, keep=keep)
    return file, found


async def _open_file(
    settings: TierSettings,
    paths: Sequence[Path],
    stripe_bytes: int,
    layout: LogLayout,
    head: bytes,
    *,
    keep: bool,
) -> FileEngine:
    try:
        return await open_striped(
            settings.engine,
            paths,
            stripe_bytes=stripe_bytes,
            direct=settings.direct,
            queue_depth=settings.queue_depth,
            size_bytes=layout.file_bytes,
            keep=keep,
            head=head,
            page_bytes=layout.page_bytes,
        )
    except SettingsError as error:
        raise SettingsError(f"tiers.nvme: {error}") from error


def _temporary_path() -> Path:
    try:
        with tempfile.NamedTemporaryFile(prefix="kvtier-nvme-", delete=False) as file:
            return Path(file.name)
    except OSError as error:
        raise DeviceError(
            f"cannot make a temporary file for the nvme tier: {error.strerror}; "
            "set TMPDIR, or give the tier a path"
        ) from error
