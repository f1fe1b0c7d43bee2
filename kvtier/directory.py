"""The object directory: which object a key names, and under which id its pages are cached."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kvtier.errors import LimitError
from kvtier.pages import (
    I64,
    OBJECT_PAGES_MAX,
    U32,
    U64,
    expand_objects,
    object_ids_of,
    page_indices_of,
)

OBJECT_IDS: Final = 1 << 32


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """One version of one object.

    Attributes:
        key: its name.
        object_id: the high half of its PageIds.
        pages: its length.
        version: as its origin numbers it; 0 where there is no origin.
        at_origin: the origin has it.
    """

    key: bytes
    object_id: int
    pages: int
    version: int
    at_origin: bool

    def page_ids(self) -> U64:
        """Every PageId of the object."""
        return expand_objects(np.array([self.object_id], np.uint32), np.array([self.pages]))


class ObjectDirectory:
    """A bounded map from key to object, and from object id back.

    Ids are given in order and come round after 2^32, so a PageId that outlived its object names
    nothing rather than another object. When the directory is full, the object that was opened
    least recently is retired.
    """

    def __init__(self, objects_max: int) -> None:
        if not 1 <= objects_max < OBJECT_IDS:
            raise LimitError(f"objects_max is {objects_max}: it must be from 1 to {OBJECT_IDS - 1}")
        self.objects_max = objects_max
        self._by_key: OrderedDict[bytes, ObjectEntry] = OrderedDict()
        self._by_id: dict[int, ObjectEntry] = {}
        self._next_id = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, keys: Sequence[bytes]) -> list[ObjectEntry | None]:
        """The present object of each key, None where none is known; counts as opening it."""
        found = [self._by_key.get(key) for key in keys]
        for entry in found:
            if entry is not None:
                self._by_key.move_to_end(entry.key)
        return found

    def knows(self, key: bytes) -> bool:
        """Whether the key can be found; does not count as opening it."""
        return key in self._by_key

    def by_id(self, object_id: int) -> ObjectEntry | None:
        """The object that has this id now."""
        return self._by_id.get(object_id)

    def reserve(self, key: bytes, pages: int, version: int, *, at_origin: bool) -> ObjectEntry:
        """Give a new version of ``key`` an id; nobody finds it by its key until published."""
        if not 1 <= pages <= OBJECT_PAGES_MAX:
            raise LimitError(f"object {key!r} has {pages} pages: it must have 1 to 2^32 - 1")
        entry = ObjectEntry(key, self._new_id(), pages, version, at_origin)
        self._by_id[entry.object_id] = entry
        return entry

    def publish(self, entry: ObjectEntry) -> list[ObjectEntry]:
        """Let a reserved entry be found.

        Returns:
            The entries that it retired: the key's former version, and the object that was opened
            least recently if the directory was full. Their pages are to be invalidated.
        """
        retired = self.remove([entry.key])
        if len(self._by_key) == self.objects_max:
            retired += self.remove([next(iter(self._by_key))])
        self._by_key[entry.key] = entry
        return retired

    def abandon(self, entry: ObjectEntry) -> None:
        """Take back a reserved entry that will not be published."""
        del self._by_id[entry.object_id]

    def remove(self, keys: Sequence[bytes]) -> list[ObjectEntry]:
        """Forget keys; returns the entries that were known."""
        removed = []
        for key in keys:
            entry = self._by_key.pop(key, None)
            if entry is not None:
                del self._by_id[entry.object_id]
                removed.append(entry)
        return removed

    def _new_id(self) -> int:
        while self._next_id in self._by_id:
            self._next_id = (self._next_id + 1) % OBJECT_IDS
        object_id = self._next_id
        self._next_id = (object_id + 1) % OBJECT_IDS
        return object_id

    def clip(self, first: U64, count: I64) -> tuple[list[ObjectEntry], U32, I64]:
        """What the origin has of runs of pages.

        Args:
            first: u64[e], PageId of the first page of each run.
            count: i64[e], its pages.

        Returns:
            The distinct objects; u32[e], the object of each run as an index into them; i64[e], the
            pages of the run inside it, 0 where the origin has no such object.
        """
        ids, number = np.unique(object_ids_of(first), return_inverse=True)
        known = [self._at_origin(int(object_id)) for object_id in ids]
        entries = [entry for entry in known if entry is not None]
        pages = np.array([0 if entry is None else entry.pages for entry in known], np.int64)
        place = np.cumsum([entry is not None for entry in known]) - 1
        left = pages[number] - page_indices_of(first).astype(np.int64)
        return entries, place[number].astype(np.uint32), np.clip(left, 0, count)

    def _at_origin(self, object_id: int) -> ObjectEntry | None:
        entry = self._by_id.get(object_id)
        return entry if entry is not None and entry.at_origin else None
