"""The object directory: which object a key names, and under which id its pages are cached."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kvtier.errors import LimitError
from kvtier.identities import (
    Identities,
    Restored,
    Unopened,
    UnopenedObjects,
    fingerprint_of,
)
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

RETIRED_AT_ONCE: Final = 256
"""Retired keys that may gather before they are to be remembered."""


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """One version of one object.

    Attributes:
        key: its name.
        object_id: the high half of its PageIds.
        pages: its length.
        version: as its origin numbers it; where there is none, as it is counted here, or 0.
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
    least recently is retired; before it, what was there before this opening and was not asked for.

    Args:
        objects_max: its bound.
        identities: is kept in step with the directory, where objects outlive this process.
        restored: objects that did, under the ids that they had; found by their keys.
        origin_is_truth: only what the origin has is found. Restored objects that no origin had
            stay unknown, and make room first.
    """

    def __init__(
        self,
        objects_max: int,
        identities: Identities | None = None,
        restored: Restored | None = None,
        *,
        origin_is_truth: bool = False,
    ) -> None:
        if not 1 <= objects_max < OBJECT_IDS:
            raise LimitError(f"objects_max is {objects_max}: it must be from 1 to {OBJECT_IDS - 1}")
        self.objects_max = objects_max
        self._by_key: OrderedDict[bytes, ObjectEntry] = OrderedDict()
        self._by_id: dict[int, ObjectEntry] = {}
        self._identities = identities
        self._unopened: UnopenedObjects | None = None
        self._origin_is_truth = origin_is_truth
        self._next_id = 0
        self._next_version = 1
        self._retired: dict[bytes, int] = {}
        """Fingerprint and version of what was retired and is not remembered yet, of no origin."""
        self._urgent: set[bytes] = set()
        """Those of which an older version must not come back."""
        if restored is not None:
            self._unopened = UnopenedObjects(restored.objects)
            self._next_id = restored.next_object_id
            self._next_version = restored.next_version

    def __len__(self) -> int:
        return len(self._by_key) + (len(self._unopened) if self._unopened else 0)

    def find(self, keys: Sequence[bytes]) -> list[ObjectEntry | None]:
        """The present object of each key, None where none is known; counts as opening it."""
        if self._unopened and not self._origin_is_truth:
            self._open_local(keys, self._unopened)
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
        if self._identities is not None and not at_origin:
            version = self._next_version
            self._next_version += 1
        entry = ObjectEntry(key, self._new_id(), pages, version, at_origin)
        self._by_id[entry.object_id] = entry
        if self._identities is not None:
            self._identities.put(
                entry.object_id, fingerprint_of(key), version, pages, local=not at_origin
            )
        return entry

    def revive(self, key: bytes, pages: int, version: int) -> ObjectEntry | None:
        """The origin's object of that version, if it was there before this opening; as reserved."""
        found = self._unopened.find(fingerprint_of(key)) if self._unopened else None
        if found is None or found.local or (found.pages, found.version) != (pages, version):
            return None
        return self._opened(key, found)

    def publish(self, entry: ObjectEntry) -> list[ObjectEntry]:
        """Let a reserved entry be found.

        Returns:
            The entries that it retired: the key's former version, and the object that was opened
            least recently if the directory was full. Their pages are to be invalidated.
        """
        retired = self.remove([entry.key])
        if len(self) >= self.objects_max:
            retired.append(self._remove_oldest())
        self._by_key[entry.key] = entry
        return retired

    def abandon(self, entry: ObjectEntry) -> None:
        """Take back a reserved entry that will not be published."""
        self._retire(entry)
        self._hurry(entry.key)

    def remove(self, keys: Sequence[bytes]) -> list[ObjectEntry]:
        """Forget keys; returns the entries that were known."""
        removed = []
        for key in keys:
            entry = self._by_key.pop(key, None)
            if entry is None and self._unopened:
                found = self._unopened.find(fingerprint_of(key))
                entry = None if found is None else self._opened(key, found)
            if entry is not None:
                self._retire(entry)
                removed.append(entry)
            # Unknown keys too: a full directory may have let them go.
            self._hurry(key)
        return removed

    @property
    def has_to_remember(self) -> bool:
        """A key was rewritten or deleted that no origin has, or many were retired."""
        return bool(self._urgent) or len(self._retired) >= RETIRED_AT_ONCE

    def retired(self) -> list[tuple[bytes, int]]:
        """Fingerprint and version of what was retired and is not remembered, of no origin."""
        return list(self._retired.items())

    def remembered(self, retired: Sequence[tuple[bytes, int]]) -> None:
        """These are remembered now; until then whoever retires one of them again waits as well."""
        for fingerprint, version in retired:
            if self._retired.get(fingerprint) == version:
                del self._retired[fingerprint]
                self._urgent.discard(fingerprint)

    def _hurry(self, key: bytes) -> None:
        if self._retired and (fingerprint := fingerprint_of(key)) in self._retired:
            self._urgent.add(fingerprint)

    def _remove_oldest(self) -> ObjectEntry:
        if self._unopened:
            found = self._unopened.take_oldest()
            entry = ObjectEntry(b"", found.object_id, found.pages, found.version, not found.local)
            self._by_id[entry.object_id] = entry
            self._retire(entry, found.fingerprint)
        else:
            _, entry = self._by_key.popitem(last=False)
            self._retire(entry)
        return entry

    def _retire(self, entry: ObjectEntry, fingerprint: bytes | None = None) -> None:
        del self._by_id[entry.object_id]
        if self._identities is not None:
            self._identities.remove(entry.object_id)
            if not entry.at_origin:
                fingerprint = fingerprint or fingerprint_of(entry.key)
                self._retired[fingerprint] = max(entry.version, self._retired.get(fingerprint, 0))

    def _open_local(self, keys: Sequence[bytes], unopened: UnopenedObjects) -> None:
        """Let objects be found that no origin has to be asked for."""
        for key in keys:
            if key not in self._by_key:
                found = unopened.find(fingerprint_of(key))
                if found is not None and found.local:
                    self._by_key[key] = self._opened(key, found)

    def _opened(self, key: bytes, found: Unopened) -> ObjectEntry:
        assert self._unopened is not None
        self._unopened.take(found.fingerprint)
        entry = ObjectEntry(key, found.object_id, found.pages, found.version, not found.local)
        self._by_id[entry.object_id] = entry
        return entry

    def _new_id(self) -> int:
        while self._is_taken(self._next_id):
            self._next_id = (self._next_id + 1) % OBJECT_IDS
        object_id = self._next_id
        self._next_id = (object_id + 1) % OBJECT_IDS
        return object_id

    def _is_taken(self, object_id: int) -> bool:
        known = self._by_id if self._identities is None else self._identities
        return object_id in known

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
