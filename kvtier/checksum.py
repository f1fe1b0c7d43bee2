"""XXH64 of rows of bytes.

The algorithm of Yann Collet, as its specification gives it
(https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md, "XXH64 Algorithm Description"),
for inputs that are whole stripes of 32 bytes, as pages are.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.hashing import PRIME_1, PRIME_2, PRIME_3, PRIME_4
from kvtier.jit import jit, jit_inline
from kvtier.pages import I64, U8, U64
from kvtier.prefetch import prefetch_at
from kvtier.rows import as_column, call_spans, memcpy, select_rows

STRIPE_BYTES: Final = 32
STRIPE_WORDS: Final = 4

_PRIME_SUM: Final = np.uint64((int(PRIME_1) + int(PRIME_2)) % (1 << 64))
_WORD_BITS: Final = np.uint64(64)
_BITS_29: Final = np.uint64(29)
_BITS_32: Final = np.uint64(32)
_BITS_33: Final = np.uint64(33)


def xxh64_rows(rows: U8, row_index: I64 | None, seeds: U64) -> U64:
    """XXH64 of ``row_bytes`` bytes, once per selected row.

    Args:
        rows: u8[any, row_bytes], C-contiguous; row_bytes a multiple of 32, at least 32.
        row_index: i64[n], the rows to hash, or None for rows 0 to n-1.
        seeds: u64[n], a seed for each.

    Returns:
        u64[n].

    Raises:
        ValueError: a shape, a dtype or a row number does not fit.
    """
    seeds = as_column(seeds, np.uint64, "seeds")
    index = select_rows(rows, row_index, "rows", seeds.size)
    row_bytes = rows.shape[1]
    if row_bytes == 0 or row_bytes % STRIPE_BYTES:
        raise ValueError(f"rows are {row_bytes} bytes: they must be a multiple of {STRIPE_BYTES}")
    stripes = _stripes(rows)
    sums = np.empty(seeds.size, np.uint64)
    for first, last in call_spans(seeds.size, row_bytes):
        _hash_rows(stripes, index, seeds, sums, first, last)
    return sums


def copy_and_sum(target: U8, target_rows: I64, source: U8, source_rows: I64, seeds: U64) -> U64:
    """Copy row ``source_rows[i]`` of ``source`` to ``target_rows[i]`` of ``target``, and sum it.

    Args:
        target: u8[t, row_bytes], C-contiguous, writable, on a word; it must not overlap ``source``.
        target_rows: i64[n], distinct.
        source: u8[s, row_bytes], C-contiguous, anywhere.
        source_rows: i64[n].
        seeds: u64[n], a seed for each.

    Returns:
        u64[n], as of :func:`xxh64_rows`.

    Raises:
        ValueError: a shape, a dtype or a row number does not fit; nothing was copied then.
    """
    seeds = as_column(seeds, np.uint64, "seeds")
    to = select_rows(target, target_rows, "target", seeds.size)
    origin = select_rows(source, source_rows, "source", seeds.size)
    row_bytes = target.shape[1]
    if row_bytes == 0 or row_bytes % STRIPE_BYTES or source.shape[1] != row_bytes:
        raise ValueError(
            f"rows are {row_bytes} and {source.shape[1]} bytes: "
            f"they must be the same multiple of {STRIPE_BYTES}"
        )
    stripes = _stripes(target)
    sums = np.empty(seeds.size, np.uint64)
    for first, last in call_spans(seeds.size, row_bytes):
        _copy_and_hash(stripes, to, source.ctypes.data, origin, seeds, sums, first, last)
    return sums


def _stripes(rows: U8) -> U64:
    """The same memory as u64[rows, stripes, STRIPE_WORDS]."""
    return rows.view(np.uint64).reshape(len(rows), rows.shape[1] // STRIPE_BYTES, STRIPE_WORDS)


@jit_inline
def _rotate(word: np.uint64, bits: int) -> np.uint64:
    left = np.uint64(bits)
    return (word << left) | (word >> (_WORD_BITS - left))


@jit_inline
def _round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return _rotate(lane + word * PRIME_2, 31) * PRIME_1


@jit_inline
def _merge(total: np.uint64, lane: np.uint64) -> np.uint64:
    return (total ^ _round(np.uint64(0), lane)) * PRIME_1 + PRIME_4


@jit_inline
def _avalanche(total: np.uint64) -> np.uint64:
    total = (total ^ (total >> _BITS_33)) * PRIME_2
    total = (total ^ (total >> _BITS_29)) * PRIME_3
    return total ^ (total >> _BITS_32)


@jit_inline
def _hash_row(stripes: U64, row: int, seed: np.uint64, ahead: int) -> np.uint64:
    """The sum of a row, while as many bytes from address ``ahead`` on are loaded.

    Memory is idle while a row is hashed; hashing would wait for it at the next one.
    """
    count = stripes.shape[1]
    lane_1 = seed + _PRIME_SUM
    lane_2 = seed + PRIME_2
    lane_3 = seed
    lane_4 = seed - PRIME_1
    for stripe in range(np.uint64(count)):  # unsigned: no index is asked whether it is negative
        prefetch_at(ahead)
        ahead += STRIPE_BYTES
        lane_1 = _round(lane_1, stripes[row, stripe, 0])
        lane_2 = _round(lane_2, stripes[row, stripe, 1])
        lane_3 = _round(lane_3, stripes[row, stripe, 2])
        lane_4 = _round(lane_4, stripes[row, stripe, 3])
    total = _rotate(lane_1, 1) + _rotate(lane_2, 7)
    total = total + _rotate(lane_3, 12) + _rotate(lane_4, 18)
    total = _merge(_merge(_merge(_merge(total, lane_1), lane_2), lane_3), lane_4)
    return _avalanche(total + np.uint64(count * STRIPE_BYTES))


@jit
def _hash_rows(stripes: U64, index: I64, seeds: U64, sums: U64, first: int, last: int) -> None:
    row_bytes = stripes.shape[1] * STRIPE_BYTES
    for at in range(first, last):
        ahead = stripes.ctypes.data + index[min(at + 1, last - 1)] * row_bytes
        sums[at] = _hash_row(stripes, index[at], seeds[at], ahead)


@jit
def _copy_and_hash(
    stripes: U64,
    target_rows: I64,
    source: int,
    source_rows: I64,
    seeds: U64,
    sums: U64,
    first: int,
    last: int,
) -> None:
    # The source by its address: a read-only or unaligned one needs no second compilation.
    row_bytes = stripes.shape[1] * STRIPE_BYTES
    for at in range(first, last):
        row = target_rows[at]
        memcpy(
            np.uint64(stripes.ctypes.data + row * row_bytes),
            np.uint64(source + source_rows[at] * row_bytes),
            np.uint64(row_bytes),
        )
        ahead = source + source_rows[min(at + 1, last - 1)] * row_bytes
        sums[at] = _hash_row(stripes, row, seeds[at], ahead)
