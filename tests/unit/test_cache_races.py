"""The cache when calls overlap, are cancelled or come late, and when its origin misbehaves."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from gated_backend import GatedBackend
from small_cache import PAGE, forget_tiers, opened, payload, settings, store

from kvtier import PageStatus
from kvtier.backend import ObjectStats
from kvtier.errors import BackendError, ClosedError, LimitError

pytestmark = pytest.mark.asyncio


async def test_a_payload_that_is_not_contiguous_is_refused_and_the_cache_goes_on() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        with pytest.raises(LimitError, match="C-contiguous"):
            await cache.write([b"a"], [4], payload(b"a", 8)[::2])
        await cache.drain()
        assert (await cache.read(await store(cache, b"a", 4))).ok


async def test_writers_of_one_key_take_turns_and_the_last_one_stays() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        backend.put_gate.clear()
        first = asyncio.create_task(cache.write([b"a"], [200], payload(b"first", 200)))
        await backend.put_arrived.wait()
        second = asyncio.create_task(cache.write([b"a"], [1], payload(b"second", 1)))
        await asyncio.sleep(0)
        backend.put_gate.set()
        await asyncio.gather(first, second)
        opened_object = await cache.open([b"a"])
        assert opened_object.pages.tolist() == (await backend.stat([b"a"])).pages.tolist() == [1]
        result = await cache.read(opened_object.page_ids())
        np.testing.assert_array_equal(result.pages, payload(b"second", 1))


async def test_an_open_waits_for_a_delete_of_the_same_key() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        await store(cache, b"a", 4)
        backend.put_arrived.clear()
        backend.put_gate.clear()
        deleting = asyncio.create_task(cache.delete([b"a"]))
        await backend.put_arrived.wait()
        opening = asyncio.create_task(cache.open([b"a"]))
        await asyncio.sleep(0)
        backend.put_gate.set()
        await deleting
        assert (await opening).pages.tolist() == [-1]


async def test_a_write_cancelled_while_it_is_put_is_looked_up_anew() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        await store(cache, b"a", 4)
        backend.put_arrived.clear()
        backend.put_gate.clear()
        writing = asyncio.create_task(cache.write([b"a"], [4], payload(b"new", 4)))
        await backend.put_arrived.wait()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        result = await cache.read((await cache.open([b"a"])).page_ids())
        np.testing.assert_array_equal(result.pages, payload(b"new", 4))


async def test_opening_new_keys_does_not_retire_those_opened_with_them() -> None:
    backend = GatedBackend(PAGE)
    wanted = settings()
    wanted = replace(wanted, chain=replace(wanted.chain, objects_max=3))
    async with opened(backend, wanted) as cache:
        for key in (b"x", b"y", b"a", b"b", b"c"):
            await store(cache, key, 2)
        await cache.open([b"a", b"b", b"c"])
        assert (await cache.open([b"a", b"x", b"y"])).pages.tolist() == [2, 2, 2]


async def test_a_deadline_holds_at_the_gate_too() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        ids = await store(cache, b"a", 256)
        await forget_tiers(cache, ids)
        backend.gate.clear()
        blocking = asyncio.create_task(cache.read(ids))
        await backend.arrived.wait()
        await forget_tiers(cache, ids)
        other = await store(cache, b"b", 4)
        await forget_tiers(cache, other)
        late = await cache.read(other, deadline_s=0.02)
        assert late.status.tolist() == [PageStatus.LATE] * 4
        backend.gate.set()
        assert (await blocking).ok


async def test_a_deadline_is_for_the_whole_read_however_many_batches_it_makes() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        ids = await store(cache, b"a", 256)
        await forget_tiers(cache, ids)
        backend.gate.clear()
        loop = asyncio.get_running_loop()
        start = loop.time()
        result = await cache.read(np.tile(ids, 40), deadline_s=0.1)
        assert (result.status == PageStatus.LATE).all()
        assert loop.time() - start < 2.0, "not 40 deadlines one after the other"
        backend.gate.set()


async def test_a_cancellation_inside_the_origin_fails_its_pages_only() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        ids = await store(cache, b"a", 4)
        await forget_tiers(cache, ids)
        backend.answer = asyncio.CancelledError()
        assert (await cache.read(ids)).status.tolist() == [PageStatus.FAILED] * 4
        backend.answer = None
        assert (await cache.read(ids)).ok


async def test_pages_that_come_too_late_and_then_fail_were_never_delivered() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        ids = await store(cache, b"a", 4)
        await forget_tiers(cache, ids)
        backend.gate.clear()
        await cache.read(ids, deadline_s=0.01)
        backend.answer = BackendError("gone")
        backend.gate.set()
        await cache.drain()
        counters = cache.driver.chain.counters
        assert (counters.reads, counters.delivered, counters.late) == (4, 0, 4)


async def test_reads_of_a_deleted_object_ask_nothing_of_the_origin() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        ids = await store(cache, b"a", 4)
        await cache.delete([b"a"])
        await cache.read(ids)
        assert backend.asked == []
        assert cache.driver.chain.counters.levels[-1].device_reads == 0


async def test_a_stat_of_the_wrong_length_is_an_error_and_publishes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = GatedBackend(PAGE)

    async def stat(keys: object) -> ObjectStats:
        return ObjectStats(np.ones(1, np.int64), np.ones(1, np.uint64))

    monkeypatch.setattr(backend, "stat", stat)
    async with opened(backend) as cache:
        with pytest.raises(BackendError, match="stat answered"):
            await cache.open([b"a", b"b"])
        assert len(cache.catalogue.directory) == 0


async def test_readers_of_a_device_in_first_place_wait_for_room_and_are_all_served() -> None:
    async with opened(GatedBackend(PAGE), settings("nvme", slots=256)) as cache:
        ids = await store(cache, b"a", 200)
        results = await asyncio.gather(*(cache.read(ids) for _ in range(3)))
        for result in results:
            np.testing.assert_array_equal(result.pages, payload(b"a", 200))
        await cache.drain()


async def test_a_breakdown_wakes_everybody_who_waits() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        ids = await store(cache, b"a", 256)
        await forget_tiers(cache, ids)
        backend.gate.clear()
        readers = [asyncio.create_task(cache.read(ids[:200])) for _ in range(4)]
        await backend.arrived.wait()
        cache.driver._break(RuntimeError("a defect"))
        answers = await asyncio.gather(*readers, return_exceptions=True)
        assert all(isinstance(answer, ClosedError) for answer in answers)
        backend.gate.set()


async def test_a_closed_cache_does_not_touch_its_origin() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        await store(cache, b"a", 4)
    for call in (
        cache.write([b"b"], [1], payload(b"b", 1)),
        cache.delete([b"a"]),
        cache.open([b"a"]),
        cache.lookup([b"a"]),
    ):
        with pytest.raises(ClosedError):
            await call
    assert (await backend.stat([b"a", b"b"])).pages.tolist() == [4, -1]


async def test_closing_does_not_wait_for_ever_for_an_origin_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvtier.driver.CLOSE_PATIENCE_S", 0.05)
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        ids = await store(cache, b"a", 4)
        await forget_tiers(cache, ids)
        backend.gate.clear()
        reader = asyncio.create_task(cache.read(ids))
        await backend.arrived.wait()
    with pytest.raises(ClosedError):
        await reader
