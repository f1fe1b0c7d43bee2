"""The memory backend: a dict of immutable arrays."""

from __future__ import annotations

import secrets
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from kvtier.backend import (
    Capability,
    ObjectBatch,
    ObjectStats,
    PutResult,
    ResidentBackend,
    check_keys,
    check_objects,
    check_options,
    empty_status,
)
from kvtier.errors import ClosedError, SettingsError
from kvtier.pages import U8, U64, PageStatus, check_page_bytes


class _Object(NamedTuple):
    version: int
    pages: U8
    """u8[pages, page_bytes], never written again."""
    place: bytes
    """u64[3], as ``locate`` tells it."""


_PLACE: Final = struct.Struct("=QQQ")
_NOWHERE: Final = _Object(0, np.empty((0, 0), np.uint8), bytes(_PLACE.size))


class MemoryBackend(ResidentBackend):
    """Objects in a dict, lost at ``close``.

    Options:
        capacity_bytes: payload held at most; a put beyond it is FAILED. No bound without it.

    No call suspends, so each is atomic among the coroutines of its loop.
    """

    capability = Capability()

    def __init__(self, page_bytes: int, capacity_bytes: int | None) -> None:
        self.page_bytes = page_bytes
        self._capacity_bytes = capacity_bytes
        self._used_bytes = 0
        self._objects: dict[bytes, _Object] = {}
        # A random start: a version that a client remembers from an earlier process fits nothing.
        self._version = secrets.randbits(62)
        self._closed = False

    @classmethod
    async def open(cls, options: Mapping[str, Any], page_bytes: int) -> MemoryBackend:
        check_options(options, {"capacity_bytes": int}, "memory")
        capacity_bytes = options.get("capacity_bytes")
        if capacity_bytes is not None and capacity_bytes < page_bytes:
            raise SettingsError(
                f"option 'capacity_bytes' of backend 'memory' is {capacity_bytes}: "
                f"one page has {page_bytes}"
            )
        return cls(check_page_bytes(page_bytes), capacity_bytes)

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        self._check_open()
        check_keys(keys, self.capability)
        found = [self._objects.get(key) for key in keys]
        return ObjectStats(
            pages=np.array([len(one.pages) if one else -1 for one in found], np.int64),
            versions=np.array([one.version if one else 0 for one in found], np.uint64),
        )

    def locate(self, keys: Sequence[bytes]) -> U64:
        self._check_open()
        objects = self._objects
        places = bytearray().join([objects.get(key, _NOWHERE).place for key in keys])
        return np.frombuffer(places, np.uint64, 3 * len(keys)).reshape(-1, 3)

    async def put(self, batch: ObjectBatch) -> PutResult:
        self._check_open()
        check_objects(batch, self.page_bytes, self.capability)
        status = empty_status(len(batch))
        versions = np.zeros(len(batch), np.uint64)
        first = 0
        for index, (key, count) in enumerate(
            zip(batch.keys, batch.page_counts.tolist(), strict=True)
        ):
            version = self._keep(key, batch.payload[first : first + count])
            versions[index] = version
            if version == 0:
                status[index] = PageStatus.FAILED
            first += count
        return PutResult(status, versions)

    async def delete(self, keys: Sequence[bytes]) -> U8:
        self._check_open()
        check_keys(keys, self.capability)
        status = empty_status(len(keys))
        for index, key in enumerate(keys):
            old = self._objects.pop(key, None)
            if old is None:
                status[index] = PageStatus.ABSENT
            else:
                self._used_bytes -= old.pages.nbytes
        return status

    async def keys(self) -> AsyncIterator[bytes]:
        self._check_open()
        for key in list(self._objects):
            self._check_open()
            yield key

    async def close(self) -> None:
        self._closed = True
        self._objects.clear()

    def _keep(self, key: bytes, pages: U8) -> int:
        """Hold a copy of ``pages``; returns its version, 0 where there is no room."""
        old = self._objects.get(key)
        used_bytes = self._used_bytes + pages.nbytes - (old.pages.nbytes if old else 0)
        if self._capacity_bytes is not None and used_bytes > self._capacity_bytes:
            return 0
        self._used_bytes = used_bytes
        self._version += 1
        kept = pages.copy()
        place = _PLACE.pack(self._version, len(kept), kept.ctypes.data)
        self._objects[key] = _Object(self._version, kept, place)
        return self._version

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this memory backend is closed: open another")
