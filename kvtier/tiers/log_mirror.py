"""What the log should hold, in memory: so that a read is one operation, and is verified."""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.identities import FINGERPRINT, LENGTH, VERSION, Identities, find_one
from kvtier.jit import jit
from kvtier.pages import I64, U8, U64, Bool
from kvtier.rows import aligned_rows, as_column
from kvtier.tiers.log_format import (
    BLOCK_BYTES,
    ENTRIES,
    ENTRY_WORDS,
    HEADER_WORDS,
    METADATA,
    METADATA_MAGIC,
    USED,
    Blocks,
    LogLayout,
    seal,
)
from kvtier.tiers.log_reading import ABSENT, NAMED, STORED, WRITING, seed_pages

_HALF: Final = np.uint64(32)
_USED: Final = np.uint64(USED << 32)


class LogMirror:
    """17 bytes per location: which page lies there, its checksum, and how far it has come.

    Args:
        layout: of the file.
        identities: what object ids mean.
        file_id: u64[2], of this file.

    Attributes:
        page_ids: u64[locations].
        checksums: u64[locations], of payload and identity.
        states: u8[locations], a state, and whether the page is ``NAMED``.
        generations: u64[segments], in which each segment was last opened here; 0: never.
    """

    def __init__(self, layout: LogLayout, identities: Identities, file_id: U64) -> None:
        self.page_ids = aligned_rows(layout.locations, 8).view(np.uint64).reshape(-1)
        self.checksums = aligned_rows(layout.locations, 8).view(np.uint64).reshape(-1)
        self.states = aligned_rows(layout.locations, 1).reshape(-1)
        self.generations = np.zeros(layout.segments, np.uint64)
        self.identities = identities
        self.file_id = file_id
        self._layout = layout
        self.compose(0, np.empty(0, np.int64), np.empty((0, BLOCK_BYTES), np.uint8))  # compiled now

    def begin(self, segment: int, generation: int) -> None:
        """Open a segment anew: nothing that was in it counts any more."""
        first = segment * self._layout.segment_pages
        self.states[first : first + self._layout.segment_pages] = ABSENT
        self.generations[segment] = generation

    def seeds(self, page_ids: U64, locations: I64, generations: U64) -> tuple[U64, Bool]:
        """What a page's checksum begins with: the identity of the page and of its place.

        Args:
            page_ids: u64[n].
            locations: i64[n].
            generations: u64[segments].

        Returns:
            u64[n], from fingerprint, version, page index, location, generation and file; and
            bool[n], whether the object is known.
        """
        seeds, known = np.empty(len(page_ids), np.uint64), np.empty(len(page_ids), np.bool_)
        seed_pages(
            self.identities.table,
            as_column(page_ids, np.uint64, "page_ids"),
            as_column(locations, np.int64, "locations"),
            generations,
            self._layout.segment_pages,
            self.file_id[0],
            seeds,
            known,
        )
        return seeds, known

    def compose(self, segment: int, blocks: I64, out: U8) -> None:
        """Write metadata blocks of a segment: of pages on the device, or on their way there.

        Args:
            segment: which.
            blocks: i64[n], numbers of its blocks.
            out: u8[n, 4096].
        """
        metadata: Blocks = out.reshape(-1).view(METADATA)
        metadata[:] = np.zeros((), METADATA)
        metadata["magic"] = METADATA_MAGIC
        metadata["file_id"] = self.file_id
        metadata["generation"] = self.generations[segment]
        metadata["segment"] = segment
        metadata["block"] = blocks
        metadata["count"] = _describe(
            out.reshape(-1).view(np.uint64).reshape(-1, BLOCK_BYTES // 8),
            blocks,
            segment * self._layout.segment_pages,
            self._layout.segment_pages,
            self.page_ids,
            self.checksums,
            self.states,
            self.identities.table,
        )
        seal(metadata, self.file_id[0])


def metadata_memory(blocks: int) -> U8:
    """u8[blocks, 4096], from which metadata is written."""
    return aligned_rows(blocks, BLOCK_BYTES)


@jit
def _describe(
    words: U64,
    blocks: I64,
    first_location: int,
    segment_pages: int,
    page_ids: U64,
    checksums: U64,
    states: U8,
    table: U64,
) -> I64:
    """Fill in the entries of blocks; how many each has. An object known no more has none."""
    counts = np.zeros(blocks.size, np.int64)
    for number in range(blocks.size):
        first_page = blocks[number] * ENTRIES
        for place in range(min(ENTRIES, segment_pages - first_page)):
            location = first_location + first_page + place
            if states[location] != STORED | NAMED and states[location] != WRITING | NAMED:
                continue
            row = find_one(table, page_ids[location] >> _HALF)
            if row < 0:
                continue
            at = HEADER_WORDS + place * ENTRY_WORDS
            words[number, at] = table[row, FINGERPRINT]
            words[number, at + 1] = table[row, FINGERPRINT + 1]
            words[number, at + 2] = table[row, VERSION]
            words[number, at + 3] = page_ids[location]
            words[number, at + 4] = table[row, LENGTH] | _USED
            words[number, at + 5] = checksums[location]
            counts[number] += 1
    return counts
