"""The S3 backend: batches as concurrent requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import obstore

from kvtier.backend import (
    Backend,
    Capability,
    ExtentBatch,
    ObjectBatch,
    ObjectStats,
    PutResult,
    check_extents,
    check_keys,
    check_objects,
    empty_status,
)
from kvtier.errors import BackendError
from kvtier.pages import OBJECT_PAGES_MAX, U8, PageStatus, check_page_bytes
from kvtier_s3.faults import StoreError, reason
from kvtier_s3.names import key_bytes_max, key_of
from kvtier_s3.objects import OBJECT_BYTES_MAX, PART_BYTES, S3Objects
from kvtier_s3.opening import OBJECTS, check_store
from kvtier_s3.options import S3Options, parse_options
from kvtier_s3.planning import plan_requests
from kvtier_s3.reading import Reader
from kvtier_s3.requests import Requests

if TYPE_CHECKING:
    from obstore.store import S3Store

_REQUEST_BYTES_MAX: Final = 8 << 20
"""A longer read goes as several requests: one S3 request brings less than a network can."""

_LISTING_KEYS: Final = 1000
"""Keys of one answer to a listing."""


class S3Backend(Backend):
    """Objects in a bucket of an S3-compatible store. Its options: docs/backends.md.

    A request that still fails after its retries is FAILED for the items that it is for. A
    cancelled call ends its requests; what it was putting is there whole, or not at all.
    """

    def __init__(self, store: S3Store, options: S3Options, page_bytes: int) -> None:
        folder = options.folder + OBJECTS
        self.capability = Capability(
            writable=not options.read_only,
            persistent=True,
            shared=True,
            remote=True,
            key_bytes_max=key_bytes_max(folder),
            object_pages_max=min(OBJECT_PAGES_MAX, OBJECT_BYTES_MAX // page_bytes),
        )
        self._store = store
        self._options = options
        self._page_bytes = page_bytes
        self._objects = S3Objects(store, folder, options.place, page_bytes)
        self._requests = Requests(options.requests)
        self._uploading = asyncio.Lock()

    @classmethod
    async def open(cls, options: Mapping[str, Any], page_bytes: int) -> S3Backend:
        check_page_bytes(page_bytes)
        parsed, store = parse_options(options)
        await check_store(store, parsed, page_bytes)
        return cls(store, parsed, page_bytes)

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        self._requests.check_open()
        check_keys(keys, self.capability)
        stats = ObjectStats(np.full(len(keys), -1, np.int64), np.zeros(len(keys), np.uint64))

        async def find(item: int) -> None:
            found = await self._objects.find(keys[item])
            if found is not None:
                stats.pages[item], stats.versions[item] = found

        await self._requests.for_each(range(len(keys)), find)
        return stats

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        self._requests.check_open()
        check_extents(batch, out, self._page_bytes, self.capability)
        if len(batch) == 0:
            return empty_status(0)
        request_pages_max = max(1, _REQUEST_BYTES_MAX // self._page_bytes)
        plan = plan_requests(batch, self._options.merge_gap_pages, request_pages_max)
        reader = Reader(self._objects, batch, plan, out)
        await self._requests.for_each(range(len(plan)), reader.perform)
        return reader.status

    async def put(self, batch: ObjectBatch) -> PutResult:
        self._requests.check_open()
        self._check_writable()
        check_objects(batch, self._page_bytes, self.capability)
        result = PutResult(empty_status(len(batch)), np.zeros(len(batch), np.uint64))
        rows = [0, *np.cumsum(batch.page_counts, dtype=np.int64).tolist()]

        async def publish(item: int) -> None:
            pages = batch.payload[rows[item] : rows[item + 1]]
            version = await self._objects.publish(batch.keys[item], pages)
            if version is None:
                result.status[item] = PageStatus.FAILED
            else:
                result.versions[item] = version

        is_large = batch.page_counts.astype(np.int64) * self._page_bytes > PART_BYTES
        small, large = np.flatnonzero(~is_large).tolist(), np.flatnonzero(is_large).tolist()
        await self._requests.for_each(small, publish)
        # One at a time: an upload in parts is several requests, and holds as many parts in memory.
        for item in large:
            async with self._uploading:
                await self._requests.for_each([item], publish)
        return result

    async def delete(self, keys: Sequence[bytes]) -> U8:
        self._requests.check_open()
        self._check_writable()
        check_keys(keys, self.capability)
        status = np.full(len(keys), PageStatus.ABSENT, np.uint8)
        # Of a key named twice, only the first finds it there.
        first = list({key: item for item, key in reversed(list(enumerate(keys)))}.values())

        async def remove(item: int) -> None:
            status[item] = await self._objects.remove(keys[item])

        await self._requests.for_each(first, remove)
        return status

    async def keys(self) -> AsyncIterator[bytes]:
        self._requests.check_open()
        folder = self._objects.folder
        try:
            async for chunk in obstore.list(self._store, folder, chunk_size=_LISTING_KEYS):
                for meta in chunk:
                    key = key_of(meta["path"].removeprefix(folder))
                    self._requests.check_open()
                    if key is not None:
                        yield key
        except StoreError as error:
            raise BackendError(
                f"origin {self._options.place}: {reason(error, 'list the bucket (s3:ListBucket)')}"
            ) from error

    async def close(self) -> None:
        await self._requests.close()

    def _check_writable(self) -> None:
        if self._options.read_only:
            raise BackendError(
                f"origin {self._options.place}: it was opened with 'read_only': nothing is written"
            )
