"""What objects are beyond this process: the fingerprint and the version behind each object id.

An object id means something only while the cache is open. What is kept longer, the log of an
``nvme`` tier, names objects by fingerprint and version, and asks here for whole batches at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from kvtier.hashing import GOLDEN, PRIME_2
from kvtier.jit import jit, jit_inline
from kvtier.pages import I64, U64

KEY: Final = 0
FINGERPRINT: Final = 1
VERSION: Final = 3
GENERATION: Final = 4
LENGTH: Final = 5
COLUMNS: Final = 6
"""Of a row, u64 each: object id + 1 (0: the row is free), the fingerprint in two words, version,
generation of the log in which it was last seen, and pages in the low half beside flags."""

LOCAL_LENGTH: Final = np.uint64(2 << 32)
"""In the last column: no origin gave the object its version; it was counted here."""

_ROWS_MIN: Final = 64
_PAGE_BITS: Final = np.uint64(32)
_LOW_HALF: Final = np.uint64(0xFFFF_FFFF)
_ONE: Final = np.uint64(1)
_ZERO: Final = np.uint64(0)


def fingerprint_of(key: bytes) -> bytes:
    """The 16 bytes that stand for an object key: its BLAKE2b-128."""
    return hashlib.blake2b(key, digest_size=16).digest()


class Identities:
    """A table from object id to identity, with open addressing (linear probing).

    It grows as it fills.

    Args:
        objects_max: the bound of the directory that fills it.

    Attributes:
        objects_max: as given.
        table: u64[rows, COLUMNS], rows a power of two, at most half of them taken.
    """

    def __init__(self, objects_max: int) -> None:
        self.objects_max = objects_max
        self.table = np.zeros((_ROWS_MIN, COLUMNS), np.uint64)
        self._taken = 0
        find_rows(self.table, np.empty(0, np.uint64), np.empty(0, np.int64))

    def __len__(self) -> int:
        return self._taken

    def __contains__(self, object_id: int) -> bool:
        return find_one(self.table, np.uint64(object_id)) >= 0

    def put(
        self, object_id: int, fingerprint: bytes, version: int, pages: int, *, local: bool
    ) -> None:
        """Say what an object id means; it was not there before."""
        first, second = np.frombuffer(fingerprint, "<u8")
        length = pages | (int(LOCAL_LENGTH) if local else 0)
        row = np.array([object_id + 1, first, second, version, 0, length], np.uint64)
        self.reserve(1)
        self._taken += insert(self.table, row)

    def remove(self, object_id: int) -> None:
        """Forget an object id, if it is known."""
        self._taken -= remove(self.table, np.uint64(object_id))

    def reserve(self, more: int) -> None:
        """Make room for so many more objects."""
        rows = len(self.table)
        while 2 * (self._taken + more) > rows:
            rows *= 2
        if rows != len(self.table):
            self.replace(self.table[self.table[:, KEY] > 0], rows)

    def replace(self, objects: U64, rows: int = _ROWS_MIN) -> None:
        """Hold these objects (u64[n, COLUMNS], distinct ids) alone, in ``rows`` rows or more."""
        while 2 * len(objects) > rows:
            rows *= 2
        self.table = np.zeros((rows, COLUMNS), np.uint64)
        insert_all(self.table, np.ascontiguousarray(objects))
        self._taken = len(objects)

    def added(self, objects: int) -> None:
        """So many were put into the table by compiled code."""
        self._taken += objects


class Restored(NamedTuple):
    """What a log knew of objects when it was opened again.

    Attributes:
        objects: u64[k, COLUMNS], distinct ids and fingerprints.
        next_object_id: no id from here on was in use.
        next_version: no object that was counted here had a version from here on.
    """

    objects: U64
    next_object_id: int
    next_version: int

    @property
    def local(self) -> int:
        """How many of the objects no origin had."""
        return int(np.count_nonzero(self.objects[:, LENGTH] & LOCAL_LENGTH))


class Unopened(NamedTuple):
    """An object that was there before, and that nobody has asked for yet."""

    fingerprint: bytes
    object_id: int
    version: int
    pages: int
    local: bool


class UnopenedObjects:
    """Restored objects, by fingerprint, until they are opened or dropped; true while there are any.

    Args:
        objects: u64[k, COLUMNS], distinct fingerprints.
    """

    def __init__(self, objects: U64) -> None:
        order = np.argsort(objects[:, FINGERPRINT], kind="stable")  # they mostly are sorted
        self._objects = objects[order]
        self._words = np.ascontiguousarray(self._objects[:, FINGERPRINT])
        self._there = np.ones(len(objects), np.bool_)
        self._left = len(objects)
        # By when each was last written: the first of these is dropped first.
        self._by_age: Iterator[int] = iter(np.argsort(self._objects[:, GENERATION], kind="stable"))

    def __len__(self) -> int:
        return self._left

    def find(self, fingerprint: bytes) -> Unopened | None:
        """The object of a fingerprint."""
        row = self._row_of(fingerprint)
        return None if row < 0 else self._at(row)

    def take(self, fingerprint: bytes) -> Unopened | None:
        """The same, and it is no longer there."""
        row = self._row_of(fingerprint)
        return None if row < 0 else self._take(row)

    def take_oldest(self) -> Unopened:
        """The one that was written longest ago; it is no longer there."""
        return self._take(next(row for row in self._by_age if self._there[row]))

    def _row_of(self, fingerprint: bytes) -> int:
        if not self._left:
            return -1
        first, second = np.frombuffer(fingerprint, "<u8")
        row = int(np.searchsorted(self._words, first))
        while row < len(self._words) and self._words[row] == first:
            if self._there[row] and self._objects[row, FINGERPRINT + 1] == second:
                return row
            row += 1
        return -1

    def _take(self, row: int) -> Unopened:
        self._there[row] = False
        self._left -= 1
        return self._at(row)

    def _at(self, row: int) -> Unopened:
        values = self._objects[row]
        return Unopened(
            values[FINGERPRINT : FINGERPRINT + 2].tobytes(),
            int(values[KEY]) - 1,
            int(values[VERSION]),
            int(values[LENGTH] & _LOW_HALF),
            bool(values[LENGTH] & LOCAL_LENGTH),
        )


@jit_inline
def home_of(key: np.uint64, mask: int) -> int:
    """The row in which a key is looked for first; ``mask`` is an i64."""
    return int(np.int64((key * GOLDEN) >> _PAGE_BITS)) & mask


@jit
def find_one(table: U64, object_id: np.uint64) -> int:
    """The row of an object, or -1."""
    mask = table.shape[0] - 1
    key = object_id + _ONE
    row = home_of(key, mask)
    while table[row, KEY] != _ZERO:
        if table[row, KEY] == key:
            return row
        row = (row + 1) & mask
    return -1


@jit
def find_rows(table: U64, page_ids: U64, rows: I64) -> None:
    """The row of the object of each page, or -1; neighbours are mostly of the same one."""
    last_id = _ZERO
    last_row = -1
    for at in range(page_ids.size):
        object_id = page_ids[at] >> _PAGE_BITS
        if at == 0 or object_id != last_id:
            last_id = object_id
            last_row = find_one(table, object_id)
        rows[at] = last_row


@jit
def insert(table: U64, values: U64) -> int:
    """Write a row, over the one with the same key; whether it is new."""
    mask = table.shape[0] - 1
    row = home_of(values[KEY], mask)
    while table[row, KEY] != _ZERO and table[row, KEY] != values[KEY]:
        row = (row + 1) & mask
    new = 1 if table[row, KEY] == _ZERO else 0
    for column in range(COLUMNS):
        table[row, column] = values[column]
    return new


@jit
def insert_all(table: U64, objects: U64) -> None:
    """Write many rows."""
    for at in range(objects.shape[0]):
        insert(table, objects[at])


@jit
def remove(table: U64, object_id: np.uint64) -> int:
    """Take a row out and close the gap, so that no search ends too early; whether it was there."""
    mask = table.shape[0] - 1
    gap = find_one(table, object_id)
    if gap < 0:
        return 0
    row = gap
    while True:
        row = (row + 1) & mask
        if table[row, KEY] == _ZERO:
            break
        home = home_of(table[row, KEY], mask)
        if ((row - home) & mask) >= ((row - gap) & mask):
            for column in range(COLUMNS):
                table[gap, column] = table[row, column]
            gap = row
    table[gap, KEY] = _ZERO
    return 1


@jit_inline
def identity_word(first: np.uint64, second: np.uint64, version: np.uint64) -> np.uint64:
    """One word for a fingerprint and a version; different ones differ but for one in 2^64."""
    return (first + second * PRIME_2) ^ (version * GOLDEN)
