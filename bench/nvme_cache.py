"""The cases of ``bench/nvme.py`` that go through a whole cache: its fills, and its reads.

The cache has a first tier that takes nothing, an ``nvme`` tier, and no origin: every read is looked
up twice, read from the drive, verified and copied to the caller. Fills are writes of new objects,
each page with a checksum and metadata; a turn ends when all of it is on the drive.
"""

from __future__ import annotations

import asyncio
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvtier import TieredCache
from kvtier.driver import AsyncDriver
from kvtier.pages import U8, U64, PageStatus
from kvtier.rows import aligned_rows
from kvtier.settings import ChainSettings, Settings, TierSettings
from kvtier.tiers import NvmeTier

PAGE_BYTES = 4096
OBJECT_PAGES = 4096
WRITES_AT_ONCE = 4
BATCH_PAGES = 256
READS_AT_ONCE = 3
"""Batches: there is always a next read for the drive."""

QUEUE_DEPTH = 128


def cache_settings(path: Path, pages: int) -> Settings:
    """A cache whose drive holds so many pages, and is read one page at a time."""
    return Settings(
        page_bytes=PAGE_BYTES,
        tiers=(
            TierSettings("dram", 64 * PAGE_BYTES, admit=0.0, write="none"),
            TierSettings(
                "nvme", pages * PAGE_BYTES, path=path, queue_depth=QUEUE_DEPTH, extent_pages_max=1
            ),
        ),
        chain=ChainSettings(device_batch_pages=BATCH_PAGES),
    )


def new_payload() -> U8:
    """An object, u8[OBJECT_PAGES, PAGE_BYTES]: every page holds its number in all its words."""
    payload = aligned_rows(OBJECT_PAGES, PAGE_BYTES)
    payload.view(np.int64)[:] = np.arange(OBJECT_PAGES)[:, None]
    return payload


@dataclass(slots=True)
class CacheTurns:
    """Turns of a cache of :func:`cache_settings`.

    Attributes:
        cache: open.
        payload: of :func:`new_payload`.
        objects: written so far.
    """

    cache: TieredCache[AsyncDriver]
    payload: U8
    objects: int = 0

    async def filled_per_s(self, turn_s: float) -> float:
        """Payload bytes per second that it takes."""
        first, start = self.objects, time.perf_counter()

        async def keep_writing() -> None:
            while time.perf_counter() < start + turn_s:
                key = b"object-%d" % self.objects
                self.objects += 1
                if (await self.cache.write([key], [OBJECT_PAGES], self.payload)).any():
                    raise SystemExit("bench/nvme.py: the cache cannot write")

        await asyncio.gather(*(keep_writing() for _ in range(WRITES_AT_ONCE)))
        await self.cache.drain()
        (nvme,) = (tier for tier in self.cache.driver.tiers if isinstance(tier, NvmeTier))
        await nvme.flush()
        return (self.objects - first) * self.payload.nbytes / (time.perf_counter() - start)

    async def resident(self) -> U64:
        """PageIds that the drive has, of all objects."""
        keys = [b"object-%d" % number for number in range(self.objects)]
        page_ids = (await self.cache.open(keys)).page_ids()
        return page_ids[self.cache.driver.resident(page_ids)]

    async def read(
        self, page_ids: U64, turn_s: float, rng: np.random.Generator
    ) -> tuple[float, float]:
        """Random pages of those per second, and processor time of each, in us."""
        chosen = page_ids[rng.integers(0, len(page_ids), (1024, BATCH_PAGES))]
        done, start, used = 0, time.perf_counter(), processor_s()

        async def keep_reading(task: int) -> None:
            nonlocal done
            out = aligned_rows(BATCH_PAGES, PAGE_BYTES)
            number = task
            while time.perf_counter() < start + turn_s:
                batch = chosen[number % len(chosen)]
                if (await self.cache.read_into(batch, out) != PageStatus.OK).any():
                    raise SystemExit("bench/nvme.py: the cache failed a read")
                done += BATCH_PAGES
                number += READS_AT_ONCE
            if (out.view(np.uint64) != (batch & np.uint64(0xFFFF_FFFF))[:, None]).any():
                raise SystemExit("bench/nvme.py: the cache delivered a wrong page")

        await asyncio.gather(*map(keep_reading, range(READS_AT_ONCE)))
        return done / (time.perf_counter() - start), (processor_s() - used) / done * 1e6


def processor_s() -> float:
    """Processor time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
