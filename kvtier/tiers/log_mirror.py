"""What the log should hold, in memory: so that a read is one operation, and is verified."""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.identities import FINGERPRINT, LENGTH, VERSION, Identities, identity_words
from kvtier.jit import jit
from kvtier.pages import I64, U8, U64, Bool
from kvtier.rows import aligned_rows
from kvtier.tiers.log_format import (
    BLOCK_BYTES,
    ENTRIES,
    METADATA,
    METADATA_MAGIC,
    USED,
    Blocks,
    LogLayout,
    seal,
)

ABSENT: Final = 0
"""Nothing was written to the location since its segment was opened."""
DIRTY: Final = 1
"""The page is in a buffer only."""
WRITING: Final = 2
"""The page is in a buffer, and on its way to the device."""
STORED: Final = 3
"""The page is on the device."""
LOST: Final = 4
"""The device failed to write the page."""

NAMED: Final = 8
"""Added to a state: the page's identity was known when it was written."""
STATE: Final = 7

_PAGE_MASK: Final = np.uint64(0xFFFF_FFFF)
_PRIME_1: Final = np.uint64(0x9E37_79B1_85EB_CA87)
_PRIME_2: Final = np.uint64(0xC2B2_AE3D_27D4_EB4F)
_PRIME_3: Final = np.uint64(0x1656_67B1_9E37_79F9)


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
        none, nowhere = np.empty(0, np.uint64), np.empty(0, np.int64)
        self.seeds(none, nowhere, self.generations)  # compiled now

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
        rows = self.identities.rows_of(page_ids)
        words = np.empty(len(page_ids), np.uint64)
        identity_words(self.identities.table, rows, page_ids, words)
        _add_places(
            words, page_ids, locations, generations, self._layout.segment_pages, self.file_id[0]
        )
        return words, rows >= 0

    def compose(self, segment: int, blocks: I64, out: U8) -> None:
        """Write metadata blocks of a segment, as they should be on the device now.

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
        pages = blocks[:, None] * ENTRIES + np.arange(ENTRIES)
        inside = pages < self._layout.segment_pages
        locations = segment * self._layout.segment_pages + pages
        inside[inside] = self.states[locations[inside]] == STORED | NAMED
        entries = metadata["entries"]
        for number in range(len(blocks)):
            metadata["count"][number] = self._describe(
                entries[number], locations[number], np.flatnonzero(inside[number])
            )
        seal(metadata, self.file_id[0])

    def _describe(self, entries: Blocks, locations: I64, places: I64) -> int:
        """Fill in a block's entries at ``places``; an object that is known no more has none."""
        page_ids = self.page_ids[locations[places]]
        rows = self.identities.rows_of(page_ids)
        places, page_ids, rows = places[rows >= 0], page_ids[rows >= 0], rows[rows >= 0]
        known = self.identities.table[rows]
        entries["fingerprint"][places] = known[:, FINGERPRINT : FINGERPRINT + 2]
        entries["version"][places] = known[:, VERSION]
        entries["page_id"][places] = page_ids
        entries["pages"][places] = known[:, LENGTH] & _PAGE_MASK
        entries["flags"][places] = (known[:, LENGTH] >> np.uint64(32)) | np.uint64(USED)
        entries["checksum"][places] = self.checksums[locations[places]]
        return len(places)


def metadata_memory(blocks: int) -> U8:
    """u8[blocks, 4096], from which metadata is written."""
    return aligned_rows(blocks, BLOCK_BYTES)


@jit
def _add_places(
    words: U64,
    page_ids: U64,
    locations: I64,
    generations: U64,
    segment_pages: int,
    file_word: np.uint64,
) -> None:
    for at in range(words.size):
        location = locations[at]
        place = np.uint64(location) + generations[location // segment_pages] * _PRIME_2
        page = words[at] + (page_ids[at] & _PAGE_MASK) * _PRIME_1
        words[at] = page ^ (place * _PRIME_3 + file_word)
