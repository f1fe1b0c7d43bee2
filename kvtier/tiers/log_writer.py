"""The writing end of the log: pages are gathered in buffers and leave in large writes.

A page is written once it is in the buffer of its segment, and is read from there until it is on
the device. Buffers are few: where there is none, the oldest segment is written out as far as it
has come, and its buffer taken; pages of it that come later take another.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from typing import Final

import numpy as np

from kvtier.checksum import copy_and_sum
from kvtier.errors import ClosedError
from kvtier.io import FileEngine
from kvtier.io.gate import outlast
from kvtier.pages import I64, U8, U64, Bool
from kvtier.rows import aligned_rows, copy_rows
from kvtier.tiers.log_format import BLOCK_BYTES, ENTRIES, LogLayout
from kvtier.tiers.log_mirror import LogMirror
from kvtier.tiers.log_reading import ABSENT, DIRTY, LOST, NAMED, STATE, STORED, WRITING

logger = logging.getLogger(__name__)

DELAY_S: Final = 0.2
"""How long a page waits for its segment to fill before it is written out all the same."""

INLINE_BYTES: Final = 256 << 10
"""Pages of at most this much together are copied and summed on the event loop, in some 0.1 ms; more
in a thread, for reads wait meanwhile."""

_BUFFERS_MIN: Final = 2
_NOWHERE: Final = -1


def buffers_for(layout: LogLayout, buffer_bytes: int) -> int:
    """How many segments are gathered at once in so much memory; two at least."""
    segment_bytes = layout.segment_pages * layout.page_bytes
    return min(max(_BUFFERS_MIN, buffer_bytes // segment_bytes), layout.segments)


class LogWriter:
    """Pages on their way to the device.

    Args:
        file: the log.
        layout: of the file.
        mirror: told what becomes of each page.
        buffer_bytes: memory for pages that are not on the device yet; two segments at least.
        described: whether segments get metadata.

    Attributes:
        io_errors: writes that failed or ended short.
        payload_bytes: written, of pages.
        metadata_bytes: written, of what describes them.
        generations: u64[segments], of each segment's newest metadata on the device; 0: none.
    """

    def __init__(
        self,
        file: FileEngine,
        layout: LogLayout,
        mirror: LogMirror,
        buffer_bytes: int,
        *,
        described: bool,
    ) -> None:
        self.io_errors = 0
        self.payload_bytes = 0
        self.metadata_bytes = 0
        self.generations = np.zeros(layout.segments, np.uint64)
        self._file = file
        self._layout = layout
        self._mirror = mirror
        self._described = described
        buffers = buffers_for(layout, buffer_bytes)
        # One memory, so that a segment's pages and metadata are one batch of writes.
        self._row_bytes = math.gcd(layout.page_bytes, BLOCK_BYTES)
        self._pages_bytes = buffers * layout.payload_bytes
        memory = aligned_rows(buffers * layout.segment_bytes // self._row_bytes, self._row_bytes)
        pages = buffers * layout.segment_pages
        self._memory = memory
        self._pages = memory.reshape(-1)[: pages * layout.page_bytes].reshape(pages, -1)
        self._metadata = memory.reshape(-1)[self._pages_bytes :].reshape(-1, BLOCK_BYTES)
        self._segment_of = [_NOWHERE] * buffers
        self._buffer_of: dict[int, int] = {}
        self._dirty: dict[int, int] = {}
        self._flushes: dict[int, asyncio.Task[None]] = {}
        self._copies: dict[asyncio.Future[None], int] = {}
        self._room = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._failing = False
        self._closed = False

    async def put(
        self,
        segment: int,
        generation: int,
        locations: I64,
        page_ids: U64,
        seeds: U64,
        named: Bool,
        source: U8,
        rows: I64,
    ) -> None:
        """Take pages of one segment, once there is a buffer for it.

        Args:
            segment: which.
            generation: in which it was opened; the first page of another generation empties it.
            locations: i64[n], distinct, in that segment.
            page_ids: u64[n].
            seeds: u64[n], of their checksums.
            named: bool[n], whether the identity was known.
            source: u8[any, page_bytes]; copied.
            rows: i64[n], where each page is in ``source``.

        Raises:
            ClosedError: the tier was closed.
        """
        await self._prepare(segment, generation, locations)
        mirror, first = self._mirror, segment * self._layout.segment_pages
        # What was given up there is not written out while it is being overwritten.
        given_up = int(np.count_nonzero(mirror.states[locations] & STATE == DIRTY))
        mirror.states[locations] = ABSENT
        if given_up and segment in self._dirty:
            self._dirty[segment] -= given_up
        checksums = await self._copy(segment, locations - first, source, rows, seeds)
        mirror.page_ids[locations] = page_ids
        mirror.checksums[locations] = checksums
        mirror.states[locations] = DIRTY | (named * np.uint8(NAMED))
        self._dirty[segment] = self._dirty.get(segment, 0) + len(locations)
        states = mirror.states[first : first + self._layout.segment_pages]
        if segment not in self._flushes and states.all():
            self._start(segment)
            await asyncio.sleep(0)  # it is on its way before more is gathered
        else:
            self._wake_later()

    def copy_out(self, locations: I64, out: U8, rows: I64) -> None:
        """Copy pages that are DIRTY or WRITING (i64[n]) from their buffers to rows of ``out``."""
        segments, pages = np.divmod(locations, self._layout.segment_pages)
        buffers = np.array([self._buffer_of[segment] for segment in segments.tolist()], np.int64)
        copy_rows(out, rows, self._pages, buffers * self._layout.segment_pages + pages)

    async def flush(self) -> None:
        """Write out everything that was put before the call."""
        while self._dirty or self._flushes:
            for segment in [one for one in self._dirty if one not in self._flushes]:
                self._start(segment)
            await asyncio.wait(self._flushes.values())

    async def close(self) -> None:
        """Refuse what comes now, and write out what came before."""
        self._closed = True
        while self._copies:
            await asyncio.wait(self._copies)
        await self.flush()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _copy(self, segment: int, pages: I64, source: U8, rows: I64, seeds: U64) -> U64:
        """Copy pages into a segment's buffer, which stays meanwhile; their checksums (u64[n])."""
        target = self._pages_of(segment)
        if len(pages) * self._layout.page_bytes <= INLINE_BYTES:
            return copy_and_sum(target, pages, source, rows, seeds)
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        self._copies[ended] = segment
        try:
            work = loop.run_in_executor(None, copy_and_sum, target, pages, source, rows, seeds)
            return await outlast(work)
        finally:
            del self._copies[ended]
            ended.set_result(None)
            self._room.set()

    # -- buffers ------------------------------------------------------------------------------

    async def _prepare(self, segment: int, generation: int, locations: I64) -> None:
        """Wait until the segment is open in this generation, has a buffer, and may be changed."""
        mirror = self._mirror
        while True:
            if self._closed:
                raise ClosedError("the nvme tier is closed")
            renewed = int(mirror.generations[segment]) != generation
            flush = self._flushes.get(segment)
            if flush and (renewed or (mirror.states[locations] & STATE == WRITING).any()):
                await asyncio.wait((flush,))
                continue
            if renewed:
                mirror.begin(segment, generation)
                self._dirty.pop(segment, None)
            if segment in self._buffer_of or self._take_buffer(segment):
                return
            await self._make_room()

    def _take_buffer(self, segment: int) -> bool:
        """Give the segment the buffer of which nothing is left to write, oldest first."""
        generations = self._mirror.generations
        copied_to = set(self._copies.values())
        best = _NOWHERE
        for buffer, holder in enumerate(self._segment_of):
            if holder == _NOWHERE:
                best = buffer
                break
            if holder in self._dirty or holder in self._flushes or holder in copied_to:
                continue
            if best == _NOWHERE or generations[holder] < generations[self._segment_of[best]]:
                best = buffer
        if best == _NOWHERE:
            return False
        self._buffer_of.pop(self._segment_of[best], None)
        self._segment_of[best] = segment
        self._buffer_of[segment] = best
        return True

    async def _make_room(self) -> None:
        """Write the oldest segment out, and wait until any is, or any copy has ended."""
        # What is under way will be whole segments; a part of one is written out only in need.
        if self._dirty and not self._flushes:
            self._start(min(self._dirty, key=lambda one: int(self._mirror.generations[one])))
        self._room.clear()
        await self._room.wait()

    def _pages_of(self, segment: int) -> U8:
        first = self._buffer_of[segment] * self._layout.segment_pages
        return self._pages[first : first + self._layout.segment_pages]

    # -- writing out --------------------------------------------------------------------------

    def _wake_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY_S, self._wake)

    def _wake(self) -> None:
        self._timer = None
        for segment in [one for one in self._dirty if one not in self._flushes]:
            self._start(segment)
        if self._dirty:
            self._wake_later()

    def _start(self, segment: int) -> None:
        """Write out what is DIRTY in a segment; nothing of it is written out now."""
        first = segment * self._layout.segment_pages
        states = self._mirror.states[first : first + self._layout.segment_pages]
        pages = np.flatnonzero(states & STATE == DIRTY)
        states[pages] += WRITING - DIRTY
        self._dirty.pop(segment, None)
        task = asyncio.get_running_loop().create_task(self._write_out(segment, pages))
        self._flushes[segment] = task

        def end(_: object) -> None:
            self._flushes.pop(segment, None)
            self._room.set()

        task.add_done_callback(end)

    async def _write_out(self, segment: int, pages: I64) -> None:
        first = segment * self._layout.segment_pages
        states = self._mirror.states[first : first + self._layout.segment_pages]
        written = np.zeros(len(pages), np.bool_)
        try:
            written = await self._write_pages(segment, pages)
        except Exception as error:
            self._note(segment, str(error))
        finally:
            named = states[pages] & NAMED
            states[pages] = np.where(written, np.uint8(STORED), np.uint8(LOST)) | named
            if not written.all():
                self._mirror.checksums[first + pages[~written]] = 0

    async def _write_pages(self, segment: int, pages: I64) -> Bool:
        """Write pages (i64[n], ascending) of a segment, and the metadata that describes them.

        They are one batch, in any order: a page that does not arrive, though its metadata does, is
        not what its checksum says, and after a restart a miss.

        Returns:
            bool[n], which pages arrived.
        """
        generation = self._mirror.generations[segment]
        of_pages, of_metadata = self._place(segment, pages), self._describe(segment, pages)
        offsets, lengths, rows = np.concatenate((of_pages, of_metadata), axis=1)
        done = await self._file.write(offsets, lengths, self._memory, rows)
        self._check(segment, done, lengths)
        runs = of_pages.shape[1]
        self.metadata_bytes += int(np.maximum(done[runs:], 0).sum())
        if self._described and (done[runs:] == lengths[runs:]).all():
            self.generations[segment] = generation
        wanted = lengths[:runs] // self._layout.page_bytes
        whole = np.maximum(done[:runs], 0) // self._layout.page_bytes
        self.payload_bytes += int(whole.sum()) * self._layout.page_bytes
        place = np.arange(len(pages)) - np.repeat(np.cumsum(wanted) - wanted, wanted)
        written: Bool = place < np.repeat(whole, wanted)
        return written

    def _place(self, segment: int, pages: I64) -> I64:
        """Extents of pages, neighbours together: i64[3, e], of offsets, lengths and rows."""
        layout, buffer = self._layout, self._buffer_of[segment]
        starts, counts = _runs(pages)
        first = pages[starts]
        offsets = layout.page_offsets(segment * layout.segment_pages + first)
        in_memory = (buffer * layout.segment_pages + first) * layout.page_bytes
        return np.stack((offsets, counts * layout.page_bytes, in_memory // self._row_bytes))

    def _describe(self, segment: int, pages: I64) -> I64:
        """Compose the metadata blocks of pages; their extents, as of :meth:`_place`."""
        if not self._described:
            return np.empty((3, 0), np.int64)
        layout, blocks = self._layout, np.flatnonzero(np.bincount(pages // ENTRIES))
        at = self._buffer_of[segment] * layout.metadata_blocks
        self._mirror.compose(segment, blocks, self._metadata[at : at + len(blocks)])
        starts, counts = _runs(blocks)
        offsets = layout.metadata_offset(segment) + blocks[starts] * BLOCK_BYTES
        in_memory = self._pages_bytes + (at + starts) * BLOCK_BYTES
        return np.stack((offsets, counts * BLOCK_BYTES, in_memory // self._row_bytes))

    def _check(self, segment: int, done: I64, wanted: I64) -> None:
        failures = int(np.count_nonzero(done != wanted))
        self.io_errors += failures
        if failures:
            worst = int(done.min())
            self._note(segment, os.strerror(-worst) if worst < 0 else "a write ended short")
        else:
            self._failing = False

    def _note(self, segment: int, what: str) -> None:
        """Say once that writing fails, and again only after it has worked in between."""
        if not self._failing:
            self._failing = True
            logger.warning(
                "nvme: segment %d could not be written (%s): its pages are misses now",
                segment,
                what,
            )


def _runs(numbers: I64) -> tuple[I64, I64]:
    """Where each run of successive numbers (i64[n], ascending) starts, and how long it is."""
    starts = np.concatenate(([0], np.flatnonzero(numbers[1:] - numbers[:-1] != 1) + 1))
    return starts, np.diff(starts, append=len(numbers))


assert ABSENT == 0, "a state of 0 is what new memory holds"
