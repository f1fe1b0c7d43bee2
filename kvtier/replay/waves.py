"""The default drive: waves, as a GPU works.

Each round merges the next batch of every active request into one batch of the chain for each
purpose, and waits for it and its fills. No decision depends on time, so a replay and a simulation
decide alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kvtier.cache import TieredCache
from kvtier.errors import BackendError
from kvtier.pages import U8, U64, Purpose
from kvtier.replay.active import ActiveRequest, Reads, Step, Writes
from kvtier.replay.payload import Verifier, pattern_pages


class Waves:
    """Drives requests into a cache.

    Args:
        cache: on real devices or in virtual time.
        concurrency: requests active at once.
        batch_pages: pages of one chain batch; a larger wave is cut.
        objects_max: objects that the cache's directory holds, so most of one call.
        page_bytes: bytes of a page.
        verifier: checks what was read; None in virtual time.
        after_wave: called with the number of requests finished so far.
    """

    def __init__(
        self,
        cache: TieredCache[Any],
        *,
        concurrency: int,
        batch_pages: int,
        objects_max: int,
        page_bytes: int,
        verifier: Verifier | None,
        after_wave: Callable[[int], None],
    ) -> None:
        self._cache = cache
        self._concurrency = concurrency
        self._batch_pages = batch_pages
        self._objects_max = objects_max
        self._page_bytes = page_bytes
        self._verifier = verifier
        self._after_wave = after_wave
        self._rows: U8 | None = None

    async def drive(self, requests: AsyncIterator[ActiveRequest]) -> None:
        """Drive every request to its end; a finished one makes room for the next at once."""
        active: list[Iterator[Step]] = []
        finished = 0
        while True:
            steps = [next(request, None) for request in active]
            active = [request for request, step in zip(active, steps, strict=True) if step]
            finished += len(steps) - len(active)
            wave = [step for step in steps if step]
            while len(active) < self._concurrency:
                request = await anext(requests, None)
                if request is None:
                    break
                begun = request.steps()
                step = next(begun, None)
                if step is None:
                    finished += 1
                    continue
                active.append(begun)
                wave.append(step)
            if not wave:
                break
            await self._wave(wave)
            self._after_wave(finished)
            await asyncio.sleep(0)  # virtual time never waits, and Ctrl-C must be heard
        self._after_wave(finished)

    async def _wave(self, steps: Sequence[Step]) -> None:
        reads: dict[Purpose, list[U64]] = {purpose: [] for purpose in Purpose}
        for step in steps:
            if isinstance(step, Reads):
                reads[step.purpose].append(step.page_ids)
        for purpose, parts in reads.items():
            if parts:
                await self._read(np.concatenate(parts), purpose)
        writes = [step for step in steps if isinstance(step, Writes)]
        if writes:
            await self._write(writes)

    async def _read(self, page_ids: U64, purpose: Purpose) -> None:
        for start in range(0, len(page_ids), self._batch_pages):
            part = page_ids[start : start + self._batch_pages]
            if self._verifier is None:
                await self._cache.read_into(part, None, purpose=purpose)
            else:
                rows = self._buffer(len(part))
                status = await self._cache.read_into(part, rows, purpose=purpose)
                self._verifier.check(part, status, rows)
            # A fill under way would hold slots for a time that no two runs share.
            await self._cache.drain()

    async def _write(self, writes: Sequence[Writes]) -> None:
        """Write objects that do not exist; several requests may compute the same block."""
        pages_of = {
            key: pages for step in writes for key, pages in zip(step.keys, step.pages, strict=True)
        }
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
        if self._verifier is not None:
            payload = pattern_pages(keys, counts, self._page_bytes)
        status = await self._cache.write(keys, counts, payload)
        failed = int(np.count_nonzero(status))
        if failed:
            raise BackendError(
                f"the origin refused {failed} of {len(keys)} objects; is there space left?"
            )

    def _buffer(self, rows: int) -> U8:
        """Memory to read into, kept from wave to wave."""
        if self._rows is None or len(self._rows) < rows:
            self._rows = np.empty((rows, self._page_bytes), np.uint8)
        return self._rows[:rows]
