"""Where a log's parts lie in its file, and what its blocks are, byte for byte."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.checksum import xxh64_rows
from kvtier.identities import Identities, fingerprint_of
from kvtier.tiers.log_format import (
    BLOCK_BYTES,
    ENTRIES,
    METADATA,
    METADATA_MAGIC,
    LogLayout,
    find_superblock,
    intact,
    new_superblock,
    seal,
)
from kvtier.tiers.log_mirror import LogMirror, metadata_memory
from kvtier.tiers.log_reading import NAMED, STORED

FILE_ID = np.array([0x1122_3344_5566_7788, 0x99AA_BBCC_DDEE_FF00], np.uint64)


@settings(deadline=None)
@given(
    segments=st.integers(5, 300),
    segment_pages=st.integers(2, 3000),
    page_bytes=st.integers(1, 64).map(lambda blocks: 512 * blocks),
)
def test_pages_and_metadata_never_overlap(
    segments: int, segment_pages: int, page_bytes: int
) -> None:
    layout = LogLayout(segments, segment_pages, page_bytes)
    ends = np.array([segment_pages - 1, segment_pages, layout.locations - 1])
    last, first, very_last = layout.page_offsets(ends).tolist()
    assert layout.page_offsets(np.array([0])).tolist() == [layout.data_offset]
    assert last + page_bytes <= layout.metadata_offset(0)
    assert layout.metadata_offset(0) + layout.metadata_blocks * BLOCK_BYTES <= first
    assert very_last + page_bytes <= layout.metadata_offset(segments - 1)
    assert layout.metadata_blocks * ENTRIES >= segment_pages
    assert layout.file_bytes % BLOCK_BYTES == 0
    assert layout.file_bytes == layout.data_offset + segments * layout.segment_bytes
    for offset in (layout.data_offset, layout.metadata_offset(1), first):
        assert offset % BLOCK_BYTES == 0


def test_a_superblock_is_these_bytes() -> None:
    layout = LogLayout(12, 8, 512)
    head = new_superblock(layout, 5, FILE_ID)
    fields = struct.pack(
        "<8sIIQIIQQQ", b"kvtierLG", 1, 512, 12, 8, layout.retired_blocks, 5, *FILE_ID.tolist()
    )
    block = fields.ljust(BLOCK_BYTES - 8, b"\0")
    rows = np.frombuffer(block + bytes(8), np.uint8).reshape(1, -1)
    checksum = int(xxh64_rows(rows, None, np.zeros(1, np.uint64))[0])
    assert head == (block + struct.pack("<Q", checksum)) * 2


@pytest.mark.parametrize("damaged", [0, 1])
def test_one_copy_of_the_superblock_is_enough(damaged: int) -> None:
    head = bytearray(new_superblock(LogLayout(12, 8, 512), 5, FILE_ID))
    head[damaged * BLOCK_BYTES + 100] ^= 1
    found = find_superblock(bytes(head))
    assert found is not None
    assert (int(found["segments"]), int(found["seed"])) == (12, 5)
    head[(1 - damaged) * BLOCK_BYTES + 4000] ^= 1
    assert find_superblock(bytes(head)) is None


@pytest.mark.parametrize("head", [b"", b"kvtierLG", bytes(2 * BLOCK_BYTES)])
def test_what_is_no_superblock_is_not_taken_for_one(head: bytes) -> None:
    assert find_superblock(head) is None


def test_a_metadata_block_is_these_bytes() -> None:
    layout = LogLayout(5, 100, 512)
    identities = Identities(8)
    identities.put(3, fingerprint_of(b"key"), 9, 50, local=True)
    mirror = LogMirror(layout, identities, FILE_ID)
    mirror.begin(2, 77)
    for location, page_id in ((200 + 84, 3 << 32 | 6), (200 + 86, 4 << 32)):
        mirror.page_ids[location] = page_id
        mirror.checksums[location] = 12345
        mirror.states[location] = STORED | NAMED
    out = metadata_memory(1)
    mirror.compose(2, np.array([1]), out)
    header = struct.pack("<8sQQQIIIIQ", b"kvtierMD", *FILE_ID.tolist(), 77, 2, 1, 1, 0, 0)
    entry = fingerprint_of(b"key") + struct.pack("<QQIIQ", 9, 3 << 32 | 6, 50, 3, 12345)
    content = out.tobytes()
    assert content[:56] == header
    assert content[64:] == entry.ljust(BLOCK_BYTES - 64, b"\0"), "object 4 is not known"
    unsealed = np.frombuffer(content[:56] + bytes(8) + content[64:], np.uint8).reshape(1, -1)
    checksum = int(xxh64_rows(unsealed, None, FILE_ID[:1])[0])
    assert content[56:64] == struct.pack("<Q", checksum)


def test_a_block_that_was_damaged_is_as_if_it_was_not_there() -> None:
    blocks = np.zeros(4, METADATA)
    blocks["magic"] = METADATA_MAGIC
    seal(blocks, FILE_ID[0])
    blocks.view(np.uint8).reshape(4, -1)[1, 99] ^= 1
    blocks["checksum"][2] ^= 1
    other = blocks.copy()
    assert intact(blocks, METADATA_MAGIC, FILE_ID[0]).tolist() == [True, False, False, True]
    assert not intact(other, METADATA_MAGIC, FILE_ID[1]).any(), "another file's"
