"""What the log should hold, in memory: so that a read is one operation, and is verified."""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.identities import FINGERPRINT, LENGTH, VERSION, Identities
from kvtier.pages import I64, U8, U64, Bool
from kvtier.rows import aligned_rows, as_column
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
from kvtier.tiers.log_reading import ABSENT, NAMED, STORED, seed_pages

_PAGE_MASK: Final = np.uint64(0xFFFF_FFFF)


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
        inside[inside] = self.states[locations[inside]] == (STORED | NAMED)
        of, place = np.nonzero(inside)
        page_ids = self.page_ids[locations[of, place]]
        rows = self.identities.rows_of(page_ids)
        # An object that is known no more has no entry.
        of, place, page_ids, rows = (column[rows >= 0] for column in (of, place, page_ids, rows))
        known = self.identities.table[rows]
        entries = metadata["entries"]
        entries["fingerprint"][of, place] = known[:, FINGERPRINT : FINGERPRINT + 2]
        entries["version"][of, place] = known[:, VERSION]
        entries["page_id"][of, place] = page_ids
        entries["pages"][of, place] = known[:, LENGTH] & _PAGE_MASK
        entries["flags"][of, place] = (known[:, LENGTH] >> np.uint64(32)) | np.uint64(USED)
        entries["checksum"][of, place] = self.checksums[locations[of, place]]
        metadata["count"] = np.bincount(of, minlength=len(blocks))
        seal(metadata, self.file_id[0])


def metadata_memory(blocks: int) -> U8:
    """u8[blocks, 4096], from which metadata is written."""
    return aligned_rows(blocks, BLOCK_BYTES)
