"""A GPU that fails, at any moment: never a wrong byte, never a hang, and the cache goes on."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chaos import Chaos, FaultyBackend
from cpu_gpu import CpuGpu
from gated_backend import GatedBackend
from small_cache import PAGE, payload, settings, store

from kvtier import Settings, TieredCache, open_cache
from kvtier.errors import ClosedError, DeviceError, DeviceLostError, LimitError
from kvtier.events import LogHeader, RecordingChain, deciding_settings, open_event_log
from kvtier.pages import PageStatus
from kvtier.settings import ChainSettings

OBJECTS, PAGES = 3, 8


def small(tiers: str = "hbm dram") -> Settings:
    chain = ChainSettings(
        batch_pages_max=PAGES,
        inflight_pages_max=PAGES,
        device_batch_pages=4,
        staging_bytes=2 * 4 * PAGE,
        objects_max=8,
    )
    return settings(tiers, slots=8, chain=chain)


class Run:
    """Writes and reads, to the host and to the GPU, and a check of every byte that came."""

    def __init__(self, gpu: CpuGpu) -> None:
        self.gpu = gpu
        self.opened_after = 0
        self.turn = 0

    async def through(self, tiers: str) -> None:
        async with open_cache(small(tiers), origin=GatedBackend(PAGE), gpu=self.gpu) as cache:
            self.opened_after = self.gpu.calls
            names = [b"key-%d" % number for number in range(OBJECTS)]
            ids = {name: await store(cache, name, PAGES) for name in names}
            for name in names:
                await self.to_host(cache, name, ids[name])
                await self.to_gpu(cache, name, ids[name])
            lease = await cache.lease(ids[names[0]])
            await self.to_host(cache, names[0], ids[names[0]])
            lease.release()
            await asyncio.gather(*(self.to_host(cache, name, ids[name]) for name in names))
            await cache.drain()
            check_sums(cache)

    async def to_host(self, cache: TieredCache[Any], name: bytes, ids: Any) -> None:
        order = np.random.default_rng(len(name)).permutation(len(ids))
        result = await cache.read(ids[order])
        assert result.ok, "the levels below have every page"
        np.testing.assert_array_equal(result.pages, payload(name, PAGES)[order])

    async def to_gpu(self, cache: TieredCache[Any], name: bytes, ids: Any) -> None:
        try:
            out = self.gpu.xp.empty((PAGES, PAGE), np.uint8)
            self.turn += 1
            asked = self.gpu.xp.asarray(ids) if self.turn % 2 else ids
            result = await cache.read(asked, out)
            content = out.get()
        except self.gpu.errors:
            assert self.gpu.lost
            return
        except DeviceLostError:
            return
        ok = result.status == PageStatus.OK
        np.testing.assert_array_equal(content[ok], payload(name, PAGES)[ok])
        assert ok.all()


def check_sums(cache: TieredCache[Any]) -> None:
    driver = cache.driver
    counters = driver.chain.counters
    hits = sum(level.hits for level in counters.levels)
    assert counters.reads == counters.unique + counters.folded
    assert counters.unique == hits + counters.joined + counters.failed + counters.absent
    for level in counters.levels:
        assert 0 <= level.hits <= level.lookups
    assert driver.chain.idle
    assert not driver._jobs
    assert not driver._tasks
    assert driver.chain.unreleased_epochs == 0
    assert driver.chain.free_buffers == driver.chain.buffer_count


def attempt(tiers: str, **wanted: Any) -> Run:
    run = Run(CpuGpu(**wanted))
    asyncio.run(asyncio.wait_for(run.through(tiers), 60))
    return run


STEP = 4


@pytest.mark.parametrize(
    ("tiers", "order", "late", "first"),
    [
        ("hbm dram", "lazy", True, 1),
        ("hbm dram", 7, False, 2),
        ("hbm", "eager", False, 3),
        ("hbm", 8, True, 4),
    ],
)
def test_a_gpu_may_fail_at_any_call(
    tiers: str, order: str | int, late: bool, first: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Each case takes every fourth call; together they take all kinds."""
    whole = attempt(tiers, order=order)
    assert caplog.records == []
    assert whole.gpu.calls > whole.opened_after + 100
    losses = 0
    for number in range(first, whole.gpu.calls + 1, STEP):
        caplog.clear()
        wanted = {"order": order, "fails_at": number, "fails_late": late}
        if number <= whole.opened_after:
            with pytest.raises(DeviceError):
                attempt(tiers, **wanted)
            continue
        attempt(tiers, **wanted)
        # It is said once, if anybody in the cache met the failure before the end.
        said = [record.getMessage() for record in caplog.records]
        assert len(said) <= 1
        assert all(line.startswith("hbm is lost") for line in said)
        losses += len(said)
    assert losses > 50


