"""An origin in virtual time: it remembers which objects exist, and moves no bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kvtier.backend import ObjectBatch, ObjectStats, PutResult
from kvtier.emulator.driver import VirtualDriver
from kvtier.pages import U8, PageStatus


class OriginContents:
    """Which objects an origin has, whoever wrote them.

    Args:
        objects: pages of each key that exists from the start.

    Attributes:
        objects: pages and version of each key.
        version: the last that was given.
    """

    def __init__(self, objects: Mapping[bytes, int]) -> None:
        self.objects = {key: (pages, 1) for key, pages in objects.items()}
        self.version = 1


class ModelledOrigin:
    """The catalogue of a modelled origin, as one cache reaches it.

    Args:
        contents: what it has, shared by all caches that reach it.
        driver: lets time pass while objects are put.
    """

    def __init__(self, contents: OriginContents, driver: VirtualDriver) -> None:
        self._contents = contents
        self._driver = driver

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        """As :meth:`kvtier.backend.Backend.stat`."""
        found = [self._contents.objects.get(key, (-1, 0)) for key in keys]
        return ObjectStats(
            np.array([pages for pages, _ in found], np.int64),
            np.array([version for _, version in found], np.uint64),
        )

    async def put(self, batch: ObjectBatch) -> PutResult:
        """As :meth:`kvtier.backend.Backend.put`, without payload; all see what has arrived."""
        await self._driver.put(batch.page_counts.astype(np.int64))
        contents = self._contents
        contents.version += 1
        for key, pages in zip(batch.keys, batch.page_counts.tolist(), strict=True):
            contents.objects[key] = (pages, contents.version)
        versions = np.full(len(batch), contents.version, np.uint64)
        return PutResult(np.full(len(batch), PageStatus.OK, np.uint8), versions)

    async def delete(self, keys: Sequence[bytes]) -> U8:
        """As :meth:`kvtier.backend.Backend.delete`."""
        found = [self._contents.objects.pop(key, None) is not None for key in keys]
        return np.where(found, np.uint8(PageStatus.OK), np.uint8(PageStatus.ABSENT))
