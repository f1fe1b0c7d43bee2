"""A cache over an origin that fails, freezes and comes back."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from gated_backend import GatedBackend
from kvtier_memory import MemoryBackend
from small_cache import PAGE, payload, settings, store
from virtual_time import Stage, in_virtual_time

from kvtier import PageStatus, TieredCache, open_cache
from kvtier.backend import Backend
from kvtier.driver import AsyncDriver
from kvtier.errors import BackendError
from kvtier.pages import U64, PageState
from kvtier.settings import BreakerSettings, OriginSettings, ResilienceSettings, RetrySettings
from kvtier.wrappers import counts_of
from kvtier.wrappers.breaker import BreakerBackend
from kvtier.wrappers.circuit import State
from kvtier.wrappers.deadline import DeadlineBackend
from kvtier.wrappers.faults import FaultPlan, FaultsBackend
from kvtier.wrappers.retry import RetryBackend

SEEDS = int(os.environ.get("KVTIER_CHAOS_SEEDS", "6"))

OPEN_S = 5.0
BREAKER = BreakerSettings(calls_min=4, open_s=OPEN_S, slow_s=0.5)
DEAD = FaultPlan(raise_share=1.0)
FROZEN = FaultPlan(hang_share=1.0)
WELL = FaultPlan()

Cache = TieredCache[AsyncDriver]


@dataclass
class Remote:
    """A cache in virtual time, and the wrappers between it and a store in memory."""

    cache: Cache
    faults: FaultsBackend
    breaker: BreakerBackend
    stage: Stage

    async def break_down(self, page_ids: U64) -> None:
        """Let reads fail until the breaker opens."""
        self.faults.plan = DEAD
        for page in page_ids:
            result = await self.cache.read(np.array([page]))
            assert result.status.tolist() == [PageStatus.FAILED]
        assert self.breaker.circuit.state is State.OPEN


@asynccontextmanager
async def remote(
    stage: Stage, tiers: str = "hbm dram", *, seed: int = 1, slots: int = 64
) -> AsyncIterator[Remote]:
    inner = MemoryBackend(PAGE, None)
    clock = stage.clock
    faults = FaultsBackend(inner, WELL, PAGE, seed=seed, clock=clock, wait=stage.wait())
    bounded = DeadlineBackend(faults, read_timeout_s=2.0, write_timeout_s=2.0, late_s=0.5)
    breaker = BreakerBackend(bounded, BREAKER, clock=clock)
    rules = RetrySettings(backoff_s=0.01)
    retry = RetryBackend(breaker, rules, seed=seed, clock=clock, wait=stage.wait())
    async with open_cache(settings(tiers, slots=slots), origin=retry, clock=clock) as cache:
        yield Remote(cache, faults, breaker, stage)
    await retry.close()


def run(work: Callable[[Remote], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def inside(stage: Stage) -> None:
        async with remote(stage, **options) as there:
            await work(there)

    in_virtual_time(inside)


def resident(cache: Cache) -> list[set[int]]:
    """The pages that each tier has."""
    snapshots = [index.snapshot() for index in cache.driver.indexes]
    return [set(one.tags[one.states == PageState.VALID].tolist()) for one in snapshots]


async def stored(origin: Backend, cache: Cache, key: bytes, pages: int) -> U64:
    """An object at the origin alone; its PageIds."""
    await store(cache, key, pages)
    page_ids = (await cache.open([key])).page_ids()
    cache.driver.invalidate(page_ids)
    return page_ids


def test_while_the_breaker_is_open_hits_go_on_and_misses_fail_at_once_and_evict_nothing() -> None:
    async def work(there: Remote) -> None:
        cache = there.cache
        missing = await stored(there.faults, cache, b"missing", 200)
        here = await store(cache, b"here", 60)
        await there.break_down(missing[:8])
        before = resident(cache)
        calls, start_ms = there.faults.counts()["calls"], there.stage.now_ms
        order = np.random.default_rng(1).permutation(np.concatenate([here, missing]))
        for _ in range(3):
            result = await cache.read(order)
            is_here = np.isin(order, here)
            assert (result.status[is_here] == PageStatus.OK).all()
            assert (result.status[~is_here] == PageStatus.FAILED).all()
            pages = (order[is_here] & np.uint64(0xFFFFFFFF)).astype(np.int64)
            np.testing.assert_array_equal(result.pages[is_here], payload(b"here", 60)[pages])
        await cache.drain()
        after = resident(cache)
        assert set.union(*after) == set.union(*before), "a page was evicted for nothing"
        assert after[-1] == before[-1]
        assert there.faults.counts()["calls"] == calls, "the store was asked"
        assert there.stage.now_ms == start_ms, "somebody waited"
        counters = cache.driver.chain.counters
        hits = sum(level.hits for level in counters.levels)
        assert counters.unique == hits + counters.joined + counters.failed + counters.absent

    run(work)


def test_an_unknown_key_cannot_be_opened_while_the_breaker_is_open_and_known_ones_can() -> None:
    async def work(there: Remote) -> None:
        missing = await stored(there.faults, there.cache, b"missing", 8)
        await there.break_down(missing)
        assert (await there.cache.open([b"missing"])).pages.tolist() == [8]
        start_ms = there.stage.now_ms
        with pytest.raises(BackendError):
            await there.cache.open([b"another"])
        assert there.stage.now_ms == start_ms

    run(work)


@pytest.mark.parametrize("plan", [DEAD, FROZEN], ids=["dead", "frozen"])
def test_an_origin_that_comes_back_is_read_within_two_periods(plan: FaultPlan) -> None:
    async def work(there: Remote) -> None:
        cache = there.cache
        missing = await stored(there.faults, cache, b"missing", 250)
        there.faults.plan = plan
        batches = iter(np.array_split(missing, 125))
        end_ms = there.stage.now_ms + 20_000
        reads = []
        while there.stage.now_ms < end_ms:
            reads.append(asyncio.ensure_future(cache.read(next(batches), deadline_s=0.5)))
            await asyncio.sleep(0.3)
        assert there.breaker.counts()["opened"] > 1
        there.faults.plan = WELL
        start_ms = there.stage.now_ms
        for _ in range(1000):
            if (await cache.read(missing[:4], deadline_s=0.5)).ok:
                break
            await asyncio.sleep(0.1)
        assert there.stage.now_ms - start_ms <= 2 * OPEN_S * 1000
        for read in reads:
            assert (await read).status.all()
        assert there.breaker.circuit.state is State.CLOSED

    run(work)


def test_a_frozen_origin_is_found_out_by_reads_that_are_late() -> None:
    async def work(there: Remote) -> None:
        missing = await stored(there.faults, there.cache, b"missing", 80)
        there.faults.plan = FROZEN
        reads = [there.cache.read(part, deadline_s=0.5) for part in np.array_split(missing, 10)]
        for result in await asyncio.gather(*reads):
            assert (result.status == PageStatus.LATE).all()
        assert there.stage.now_ms == pytest.approx(500)
        await asyncio.sleep(0.001)
        assert not there.breaker.available, "and not after the whole timeout"
        result = await there.cache.read(await stored_elsewhere(there))
        assert (result.status == PageStatus.FAILED).all()
        assert there.stage.now_ms < 510

    async def stored_elsewhere(there: Remote) -> U64:
        """Pages of the object that are not on their way."""
        ids = (await there.cache.open([b"missing"])).page_ids()
        return ids[-1:] + np.uint64(1)

    run(work)


def test_late_pages_still_fill_the_tiers() -> None:
    async def work(there: Remote) -> None:
        cache = there.cache
        page_ids = await stored(there.faults, cache, b"late", 40)
        there.faults.plan = FaultPlan(delay_share=1.0, delay_s=1.9)
        result = await cache.read(page_ids, deadline_s=0.001)
        assert (result.status == PageStatus.LATE).all()
        await cache.drain()
        there.faults.plan = DEAD
        reads = cache.driver.chain.counters.levels[-1].device_reads
        result = await cache.read(page_ids, deadline_s=0.001)
        assert result.ok
        np.testing.assert_array_equal(result.pages, payload(b"late", 40))
        assert cache.driver.chain.counters.levels[-1].device_reads == reads

    run(work)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_faults_bring_no_wrong_byte_and_leave_nothing_behind(seed: int) -> None:
    async def work(there: Remote) -> None:
        rng = random.Random(seed)
        cache = there.cache
        objects = {b"%d" % number: rng.randrange(1, 60) for number in range(8)}
        ids = {key: await stored(there.faults, cache, key, n) for key, n in objects.items()}
        bad = FaultPlan(0.1, 0.05, 0.5, 0.4, 0.1, 0.05, 0.05)
        plans = [WELL, bad, DEAD, FROZEN, bad]

        async def read() -> None:
            key = rng.choice(list(objects))
            chosen = np.array([rng.randrange(objects[key]) for _ in range(rng.randrange(1, 80))])
            deadline_s = rng.choice([None, 0.5, 0.05])
            start_ms = there.stage.now_ms
            result = await cache.read(ids[key][chosen], deadline_s=deadline_s)
            assert (
                there.stage.now_ms - start_ms <= (deadline_s or 60) * 1000 + 1e-3
            )  # a timer is due at a whole ns
            ok = result.status == PageStatus.OK
            np.testing.assert_array_equal(result.pages[ok], payload(key, objects[key])[chosen[ok]])

        for _ in range(60):
            there.faults.plan = rng.choice(plans)
            async with asyncio.timeout(600):
                await asyncio.gather(*(read() for _ in range(rng.randrange(12))))
            await asyncio.sleep(rng.random())
        there.faults.plan = WELL
        await cache.drain()
        driver = cache.driver
        assert driver.chain.idle
        assert driver.chain.free_buffers == driver.chain.buffer_count
        assert driver.chain.unreleased_epochs == 0
        for index in driver.indexes:
            assert not (index.snapshot().states == PageState.PENDING).any()
        counters = driver.chain.counters
        hits = sum(level.hits for level in counters.levels)
        assert counters.unique == hits + counters.joined + counters.failed + counters.absent
        await asyncio.sleep(2 * OPEN_S)
        for key, pages in objects.items():
            result = await cache.read(ids[key])
            assert result.ok
            np.testing.assert_array_equal(result.pages, payload(key, pages))

    run(work, seed=seed, slots=16, tiers=random.Random(seed).choice(["hbm dram", "dram", ""]))


# -- on the wall clock, where a drive is among the tiers -------------------------------------------


@pytest.mark.asyncio
async def test_pages_of_a_drive_are_read_and_rise_while_the_breaker_is_open() -> None:
    inner = GatedBackend(PAGE)
    breaker = BreakerBackend(inner, replace(BREAKER, open_s=3600.0))
    async with open_cache(settings(slots=16), origin=breaker) as cache:
        on_drive = await store(cache, b"drive", 40)
        await store(cache, b"above", 24)  # drives the other one out of both memories
        await cache.drain()
        missing = np.uint64(7 << 32) + on_drive
        inner.answer = RuntimeError("gone")
        gone = await stored(inner, cache, b"gone", 8)
        for page in gone:
            await cache.read(np.array([page]))
        assert not breaker.available
        kept = [page for page in on_drive.tolist() if page in resident(cache)[2]]
        chosen = np.array(kept, np.uint64)
        result = await cache.read(np.concatenate([chosen, missing]))
        assert (result.status[: len(kept)] == PageStatus.OK).all()
        assert (result.status[len(kept) :] == PageStatus.FAILED).all()
        rows = (chosen & np.uint64(0xFFFFFFFF)).astype(np.int64)
        np.testing.assert_array_equal(result.pages[: len(kept)], payload(b"drive", 40)[rows])
        await cache.drain()
        memories = resident(cache)[0] | resident(cache)[1]
        assert memories & set(kept), "none has risen into a memory"
        assert not memories & set(missing.tolist())
    await breaker.close()


@pytest.mark.asyncio
async def test_settings_give_reads_a_deadline_and_the_origin_its_wrappers() -> None:
    inner = GatedBackend(PAGE)
    resilience = ResilienceSettings(apply="always", deadline_s=0.05, read_timeout_s=30.0)
    origin = OriginSettings("memory", extent_pages_max=4, resilience=resilience)
    async with open_cache(settings("hbm dram", origin=origin), origin=inner) as cache:
        page_ids = await stored(inner, cache, b"a", 20)
        inner.gate.clear()
        result = await cache.read(page_ids)
        assert (result.status == PageStatus.LATE).all()
        inner.gate.set()
        await cache.drain()
        assert (await cache.read(page_ids, deadline_s=60.0)).ok
        counts = counts_of(cache.catalogue.origin)
        assert counts is not None
        assert list(counts) == ["retry", "breaker", "deadline"]
        assert counts["retry"] == {"retries": 0, "given_up": 0, "over_budget": 0}
    await inner.close()
