"""The bounded table of pages that are being fetched.

An open-addressing hash table in arrays: linear probing, at most half full, and deletion by shifting
back what follows (Knuth, TAOCP 3, 6.4, Algorithm R), so it holds no tombstones.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from kvtier.errors import LimitError
from kvtier.jit import jit, jit_inline
from kvtier.pages import I64, U64, Bool
from kvtier.rows import as_column

_GOLDEN: Final = np.uint64(0x9E37_79B9_7F4A_7C15)


class _Table(NamedTuple):
    """Arrays of one length, ``2**(64 - hash_shift)``; ``used`` says which entries count."""

    page_ids: U64
    carriers: I64
    positions: I64
    used: Bool
    hash_shift: np.uint64


class InflightTable:
    """Which fetch carries a page, and where: from PageId to (carrier, position).

    Any u64 can be a page id. One owner: calls must not overlap.
    """

    def __init__(self, capacity: int) -> None:
        """An empty table, its compiled parts ready.

        Args:
            capacity: most pages it holds, at least 1; 25 bytes for each of 2 to 4 times as many.

        Raises:
            LimitError: ``capacity`` is below 1.
        """
        if capacity < 1:
            raise LimitError(f"an in-flight table for {capacity} pages: give room for at least 1")
        self._capacity = capacity
        self._count = 0
        length_bits = (2 * capacity - 1).bit_length()
        length = 1 << length_bits
        self._table = _Table(
            np.zeros(length, np.uint64),
            np.zeros(length, np.int64),
            np.zeros(length, np.int64),
            np.zeros(length, np.bool_),
            np.uint64(64 - length_bits),
        )
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
        _find_all(self._table, page_ids, carriers, positions)
        return carriers, positions

    def assign(self, page_ids: U64, carrier: int, positions: I64) -> None:
        """Insert pages, or give those that are here another carrier and position.

        Args:
            page_ids: u64[n], distinct.
            carrier: 0 or more; the same for all.
            positions: i64[n].

        Raises:
            LimitError: they do not all fit; nothing changed.
            ValueError: ``carrier`` is negative, or the arrays do not go together.
        """
        page_ids = as_column(page_ids, np.uint64, "page_ids")
        positions = as_column(positions, np.int64, "positions")
        if carrier < 0 or positions.size != page_ids.size:
            raise ValueError(
                f"carrier {carrier} with {page_ids.size} page_ids and {positions.size} positions: "
                "the carrier must be 0 or more, and each page needs one position"
            )
        if page_ids.size > self.free:
            absent = _count_absent(self._table, page_ids)
            if absent > self.free:
                raise LimitError(
                    f"{absent} more pages in flight, but the table of {self._capacity} has room "
                    f"for {self.free}: wait for fetches to end, or raise its capacity"
                )
        self._count += _assign_all(self._table, page_ids, carrier, positions)

    def remove(self, page_ids: U64) -> None:
        """Forget pages; those that are not here are ignored."""
        page_ids = as_column(page_ids, np.uint64, "page_ids")
        self._count -= _remove_all(self._table, page_ids)

    def clear(self) -> None:
        """Forget all pages."""
        self._table.used.fill(False)
        self._count = 0

    def page_ids(self) -> U64:
        """u64[len(self)], the pages that are here, in no order."""
        return self._table.page_ids[self._table.used]

    def _compile(self) -> None:
        """Run every kernel on an empty batch, so that no request waits for the compiler."""
        none = np.empty(0, np.uint64)
        self.find(none)
        self.assign(none, 0, np.empty(0, np.int64))
        _count_absent(self._table, none)
        self.remove(none)


@jit_inline
def _home(table: _Table, page_id: np.uint64) -> int:
    """Where the search for a page starts.

    Fibonacci hashing (Knuth, TAOCP 3, 6.4): it spreads the neighbouring ids of an object evenly.
    """
    return int(np.int64((page_id * _GOLDEN) >> table.hash_shift))


@jit_inline
def _entry_of(table: _Table, page_id: np.uint64) -> int:
    """The page's entry, or the unused one where it belongs."""
    entry = _home(table, page_id)
    while table.used[entry] and table.page_ids[entry] != page_id:
        entry = (entry + 1) & (table.used.size - 1)
    return entry


@jit
def _find_all(table: _Table, page_ids: U64, carriers: I64, positions: I64) -> None:
    for row in range(page_ids.size):
        entry = _entry_of(table, page_ids[row])
        here = table.used[entry]
        carriers[row] = table.carriers[entry] if here else -1
        positions[row] = table.positions[entry] if here else -1


@jit
def _count_absent(table: _Table, page_ids: U64) -> int:
    absent = 0
    for page_id in page_ids:
        if not table.used[_entry_of(table, page_id)]:
            absent += 1
    return absent


@jit
def _assign_all(table: _Table, page_ids: U64, carrier: int, positions: I64) -> int:
    """Returns how many pages are new."""
    added = 0
    for row in range(page_ids.size):
        entry = _entry_of(table, page_ids[row])
        if not table.used[entry]:
            table.used[entry] = True
            table.page_ids[entry] = page_ids[row]
            added += 1
        table.carriers[entry] = carrier
        table.positions[entry] = positions[row]
    return added


@jit
def _remove_all(table: _Table, page_ids: U64) -> int:
    """Returns how many pages were here."""
    removed = 0
    for page_id in page_ids:
        entry = _entry_of(table, page_id)
        if table.used[entry]:
            _close_gap(table, entry)
            removed += 1
    return removed


@jit_inline
def _close_gap(table: _Table, gap: int) -> None:
    """Free an entry, and move back each follower whose search would stop there."""
    mask = table.used.size - 1
    entry = (gap + 1) & mask
    while table.used[entry]:
        home = _home(table, table.page_ids[entry])
        if (entry - home) & mask >= (entry - gap) & mask:
            table.page_ids[gap] = table.page_ids[entry]
            table.carriers[gap] = table.carriers[entry]
            table.positions[gap] = table.positions[entry]
            gap = entry
        entry = (entry + 1) & mask
    table.used[gap] = False
