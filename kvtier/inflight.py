"""The bounded table of pages that are being fetched.

An open-addressing hash table in arrays: linear probing, at most half full, and deletion by shifting
back what follows (Knuth, TAOCP 3, 6.4, Algorithm R), so it holds no tombstones.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvtier.errors import LimitError
from kvtier.hashing import GOLDEN
from kvtier.jit import jit_in_place, jit_inline
from kvtier.pages import I64, U64
from kvtier.prefetch import prefetch
from kvtier.rows import as_column

CARRIER_MAX: Final = (1 << 31) - 1
POSITION_MAX: Final = (1 << 32) - 1

_PREFETCH_ROWS: Final = 16
"""As of the probe of an index."""

_FREE: Final = np.uint64(0)
_HIGH_HALF: Final = np.uint64(32)
_LOW_HALF: Final = np.uint64(POSITION_MAX)
_ONE: Final = np.uint64(1)

Entries = NDArray[np.uint64]
"""u64[2**k, 2], a page id and ``(carrier + 1) << 32 | position``, 0 where the entry is free: all
that a search needs of a page lies in one cache line."""


class InflightTable:
    """Which fetch carries a page, and where: from PageId to (carrier, position).

    Any u64 can be a page id. One owner: calls must not overlap.
    """

    def __init__(self, capacity: int) -> None:
        """An empty table, its compiled parts ready.

        Args:
            capacity: most pages it holds, at least 1; 16 bytes for each of 2 to 4 times as many.

        Raises:
            LimitError: ``capacity`` is below 1.
        """
        if capacity < 1:
            raise LimitError(f"an in-flight table for {capacity} pages: give room for at least 1")
        self._capacity = capacity
        self._count = 0
        self._entries: Entries = np.zeros((1 << (2 * capacity - 1).bit_length(), 2), np.uint64)
        self._compile()

    def __len__(self) -> int:
        return self._count

    @property
    def capacity(self) -> int:
        """Most pages at once."""
        return self._capacity

    @property
    def free(self) -> int:
        """Pages that still fit."""
        return self._capacity - self._count

    def find(self, page_ids: U64) -> tuple[I64, I64]:
        """Carriers i64[n], -1 where the page is not here, and positions i64[n] (-1 there too)."""
        page_ids = as_column(page_ids, np.uint64, "page_ids")
        carriers = np.empty(page_ids.size, np.int64)
        positions = np.empty(page_ids.size, np.int64)
        _find_all(self._entries, page_ids, carriers, positions)
        return carriers, positions

    def assign(self, page_ids: U64, carrier: int, positions: I64) -> None:
        """Insert pages, or give those that are here another carrier and position.

        Args:
            page_ids: u64[n], distinct.
            carrier: 0 to ``CARRIER_MAX``; the same for all.
            positions: i64[n], 0 to ``POSITION_MAX``.

        Raises:
            LimitError: they do not all fit; nothing changed.
            ValueError: ``carrier`` or a position is out of range, or the arrays do not go together.
        """
        page_ids = as_column(page_ids, np.uint64, "page_ids")
        positions = as_column(positions, np.int64, "positions")
        if not 0 <= carrier <= CARRIER_MAX or positions.size != page_ids.size:
            raise ValueError(
                f"carrier {carrier} with {page_ids.size} page_ids and {positions.size} positions: "
                f"the carrier must be 0 to {CARRIER_MAX}, and each page needs one position"
            )
        if page_ids.size > self.free:
            absent = _count_absent(self._entries, page_ids)
            if absent > self.free:
                raise LimitError(
                    f"{absent} more pages in flight, but the table of {self._capacity} has room "
                    f"for {self.free}: wait for fetches to end, or raise its capacity"
                )
        added = _assign_all(self._entries, page_ids, carrier, positions)
        if added < 0:
            raise ValueError(f"positions must be 0 to {POSITION_MAX}")
        self._count += added

    def remove(self, page_ids: U64) -> None:
        """Forget pages; those that are not here are ignored."""
        page_ids = as_column(page_ids, np.uint64, "page_ids")
        self._count -= _remove_all(self._entries, page_ids)

    def clear(self) -> None:
        """Forget all pages."""
        self._entries.fill(_FREE)
        self._count = 0

    def page_ids(self) -> U64:
        """u64[len(self)], the pages that are here, in no order."""
        here: U64 = self._entries[self._entries[:, 1] != _FREE, 0]
        return here

    def _compile(self) -> None:
        """Run every kernel on an empty batch, so that no request waits for the compiler."""
        none = np.empty(0, np.uint64)
        self.find(none)
        self.assign(none, 0, np.empty(0, np.int64))
        _count_absent(self._entries, none)
        self.remove(none)


@jit_inline
def _home(entries: Entries, page_id: np.uint64) -> int:
    """Where the search for a page starts.

    Fibonacci hashing (Knuth, TAOCP 3, 6.4), its high bits taken by a multiplication: it spreads
    the neighbouring ids of an object evenly.
    """
    return int(np.int64(((page_id * GOLDEN) >> _HIGH_HALF) * np.uint64(len(entries)) >> _HIGH_HALF))


@jit_inline
def _entry_of(entries: Entries, page_id: np.uint64) -> int:
    """The page's entry, or the free one where it belongs."""
    entry = _home(entries, page_id)
    while entries[entry, 1] != _FREE and entries[entry, 0] != page_id:
        entry = (entry + 1) & (len(entries) - 1)
    return entry


