"""What a read of the log does for each page, compiled: a batch is three calls."""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.hashing import GOLDEN, PRIME_1, PRIME_2, PRIME_3
from kvtier.identities import FINGERPRINT, VERSION, find_one, identity_word
from kvtier.jit import jit
from kvtier.pages import I64, U8, U64, Bool, PageStatus

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

_PAGE_BITS: Final = np.uint64(32)
_PAGE_MASK: Final = np.uint64(0xFFFF_FFFF)
_ONE: Final = np.uint64(1)
_OK: Final = np.uint8(PageStatus.OK)
_FAILED: Final = np.uint8(PageStatus.FAILED)


@jit
def seed_pages(
    table: U64,
    page_ids: U64,
    locations: I64,
    generations: U64,
    segment_pages: int,
    file_word: np.uint64,
    seeds: U64,
    known: Bool,
) -> None:
    """What each page's checksum is seeded with, and whether its object is known.

    From fingerprint and version (of an unknown object, its id), page index, location, generation
    and file; docs/nvme-log.md has the formula.
    """
    last_id = np.uint64(0)
    row = -1
    for at in range(page_ids.size):
        object_id = page_ids[at] >> _PAGE_BITS
        if at == 0 or object_id != last_id:
            last_id = object_id
            row = find_one(table, object_id)
        if row >= 0:
            word = identity_word(
                table[row, FINGERPRINT], table[row, FINGERPRINT + 1], table[row, VERSION]
            )
        else:
            word = (object_id + _ONE) * GOLDEN
        location = locations[at]
        place = np.uint64(location) + generations[location // segment_pages] * PRIME_2
        page = word + (page_ids[at] & _PAGE_MASK) * PRIME_1
        seeds[at] = page ^ (place * PRIME_3 + file_word)
        known[at] = row >= 0


@jit
def look(states: U8, checksums: U64, locations: I64, known: Bool, expected: U64, found: U8) -> int:
    """Where each page is now (``found``: a state), and its checksum; how many are in buffers.

    Of an object that was retired since, nobody can say what was written: its pages are ABSENT.
    """
    buffered = 0
    for at in range(locations.size):
        state = states[locations[at]]
        expected[at] = checksums[locations[at]]
        found[at] = state & STATE
        if known[at] != ((state & NAMED) != 0):
            found[at] = ABSENT
        if DIRTY <= found[at] <= WRITING:
            buffered += 1
    return buffered


@jit
def place_extents(
    first: I64,
    counts: I64,
    segment_pages: int,
    segment_bytes: int,
    data_offset: int,
    page_bytes: int,
    offsets: I64,
    lengths: I64,
) -> bool:
    """Offset and length in bytes of each extent; whether none leaves its segment."""
    inside = True
    for at in range(first.size):
        segment = first[at] // segment_pages
        page = first[at] - segment * segment_pages
        inside &= page + counts[at] <= segment_pages
        offsets[at] = data_offset + segment * segment_bytes + page * page_bytes
        lengths[at] = counts[at] * page_bytes
    return inside


@jit
def judge(
    sums: U64, expected: U64, found: U8, page_rows: I64, arrived: Bool, status: U8
) -> tuple[int, int]:
    """The status of each page; how many are corrupt, and how many were lost when written.

    ``arrived`` (bool[rows], or empty: all of them) says which rows the device filled.
    """
    corrupt = 0
    lost = 0
    for at in range(sums.size):
        state = found[at]
        there = DIRTY <= state <= WRITING
        if state == STORED:
            there = arrived.size == 0 or arrived[page_rows[at]]
        status[at] = _OK
        if not there or sums[at] != expected[at]:
            status[at] = _FAILED
            corrupt += there
            lost += state == LOST
    return corrupt, lost


def compile_all() -> None:
    """Run every kernel on an empty batch, so that no request waits for the compiler."""
    table, words, numbers = np.zeros((1, 6), np.uint64), np.zeros(0, np.uint64), np.zeros(0, int)
    bytes_, flags = np.zeros(0, np.uint8), np.zeros(0, np.bool_)
    seed_pages(table, words, numbers, words, 1, np.uint64(0), words, flags)
    look(bytes_, words, numbers, flags, words, bytes_)
    place_extents(numbers, numbers, 1, 1, 0, 1, numbers, numbers)
    judge(words, words, bytes_, numbers, flags, bytes_)
