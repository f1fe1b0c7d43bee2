"""The payload that tests and benchmarks write, and recognise.

Each 8-byte word of a page is a function of the object's fingerprint, the page's index and the
word's place, so a page that is another's, shifted, stale or torn at any word does not match. Words
are the outputs of SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number
Generators", OOPSLA 2014), started anew for each page.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np

from kvtier.hashing import GOLDEN
from kvtier.jit import jit, jit_inline
from kvtier.pages import I64, U8, U32, U64, Bool
from kvtier.rows import as_column, call_spans, select_rows

WORD_BYTES: Final = 8

_FACTOR_1: Final = np.uint64(0xBF58_476D_1CE4_E5B9)
_FACTOR_2: Final = np.uint64(0x94D0_49BB_1331_11EB)
_BITS_30: Final = np.uint64(30)
_BITS_27: Final = np.uint64(27)
_BITS_31: Final = np.uint64(31)


def key_fingerprint(key: bytes) -> int:
    """The u64 that stands for an object key: the first 8 bytes of its BLAKE2b, little endian."""
    return int.from_bytes(hashlib.blake2b(key).digest()[:8], "little")


def fill_pattern(out: U8, fingerprints: U64, pages: U32 | U64) -> None:
    """Write the pattern of page ``pages[i]`` of object ``fingerprints[i]`` to row i of ``out``.

    Args:
        out: u8[at least n, row_bytes], C-contiguous, writable; row_bytes a multiple of 8.
        fingerprints: u64[n], see :func:`key_fingerprint`; of key *and version* where both count.
        pages: u32[n] or u64[n], page indices.

    Raises:
        ValueError: a shape or a dtype does not fit.
    """
    starts = _page_starts(fingerprints, pages)
    index = select_rows(out, None, "out", starts.size)
    if not out.flags.writeable:
        raise ValueError("out is read-only: fill_pattern needs a writable array")
    words = _words_of(out)
    for first, last in call_spans(starts.size, out.shape[1]):
        _fill(words, index, starts, first, last)


def check_pattern(rows: U8, row_index: I64 | None, fingerprints: U64, pages: U32 | U64) -> Bool:
    """Which rows hold, in every word, the pattern that :func:`fill_pattern` writes.

    Args:
        rows: u8[any, row_bytes], C-contiguous; row_bytes a multiple of 8.
        row_index: i64[n], the rows to check, or None for rows 0 to n-1.
        fingerprints: u64[n].
        pages: u32[n] or u64[n].

    Returns:
        bool[n].

    Raises:
        ValueError: a shape, a dtype or a row number does not fit.
    """
    starts = _page_starts(fingerprints, pages)
    index = select_rows(rows, row_index, "rows", starts.size)
    words = _words_of(rows)
    matches = np.empty(starts.size, np.bool_)
    for first, last in call_spans(starts.size, rows.shape[1]):
        _check(words, index, starts, matches, first, last)
    return matches


def _words_of(rows: U8) -> U64:
    if rows.shape[1] == 0 or rows.shape[1] % WORD_BYTES:
        raise ValueError(f"rows are {rows.shape[1]} bytes: they must be a multiple of {WORD_BYTES}")
    return rows.view(np.uint64)


def _page_starts(fingerprints: U64, pages: U32 | U64) -> U64:
    """The state from which each page's words are drawn."""
    fingerprints = as_column(fingerprints, np.uint64, "fingerprints")
    if pages.shape != fingerprints.shape or pages.dtype not in (np.uint32, np.uint64):
        raise ValueError(
            f"pages is {pages.dtype}{list(pages.shape)}: "
            f"it must be uint32 or uint64[{fingerprints.size}], as fingerprints are"
        )
    starts = np.empty(fingerprints.size, np.uint64)
    _mix_starts(fingerprints, pages.astype(np.uint64), starts)
    return starts


@jit_inline
def _mix(state: np.uint64) -> np.uint64:
    state = (state ^ (state >> _BITS_30)) * _FACTOR_1
    state = (state ^ (state >> _BITS_27)) * _FACTOR_2
    return state ^ (state >> _BITS_31)


@jit
def _mix_starts(fingerprints: U64, pages: U64, starts: U64) -> None:
    # Mixed twice, so that neither neighbouring pages nor neighbouring fingerprints give streams
    # that are shifted copies of each other.
    for at in range(starts.size):
        starts[at] = _mix(_mix(fingerprints[at] + GOLDEN) ^ (pages[at] * GOLDEN))


@jit
def _fill(words: U64, index: I64, starts: U64, first: int, last: int) -> None:
    for at in range(first, last):
        row = index[at]
        for word in range(words.shape[1]):
            words[row, word] = _mix(starts[at] + np.uint64(word) * GOLDEN)


@jit
def _check(words: U64, index: I64, starts: U64, matches: Bool, first: int, last: int) -> None:
    for at in range(first, last):
        row = index[at]
        difference = np.uint64(0)
        for word in range(words.shape[1]):
            # Gathered, not branched on: this loop compiles to vectors.
            difference |= words[row, word] ^ _mix(starts[at] + np.uint64(word) * GOLDEN)
        matches[at] = difference == np.uint64(0)
