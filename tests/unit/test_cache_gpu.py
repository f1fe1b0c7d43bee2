"""A cache whose first tier is on a GPU: callers with memory there, and what is refused."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cpu_gpu import ORDERS, CpuGpu, DeviceArray, ForeignArray
from gated_backend import GatedBackend
from gpus import GPUS, open_test_gpu
from small_cache import PAGE, forget_tiers, payload, settings, store

from kvtier import open_cache
from kvtier.errors import DeviceError, DeviceLostError, LimitError
from kvtier.gpu import Gpu
from kvtier.pages import PageStatus
from kvtier.settings import ChainSettings
from kvtier.tiers.cuda_rows import SOURCE, RowKernels


@pytest.fixture(params=GPUS)
def gpu(request: pytest.FixtureRequest) -> Gpu:
    return open_test_gpu(request.param)


def opened(gpu: Gpu, tiers: str = "hbm dram", slots: int = 64) -> Any:
    return open_cache(settings(tiers, slots=slots), origin=GatedBackend(PAGE), gpu=gpu)


def rows_on(gpu: Gpu, pages: int) -> Any:
    return gpu.xp.empty((pages, PAGE), np.uint8)


def foreign(rows: Any) -> Any:
    """The same memory, as another library describes its own."""
    if isinstance(rows, DeviceArray):
        return ForeignArray(rows)
    return SimpleNamespace(__cuda_array_interface__=rows.__cuda_array_interface__)


@pytest.mark.asyncio
@pytest.mark.parametrize("tiers", ["hbm", "hbm dram", "hbm nvme", "hbm dram nvme"])
async def test_pages_of_every_level_come_to_memory_of_the_gpu(gpu: Gpu, tiers: str) -> None:
    async with opened(gpu, tiers) as cache:
        ids = await store(cache, b"key", 40)
        for keeps in range(3):  # in all tiers; in those below the first; at the origin
            if keeps == 1:
                cache.driver.indexes[0].invalidate(ids)
            elif keeps == 2:
                await forget_tiers(cache, ids)
            out = rows_on(gpu, 40)
            result = await cache.read(ids, out)
            assert result.ok
            assert result.pages is out
            np.testing.assert_array_equal(out.get(), payload(b"key", 40))
            await cache.drain()


@pytest.mark.asyncio
async def test_slots_given_away_at_once_still_deliver_what_was_asked_for(gpu: Gpu) -> None:
    async with opened(gpu, slots=16) as cache:
        names = [b"key-%d" % number for number in range(8)]
        answers = []
        ids = [await store(cache, name, 16) for name in names]
        stream = gpu.new_stream()
        for _ in range(3):
            for name, pages in zip(names, ids, strict=True):
                out = rows_on(gpu, 16)
                assert (await cache.read(pages, out, stream=stream.ptr)).ok
                answers.append((name, out))
                host = await cache.read(pages)
                np.testing.assert_array_equal(host.pages, payload(name, 16))
        for name, out in reversed(answers):
            with gpu.on(stream):
                np.testing.assert_array_equal(out.get(), payload(name, 16))


@pytest.mark.asyncio
async def test_leased_pages_are_read_in_place_by_kernels_of_the_caller(gpu: Gpu) -> None:
    async with opened(gpu, slots=16) as cache:
        names = [b"key-%d" % number for number in range(6)]
        ids = [await store(cache, name, 16) for name in names]
        tier = cache.driver.tiers[0]
        kernels = RowKernels(gpu.kernels(SOURCE, {}))
        stream = gpu.new_stream()
        seen = []
        for pages in ids:
            with await cache.lease(pages) as lease:
                kept = lease.slots >= 0
                assert kept.any()
                with tier.reading(stream):
                    seen.append((kernels.sums(tier.arena, lease.slots[kept]), kept))
        for name, (sums, kept) in reversed(list(zip(names, seen, strict=True))):
            words = payload(name, 16)[kept].view(np.uint64)
            with gpu.on(stream):
                np.testing.assert_array_equal(sums.get(), words.sum(axis=1, dtype=np.uint64))


@pytest.mark.asyncio
async def test_hits_wait_for_one_number_and_not_for_the_caller_s_stream() -> None:
    gpu = CpuGpu("lazy")
    async with opened(gpu) as cache:
        ids = await store(cache, b"key", 32)
        out, stream = rows_on(gpu, 32), gpu.new_stream()
        with gpu.on(stream):
            busy = gpu.xp.asarray(np.zeros(1))
        waits, launched = gpu.host_waits, len(gpu.launched)
        assert (await cache.read(ids, out, stream=stream.ptr)).ok
        assert gpu.host_waits == waits + 1
        assert gpu.launched[launched:] == ["probe", "copy_rows"]
        assert len(stream.queue) > 1
        stream.synchronize()
        np.testing.assert_array_equal(out.get(), payload(b"key", 32))
        assert busy.get() == 0


@pytest.mark.asyncio
async def test_a_long_read_comes_in_parts_and_foreign_memory_is_taken_over(gpu: Gpu) -> None:
    async with opened(gpu, slots=512) as cache:
        ids = np.concatenate([await store(cache, b"%d" % key, 50) for key in range(12)])
        out = rows_on(gpu, 600)
        assert (await cache.read(ids, foreign(out))).ok
        expected = np.concatenate([payload(b"%d" % key, 50) for key in range(12)])
        np.testing.assert_array_equal(out.get(), expected)


def lose_at_the_next_copy(gpu: CpuGpu, cache: Any) -> None:
    """The device fails between a lookup and the copy of its hits."""
    tier = cache.driver.tiers[0]
    gather = tier.gather

    def lost(*arguments: Any) -> None:
        gpu.lost = True
        gather(*arguments)

    tier.gather = lost


@pytest.mark.asyncio
async def test_a_gpu_that_is_lost_before_a_lookup_misses_everything() -> None:
    gpu = CpuGpu()
    async with opened(gpu) as cache:
        ids = await store(cache, b"key", 8)
        gpu.lost = True
        result = await cache.read(ids[[3, 3, 5]])
        np.testing.assert_array_equal(result.pages, payload(b"key", 8)[[3, 3, 5]])
        hbm, dram, _ = cache.driver.chain.counters.levels
        assert (hbm.hits, hbm.lookups, hbm.failures, dram.hits) == (0, 2, 0, 2)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.asyncio
async def test_hits_of_a_lost_gpu_are_failures_and_come_from_below(
    order: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = CpuGpu(order)
    async with opened(gpu) as cache:
        ids = await store(cache, b"key", 8)
        cache.driver.indexes[1].invalidate(ids[:4])
        await cache.read(ids)
        cache.driver.indexes[0].invalidate(ids[7:])
        lose_at_the_next_copy(gpu, cache)
        asked = np.array([3, 3, 5, 0, 7, 7, 3, 5])
        result = await cache.read(ids[asked])
        assert result.ok
        np.testing.assert_array_equal(result.pages, payload(b"key", 8)[asked])
        counters = cache.driver.chain.counters
        hbm, dram, origin = counters.levels
        assert (hbm.hits, hbm.lookups, hbm.failures) == (8, 12, 3)
        assert (dram.hits, origin.hits, counters.folded) == (2, 2, 4)
        assert (counters.reads, counters.unique, counters.delivered) == (16, 12, 16)
        with pytest.raises(DeviceLostError, match="give out in host memory"):
            await cache.read(ids, DeviceArray(gpu, np.zeros((8, PAGE), np.uint8)))
        with await cache.lease(ids) as lease:
            assert (lease.slots == -1).all()
    (record,) = caplog.records
    assert record.getMessage().startswith("hbm is lost, its pages are read from the levels below")


@pytest.mark.asyncio
async def test_pages_of_a_lost_gpu_join_what_is_on_its_way() -> None:
    gpu, backend = CpuGpu(), GatedBackend(PAGE)
    async with open_cache(settings("hbm"), origin=backend, gpu=gpu) as cache:
        ids = await store(cache, b"key", 8)
        cache.driver.invalidate(ids[7:])
        backend.gate.clear()
        reads = [asyncio.create_task(cache.read(ids[7:]))]
        await backend.arrived.wait()
        gpu.lost = True
        reads.append(asyncio.create_task(cache.read(ids[[7, 3]])))
        reads.append(asyncio.create_task(cache.read(ids[[3]])))
        for _ in range(8):
            await asyncio.sleep(0)
        backend.gate.set()
        for result, pages in zip(await asyncio.gather(*reads), ([7], [7, 3], [3]), strict=True):
            np.testing.assert_array_equal(result.pages, payload(b"key", 8)[pages])
        counters = cache.driver.chain.counters
        assert (counters.unique, counters.joined, counters.levels[-1].hits) == (4, 2, 2)


@pytest.mark.asyncio
async def test_a_gpu_that_failed_once_is_asked_for_nothing_more() -> None:
    gpu, backend = CpuGpu(), GatedBackend(PAGE)
    async with open_cache(settings("hbm dram"), origin=backend, gpu=gpu) as cache:
        ids, others = await store(cache, b"key", 8), await store(cache, b"others", 8)
        cache.driver.invalidate(others)
        backend.gate.clear()
        out = rows_on(gpu, 8)
        flying = asyncio.create_task(cache.read(others, out))
        await backend.arrived.wait()
        gpu.lost = True
        assert (await cache.read(ids)).ok
        gpu.lost = False  # as after an allocation that failed
        launched = len(gpu.launched)
        backend.gate.set()
        assert ((await flying).status == PageStatus.FAILED).all()
        assert (await cache.read(others)).ok
        await cache.drain()
        assert len(gpu.launched) == launched


@pytest.mark.asyncio
async def test_pages_of_a_lost_gpu_wait_for_room_in_flight() -> None:
    gpu, backend = CpuGpu(), GatedBackend(PAGE)
    chain = ChainSettings(
        batch_pages_max=8,
        inflight_pages_max=8,
        device_batch_pages=8,
        staging_bytes=2 * 8 * PAGE,
        objects_max=8,
    )
    async with open_cache(settings("hbm", chain=chain), origin=backend, gpu=gpu) as cache:
        hits, misses = await store(cache, b"hits", 8), await store(cache, b"misses", 8)
        cache.driver.invalidate(misses)
        backend.gate.clear()
        flying = asyncio.create_task(cache.read(misses))
        await backend.arrived.wait()
        gpu.lost = True
        lost = asyncio.create_task(cache.read(hits))
        for _ in range(8):
            await asyncio.sleep(0)
        assert cache.driver.chain.room_pages == 0
        backend.gate.set()
        assert (await flying).ok
        np.testing.assert_array_equal((await lost).pages, payload(b"hits", 8))


@pytest.mark.asyncio
async def test_a_deadline_holds_while_pages_of_a_lost_gpu_are_sought() -> None:
    gpu, backend = CpuGpu(), GatedBackend(PAGE)
    async with open_cache(settings("hbm"), origin=backend, gpu=gpu) as cache:
        ids = await store(cache, b"key", 8)
        gpu.lost = True
        backend.gate.clear()
        late = await cache.read(ids, deadline_s=0.01)
        assert (late.status == PageStatus.LATE).all()
        backend.gate.set()
        await cache.drain()
        assert (await cache.read(ids)).ok


@pytest.mark.asyncio
async def test_memory_that_does_not_fit_is_refused_in_one_line() -> None:
    gpu = CpuGpu()
    async with opened(gpu) as cache:
        ids = await store(cache, b"key", 2)
        wide = rows_on(gpu, 4)
        refused = [
            (gpu.xp.zeros((2, PAGE), np.int8), "int8"),
            (rows_on(gpu, 3), r"uint8\[3, 512\]: it must be"),
            (wide[::2], "C-contiguous"),
            (DeviceArray(gpu, wide.held.reshape(-1)[8 : 8 + 2 * PAGE].reshape(2, PAGE)), "of 16"),
            (CpuGpu().xp.zeros((2, PAGE), np.uint8), "out: the memory lies on another GPU"),
            ([0, 1], r"builtins.list in host memory: give a NumPy array"),
        ]
        for out, message in refused:
            with pytest.raises(LimitError, match=message) as caught:
                await cache.read(ids, out)
            assert "\n" not in str(caught.value)


@pytest.mark.asyncio
async def test_without_a_tier_on_a_gpu_its_memory_is_refused() -> None:
    async with open_cache(settings("dram"), origin=GatedBackend(PAGE)) as cache:
        ids = await store(cache, b"key", 2)
        message = "out is a cpu_gpu.DeviceArray, and no tier is on a GPU: give a NumPy array"
        with pytest.raises(LimitError, match=message):
            await cache.read(ids, rows_on(CpuGpu(), 2))


@pytest.mark.asyncio
async def test_a_gpu_without_the_memory_is_refused_before_it_is_asked_for_it() -> None:
    gpu = CpuGpu(memory_bytes=1 << 14)
    with pytest.raises(DeviceError, match=r"hbm tier of 33.1 KiB does not fit: .* 16 KiB of"):
        async with opened(gpu):
            pass
