"""What a device may be written per second, and what becomes of the rest."""

from __future__ import annotations

from collections.abc import Iterable
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

from kvtier.chain import Action, Fill
from kvtier.chain.write_limit import WriteLimit
from kvtier.clock import VirtualClock
from kvtier.opening import open_cache
from kvtier.pages import PageStatus

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
        if limit.take(size, now_ns):
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
        taken.append(limit.take(10, now_ns))
        now_ns += NS_PER_S // 100
    assert taken[:10] == [True] * 10
    assert sum(taken) == pytest.approx(10 + 100 * 3 / 10, abs=2)


class Limited(Harness):
    """A device that asks its write limit at a time of its own."""

    now_ns = 0

    def fill(self, action: Fill) -> Iterable[Action]:
        if not self.chain.may_write(action, self.now_ns):
            return self.chain.left_out(action)
        return super().fill(action)


def limited(pages_per_s: int) -> Limited:
    chain = make_chain(("hbm", "nvme"))
    chain._tiers = (
        chain._tiers[0],
        replace(chain._tiers[1], write_limit=WriteLimit(pages_per_s * PAGE_BYTES)),
    )
    return Limited(chain, (64, 256))


def test_what_is_left_out_is_served_and_leaves_no_slot_behind() -> None:
    one = limited(8)
    for first in range(0, 64, 8):
        read = one.read(list(range(first, first + 8)))
        one.end_all()
        assert read.status.tolist() == [PageStatus.OK] * 8
    level = one.chain.counters.levels[1]
    # The first eight are the second's burst; eight more begin when nothing is owed.
    assert (level.device_writes, level.write_capped_pages) == (16, 48)
    assert one.chain.idle
    states = one.indexes[1].snapshot().states
    assert np.count_nonzero(states) == 16
    one.now_ns += 2 * NS_PER_S
    one.read(list(range(100, 108)))
    one.end_all()
    assert level.device_writes + 8 == one.chain.counters.levels[1].device_writes


def test_explicit_writes_count_against_it_too() -> None:
    one = limited(8)
    for first in range(0, 64, 8):
        write = one.write(list(range(first, first + 8)))
        assert write in one.done
    assert one.chain.counters.levels[1].write_capped_pages == 48
    assert one.chain.counters.written_pages == 64


def test_memory_has_no_limit() -> None:
    one = limited(8)
    for first in range(0, 64, 8):
        one.write(list(range(first, first + 8)))
    assert one.chain.counters.levels[0].write_capped_pages == 0
    assert not one.chain.has_write_limit(0)


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
        # Fills are of eight pages: two are paid for, and a third begins when nothing is owed.
        assert (counters.device_writes, counters.write_capped_pages) == (56, 40)


@pytest.mark.asyncio
async def test_without_a_limit_nothing_is_left_out() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        await cache.write([b"a"], [64], payload(b"a", 64))
        assert all(level.write_capped_pages == 0 for level in cache.driver.chain.counters.levels)
