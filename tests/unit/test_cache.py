"""The cache end to end on real tiers, with a memory origin whose answers a test can hold back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gated_backend import GatedBackend
from small_cache import PAGE, forget_tiers, opened, payload, settings, store

from kvtier import PageStatus
from kvtier.errors import BackendError, ClosedError, LimitError
from kvtier.pages import U8, U64, make_page_ids
from kvtier.tiers import NvmeTier

pytestmark = pytest.mark.asyncio


async def test_every_level_serves_the_bytes_that_were_written() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        ids = await store(cache, b"a", 40)
        for level in (0, 1, 2, 3):
            for index in cache.driver.indexes[:level]:
                index.invalidate(ids)
            result = await cache.read(ids)
            assert result.ok
            np.testing.assert_array_equal(result.pages, payload(b"a", 40))
            await cache.drain()
        assert [level.hits for level in cache.driver.chain.counters.levels] == [40, 40, 40, 40]


async def test_rows_come_in_the_order_asked_for_repeats_included() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        ids = await store(cache, b"a", 8)
        order = np.array([3, 3, 7, 0, 3])
        await forget_tiers(cache, ids)
        result = await cache.read(ids[order])
        np.testing.assert_array_equal(result.pages, payload(b"a", 8)[order])


async def test_a_read_larger_than_a_batch_is_cut() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        ids = await store(cache, b"a", 40)
        many = np.tile(ids, 20)
        result = await cache.read(many)
        np.testing.assert_array_equal(result.pages, np.tile(payload(b"a", 40), (20, 1)))
        assert cache.driver.chain.counters.batches == 4


async def test_overlapping_readers_share_one_fetch() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        ids = await store(cache, b"a", 4)
        await forget_tiers(cache, ids)
        backend.gate.clear()
        readers = [asyncio.create_task(cache.read(ids)) for _ in range(3)]
        await asyncio.sleep(0)
        backend.gate.set()
        for reader in readers:
            np.testing.assert_array_equal((await reader).pages, payload(b"a", 4))
        assert len(backend.asked) == 1
        assert cache.driver.chain.counters.joined == 8


async def test_a_cancelled_reader_is_not_written_to_and_the_tiers_still_fill() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        ids = await store(cache, b"a", 4)
        await forget_tiers(cache, ids)
        backend.gate.clear()
        out = np.full((4, PAGE), 7, np.uint8)
        reader = asyncio.create_task(cache.read(ids, out))
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        backend.gate.set()
        await cache.drain()
        assert (out == 7).all()
        assert cache.driver.resident(ids).all()


async def test_a_missed_deadline_answers_late_and_the_tiers_still_fill() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        ids = await store(cache, b"a", 4)
        cache.driver.invalidate(ids[2:])
        backend.gate.clear()
        out = np.full((4, PAGE), 7, np.uint8)
        result = await cache.read(ids, out, deadline_s=0.01)
        assert result.status.tolist() == [0, 0, PageStatus.LATE, PageStatus.LATE]
        backend.gate.set()
        await cache.drain()
        assert (out[2:] == 7).all()
        assert cache.driver.resident(ids).all()
        assert cache.driver.chain.counters.late == 2


async def test_a_backend_that_raises_fails_its_pages_only_and_works_again() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        ids = await store(cache, b"a", 8)
        cache.driver.invalidate(ids[4:])
        backend.answer = BackendError("the wire is cut")
        result = await cache.read(ids)
        assert result.status.tolist() == [0] * 4 + [PageStatus.FAILED] * 4
        backend.answer = None
        assert (await cache.read(ids)).ok


@pytest.mark.parametrize(
    "answer", [np.zeros(7, np.uint8), np.zeros(1, np.int64), np.full(1, 77, np.uint8)]
)
async def test_a_backend_that_answers_nonsense_fails_its_pages(answer: U8) -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        ids = await store(cache, b"a", 4)
        await forget_tiers(cache, ids)
        backend.answer = answer
        assert (await cache.read(ids)).status.tolist() == [PageStatus.FAILED] * 4


async def test_a_rewritten_key_is_read_anew_and_old_page_ids_name_nothing() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        old = await store(cache, b"a", 4)
        fresh = payload(b"other", 4)
        await cache.write([b"a"], [4], fresh)
        new = (await cache.open([b"a"])).page_ids()
        np.testing.assert_array_equal((await cache.read(new)).pages, fresh)
        assert (await cache.read(old)).status.tolist() == [PageStatus.ABSENT] * 4


async def test_a_key_rewritten_behind_our_back_is_absent_once_and_then_new() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        ids = await store(cache, b"a", 4)
        await forget_tiers(cache, ids)
        async with opened(backend) as other:
            await other.write([b"a"], [4], payload(b"other", 4))
        assert (await cache.read(ids)).status.tolist() == [PageStatus.ABSENT] * 4
        new = (await cache.open([b"a"])).page_ids()
        np.testing.assert_array_equal((await cache.read(new)).pages, payload(b"other", 4))


async def test_a_refused_write_keeps_the_old_version() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        ids = await store(cache, b"a", 4)
        backend.refuse_puts = True
        status = await cache.write([b"a"], [4], payload(b"other", 4))
        assert status.tolist() == [PageStatus.FAILED]
        np.testing.assert_array_equal((await cache.read(ids)).pages, payload(b"a", 4))


async def test_lookup_is_the_leading_run_of_what_the_origin_has() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        for key in (b"a", b"b", b"d"):
            await store(cache, key, 2)
        assert await cache.lookup([b"a", b"b", b"c", b"d"]) == 2
        assert await cache.lookup([b"c", b"a"]) == 0
        assert await cache.lookup([]) == 0


async def test_without_an_origin_lookup_needs_every_page_in_some_tier() -> None:
    async with opened(None) as cache:
        for key in (b"a", b"b"):
            await store(cache, key, 4)
        assert await cache.lookup([b"a", b"b", b"c"]) == 2
        ids = (await cache.open([b"b"])).page_ids()
        cache.driver.invalidate(ids[1:2])
        assert await cache.lookup([b"a", b"b"]) == 1
        assert (await cache.read(ids)).status.tolist() == [0, PageStatus.ABSENT, 0, 0]


async def test_a_deleted_object_is_gone_from_tiers_and_origin() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        ids = await store(cache, b"a", 4)
        await cache.delete([b"a", b"never"])
        assert (await cache.open([b"a"])).pages.tolist() == [-1]
        assert (await cache.read(ids)).status.tolist() == [PageStatus.ABSENT] * 4


async def test_a_full_directory_retires_the_least_recently_opened_object() -> None:
    wanted = settings()
    wanted = replace(wanted, chain=replace(wanted.chain, objects_max=2))
    async with opened(GatedBackend(PAGE), wanted) as cache:
        first = await store(cache, b"a", 2)
        await store(cache, b"b", 2)
        await cache.open([b"a"])
        second = (await cache.open([b"b"])).page_ids()
        await cache.open([b"a"])
        await store(cache, b"c", 2)
        assert (await cache.read(first)).ok
        assert not cache.driver.resident(second).any()
        assert (await cache.read(second)).status.tolist() == [PageStatus.ABSENT] * 2
        again = (await cache.open([b"b"])).page_ids()
        np.testing.assert_array_equal((await cache.read(again)).pages, payload(b"b", 2))


async def test_more_new_keys_than_the_directory_holds_are_refused() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        with pytest.raises(LimitError, match="objects_max"):
            await cache.open([b"%d" % number for number in range(65)])


async def test_a_lease_keeps_pages_in_place_until_released() -> None:
    async with opened(GatedBackend(PAGE), settings("hbm", slots=8)) as cache:
        ids = await store(cache, b"a", 8)
        with await cache.lease(ids) as lease:
            assert (lease.slots >= 0).all()
            other = await store(cache, b"b", 8)
            assert (await cache.read(other)).ok
            arena = cache.driver.tiers[0].arena
            np.testing.assert_array_equal(arena[lease.slots], payload(b"a", 8))
        await cache.read(other)
        assert cache.driver.resident(other).any()


async def test_a_full_in_flight_table_makes_readers_wait_and_all_are_served() -> None:
    backend = GatedBackend(PAGE)
    async with opened(backend) as cache:
        ids = await store(cache, b"a", 256)
        await forget_tiers(cache, ids)
        backend.gate.clear()
        readers = [asyncio.create_task(cache.read(ids[at : at + 100])) for at in (0, 100, 156)]
        hit = await store(cache, b"b", 1)
        await backend.arrived.wait()
        assert (await cache.read(hit)).ok, "hits pass while misses wait"
        assert sum(not reader.done() for reader in readers) == 3
        backend.gate.set()
        for reader, at in zip(readers, (0, 100, 156), strict=True):
            result = await reader
            np.testing.assert_array_equal(result.pages, payload(b"a", 256)[at : at + 100])


async def test_pages_changed_on_the_nvme_tiers_file_are_read_from_the_origin(
    tmp_path: Path,
) -> None:
    wanted = settings("nvme")
    file = tmp_path / "pages"
    tier = replace(wanted.tiers[0], path=file, direct=False)
    async with opened(GatedBackend(PAGE), replace(wanted, tiers=(tier,))) as cache:
        ids = await store(cache, b"a", 16)
        nvme = cache.driver.tiers[0]
        assert isinstance(nvme, NvmeTier)
        await nvme.flush()
        file.write_bytes(b"\x55" * file.stat().st_size)
        result = await cache.read(ids)
        np.testing.assert_array_equal(result.pages, payload(b"a", 16))
        assert cache.driver.chain.counters.levels[0].failures > 0


async def test_pages_past_the_end_of_an_object_are_absent() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        ids = await store(cache, b"a", 4)
        await forget_tiers(cache, ids)
        beyond = make_page_ids(int(ids[0] >> np.uint64(32)), np.arange(2, 6))
        result = await cache.read(beyond)
        assert result.status.tolist() == [0, 0, PageStatus.ABSENT, PageStatus.ABSENT]
        assert (await cache.open([b"a"])).pages.tolist() == [4]


async def test_a_prefetch_fills_the_first_tier() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        ids = await store(cache, b"a", 4)
        await forget_tiers(cache, ids)
        assert (await cache.prefetch(ids)).tolist() == [0] * 4
        assert (cache.driver.indexes[0].peek(ids) >= 0).all()


async def test_after_close_calls_are_refused() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        ids = await store(cache, b"a", 4)
    with pytest.raises(ClosedError):
        await cache.read(ids)


@pytest.mark.parametrize(
    ("page_ids", "out"),
    [
        (np.zeros(1, np.int64), None),
        (np.zeros((1, 1), np.uint64), None),
        (np.zeros(2, np.uint64), np.zeros((1, PAGE), np.uint8)),
        (np.zeros(1, np.uint64), np.zeros((1, PAGE), np.int8)),
        (np.zeros(2, np.uint64), np.zeros((4, PAGE), np.uint8)[::2]),
    ],
)
async def test_arrays_that_do_not_fit_are_refused(page_ids: U64, out: U8 | None) -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        with pytest.raises(LimitError):
            await cache.read(page_ids, out)


@pytest.mark.parametrize(
    ("keys", "counts", "pages"),
    [([b"a", b"a"], [1, 1], 2), ([b"a"], [0], 0), ([b"a"], [2], 1), ([b"a"], [1, 1], 2)],
)
async def test_writes_that_do_not_fit_are_refused(
    keys: list[bytes], counts: list[int], pages: int
) -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        with pytest.raises(LimitError):
            await cache.write(keys, counts, np.zeros((pages, PAGE), np.uint8))
