"""The default drive: waves, as a GPU works.

Each round merges the next batch of every active request into one batch of the chain for each
purpose, and waits for it and its fills. No decision depends on time, so a replay and a simulation
decide alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvtier.cache import TieredCache
from kvtier.pages import U8, U64, Purpose
from kvtier.replay.active import ActiveRequest, Reads, Step, Writes
from kvtier.replay.meter import RequestMeter
from kvtier.replay.payload import Verifier
from kvtier.replay.writing import ObjectWriter


@dataclass(frozen=True, slots=True)
class _Active:
    """A request under way: when it came, and what is left of it."""

    arrival_ns: int
    steps: Iterator[Step]


class Waves:
    """Drives requests into a cache.

    Args:
        cache: on real devices or in virtual time.
        concurrency: requests active at once.
        batch_pages: pages of one chain batch; a larger wave is cut.
        page_bytes: bytes of a page.
        verifier: checks what was read; None in virtual time.
        writer: writes what is missing.
        meter: measures the requests.
        after_round: called after every wave.
    """

    def __init__(
        self,
        cache: TieredCache[Any],
        *,
        concurrency: int,
        batch_pages: int,
        page_bytes: int,
        verifier: Verifier | None,
        writer: ObjectWriter,
        meter: RequestMeter,
        after_round: Callable[[], None],
    ) -> None:
        self._cache = cache
        self._concurrency = concurrency
        self._batch_pages = batch_pages
        self._page_bytes = page_bytes
        self._verifier = verifier
        self._writer = writer
        self._meter = meter
        self._after_round = after_round
        self._rows: U8 | None = None

    async def drive(self, requests: AsyncIterator[ActiveRequest]) -> None:
        """Drive every request to its end; a finished one makes room for the next at once."""
        active: list[_Active] = []
        while True:
            steps = [next(one.steps, None) for one in active]
            wave = [step for step in steps if step is not None]
            if len(wave) < len(active):
                begun, active = active, []
                for one, step in zip(begun, steps, strict=True):
                    if step is None:
                        self._meter.end(one.arrival_ns)
                    else:
                        active.append(one)
            while len(active) < self._concurrency:
                request = await anext(requests, None)
                if request is None:
                    break
                one = _Active(self._meter.begin(), request.steps())
                await request.begin()
                step = next(one.steps, None)
                if step is None:
                    self._meter.end(one.arrival_ns)
                    continue
                active.append(one)
                wave.append(step)
            if not wave:
                break
            start_ns = self._meter.now_ns
            await self._wave(wave)
            self._meter.waited(len(wave) * (self._meter.now_ns - start_ns))
            self._after_round()
            await asyncio.sleep(0)  # hits in memory never wait, and Ctrl-C must be heard
        self._after_round()

    async def _wave(self, steps: Sequence[Step]) -> None:
        await self._cache.driver.prepare(len(steps))
        reads: dict[Purpose, list[U64]] = {purpose: [] for purpose in Purpose}
        for step in steps:
            if isinstance(step, Reads):
                reads[step.purpose].append(step.page_ids)
        for purpose, parts in reads.items():
            if parts:
                await self._read(np.concatenate(parts), purpose)
        writes = [step for step in steps if isinstance(step, Writes)]
        if writes:
            await self._writer.write(writes)

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

    def _buffer(self, rows: int) -> U8:
        """Memory to read into, kept from wave to wave."""
        if self._rows is None or len(self._rows) < rows:
            self._rows = np.empty((rows, self._page_bytes), np.uint8)
        return self._rows[:rows]
