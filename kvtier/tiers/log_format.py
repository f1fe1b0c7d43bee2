"""How the log of an ``nvme`` tier lies in its file; every field is told in docs/nvme-log.md.

Blocks of 4 KiB, little-endian: a superblock in two copies, the table of retired keys, then segment
after segment: its pages, and behind them the metadata blocks that say what each page is. A block
whose checksum is wrong is as if it was not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kvtier.checksum import xxh64_rows
from kvtier.index.log_geometry import LogGeometry
from kvtier.pages import I64, U8, U64, Bool

Blocks: TypeAlias = NDArray[Any]
"""Structured: one element per block."""

FORMAT_VERSION: Final = 1
BLOCK_BYTES: Final = 4096

SUPERBLOCK_MAGIC: Final = int.from_bytes(b"kvtierLG", "little")
METADATA_MAGIC: Final = int.from_bytes(b"kvtierMD", "little")
RETIRED_MAGIC: Final = int.from_bytes(b"kvtierRK", "little")

USED: Final = 1
"""Flag of an entry: it describes a page; the other one is ``LOCAL_LENGTH`` of the identities."""

SUPERBLOCK: Final = np.dtype(
    [
        ("magic", "<u8"),
        ("format", "<u4"),
        ("page_bytes", "<u4"),
        ("segments", "<u8"),
        ("segment_pages", "<u4"),
        ("retired_blocks", "<u4"),
        ("seed", "<u8"),
        ("file_id", "<u8", (2,)),
        ("reserved", "u1", (4032,)),
        ("checksum", "<u8"),
    ]
)

_HEADER: Final = [
    ("magic", "<u8"),
    ("file_id", "<u8", (2,)),
    ("generation", "<u8"),
    ("segment", "<u4"),
    ("block", "<u4"),
    ("count", "<u4"),
    ("reserved", "<u4"),
    ("sequence", "<u8"),
    ("checksum", "<u8"),
]

ENTRY: Final = np.dtype(
    [
        ("fingerprint", "<u8", (2,)),
        ("version", "<u8"),
        ("page_id", "<u8"),
        ("pages", "<u4"),
        ("flags", "<u4"),
        ("checksum", "<u8"),
    ]
)

RECORD: Final = np.dtype([("fingerprint", "<u8", (2,)), ("version", "<u8"), ("generation", "<u8")])

ENTRIES: Final = 84
"""Entries of a metadata block."""
RECORDS: Final = 126
"""Records of a block of retired keys."""

HEADER_WORDS: Final = 8
"""Words of 8 bytes before the entries or records of a block."""
ENTRY_WORDS: Final = 6
"""Words of an entry, whose fields are words but for two halves of one."""

METADATA: Final = np.dtype([*_HEADER, ("entries", ENTRY, (ENTRIES,))])
RETIRED: Final = np.dtype([*_HEADER, ("records", RECORD, (RECORDS,))])

assert (np.dtype(_HEADER).itemsize, ENTRY.itemsize) == (8 * HEADER_WORDS, 8 * ENTRY_WORDS)
assert {SUPERBLOCK.itemsize, METADATA.itemsize, RETIRED.itemsize} == {BLOCK_BYTES}

_RETIRED_SHARE: Final = 32
_RETIRED_BLOCKS_MIN: Final = 4


@dataclass(frozen=True, slots=True)
class LogLayout:
    """Where everything lies in the file; all offsets in bytes.

    Attributes:
        segments, segment_pages: as in :class:`kvtier.index.log_geometry.LogGeometry`.
        page_bytes: bytes of a page.
    """

    segments: int
    segment_pages: int
    page_bytes: int

    @property
    def locations(self) -> int:
        """Pages that the file has room for."""
        return self.segments * self.segment_pages

    @property
    def metadata_blocks(self) -> int:
        """Metadata blocks of a segment."""
        return -(-self.segment_pages // ENTRIES)

    @property
    def payload_bytes(self) -> int:
        """From the first page of a segment to its metadata."""
        return -(-self.segment_pages * self.page_bytes // BLOCK_BYTES) * BLOCK_BYTES

    @property
    def segment_bytes(self) -> int:
        """From one segment to the next."""
        return self.payload_bytes + self.metadata_blocks * BLOCK_BYTES

    @property
    def retired_blocks(self) -> int:
        """Blocks of retired keys, of which there are two copies: a record for 32 pages."""
        return max(_RETIRED_BLOCKS_MIN, -(-self.locations // (_RETIRED_SHARE * RECORDS)))

    @property
    def retired_offset(self) -> int:
        """Of the first copy of the first block of retired keys, behind two superblocks."""
        return 2 * BLOCK_BYTES

    @property
    def data_offset(self) -> int:
        """Of the first segment."""
        return self.retired_offset + 2 * self.retired_blocks * BLOCK_BYTES

    @property
    def file_bytes(self) -> int:
        """Of the whole file."""
        return self.data_offset + self.segments * self.segment_bytes

    def page_offsets(self, locations: I64) -> I64:
        """i64[n], where pages lie."""
        segments, pages = np.divmod(locations, self.segment_pages)
        offsets: I64 = self.data_offset + segments * self.segment_bytes + pages * self.page_bytes
        return offsets

    def metadata_offset(self, segment: int) -> int:
        """Where the metadata of a segment starts."""
        return self.data_offset + segment * self.segment_bytes + self.payload_bytes


def layout_of(geometry: LogGeometry, page_bytes: int) -> LogLayout:
    """The layout of a log of this geometry."""
    return LogLayout(geometry.segments, geometry.segment_pages, page_bytes)


def new_superblock(layout: LogLayout, seed: int, file_id: U64) -> bytes:
    """What a new file begins with: the superblock, twice."""
    block = np.zeros(1, SUPERBLOCK)
    block["magic"] = SUPERBLOCK_MAGIC
    block["format"] = FORMAT_VERSION
    block["page_bytes"] = layout.page_bytes
    block["segments"] = layout.segments
    block["segment_pages"] = layout.segment_pages
    block["retired_blocks"] = layout.retired_blocks
    block["seed"] = seed
    block["file_id"] = file_id
    seal(block, np.uint64(0))
    return block.tobytes() * 2


def find_superblock(head: bytes) -> Blocks | None:
    """The superblock of a file that begins with ``head``: the first copy that is whole."""
    whole = np.frombuffer(head[: len(head) // BLOCK_BYTES * BLOCK_BYTES], SUPERBLOCK)[:2].copy()
    good = intact(whole, SUPERBLOCK_MAGIC, np.uint64(0))
    return whole[int(np.argmax(good))] if good.any() else None


def seal(blocks: Blocks, seed: np.uint64) -> None:
    """Give blocks (of any kind) their checksums."""
    blocks["checksum"] = 0
    blocks["checksum"] = _sums(blocks, seed)


def intact(blocks: Blocks, magic: int, seed: np.uint64) -> Bool:
    """bool[n], which blocks are of that kind and as they were sealed; their checksums become 0."""
    expected = blocks["checksum"].copy()
    blocks["checksum"] = 0
    good: Bool = (_sums(blocks, seed) == expected) & (blocks["magic"] == magic)
    return good


def _sums(blocks: Blocks, seed: np.uint64) -> U64:
    rows: U8 = blocks.reshape(-1).view(np.uint8).reshape(-1, BLOCK_BYTES)
    return xxh64_rows(rows, None, np.full(len(rows), seed))
