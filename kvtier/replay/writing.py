"""Writing the objects of a request trace that do not exist yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kvtier.cache import TieredCache
from kvtier.errors import BackendError
from kvtier.events import EventLog
from kvtier.replay.active import Writes
from kvtier.replay.payload import pattern_pages


class ObjectWriter:
    """Writes what requests have computed, each object once.

    Args:
        cache: on real devices or in virtual time.
        batch_pages: pages written at once, if one object allows.
        objects_max: objects that the cache's directory holds, so most of one call.
        page_bytes: bytes of a page.
        has_payload: False where no bytes move.
        log: is told of every write; None where there is none.
    """

    def __init__(
        self,
        cache: TieredCache[Any],
        *,
        batch_pages: int,
        objects_max: int,
        page_bytes: int,
        has_payload: bool,
        log: EventLog | None = None,
    ) -> None:
        self._cache = cache
        self._batch_pages = batch_pages
        self._objects_max = objects_max
        self._page_bytes = page_bytes
        self._has_payload = has_payload
        self._log = log
        self._writing: set[bytes] = set()

    async def write(self, writes: Sequence[Writes]) -> None:
        """Write objects that do not exist; one that another call is writing is left to it.

        Raises:
            BackendError: the origin refused an object, or cannot be reached.
        """
        pages_of = {
            key: pages
            for step in writes
            for key, pages in zip(step.keys, step.pages, strict=True)
            if key not in self._writing
        }
        self._writing.update(pages_of)
        try:
            await self._write_missing(pages_of)
        finally:
            self._writing.difference_update(pages_of)

    async def _write_missing(self, pages_of: Mapping[bytes, int]) -> None:
        keys = list(pages_of)
        for start in range(0, len(keys), self._objects_max):
            part = keys[start : start + self._objects_max]
            exists = await self._cache.available(part)
            missing = [key for key, there in zip(part, exists.tolist(), strict=True) if not there]
            for batch in self._batches(missing, pages_of):
                await self._write_batch(batch, pages_of)

    def _batches(
        self, keys: Sequence[bytes], pages_of: Mapping[bytes, int]
    ) -> Iterator[list[bytes]]:
        """Cut keys into batches of no more pages than a chain batch has, if one object allows."""
        batch: list[bytes] = []
        pages = 0
        for key in keys:
            if batch and pages + pages_of[key] > self._batch_pages:
                yield batch
                batch, pages = [], 0
            batch.append(key)
            pages += pages_of[key]
        if batch:
            yield batch

    async def _write_batch(self, keys: Sequence[bytes], pages_of: Mapping[bytes, int]) -> None:
        counts = np.array([pages_of[key] for key in keys], np.int64)
        payload = None
        if self._has_payload:
            payload = pattern_pages(keys, counts, self._page_bytes)
        if self._log is not None:
            self._log.put(counts)
        status = await self._cache.write(keys, counts, payload)
        failed = int(np.count_nonzero(status))
        if failed:
            raise BackendError(
                f"the origin refused {failed} of {len(keys)} objects; is there space left?"
            )
