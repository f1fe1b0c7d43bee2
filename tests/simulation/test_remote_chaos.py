"""A cache under load over a real `kvtier serve` that is killed, frozen, slow, cut off or insane.

The short form runs with the suite; ``make soak`` runs the long one, which alone looks at times.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from troubled_remote import Proxy, Server, troubled_remote

from kvtier import PageStatus, Settings, TieredCache, open_cache
from kvtier.metrics import LatencyHistogram
from kvtier.pages import I64, PageState
from kvtier.replay.payload import pattern_pages
from kvtier.settings import (
    BreakerSettings,
    ChainSettings,
    OriginSettings,
    ResilienceSettings,
    TierSettings,
)
from kvtier.wrappers import counts_of

IS_LONG = "KVTIER_CHAOS_SEEDS" in os.environ
SEEDS = max(1, int(os.environ.get("KVTIER_CHAOS_SEEDS", "1")) // 40)

PAGE = 4096
DEADLINE_S = 0.25
OPEN_S = 1.0 if IS_LONG else 0.3
TROUBLE_S = 3.0 if IS_LONG else 0.6
TROUBLES = ("killed", "frozen", "slow", "reset", "garbage", "truncate")
READERS = 6
OBJECTS = {b"cold-%d" % number: 400 for number in range(12)}
HOT = {b"hot": 32}


def settings(port: int) -> Settings:
    url = f"tcp://127.0.0.1:{port}"
    options = MappingProxyType({"url": url, "connect_timeout_s": 1.0})
    # Slower than the deadline: a busy machine that answers late is no server that is gone.
    breaker = BreakerSettings(calls_min=4, window_s=2.0, open_s=OPEN_S, slow_s=0.6)
    resilience = ResilienceSettings(deadline_s=DEADLINE_S, read_timeout_s=1.0, breaker=breaker)
    return Settings(
        page_bytes=PAGE,
        tiers=(TierSettings("dram", 1024 * PAGE, ways=32),),
        origin=OriginSettings("tcp", options, resilience=resilience),
        chain=ChainSettings(4096, 4096, 32, 64 * 32 * PAGE),
    )


class Load:
    """Readers that check every byte that they are given."""

    def __init__(self, cache: TieredCache[Any], rng: random.Random) -> None:
        self.cache = cache
        self.rng = rng
        self.latency = LatencyHistogram()
        self.is_over = False
        self.contents = {
            key: pattern_pages([key], np.array([pages]), PAGE)
            for key, pages in {**OBJECTS, **HOT}.items()
        }
        self.ids: dict[bytes, Any] = {}
        self.statuses = np.zeros(len(PageStatus), np.int64)

    async def store(self) -> None:
        for key, pages in self.contents.items():
            assert not (await self.cache.write([key], [len(pages)], pages)).any()
            self.ids[key] = (await self.cache.open([key])).page_ids()
        self.cache.driver.invalidate(np.concatenate(list(self.ids.values())))
        await self.read(b"hot", np.arange(32), deadline_s=60.0)

    async def read(self, key: bytes, pages: I64, deadline_s: float | None = None) -> Any:
        """The status of pages, all of which that are OK have the right bytes."""
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        async with asyncio.timeout(30):
            result = await self.cache.read(self.ids[key][pages], deadline_s=deadline_s)
        if deadline_s is None:
            self.latency.record_same(round((loop.time() - start_s) * 1e9), 1)
        ok = result.status == PageStatus.OK
        np.testing.assert_array_equal(result.pages[ok], self.contents[key][pages[ok]])
        self.statuses += np.bincount(result.status, minlength=len(self.statuses))
        return result.status

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(READERS):
                group.create_task(self._reader())

    async def _reader(self) -> None:
        while not self.is_over:
            status = await self.read(b"hot", np.arange(32))
            assert not status.any(), "a page that was resident is no longer a hit"
            key = self.rng.choice(list(OBJECTS))
            chosen = [self.rng.randrange(OBJECTS[key]) for _ in range(self.rng.randrange(1, 24))]
            await self.read(key, np.array(chosen))
            await asyncio.sleep(0.02)

    async def recover(self) -> float:
        """Read until the origin answers again; how long that took, in seconds."""
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        for attempt in range(2000):
            key = list(OBJECTS)[attempt % len(OBJECTS)]
            self.cache.driver.invalidate(self.ids[key])
            if not (await self.read(key, np.arange(0, 400, 40))).any():
                return loop.time() - start_s
            await asyncio.sleep(0.01)
        pytest.fail("the origin is back, and nobody reads it")


async def begin(trouble: str, server: Server, proxy: Proxy) -> None:
    match trouble:
        case "killed":
            await server.kill()
        case "frozen":
            server.signal(signal.SIGSTOP)
        case _:
            proxy.mode = trouble
            if trouble == "reset":
                proxy.cut()


async def end(trouble: str, server: Server, proxy: Proxy) -> None:
    match trouble:
        case "killed":
            await server.start()
        case "frozen":
            server.signal(signal.SIGCONT)
        case _:
            proxy.mode = "pass"


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_whatever_befalls_the_server_no_byte_is_wrong_and_nobody_hangs(
    seed: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    record_property: Any,
) -> None:
    caplog.set_level(logging.ERROR)
    rng = random.Random(seed)
    async with (
        troubled_remote(tmp_path, rng) as (server, proxy),
        open_cache(settings(proxy.port)) as cache,
    ):
        load = Load(cache, rng)
        await load.store()
        running = asyncio.create_task(load.run())
        recoveries_s = {}
        for trouble in rng.sample(TROUBLES, len(TROUBLES)):
            await begin(trouble, server, proxy)
            done, _ = await asyncio.wait([running], timeout=TROUBLE_S)
            assert not done, await running
            await end(trouble, server, proxy)
            recoveries_s[trouble] = await load.recover()
        load.is_over = True
        await running
        async with asyncio.timeout(30):
            await cache.drain()
        counts = counts_of(cache.catalogue.origin)
        assert counts is not None
        assert counts["breaker"]["opened"] >= 3, "dead, frozen and cut off at least"
        assert load.statuses[PageStatus.FAILED] > 0
        for index in cache.driver.indexes:
            assert not (index.snapshot().states == PageState.PENDING).any()
        p99_s = load.latency.quantile_ns(0.99) / 1e9
        record_property("read_s_p99", p99_s)
        record_property("recovery_s", recoveries_s)
        sys.stdout.write(f"seed {seed}: p99 of reads {p99_s:.3f} s, back after {recoveries_s}\n")
        if IS_LONG:
            assert p99_s <= 1.2 * DEADLINE_S
            assert max(recoveries_s.values()) <= 2 * OPEN_S
