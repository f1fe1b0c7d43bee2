"""Random callers of a cache over a store with faults, all from a seed."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import numpy as np
from gated_backend import GatedBackend
from kvtier_memory import MemoryBackend
from small_cache import PAGE, payload, settings

from kvtier import Settings, TieredCache
from kvtier.backend import ExtentBatch
from kvtier.pages import U8, PageStatus
from kvtier.settings import Admit, ChainSettings, OriginSettings

KEYS = [b"key-%d" % number for number in range(10)]


class FaultyBackend(GatedBackend):
    """Reads end in any order, raise now and then, and fail extents over which they scribbled.

    Now and then it says that it does not want to be asked.
    """

    def __init__(self, rng: random.Random) -> None:
        super().__init__(PAGE)
        self._rng = rng

    @property
    def available(self) -> bool:
        return self._rng.random() > 0.1

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        for _ in range(self._rng.randrange(4)):
            await asyncio.sleep(0)
        fault = self._rng.random()
        if fault < 0.05:
            raise RuntimeError("a fault of the store")
        status = await MemoryBackend.read(self, batch, out)
        if fault < 0.2:
            extent = self._rng.randrange(len(batch))
            status[extent] = PageStatus.FAILED
            out[batch.row[extent] : batch.row[extent] + batch.page_count[extent]] = 0xEE
        return status


def random_settings(rng: random.Random) -> Settings:
    tiers = rng.choice(["hbm dram nvme", "dram", "nvme", "hbm nvme", ""])
    batch_pages = rng.choice([1, 8, 40])
    device_batch = rng.choice([1, 4, 8])
    merging: dict[str, Any] = {
        "extent_pages_max": min(4, device_batch),
        "merge_gap_pages": rng.choice([0, 3]),
    }
    chain = ChainSettings(
        batch_pages_max=batch_pages,
        inflight_pages_max=batch_pages + rng.choice([0, 20]),
        device_batch_pages=device_batch,
        staging_bytes=rng.choice([2, 3]) * device_batch * PAGE,
        objects_max=8,
    )
    made = settings(tiers, slots=16, chain=chain, origin=OriginSettings("memory", **merging))
    admit: Admit = rng.choice([1.0, 0.5, 0.0])
    if admit == 0.5 and rng.random() < 0.5:
        admit = "second touch"
    limit = {"nvme": rng.choice([None, 50.0 * PAGE])}
    return replace(
        made,
        tiers=tuple(
            replace(t, admit=admit, write_limit_bytes_per_s=limit.get(t.name), **merging)
            for t in made.tiers
        ),
    )


class Chaos:
    """Random callers of one cache, who remember what each object id must hold."""

    def __init__(self, cache: TieredCache[Any], rng: random.Random) -> None:
        self.cache = cache
        self.rng = rng
        self.locks = {key: asyncio.Lock() for key in KEYS}
        self.generations = dict.fromkeys(KEYS, 0)
        self.content_of: dict[int, U8] = {}

    async def call(self) -> None:
        key = self.rng.choice(KEYS)
        kind = self.rng.random()
        if kind < 0.12 or self.generations[key] == 0:
            await self.write(key)
        elif kind < 0.15:
            async with self.locks[key]:
                await self.cache.delete([key])
                self.generations[key] = 0
        else:
            await self.read(key, kind)

    async def write(self, key: bytes) -> None:
        async with self.locks[key]:
            self.generations[key] = self.rng.randrange(1, 1 << 30)
            pages = self.rng.randrange(1, 60)
            await self.cache.write([key], [pages], self.content(key, pages))
            await self.learn(key)

    async def learn(self, key: bytes) -> int | None:
        """Note what the present id of a key must hold; nobody writes it meanwhile."""
        opened = await self.cache.open([key])
        pages = int(opened.pages[0])
        if pages < 0:
            return None
        self.content_of[int(opened.object_ids[0])] = self.content(key, pages)
        return int(opened.object_ids[0])

    def content(self, key: bytes, pages: int) -> U8:
        return payload(key + b"#%d" % self.generations[key], pages)

    async def read(self, key: bytes, kind: float) -> None:
        async with self.locks[key]:
            object_id = await self.learn(key)
        if object_id is None:
            return
        content = self.content_of[object_id]
        beyond = self.rng.choice([0, 2])
        chosen = [self.rng.randrange(len(content) + beyond) for _ in range(self.rng.randrange(90))]
        page_ids = np.array([object_id << 32 | page for page in chosen], np.uint64)
        if kind < 0.25:
            await self.cache.prefetch(page_ids)
            return
        out = np.full((len(chosen), PAGE), 0x77, np.uint8)
        deadline_s = self.rng.choice([None, None, 0.0, 0.001])
        reading = asyncio.create_task(self.cache.read(page_ids, out, deadline_s=deadline_s))
        if kind < 0.45:
            for _ in range(self.rng.randrange(6)):
                await asyncio.sleep(0)
            reading.cancel()
        (answer,) = await asyncio.gather(reading, return_exceptions=True)
        seen = out.copy()
        if isinstance(answer, BaseException):
            assert isinstance(answer, asyncio.CancelledError), repr(answer)
        else:
            ok = answer.status == PageStatus.OK
            pages = np.array(chosen, np.int64)[ok]
            assert (pages < len(content)).all()
            np.testing.assert_array_equal(out[ok], content[pages])
        for _ in range(8):
            await asyncio.sleep(0)
        np.testing.assert_array_equal(out, seen, "touched after the return")
