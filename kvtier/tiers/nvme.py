"""The tier on a local drive: a segmented log, every page verified before it is believed.

Pages are gathered in memory and leave in large sequential writes (:mod:`kvtier.tiers.log_writer`).
What should lie where, with a checksum over payload, identity and place, is kept in memory too
(:mod:`kvtier.tiers.log_mirror`), so a read is one operation, and nothing that lies in the file can
be mistaken for a page: a torn, stale, lost or misplaced write does not match, and reads as FAILED,
which the cache above takes for a miss. The same is written behind the pages of each segment
(:mod:`kvtier.tiers.log_format`), and a file that is opened again is warm
(:mod:`kvtier.tiers.log_restart`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Literal

import numpy as np

from kvtier.checksum import copy_and_sum, xxh64_rows
from kvtier.identities import Identities, Restored
from kvtier.index import LogIndex
from kvtier.io import FileEngine
from kvtier.io.faults import FaultyEngine
from kvtier.io.gate import outlast
from kvtier.pages import I64, U8, U64, Bool, PageStatus
from kvtier.rows import aligned_rows, as_column
from kvtier.tiers.log_format import LogLayout
from kvtier.tiers.log_mirror import LogMirror
from kvtier.tiers.log_reading import DIRTY, WRITING, compile_all, judge, look, place_extents
from kvtier.tiers.log_restart import read_log
from kvtier.tiers.log_retired import RetiredKeys
from kvtier.tiers.log_writer import LogWriter

INLINE_BYTES: Final = 4 << 20
"""Checksums over at most this much (some 0.5 ms) are made on the event loop: a hop to a thread and
back would take as long. More goes to a thread."""

_ALL: Final = np.empty(0, np.bool_)

STAGING_BYTES: Final = 4 << 20
"""Memory through which pages move from one place of the log to another."""

MOVES_MAX: Final = 8
"""Moves at once, each through such memory; a further one waits."""


class NvmeTier:
    """Pages in the segments of one file. Calls may overlap, unless they touch the same locations.

    Location ``l`` is page ``l % segment_pages`` of segment ``l // segment_pages``.

    Args:
        file: the open file, at least ``layout.file_bytes`` long; closed by ``close``.
        index: which page lies at which location, and in which generation a segment was opened.
        layout: of the file.
        identities: what object ids mean.
        file_id: u64[2], of this file.
        write_buffer_bytes: memory for pages that are not on the device yet.
        retired: the table of retired keys; None: the file is not opened again, and gets no
            metadata.

    Attributes:
        index: as given.
        layout: as given.
        restored: objects that were found by :meth:`restore`.
        corrupt_pages: pages that arrived whole but were not what had been written.
        lost_pages: pages asked for that could not be written before.
    """

    in_memory: ClassVar[Literal[False]] = False
    name: ClassVar[str] = "nvme"

    def __init__(
        self,
        file: FileEngine,
        index: LogIndex,
        layout: LogLayout,
        identities: Identities,
        file_id: U64,
        write_buffer_bytes: int,
        retired: RetiredKeys | None = None,
    ) -> None:
        self.index = index
        self.layout = layout
        self.restored: Restored | None = None
        self.corrupt_pages = 0
        self.lost_pages = 0
        self._read_errors = 0
        self._file = file
        self._moves = asyncio.Semaphore(MOVES_MAX)
        self._retired = retired
        self._places = (
            layout.segment_pages,
            layout.segment_bytes,
            layout.data_offset,
            layout.page_bytes,
        )
        self._mirror = LogMirror(layout, identities, file_id)
        self._writer = LogWriter(
            file, layout, self._mirror, write_buffer_bytes, described=retired is not None
        )
        # Compiled now, not inside the first request.
        compile_all()
        row, nowhere = np.zeros((1, layout.page_bytes), np.uint8), np.empty(0, np.int64)
        xxh64_rows(row, None, np.zeros(1, np.uint64))
        copy_and_sum(row, nowhere, row, nowhere, np.empty(0, np.uint64))

    @property
    def engine(self) -> str:
        """The I/O engine: ``uring``, ``threads`` or ``aiofiles``."""
        return self._file.name

    @property
    def direct(self) -> bool:
        """Reads come from the device (O_DIRECT), not from the operating system's page cache."""
        return self._file.direct

    @property
    def fault_counts(self) -> Mapping[str, int] | None:
        """How often its drive misbehaved on purpose; None unless it was told to."""
        return self._file.counts() if isinstance(self._file, FaultyEngine) else None

    @property
    def io_errors(self) -> int:
        """Device operations that failed or ended short."""
        return self._read_errors + self._writer.io_errors

    @property
    def payload_bytes(self) -> int:
        """Bytes of pages that were written to the device, moved ones included."""
        return self._writer.payload_bytes

    @property
    def metadata_bytes(self) -> int:
        """Bytes that were written to the device to describe them."""
        return self._writer.metadata_bytes

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
        """Read runs of adjacent locations, and verify the pages that are wanted of them.

        Args:
            first_slots: i64[e], the first location of each extent.
            counts: i64[e], its locations.
            extent_rows: i64[e], the row of ``out`` that takes its first page; the others follow.
            out: u8[rows, page_bytes], C-contiguous, on a memory page if the file is direct.
            page_ids: u64[n], the pages wanted.
            page_slots: i64[n], the locations where they were written.
            page_rows: i64[n], the rows of ``out`` in which the extents put them.

        Returns:
            u8[n]: OK, or FAILED where the device failed or the bytes are not the page's.

        Raises:
            LimitError: an extent leaves ``out``, or ``out`` is not aligned.
            ClosedError: the tier was closed.
        """
        mirror, count = self._mirror, len(page_ids)
        page_slots = as_column(page_slots, np.int64, "page_slots")
        page_rows = as_column(page_rows, np.int64, "page_rows")
        seeds, known = mirror.seeds(page_ids, page_slots, self.index.generations)
        expected, found = np.empty(count, np.uint64), np.empty(count, np.uint8)
        if look(mirror.states, mirror.checksums, page_slots, known, expected, found):
            buffered = (found == DIRTY) | (found == WRITING)
            self._writer.copy_out(page_slots[buffered], out, page_rows[buffered])
            rest = np.flatnonzero(~buffered)
            rest = rest[np.argsort(page_slots[rest], kind="stable")]
            starts = _run_starts(page_slots[rest], page_rows[rest])
            counts = np.diff(starts, append=len(rest))
            first_slots, extent_rows = page_slots[rest[starts]], page_rows[rest[starts]]
        first_slots = as_column(first_slots, np.int64, "first_slots")
        counts = as_column(counts, np.int64, "counts")
        arrived = await self._read_extents(first_slots, counts, extent_rows, out)
        sums = await self._sum(out, page_rows, seeds)
        status = np.empty(count, np.uint8)
        corrupt, lost = judge(sums, expected, found, page_rows, arrived, status)
        self.corrupt_pages += corrupt
        self.lost_pages += lost
        return status

    async def write(self, slots: I64, page_ids: U64, source: U8, rows: I64) -> U8:
        """Write pages, one per location; they are gathered in memory, and written out later.

        Args:
            slots: i64[n], the locations, distinct.
            page_ids: u64[n], what will lie there.
            source: u8[any, page_bytes], C-contiguous; copied.
            rows: i64[n], where each page is in ``source``.

        Returns:
            u8[n]: OK: the page can be read from now on. Should the device fail to take it later,
            it is FAILED when it is read.

        Raises:
            ClosedError: the tier was closed.
        """
        generations = self.index.generations
        seeds, known = self._mirror.seeds(page_ids, slots, generations)
        segments = slots // self.layout.segment_pages
        step = max(1, INLINE_BYTES // self.layout.page_bytes)
        for segment in np.unique(segments).tolist():
            pages = np.flatnonzero(segments == segment)
            for first in range(0, len(pages), step):
                part = pages[first : first + step]
                await self._writer.put(
                    segment,
                    int(generations[segment]),
                    slots[part],
                    page_ids[part],
                    seeds[part],
                    known[part],
                    source,
                    rows[part],
                )
        return np.full(len(slots), PageStatus.OK, np.uint8)

    async def move(self, sources: I64, targets: I64, page_ids: U64) -> U8:
        """Write pages again at other locations, if they are still what was written.

        Args:
            sources: i64[n], where they lie.
            targets: i64[n], where they are to lie as well.
            page_ids: u64[n].

        Returns:
            u8[n]: OK, or FAILED: the page is not at its new location.

        Raises:
            ClosedError: the tier was closed.
        """
        status = np.full(len(page_ids), PageStatus.FAILED, np.uint8)
        async with self._moves:
            step = max(1, STAGING_BYTES // self.layout.page_bytes)
            staging = aligned_rows(min(step, len(page_ids)), self.layout.page_bytes)
            for first in range(0, len(page_ids), step):
                part = slice(first, first + step)
                good = await self._move(sources[part], targets[part], page_ids[part], staging)
                status[first + good] = PageStatus.OK
        return status

    async def restore(self) -> None:
        """Take up what an earlier opening left; before anything is written."""
        assert self._retired is not None
        await self._retired.load()
        content = await read_log(self._file, self.layout, self._mirror, self._retired)
        self._writer.generations[:] = content.generations
        # In a thread, for of many pages it takes seconds, in which a loop has other things to do.
        loop = asyncio.get_running_loop()
        found = content.page_ids, content.locations, content.generations
        await outlast(loop.run_in_executor(None, self.index.restore, *found))
        self.restored = content.restored

    async def retire(self, keys: Sequence[tuple[bytes, int]]) -> None:
        """Have no restart bring back these keys (fingerprint and version of each).

        Raises:
            DeviceError: that could not be written.
        """
        if self._retired is not None:
            written = self._writer.generations
            oldest = int(written[written > 0].min(initial=np.iinfo(np.uint64).max))
            self._retired.add(keys, int(self.index.generations.max()), oldest)
            await self._retired.save()

    def pin(self, memory: U8) -> None:
        """See :meth:`kvtier.io.FileEngine.pin`."""
        self._file.pin(memory)

    async def flush(self) -> None:
        """Write out every page that was written before the call."""
        await self._writer.flush()

    async def close(self) -> None:
        """Write out what is left, and close the file; a second call does nothing."""
        try:
            await self._writer.close()
        finally:
            await self._file.close()

    async def _move(self, sources: I64, targets: I64, page_ids: U64, staging: U8) -> I64:
        """Move pages through ``staging``; i64[k], which of them have arrived."""
        rows = np.arange(len(sources))
        starts = _run_starts(sources, rows)
        counts = np.diff(starts, append=len(sources))
        read = await self.read(sources[starts], counts, starts, staging, page_ids, sources, rows)
        good = np.flatnonzero(read == PageStatus.OK)
        await self.write(targets[good], page_ids[good], staging, good)
        return good

    async def _read_extents(self, first_slots: I64, counts: I64, extent_rows: I64, out: U8) -> Bool:
        """Read extents; bool[rows of out], which rows arrived whole, or empty: all of them."""
        offsets, wanted_bytes = np.empty(len(first_slots), int), np.empty(len(first_slots), int)
        if not place_extents(first_slots, counts, *self._places, offsets, wanted_bytes):
            first_slots, counts, extent_rows = _within_segments(
                first_slots, counts, extent_rows, self.layout.segment_pages
            )
            offsets, wanted_bytes = np.empty(len(first_slots), int), np.empty(len(first_slots), int)
            place_extents(first_slots, counts, *self._places, offsets, wanted_bytes)
        done = await self._file.read(offsets, wanted_bytes, out, extent_rows)
        if (done == wanted_bytes).all():
            return _ALL
        self._read_errors += int(np.count_nonzero(done != wanted_bytes))
        return _rows_read(np.maximum(done, 0) // self.layout.page_bytes, extent_rows, len(out))

    async def _sum(self, pages: U8, rows: I64, seeds: U64) -> U64:
        """A checksum of each page's bytes and of what its seed stands for."""
        if len(rows) * self.layout.page_bytes <= INLINE_BYTES:
            return xxh64_rows(pages, rows, seeds)
        loop = asyncio.get_running_loop()
        return await outlast(loop.run_in_executor(None, xxh64_rows, pages, rows, seeds))


def _within_segments(
    first: I64, counts: I64, rows: I64, segment_pages: int
) -> tuple[I64, I64, I64]:
    """Extents cut where a segment ends: first locations, counts and rows."""
    segments = first // segment_pages
    pieces = (first + counts - 1) // segment_pages - segments + 1
    of = np.repeat(np.arange(len(first)), pieces)
    ordinal = np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = np.where(ordinal == 0, first[of], (segments[of] + ordinal) * segment_pages)
    ends = np.minimum(first[of] + counts[of], (segments[of] + ordinal + 1) * segment_pages)
    return starts, ends - starts, rows[of] + starts - first[of]


def _run_starts(slots: I64, rows: I64) -> I64:
    """Where a run of neighbours starts that are adjacent in the log and in memory."""
    breaks = np.ones(len(slots), np.bool_)
    breaks[1:] = (np.diff(slots) != 1) | (np.diff(rows) != 1)
    return np.flatnonzero(breaks)


def _rows_read(whole: I64, first_rows: I64, rows: int) -> Bool:
    """bool[rows], which rows were moved whole: the first ``whole[i]`` from ``first_rows[i]`` on."""
    moved = np.zeros(rows, np.bool_)
    before = np.cumsum(whole) - whole
    moved[np.repeat(first_rows - before, whole) + np.arange(int(whole.sum()))] = True
    return moved
