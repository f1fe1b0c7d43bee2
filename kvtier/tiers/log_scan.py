"""Reads the metadata of all segments of a log into its mirror, when the log is opened again.

Several groups of segments are on their way at once: one is read while another is parsed, in
threads, without the GIL. The newest generation of a segment counts, and its entries alone.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Final

import numpy as np

from kvtier.clock import WallClock
from kvtier.errors import DeviceError
from kvtier.identities import (
    FINGERPRINT,
    GENERATION,
    KEY,
    LENGTH,
    VERSION,
    find_rows,
    home_of,
    identity_word,
)
from kvtier.io import FileEngine
from kvtier.io.gate import outlast
from kvtier.jit import jit
from kvtier.pages import I64, U8, U64, Bool
from kvtier.rows import aligned_rows
from kvtier.tiers.log_format import (
    BLOCK_BYTES,
    ENTRIES,
    ENTRY_WORDS,
    HEADER_WORDS,
    METADATA,
    METADATA_MAGIC,
    USED,
    LogLayout,
    intact,
)
from kvtier.tiers.log_mirror import LogMirror, metadata_memory
from kvtier.tiers.log_reading import ABSENT, NAMED, STORED

logger = logging.getLogger(__name__)

GROUPS: Final = 3
"""Groups of segments that are read or parsed at once."""

GROUP_BYTES: Final = 8 << 20
"""Metadata of a group."""

CLEARINGS: Final = 3
"""How often it is tried to overwrite metadata that is not believed."""

PATIENCE_NS: Final = 2_000_000_000
"""Between two lines that say how far it is."""

_PAGES_AT_ONCE: Final = 1 << 20
_BLOCKS_AT_ONCE: Final = 256
_BLOCK_WORDS: Final = BLOCK_BYTES // 8
_HALF: Final = np.uint64(32)
_ZERO: Final = np.uint64(0)
_ONE: Final = np.uint64(1)
_USED: Final = np.uint64(USED)
_LOW_HALF: Final = np.uint64(0xFFFF_FFFF)
_STORED: Final = np.uint8(STORED | NAMED)
_ABSENT: Final = np.uint8(ABSENT)


class LogScan:
    """One reading of the metadata of all segments.

    Args:
        file: the log.
        layout: where things are in it.
        mirror: is filled, its identities too; it is empty before.
        floor: a generation; of segments written then or earlier nothing is believed.
    """

    def __init__(self, file: FileEngine, layout: LogLayout, mirror: LogMirror, floor: int) -> None:
        self._file = file
        self._layout = layout
        self._mirror = mirror
        self._floor = np.uint64(floor)
        self._owners = aligned_rows(layout.locations, 8).view(np.uint64).reshape(-1)
        self._lock = threading.Lock()
        self._step = max(1, GROUP_BYTES // (layout.metadata_blocks * BLOCK_BYTES))
        self._groups = iter(range(0, layout.segments, self._step))
        self._failures = 0
        self._refused: list[I64] = []
        """Metadata blocks in which something lies that is not believed, or that were not read."""
        self._clock = WallClock()
        self._told_ns = self._clock.now_ns()
        self._compile()

    async def run(self) -> None:
        """Read and parse every segment's metadata."""
        await asyncio.gather(*(self._work() for _ in range(GROUPS)))
        if self._failures:
            logger.warning(
                "nvme: the metadata of %d segments could not be read: their pages are misses",
                self._failures,
            )

    async def _work(self) -> None:
        layout = self._layout
        blocks = layout.metadata_blocks
        memory = aligned_rows(min(self._step, layout.segments) * blocks, BLOCK_BYTES)
        loop = asyncio.get_running_loop()
        for first in self._groups:
            segments = np.arange(first, min(first + self._step, layout.segments))
            offsets = layout.metadata_offset(0) + segments * layout.segment_bytes
            lengths = np.full(len(segments), blocks * BLOCK_BYTES)
            rows = np.arange(len(segments)) * blocks
            done = await self._file.read(offsets, lengths, memory, rows)
            self._failures += int(np.count_nonzero(done < 0))
            for number in np.flatnonzero(done != lengths).tolist():
                arrived = rows[number] + max(int(done[number]), 0) // BLOCK_BYTES
                memory[arrived : rows[number] + blocks] = 0
                self._refused.append(first * blocks + np.arange(arrived, rows[number] + blocks))
            await outlast(
                loop.run_in_executor(None, self._parse, memory[: len(segments) * blocks], first)
            )
            self._tell(int(segments[-1]) + 1)

    def _parse(self, memory: U8, first: int) -> None:
        """Take in the metadata of consecutive segments, in a thread."""
        layout, mirror = self._layout, self._mirror
        blocks = memory.reshape(-1).view(METADATA)
        numbers = np.arange(len(blocks))
        good = intact(blocks, METADATA_MAGIC, mirror.file_id[0])
        good &= (blocks["file_id"] == mirror.file_id).all(axis=1)
        good &= blocks["segment"] == first + numbers // layout.metadata_blocks
        good &= blocks["block"] == numbers % layout.metadata_blocks
        generations = np.where(good, blocks["generation"], np.uint64(0))
        newest = generations.reshape(-1, layout.metadata_blocks).max(axis=1)
        mirror.generations[first : first + len(newest)] = newest
        good &= generations == np.repeat(newest, layout.metadata_blocks)
        words = memory.reshape(-1).view(np.uint64).reshape(-1, _BLOCK_WORDS)
        refused = np.flatnonzero(~good)
        refused = refused[words[refused].any(axis=1)]
        good &= generations > self._floor
        _take_entries(
            words,
            good,
            first,
            layout.metadata_blocks,
            layout.segment_pages,
            mirror.page_ids,
            mirror.checksums,
            mirror.states,
            self._owners,
        )
        with self._lock:
            self._refused.append(first * layout.metadata_blocks + refused)
            self._merge(words, good, generations)

    def _merge(self, words: U64, good: Bool, generations: U64) -> None:
        identities = self._mirror.identities
        room = ENTRIES * min(len(words), _BLOCKS_AT_ONCE)
        start = 0
        while start < len(words):
            identities.reserve(room)
            start, added = _merge_objects(words, good, generations, identities.table, start, room)
            identities.added(added)

    async def clear(self) -> bool:
        """Overwrite the metadata that is not believed; whether there was any.

        What is not known now is neither deleted nor rewritten in the table of retired keys, so it
        must not be found by a later restart that can read it, or finds nothing newer there.

        Raises:
            DeviceError: it could not be overwritten.
        """
        layout = self._layout
        blocks = np.concatenate((np.empty(0, np.int64), *self._refused))
        there = len(blocks) > 0
        zeros = metadata_memory(1)
        for _ in range(CLEARINGS):
            segments, numbers = np.divmod(blocks, layout.metadata_blocks)
            offsets = layout.metadata_offset(0) + segments * layout.segment_bytes
            done = await self._file.write(
                offsets + numbers * BLOCK_BYTES,
                np.full(len(blocks), BLOCK_BYTES),
                zeros,
                np.zeros(len(blocks), np.int64),
            )
            blocks = blocks[done != BLOCK_BYTES]
            if not len(blocks):
                return there
        raise DeviceError(
            f"nvme: {len(blocks)} blocks of metadata can neither be read nor overwritten: "
            "name another file, or set tiers.nvme.rebuild = true"
        )

    def keep(self) -> tuple[U64, I64]:
        """Page ids (u64[n]) and locations (i64[n]) of what belongs to the objects known now."""
        mirror = self._mirror
        page_ids = np.empty(len(mirror.page_ids), np.uint64)
        locations = np.empty(len(mirror.page_ids), np.int64)
        count = 0
        for first in range(0, len(mirror.page_ids), _PAGES_AT_ONCE):
            count = _keep_pages(
                first,
                min(first + _PAGES_AT_ONCE, len(mirror.page_ids)),
                mirror.page_ids,
                mirror.states,
                self._owners,
                mirror.identities.table,
                page_ids,
                locations,
                count,
            )
        return page_ids[:count], locations[:count]

    def _tell(self, segments: int) -> None:
        now_ns = self._clock.now_ns()
        if now_ns - self._told_ns >= PATIENCE_NS:
            self._told_ns = now_ns
            percent = 100 * segments // self._layout.segments
            logger.info("nvme: %d %% of the log's metadata is read", percent)

    def _compile(self) -> None:
        none = np.zeros((0, _BLOCK_WORDS), np.uint64)
        good, numbers = np.zeros(0, np.bool_), np.zeros(0, np.uint64)
        states, table = np.zeros(0, np.uint8), self._mirror.identities.table
        _take_entries(none, good, 0, 1, 1, numbers, numbers, states, numbers)
        _merge_objects(none, good, numbers, table, 0, 0)
        nowhere = np.zeros(0, np.int64)
        _keep_pages(0, 0, numbers, states, numbers, table, numbers, nowhere, 0)