@jit_inline
def _prefetch_ahead(entries: Entries, page_ids: U64, row: int) -> None:
    ahead = page_ids[min(row + _PREFETCH_ROWS, page_ids.size - 1)]
    prefetch(entries, 2 * _home(entries, ahead))


@jit_in_place
def _find_all(entries: Entries, page_ids: U64, carriers: I64, positions: I64) -> None:
    for row in range(page_ids.size):
        _prefetch_ahead(entries, page_ids, row)
        word = entries[_entry_of(entries, page_ids[row]), 1]
        carriers[row] = np.int64(word >> _HIGH_HALF) - 1
        positions[row] = np.int64(word & _LOW_HALF) if word != _FREE else -1


@jit_in_place
def _count_absent(entries: Entries, page_ids: U64) -> int:
    absent = 0
    for page_id in page_ids:
        if entries[_entry_of(entries, page_id), 1] == _FREE:
            absent += 1
    return absent


@jit_in_place
def _assign_all(entries: Entries, page_ids: U64, carrier: int, positions: I64) -> int:
    """Returns how many pages are new, or -1 if a position is out of range; nothing changed then."""
    for row in range(page_ids.size):
        if positions[row] < 0 or positions[row] > POSITION_MAX:
            return -1
    added = 0
    high = (np.uint64(carrier) + _ONE) << _HIGH_HALF
    for row in range(page_ids.size):
        _prefetch_ahead(entries, page_ids, row)
        entry = _entry_of(entries, page_ids[row])
        if entries[entry, 1] == _FREE:
            entries[entry, 0] = page_ids[row]
            added += 1
        entries[entry, 1] = high | np.uint64(positions[row])
    return added


@jit_in_place
def _remove_all(entries: Entries, page_ids: U64) -> int:
    """Returns how many pages were here."""
    removed = 0
    for row in range(page_ids.size):
        _prefetch_ahead(entries, page_ids, row)
        entry = _entry_of(entries, page_ids[row])
        if entries[entry, 1] != _FREE:
            _close_gap(entries, entry)
            removed += 1
    return removed


@jit_inline
def _close_gap(entries: Entries, gap: int) -> None:
    """Free an entry, and move back each follower whose search would stop there."""
    mask = len(entries) - 1
    entry = (gap + 1) & mask
    while entries[entry, 1] != _FREE:
        home = _home(entries, entries[entry, 0])
        if (entry - home) & mask >= (entry - gap) & mask:
            entries[gap, 0] = entries[entry, 0]
            entries[gap, 1] = entries[entry, 1]
            gap = entry
        entry = (entry + 1) & mask
    entries[gap, 1] = _FREE
