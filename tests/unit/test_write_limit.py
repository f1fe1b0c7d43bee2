"""What a device may be written per second, and what becomes of the rest."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from chain_harness import PAGE_BYTES, Harness, make_chain
from gated_backend import GatedBackend
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cache import PAGE, opened, payload
from small_cache import settings as small_settings

from kvtier.chain import LevelCounters, Lookup, Read
from kvtier.chain.write_limit import WriteLimit
from kvtier.clock import VirtualClock
from kvtier.opening import open_cache
from kvtier.pages import Moves, PageStatus, all_hit

NS_PER_S = 1_000_000_000


@settings(deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2 * NS_PER_S), st.integers(1, 5000)), min_size=1, max_size=60
    )
)
def test_in_any_time_no_more_is_written_than_that_time_and_a_second_give(
    steps: list[tuple[int, int]],
) -> None:
    rate, limit = 1000, WriteLimit(1000)
    now_ns, written = 0, []
    for pause_ns, size in steps:
        now_ns += pause_ns
        if not limit.is_reached(now_ns):
            limit.charge(size)
            written.append((now_ns, size))
    for first, (start_ns, _) in enumerate(written):
        total = 0
        for end_ns, size in written[first:]:
            # What came before this one was paid for when it began.
            assert total <= rate * (Fraction(end_ns - start_ns, NS_PER_S) + 1) + 1e-3
            total += size


def test_a_second_is_written_at_once_and_then_as_fast_as_the_limit() -> None:
    limit, now_ns, taken = WriteLimit(100), 5 * NS_PER_S, []
    for _ in range(300):
        taken.append(not limit.is_reached(now_ns))
        if taken[-1]:
            limit.charge(10)
        now_ns += NS_PER_S // 100
    assert taken[:10] == [True] * 10
    assert sum(taken) == pytest.approx(10 + 100 * 3 / 10, abs=2)


def test_what_is_not_written_is_given_back() -> None:
    limit = WriteLimit(100)
    assert not limit.is_reached(0)
    limit.charge(500)
    assert limit.is_reached(NS_PER_S)
    limit.charge(-400)
    assert not limit.is_reached(NS_PER_S)


class Limited:
    """A chain whose drive has a write limit, at a time that the test tells."""

    def __init__(self, pages_per_s: int) -> None:
        chain = make_chain(
            ("hbm", "nvme"), write_limits={"nvme": WriteLimit(pages_per_s * PAGE_BYTES)}
        )
        self.harness = Harness(chain, (64, 256))
        self.now_ns = 0

    @property
    def level(self) -> LevelCounters:
        return self.harness.chain.counters.levels[1]

    def read(self, first: int, pages: int = 8) -> Read:
        shut = self.harness.chain.writes_shut(self.now_ns)
        read = self.harness.read(list(range(first, first + pages)), writes_shut=shut)
        self.harness.end_all()
        assert read in self.harness.done
        return read

    def slots(self) -> int:
        return int(np.count_nonzero(self.harness.indexes[1].snapshot().states))


def test_what_comes_over_the_limit_is_served_and_takes_no_slot() -> None:
    one = Limited(8)
    for first in range(0, 64, 8):
        assert one.read(first).status.tolist() == [PageStatus.OK] * 8
    # The first eight are the second's burst; eight more begin when nothing is owed.
    assert (one.level.device_writes, one.level.write_capped_pages) == (16, 48)
    assert one.slots() == 16
    assert one.harness.chain.idle
    one.now_ns += 2 * NS_PER_S
    one.read(100)
    assert (one.level.device_writes, one.level.write_capped_pages) == (24, 48)


def test_pages_that_are_in_the_tier_are_hits_whatever_was_written() -> None:
    one = Limited(8)
    for first in range(0, 64, 8):
        one.read(first)
    hbm = one.harness.indexes[0]
    hbm.invalidate(np.arange(64, dtype=np.uint64))
    one.read(0, 16)
    assert one.level.hits == 16


def test_slots_that_are_given_back_cost_nothing() -> None:
    one = Limited(8)
    absent = np.full(8, PageStatus.ABSENT, np.uint8)
    for first in range(0, 64, 8):
        shut = one.harness.chain.writes_shut(one.now_ns)
        one.harness.read(list(range(first, first + 8)), writes_shut=shut)
        one.harness.end_fetch(one.harness.fetches[0], absent)
    assert one.level.write_capped_pages == 0
    assert not one.harness.chain.writes_shut(one.now_ns)


def test_explicit_writes_count_against_it_too() -> None:
    one = Limited(8)
    chain = one.harness.chain
    for first in range(0, 64, 8):
        page_ids = np.arange(first, first + 8, dtype=np.uint64)
        write, actions = chain.write(page_ids, 1, writes_shut=chain.writes_shut(0))
        one.harness.perform(actions)
        assert write in one.harness.done
    assert (one.level.device_writes, one.level.write_capped_pages) == (16, 48)
    assert chain.counters.written_pages == 64
    assert chain.counters.levels[0].write_capped_pages == 0


@pytest.mark.asyncio
async def test_a_cache_asks_its_own_clock() -> None:
    wanted = small_settings("nvme", slots=64)
    (tier,) = wanted.tiers
    wanted = replace(wanted, tiers=(replace(tier, write_limit_bytes_per_s=16.0 * PAGE),))
    clock = VirtualClock(NS_PER_S)
    async with open_cache(wanted, clock=clock, origin=GatedBackend(PAGE)) as cache:
        ids = {}
        for name in (b"a", b"b", b"c", b"d"):
            await cache.write([name], [16], payload(name, 16))
            ids[name] = (await cache.open([name])).page_ids()
        counters = cache.driver.chain.counters.levels[0]
        assert (counters.device_writes, counters.write_capped_pages) == (32, 32)
        clock.advance_to(4 * NS_PER_S)
        for name, page_ids in ids.items():
            result = await cache.read(page_ids)
            np.testing.assert_array_equal(result.pages, payload(name, 16))
            await cache.drain()
        counters = cache.driver.chain.counters.levels[0]
        assert counters.hits == 32
        assert (counters.device_writes, counters.write_capped_pages) == (64, 32)


@pytest.mark.asyncio
async def test_without_a_limit_nothing_is_left_out() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        await cache.write([b"a"], [64], payload(b"a", 64))
        assert all(level.write_capped_pages == 0 for level in cache.driver.chain.counters.levels)


def test_moved_pages_are_written_and_paid_for() -> None:
    limits = {"nvme": WriteLimit(8 * PAGE_BYTES)}
    chain = make_chain(("nvme",), write_limits=limits)
    assert not chain.writes_shut(0)
    _, (lookup,) = chain.read(np.arange(1, dtype=np.uint64))
    assert isinstance(lookup, Lookup)
    places = np.arange(9)
    moves = Moves(places.astype(np.uint64), places, places + 100)
    chain.looked_up(lookup, all_hit(places[:1])._replace(moves=moves))
    assert chain.writes_shut(0)
    assert chain.counters.levels[0].write_capped_pages == 0
