"""The tier on a local drive: slots in a file, every page verified before it is believed.

This first form does not survive a restart. The file is made anew at each opening, and what says
which bytes are right (a checksum per slot) is kept in memory. In return nothing that lies in the
file can be mistaken for a page: a torn, stale, lost or misplaced write does not match, and reads as
FAILED, which the cache above takes for a miss.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from pathlib import Path
from typing import ClassVar, Final, Literal

import numpy as np

from kvtier.checksum import xxh64_rows
from kvtier.errors import DeviceError, SettingsError
from kvtier.index import LogIndex, log_geometry
from kvtier.io import FileEngine, open_engine
from kvtier.io.gate import outlast
from kvtier.pages import I64, U8, U64, Bool, PageStatus
from kvtier.rows import aligned_rows, copy_rows
from kvtier.settings import TierSettings

INLINE_BYTES: Final = 4 << 20
"""Checksums over at most this much (some 0.5 ms) are made on the event loop: a hop to a thread and
back would take as long. More goes to a thread."""

STAGING_BYTES: Final = 4 << 20
"""Aligned memory through which pages are written that O_DIRECT cannot take from where they are."""

# Odd, so that different slots give different products (2**64 divided by the golden ratio).
_GOLDEN: Final = np.uint64(0x9E37_79B9_7F4A_7C15)


class NvmeTier:
    """Pages at the locations of a log, in one file. Calls may overlap, if they touch others.

    Args:
        file: the open file, at least ``slots * page_bytes`` long; closed by ``close``.
        index: which page lies at which location.
        slots: locations of the file.
        page_bytes: bytes of a page.

    Attributes:
        index: as given.
        io_errors: device operations that failed or ended short.
        corrupt_pages: pages that arrived whole but were not what had been written.
    """

    in_memory: ClassVar[Literal[False]] = False
    name: ClassVar[str] = "nvme"

    def __init__(self, file: FileEngine, index: LogIndex, slots: int, page_bytes: int) -> None:
        self.index = index
        self.io_errors = 0
        self.corrupt_pages = 0
        self._file = file
        self._page_bytes = page_bytes
        self._checksums = np.zeros(slots, np.uint64)
        self._generation = np.uint64(secrets.randbits(64))
        # Compiled now, not inside the first request.
        xxh64_rows(np.zeros((1, page_bytes), np.uint8), None, self._checksums[:1])

    @property
    def engine(self) -> str:
        """The I/O engine: ``uring``, ``threads`` or ``aiofiles``."""
        return self._file.name

    @property
    def direct(self) -> bool:
        """Reads come from the device (O_DIRECT), not from the operating system's page cache."""
        return self._file.direct

    async def read(
        self,
        first_slots: I64,
        counts: I64,
        extent_rows: I64,
        out: U8,
        page_ids: U64,
        page_slots: I64,
        page_rows: I64,
    ) -> U8:
        """Read runs of adjacent slots, and verify the pages that are wanted of them.

        Args:
            first_slots: i64[e], the first slot of each extent.
            counts: i64[e], its slots.
            extent_rows: i64[e], the row of ``out`` that takes its first page; the others follow.
            out: u8[rows, page_bytes], C-contiguous, on a memory page if the file is direct.
            page_ids: u64[n], the pages wanted.
            page_slots: i64[n], where they were written.
            page_rows: i64[n], the rows of ``out`` in which the extents put them.

        Returns:
            u8[n]: OK, or FAILED where the device failed or the bytes are not the page's.

        Raises:
            LimitError: an extent leaves ``out``, or ``out`` is not aligned.
            ClosedError: the tier was closed.
        """
        wanted_bytes = counts * self._page_bytes
        done = await self._file.read(first_slots * self._page_bytes, wanted_bytes, out, extent_rows)
        checksums = await self._sum(out, page_rows, page_ids, page_slots)
        intact = checksums == self._checksums[page_slots]
        failures = int(np.count_nonzero(done != wanted_bytes))
        if failures:
            self.io_errors += failures
            arrived = _rows_read(np.maximum(done, 0) // self._page_bytes, extent_rows, len(out))
            self.corrupt_pages += int(np.count_nonzero(arrived[page_rows] & ~intact))
            intact &= arrived[page_rows]
        else:
            self.corrupt_pages += len(intact) - int(np.count_nonzero(intact))
        return _status(intact)

    async def write(self, slots: I64, page_ids: U64, source: U8, rows: I64) -> U8:
        """Write pages, one per slot; neighbours in file and memory go out together.

        Args:
            slots: i64[n], distinct.
            page_ids: u64[n], what will lie there.
            source: u8[any, page_bytes], C-contiguous; copied first where O_DIRECT needs that.
            rows: i64[n], where each page is in ``source``.

        Returns:
            u8[n]: OK, or FAILED: the page is not there, and will never be read as if it were.

        Raises:
            ClosedError: the tier was closed.
        """
        if source.ctypes.data % self._file.alignment_bytes == 0:
            return await self._write(slots, page_ids, source, rows)
        step = max(1, STAGING_BYTES // self._page_bytes)
        staging = aligned_rows(min(step, len(slots)), self._page_bytes)
        staging_rows = np.arange(len(staging))
        status = np.empty(len(slots), np.uint8)
        for first in range(0, len(slots), step):
            part = slice(first, first + step)
            count = len(rows[part])
            copy_rows(staging, None, source, rows[part])
            status[part] = await self._write(
                slots[part], page_ids[part], staging, staging_rows[:count]
            )
        return status

    async def move(self, sources: I64, targets: I64, page_ids: U64) -> U8:
        """Write pages again at other locations, verified on the way.

        Args:
            sources: i64[n], where they are.
            targets: i64[n], where they go.
            page_ids: u64[n], what they are.

        Returns:
            u8[n]: OK, or FAILED: the page is not at its target.

        Raises:
            ClosedError: the tier was closed.
        """
        step = max(1, STAGING_BYTES // self._page_bytes)
        staging = aligned_rows(min(step, len(sources)), self._page_bytes)
        status = np.empty(len(sources), np.uint8)
        for first in range(0, len(sources), step):
            part = slice(first, first + step)
            rows = np.arange(len(sources[part]))
            starts = _run_starts(sources[part], rows)
            counts = np.diff(starts, append=len(rows))
            read = await self.read(
                sources[part][starts],
                counts,
                starts,
                staging,
                page_ids[part],
                sources[part],
                rows,
            )
            here = np.flatnonzero(read == PageStatus.OK)
            read[here] = await self.write(targets[part][here], page_ids[part][here], staging, here)
            status[part] = read
        return status

    def pin(self, memory: U8) -> None:
        """See :meth:`kvtier.io.FileEngine.pin`."""
        self._file.pin(memory)

    async def close(self) -> None:
        """Wait for what is in flight and close the file; a second call does nothing."""
        await self._file.close()

    async def _write(self, slots: I64, page_ids: U64, source: U8, rows: I64) -> U8:
        checksums = await self._sum(source, rows, page_ids, slots)
        starts = _run_starts(slots, rows)
        counts = np.diff(starts, append=len(slots))
        wanted_bytes = counts * self._page_bytes
        done = await self._file.write(
            slots[starts] * self._page_bytes, wanted_bytes, source, rows[starts]
        )
        self.io_errors += int(np.count_nonzero(done != wanted_bytes))
        written = _rows_read(np.maximum(done, 0) // self._page_bytes, starts, len(slots))
        self._checksums[slots[written]] = checksums[written]
        return _status(written)

    async def _sum(self, pages: U8, rows: I64, page_ids: U64, slots: I64) -> U64:
        """A checksum of each page's bytes, its identity, its place and this opening of the file."""
        seeds = page_ids ^ ((slots.astype(np.uint64) + self._generation) * _GOLDEN)
        if len(rows) * self._page_bytes <= INLINE_BYTES:
            return xxh64_rows(pages, rows, seeds)
        loop = asyncio.get_running_loop()
        return await outlast(loop.run_in_executor(None, xxh64_rows, pages, rows, seeds))


def open_nvme(settings: TierSettings, slots: int, page_bytes: int, seed: int) -> NvmeTier:
    """Make the tier's file; arguments and errors as in :func:`kvtier.tiers.open_tier`.

    The file is locked, so that no second cache can take it. Without a path it is a temporary one
    that has no name any more once it is open: its space returns however the process ends.
    """
    geometry = log_geometry(slots, page_bytes, settings.segment_bytes)
    index = LogIndex(geometry, settings.ways, seed)
    slots = geometry.locations
    if settings.path is not None:
        file = _open_file(settings, settings.path, slots, page_bytes)
    else:
        path = _temporary_path()
        try:
            file = _open_file(settings, path, slots, page_bytes)
        finally:
            path.unlink()
    return NvmeTier(file, index, slots, page_bytes)


def _open_file(settings: TierSettings, path: Path, slots: int, page_bytes: int) -> FileEngine:
    try:
        return open_engine(
            settings.engine,
            path,
            direct=settings.direct,
            queue_depth=settings.queue_depth,
            size_bytes=slots * page_bytes,
            create=True,
            page_bytes=page_bytes,
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


def _run_starts(slots: I64, rows: I64) -> I64:
    """Where a run of neighbours starts that are adjacent in the file and in memory."""
    breaks = np.ones(len(slots), np.bool_)
    breaks[1:] = (np.diff(slots) != 1) | (np.diff(rows) != 1)
    return np.flatnonzero(breaks)


def _rows_read(whole: I64, first_rows: I64, rows: int) -> Bool:
    """bool[rows], which rows were moved whole: the first ``whole[i]`` from ``first_rows[i]`` on."""
    moved = np.zeros(rows, np.bool_)
    before = np.cumsum(whole) - whole
    moved[np.repeat(first_rows - before, whole) + np.arange(int(whole.sum()))] = True
    return moved


def _status(good: Bool) -> U8:
    return np.where(good, np.uint8(PageStatus.OK), np.uint8(PageStatus.FAILED))
