"""Whatever callers and devices did to a cache, a log of it repeats every decision.

The short form runs with the suite; ``make soak`` runs the long one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chaos import Chaos, FaultyBackend, random_settings

from kvtier import Settings, TieredCache, open_cache
from kvtier.clock import VirtualClock
from kvtier.driver import AsyncDriver
from kvtier.emulator import RepeatingDriver, open_repetition
from kvtier.errors import LimitError
from kvtier.events import (
    EventKind,
    Flag,
    LoggedRun,
    LogHeader,
    RecordingChain,
    deciding_settings,
    open_event_log,
    read_event_log,
)
from kvtier.index import PageIndex
from kvtier.pages import I64, PageStatus
from kvtier.replay.meter import RequestMeter
from kvtier.replay.repeated import RepeatedDrive

SEEDS = int(os.environ.get("KVTIER_CHAOS_SEEDS", "6"))


class Harassed(Chaos):
    """Callers who also lease pages, over a drive that forgets pages and fails to write some."""

    def harass_devices(self) -> None:
        for tier in self.cache.driver.tiers:
            if tier.name == "nvme":
                tier._file = tier._writer._file = FaultyFile(tier._file, self.rng)

    async def call(self) -> None:
        kind = self.rng.random()
        if kind < 0.05:
            await self.lease()
        elif kind < 0.1:
            for tier in self.cache.driver.tiers:
                if tier.name == "nvme":
                    checksums = tier._mirror.checksums
                    checksums[self.rng.randrange(len(checksums))] ^= np.uint64(1)
        else:
            await super().call()

    async def lease(self) -> None:
        ids = sorted(self.content_of)
        chosen = [self.rng.choice(ids) << 32 | self.rng.randrange(50) for _ in range(bool(ids) * 7)]
        try:
            lease = await self.cache.lease(np.array(chosen, np.uint64))
        except LimitError:
            return  # no first tier in memory, or more than a batch
        for _ in range(self.rng.randrange(5)):
            await asyncio.sleep(0)
        lease.release()


class FaultyFile:
    """A file engine of which some writes end short."""

    def __init__(self, file: Any, rng: random.Random) -> None:
        self._file = file
        self._rng = rng

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    async def write(self, *arguments: Any) -> I64:
        done: I64 = await self._file.write(*arguments)
        if self._rng.random() < 0.2:
            done[self._rng.randrange(len(done))] = -5
        return done


async def logged_chaos(settings: Settings, rng: random.Random, path: Path) -> TieredCache[Any]:
    """A cache that was harassed, and closed; what happened is in the log at ``path``."""
    origin = FaultyBackend(rng)
    capability = origin.capability
    header = LogHeader(
        "chaos",
        {},
        deciding_settings(settings),
        capability.extent_pages_max,
        capability.batch_extents_max,
    )
    with open_event_log(path, header) as log:
        make_chain = partial(RecordingChain, log)
        async with open_cache(settings, origin=origin, make_chain=make_chain) as cache:
            chaos = Harassed(cache, rng)
            chaos.harass_devices()
            for _ in range(6):
                await asyncio.wait_for(asyncio.gather(*(chaos.call() for _ in range(25))), 60)
            await cache.drain()
            log.last(cache.driver.chain.counters, complete=True)
    return cache


def repeat(logged: LoggedRun, settings: Settings) -> RepeatingDriver:
    clock = VirtualClock()
    driver = open_repetition(
        settings,
        clock,
        origin_extent_pages_max=logged.header.origin_extent_pages_max,
        origin_batch_extents_max=logged.header.origin_batch_extents_max,
    )
    drive = RepeatedDrive(
        logged, driver, settings=settings, meter=RequestMeter(clock), after_batch=lambda: None
    )
    assert asyncio.run(drive.drive())
    return driver


def assert_same_pages(one: PageIndex, other: PageIndex) -> None:
    """Slot by slot: states, pages and when they were touched last."""
    for mine, theirs in zip(one.snapshot(), other.snapshot(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_chaos_is_repeated(seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    rng = random.Random(seed)
    settings = random_settings(rng)
    path = tmp_path / "events.parquet"
    driver: AsyncDriver = asyncio.run(logged_chaos(settings, rng, path)).driver
    repeated = repeat(read_event_log(path), settings)
    assert repeated.chain.by_purpose == driver.chain.by_purpose
    assert repeated.chain.idle
    for one, other in zip(repeated.indexes, driver.indexes, strict=True):
        assert_same_pages(one, other)
    assert not repeated.reads
    assert not repeated.fetches
    assert not repeated.fills
    delivered = driver.chain.counters.delivered
    assert sum(one.demand.count for one in repeated.measurements.values()) == delivered


def test_chaos_is_everything_that_can_be_logged(tmp_path: Path) -> None:
    """Otherwise the test above would show less than it says."""
    seen: set[EventKind] = set()
    flags = Flag(0)
    failures = 0
    for seed in range(6):
        rng = random.Random(seed)
        path = tmp_path / f"{seed}.parquet"
        asyncio.run(logged_chaos(random_settings(rng), rng, path))
        for event in read_event_log(path).events():
            seen.add(event.kind)
            flags |= event.flags
            failures += event.kind is EventKind.FETCHED and PageStatus.FAILED in event.status
    requests = {EventKind.BEGIN, EventKind.COMPUTE, EventKind.PUT, EventKind.END}
    assert seen == set(EventKind) - requests
    assert flags == Flag.WANTS_BYTES | Flag.HELD | Flag.ORIGIN_SHUT | Flag.WRITES_SHUT
    assert failures > 0