@jit
def _take_entries(
    words: U64,
    believed: Bool,
    first_segment: int,
    blocks_per_segment: int,
    segment_pages: int,
    page_ids: U64,
    checksums: U64,
    states: U8,
    owners: U64,
) -> None:
    """Write what metadata blocks say of pages into the mirror, and a word for each one's object."""
    for block in range(words.shape[0]):
        if not believed[block]:
            continue
        segment = first_segment + block // blocks_per_segment
        page = (block % blocks_per_segment) * ENTRIES
        for place in range(min(ENTRIES, segment_pages - page)):
            at = HEADER_WORDS + place * ENTRY_WORDS
            if (words[block, at + 4] >> _HALF) & _USED == _ZERO:
                continue
            location = segment * segment_pages + page + place
            page_ids[location] = words[block, at + 3]
            checksums[location] = words[block, at + 5]
            states[location] = _STORED
            owners[location] = identity_word(
                words[block, at], words[block, at + 1], words[block, at + 2]
            )


@jit
def _merge_objects(
    words: U64, believed: Bool, generations: U64, table: U64, start: int, room: int
) -> tuple[int, int]:
    """Take objects of metadata blocks into the table, at most ``room`` new ones.

    Returns:
        The block to go on with, and how many objects are new.
    """
    mask = table.shape[0] - 1
    added = 0
    for block in range(start, words.shape[0]):
        if not believed[block]:
            continue
        if added + ENTRIES > room:
            return block, added
        last_row = -1
        for place in range(ENTRIES):
            at = HEADER_WORDS + place * ENTRY_WORDS
            flags = words[block, at + 4] >> _HALF
            if flags & _USED == _ZERO:
                continue
            key = (words[block, at + 3] >> _HALF) + _ONE
            length = (words[block, at + 4] & _LOW_HALF) | ((flags & ~_USED) << _HALF)
            row = last_row
            if row < 0 or table[row, KEY] != key:
                row = home_of(key, mask)
                while table[row, KEY] != _ZERO and table[row, KEY] != key:
                    row = (row + 1) & mask
            if table[row, KEY] == _ZERO:
                added += 1
            elif table[row, GENERATION] >= generations[block]:
                last_row = row
                continue
            table[row, KEY] = key
            table[row, FINGERPRINT] = words[block, at]
            table[row, FINGERPRINT + 1] = words[block, at + 1]
            table[row, VERSION] = words[block, at + 2]
            table[row, GENERATION] = generations[block]
            table[row, LENGTH] = length
            last_row = row
    return words.shape[0], added


@jit
def _keep_pages(
    first: int,
    last: int,
    page_ids: U64,
    states: U8,
    owners: U64,
    table: U64,
    kept_ids: U64,
    kept_locations: I64,
    count: int,
) -> int:
    """Keep pages whose object is in the table, with the same identity; the others are ABSENT."""
    rows = np.empty(last - first, np.int64)
    find_rows(table, page_ids[first:last], rows)
    for location in range(first, last):
        if states[location] != _STORED:
            continue
        row = rows[location - first]
        if row >= 0 and owners[location] == identity_word(
            table[row, FINGERPRINT], table[row, FINGERPRINT + 1], table[row, VERSION]
        ):
            kept_ids[count] = page_ids[location]
            kept_locations[count] = location
            count += 1
        else:
            states[location] = _ABSENT
    return count
