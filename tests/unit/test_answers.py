"""A batch of several callers' pages: each is answered when its own pages are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from gated_backend import GatedBackend
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from small_cache import PAGE, forget_tiers, opened, settings, store

from kvtier.answers import Parts
from kvtier.chain import Read, build_chain
from kvtier.clock import VirtualClock
from kvtier.directory import ObjectDirectory
from kvtier.emulator import VirtualDriver, VirtualLoop, open_emulator
from kvtier.pages import I64, U64, PageStatus, expand_objects


def new_read(pages: int) -> Read:
    """A batch of which nothing is known."""
    read, _ = build_chain(settings()).read(np.arange(pages, dtype=np.uint64))
    return read


def noted() -> tuple[list[int], Callable[[I64], None]]:
    """The parts answered so far, and who notes them."""
    parts: list[int] = []
    return parts, lambda numbers: parts.extend(numbers.tolist())


def test_a_part_is_answered_when_its_last_row_is_copied() -> None:
    answered, note = noted()
    parts = Parts(np.array([2, 1, 3]), note)
    parts.copied(np.array([0, 3, 5]))
    assert answered == []
    parts.copied(np.array([2, 1]))
    assert answered == [0, 1]
    parts.copied(np.array([4]))
    assert answered == [0, 1, 2]


def test_all_rows_at_once_answer_every_part() -> None:
    answered, note = noted()
    Parts(np.array([2, 1]), note).copied(None)
    assert answered == [0, 1]


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), data=st.data())
@examples(deadline=None)
def test_each_part_is_answered_once_whatever_is_copied_or_given_up(
    sizes: list[int], data: st.DataObject
) -> None:
    answered, note = noted()
    parts = Parts(np.array(sizes), note)
    read = new_read(sum(sizes))
    left = data.draw(st.permutations(range(sum(sizes))))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    while left:
        count = data.draw(st.integers(1, len(left)))
        rows, left = np.array(left[:count]), left[count:]
        read.unresolved -= count
        if data.draw(st.booleans()):
            read.status[rows] = PageStatus.OK
            parts.copied(rows)
        else:
            read.status[rows] = PageStatus.FAILED
            parts.settle(read)
        missing = set(owner[np.array(left, np.int64)].tolist())
        assert sorted(answered) == [one for one in range(len(sizes)) if one not in missing]
    parts.abandon()
    parts.settle(read)
    assert sorted(answered) == list(range(len(sizes)))


@pytest.mark.asyncio
async def test_who_has_its_pages_goes_on_while_others_wait_for_the_origin() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        near, far = await store(cache, b"near", 3), await store(cache, b"far", 2)
        await cache.drain()
        await forget_tiers(cache, far)
        backend.gate.clear()
        answered, note = noted()
        rows = np.zeros((5, PAGE), np.uint8)
        merged = np.concatenate([far[:1], near, far[1:]])
        await cache.driver.submit(merged, rows, Parts(np.array([1, 3, 1]), note))
        assert answered == [1]
        await backend.arrived.wait()
        backend.gate.set()
        await cache.drain()
        assert sorted(answered) == [0, 1, 2]
        np.testing.assert_array_equal(rows, (await cache.read(merged)).pages)


@pytest.mark.asyncio
async def test_pages_that_fail_are_an_answer() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        pages = await store(cache, b"far", 4)
        await cache.drain()
        await forget_tiers(cache, pages)
        backend.answer = OSError("the store is gone")
        answered, note = noted()
        parts = Parts(np.array([2, 2]), note)
        read = await cache.driver.submit(pages, np.zeros((4, PAGE), np.uint8), parts)
        await cache.drain()
        assert sorted(answered) == [0, 1]
        assert read.status.tolist() == [PageStatus.FAILED] * 4


@pytest.mark.asyncio
async def test_when_the_cache_closes_nobody_waits_for_an_answer_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvtier.driver.CLOSE_PATIENCE_S", 0.0)
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        pages = await store(cache, b"far", 4)
        await cache.drain()
        await forget_tiers(cache, pages)
        backend.gate.clear()
        answered, note = noted()
        parts = Parts(np.array([1, 3]), note)
        await cache.driver.submit(pages, np.zeros((4, PAGE), np.uint8), parts)
        await backend.arrived.wait()
        assert answered == []
        await cache.driver.close()
        assert answered == [0, 1]


@pytest.mark.asyncio
async def test_without_an_origin_absent_pages_are_an_answer_at_once() -> None:
    async with opened(None) as cache:
        answered, note = noted()
        pages = np.arange(4, dtype=np.uint64)
        await cache.driver.submit(pages, np.zeros((4, PAGE), np.uint8), Parts(np.array([4]), note))
        assert answered == [0]


def virtual_driver(pages: int) -> tuple[VirtualDriver, U64]:
    """An emulator, and the pages of the one object of its origin."""
    wanted = settings()
    directory = ObjectDirectory(wanted.chain.objects_max)
    driver, _ = open_emulator(wanted, directory, VirtualClock(), {b"object": pages})
    entry = directory.reserve(b"object", pages, 1, at_origin=True)
    directory.publish(entry)
    return driver, expand_objects(np.array([entry.object_id], np.uint32), np.array([pages]))


def test_in_virtual_time_a_part_in_memory_is_answered_before_one_at_the_origin() -> None:
    driver, page_ids = virtual_driver(8)
    times: dict[int, int] = {}

    def note(parts: I64) -> None:
        times.update(dict.fromkeys(parts.tolist(), driver.timeline.now_ns))

    async def run() -> int:
        await driver.read(page_ids[:4], None)
        await driver.drain()
        start_ns = driver.timeline.now_ns
        await driver.submit(page_ids, None, Parts(np.array([4, 4]), note))
        await driver.drain()
        return start_ns

    with asyncio.Runner(loop_factory=lambda: VirtualLoop(driver.timeline)) as runner:
        start_ns = runner.run(run())
    assert start_ns < times[0] < start_ns + 10_000 < times[1]


def test_in_virtual_time_batches_overlap() -> None:
    driver, page_ids = virtual_driver(8)

    async def together() -> None:
        await asyncio.gather(*(driver.read(page_ids, None) for _ in range(3)))

    with asyncio.Runner(loop_factory=lambda: VirtualLoop(driver.timeline)) as runner:
        runner.run(together())
    counters = driver.chain.counters
    assert counters.joined == 16
    assert counters.levels[-1].device_reads == 2


def test_in_virtual_time_a_deadline_passes_and_the_fetch_goes_on() -> None:
    driver, page_ids = virtual_driver(4)

    async def run() -> list[int]:
        status = await driver.read(page_ids, None, deadline_s=1e-6)
        assert driver.timeline.now_ns == 1000
        await driver.drain()
        again = await driver.read(page_ids, None)
        return [*set(status.tolist()), *set(again.tolist())]

    with asyncio.Runner(loop_factory=lambda: VirtualLoop(driver.timeline)) as runner:
        assert runner.run(run()) == [PageStatus.LATE, PageStatus.OK]
    assert driver.chain.counters.late == 4
    assert driver.chain.counters.levels[-1].device_reads == 1
