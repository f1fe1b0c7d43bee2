"""Whole objects come and go: at the origin, if it is written through, and in the tiers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import numpy as np

from kvtier.arguments import check_rows
from kvtier.backend import ObjectBatch
from kvtier.catalogue import Catalogue
from kvtier.directory import ObjectEntry
from kvtier.errors import LimitError
from kvtier.pages import I64, U8, U64, Bool, PageStatus, expand_objects
from kvtier.settings import Settings

Fill: TypeAlias = Callable[[U64, int, U8 | None], Awaitable[None]]
"""Brings pages (u64[n]) of so many objects into the tiers, with their payload."""

Remember: TypeAlias = Callable[[Sequence[tuple[bytes, int]]], Awaitable[None]]
"""Has no restart bring back keys (fingerprint and version) that were retired."""


class Publishing:
    """Writes and deletes objects.

    Args:
        catalogue: knows the objects, and asks the origin.
        fill: of the driver.
        settings: bounds, and whether the origin is written.
        remember: None where nothing outlasts the cache.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        fill: Fill,
        settings: Settings,
        remember: Remember | None,
    ) -> None:
        self._catalogue = catalogue
        self._fill = fill
        self._remember = remember
        self._page_bytes = settings.page_bytes
        self._batch_pages_max = settings.chain.batch_pages_max
        self._writes_origin = settings.origin is not None and settings.origin.write == "through"

    async def write(self, keys: tuple[bytes, ...], counts: I64, payload: U8 | None) -> U8:
        """As of :meth:`kvtier.cache.TieredCache.write`."""
        self._check_write(keys, counts, payload)
        status = np.empty(len(keys), np.uint8)
        ends = np.cumsum(counts)
        start = 0
        while start < len(keys):
            first_row = int(ends[start] - counts[start])
            limit = first_row + self._batch_pages_max
            end = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
            rows = None if payload is None else payload[first_row : int(ends[end - 1])]
            part = slice(start, end)
            async with self._catalogue.change(keys[part]):
                try:
                    status[part] = await self._write_batch(keys[part], counts[part], rows)
                finally:
                    await self._remember_retired()
            start = end
        return status

    async def delete(self, keys: Sequence[bytes]) -> U8:
        """Forget objects; what the origin says of each (u8[k])."""
        async with self._catalogue.change(keys):
            try:
                return await self._delete(keys)
            finally:
                await self._remember_retired()

    async def _delete(self, keys: Sequence[bytes]) -> U8:
        if self._writes_origin:
            return await self._catalogue.delete(keys)
        self._catalogue.remove(keys)
        return np.zeros(len(keys), np.uint8)

    async def _remember_retired(self) -> None:
        directory = self._catalogue.directory
        if self._remember is not None and directory.has_to_remember:
            retired = directory.retired()
            await self._remember(retired)
            directory.remembered(retired)

    async def _write_batch(self, keys: tuple[bytes, ...], counts: I64, payload: U8 | None) -> U8:
        status = np.zeros(len(keys), np.uint8)
        versions = np.zeros(len(keys), np.uint64)
        if self._writes_origin:
            rows = np.empty((0, 0), np.uint8) if payload is None else payload
            batch = ObjectBatch(keys, counts.astype(np.uint32), rows)
            result = await self._catalogue.put(batch)
            status, versions = result.status, result.versions
        directory = self._catalogue.directory
        entries = [
            directory.reserve(key, pages, version, at_origin=self._writes_origin)
            for key, pages, version, one in zip(
                keys, counts.tolist(), versions.tolist(), status.tolist(), strict=True
            )
            if one == PageStatus.OK
        ]
        try:
            await self._fill_tiers(entries, status == PageStatus.OK, counts, payload)
        except asyncio.CancelledError:
            self._catalogue.publish(entries)  # the fills have ended all the same
            raise
        except BaseException:
            for entry in entries:
                directory.abandon(entry)
            self._catalogue.remove(keys)
            raise
        self._catalogue.publish(entries)
        return status

    async def _fill_tiers(
        self, entries: Sequence[ObjectEntry], chosen: Bool, counts: I64, payload: U8 | None
    ) -> None:
        ids = np.array([entry.object_id for entry in entries], np.uint32)
        page_ids = expand_objects(ids, counts[chosen])
        if payload is not None and not chosen.all():
            payload = payload[np.repeat(chosen, counts)]
        objects, size = len(entries), self._batch_pages_max
        for start in range(0, len(page_ids), size):
            part = slice(start, start + size)
            part_payload = None if payload is None else payload[part]
            await self._fill(page_ids[part], objects, part_payload)
            objects = 0

    def _check_write(self, keys: Sequence[bytes], counts: I64, payload: U8 | None) -> None:
        if len(set(keys)) != len(keys) or len(counts) != len(keys):
            raise LimitError("write: keys must be distinct, with a page count for each")
        if len(counts) and int(counts.min()) < 1:
            raise LimitError("write: an object has at least 1 page")
        expected = (int(counts.sum()), self._page_bytes)
        if payload is not None:
            check_rows("write: payload", payload, expected, written=False)