@pytest.mark.asyncio
async def test_an_event_log_ends_with_the_gpu_for_it_could_not_be_repeated(tmp_path: Path) -> None:
    made = small()
    header = LogHeader("lost", {}, deciding_settings(made), None, None)
    gpu = CpuGpu("lazy")
    with open_event_log(tmp_path / "events", header) as log:
        make_chain = partial(RecordingChain, log)
        origin = GatedBackend(PAGE)
        async with open_cache(made, origin=origin, gpu=gpu, make_chain=make_chain) as cache:
            ids = await store(cache, b"key", PAGES)
            with pytest.raises(LimitError, match="an event log needs page ids in host memory"):
                await cache.read(gpu.xp.asarray(ids))
            gpu.lost = True
            with pytest.raises(DeviceLostError, match="an event log cannot tell of that"):
                await asyncio.wait_for(cache.read(ids), 60)
            with pytest.raises(ClosedError, match="the GPU was lost, and an event log cannot"):
                await asyncio.wait_for(cache.read(ids), 60)
            log.last(cache.driver.chain.counters, complete=False)


class GpuChaos(Chaos):
    """Some readers have their rows on the GPU."""

    def __init__(self, cache: TieredCache[Any], rng: random.Random, gpu: CpuGpu) -> None:
        super().__init__(cache, rng)
        self.gpu = gpu

    async def call(self) -> None:
        if self.rng.random() < 0.3:
            await self.read_to_gpu(self.rng.choice(list(self.locks)))
        else:
            await super().call()

    async def read_to_gpu(self, key: bytes) -> None:
        async with self.locks[key]:
            object_id = await self.learn(key)
        if object_id is None:
            return
        content = self.content_of[object_id]
        chosen = np.array([self.rng.randrange(len(content)) for _ in range(30)])
        page_ids = np.uint64(object_id << 32) | chosen.astype(np.uint64)
        stream = self.gpu._streams[self.rng.randrange(2)]
        try:
            out = self.gpu.xp.empty((len(chosen), PAGE), np.uint8)
            asked: Any = page_ids
            if self.rng.random() < 0.5:
                with self.gpu.on(stream):
                    asked = self.gpu.xp.asarray(page_ids)
            result = await self.cache.read(asked, out, stream=stream.ptr)
            for _ in range(self.rng.randrange(6)):
                await asyncio.sleep(0)
            with self.gpu.on(stream):
                seen = out.get()
        except (*self.gpu.errors, DeviceLostError):
            assert self.gpu.lost
            return
        ok = result.status == PageStatus.OK
        np.testing.assert_array_equal(seen[ok], content[chosen[ok]])


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(12))
async def test_chaos_on_a_gpu_that_fails(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    rng = random.Random(seed)
    gpu = CpuGpu(
        order=rng.choice(["lazy", "eager", seed]),
        fails_at=rng.choice([0, rng.randrange(40, 3000)]),
        fails_late=rng.random() < 0.5,
    )
    made = small(rng.choice(["hbm dram nvme", "hbm dram", "hbm nvme"]))
    made = replace(made, chain=replace(made.chain, inflight_pages_max=rng.choice([PAGES, 40])))
    async with open_cache(made, origin=FaultyBackend(rng), gpu=gpu) as cache:
        chaos = GpuChaos(cache, rng, gpu)
        for _ in range(6):
            await asyncio.wait_for(asyncio.gather(*(chaos.call() for _ in range(25))), 60)
        await cache.drain()
        check_sums(cache)
