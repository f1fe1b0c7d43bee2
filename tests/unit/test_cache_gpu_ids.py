"""Page ids that lie on the GPU: what hits stays there, and what misses is answered as ever."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cpu_gpu import ORDERS, CpuGpu, DeviceArray, ForeignArray
from gated_backend import GatedBackend
from gpus import GPUS, open_test_gpu
from index_engines import on_host
from small_cache import PAGE, forget_tiers, payload, settings, store

from kvtier import open_cache
from kvtier.errors import DeviceError, DeviceLostError, LimitError
from kvtier.gpu import Gpu
from kvtier.levels import Levels
from kvtier.pages import U64, PageStatus
from kvtier.settings import Admit
from kvtier.tiers.cuda_rows import SOURCE, RowKernels

PAGES = 40


@pytest.fixture(params=GPUS)
def gpu(request: pytest.FixtureRequest) -> Gpu:
    return open_test_gpu(request.param)


def opened(gpu: Gpu | None, tiers: str = "hbm dram", slots: int = 64) -> Any:
    return open_cache(settings(tiers, slots=slots), origin=GatedBackend(PAGE), gpu=gpu)


def foreign(array: Any) -> Any:
    """The same memory, as another library describes its own."""
    if isinstance(array, DeviceArray):
        return ForeignArray(array)
    return SimpleNamespace(__cuda_array_interface__=array.__cuda_array_interface__)


@pytest.mark.asyncio
@pytest.mark.parametrize("tiers", ["hbm", "hbm dram", "hbm dram nvme"])
@pytest.mark.parametrize("kept", [0, 13, PAGES])
async def test_pages_come_to_where_their_ids_are(gpu: Gpu, tiers: str, kept: int) -> None:
    async with opened(gpu, tiers) as cache:
        ids = await store(cache, b"key", PAGES)
        await forget_tiers(cache, ids[kept:])
        asked = np.random.default_rng(kept).integers(0, PAGES, 60)
        there = gpu.xp.asarray(ids[asked])
        result = await cache.read(there)
        assert result.ok
        assert isinstance(result.pages, gpu.xp.ndarray)
        there[:] = gpu.xp.zeros(60, np.uint64)  # the caller's again
        np.testing.assert_array_equal(on_host(result.pages), payload(b"key", PAGES)[asked])
        await cache.drain()


@pytest.mark.asyncio
async def test_memory_of_each_kind_goes_with_ids_of_each_kind(gpu: Gpu) -> None:
    async with opened(gpu) as cache:
        ids = await store(cache, b"key", PAGES)
        await forget_tiers(cache, ids[::3])
        there = gpu.xp.asarray(ids)
        for page_ids in (ids, there, foreign(there)):
            for out in (np.zeros((PAGES, PAGE), np.uint8), gpu.xp.zeros((PAGES, PAGE), np.uint8)):
                assert (await cache.read(page_ids, out)).pages is out
                np.testing.assert_array_equal(on_host(out), payload(b"key", PAGES))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.asyncio
async def test_ids_are_taken_as_their_stream_leaves_them(order: Any) -> None:
    gpu = CpuGpu(order)
    async with opened(gpu) as cache:
        ids = await store(cache, b"key", PAGES)
        stream = gpu.new_stream()
        there, later = gpu.xp.zeros(PAGES, np.uint64), gpu.xp.asarray(ids)

        def write() -> None:
            there.held[:] = later.held

        gpu.enqueue(stream, write)
        result = await cache.read(there, stream=stream.ptr)
        gpu.enqueue(stream, lambda: there.held.fill(0))
        stream.synchronize()
        np.testing.assert_array_equal(result.pages.get(), payload(b"key", PAGES))


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["read", "prefetch", "lease"])
async def test_others_are_served_while_ids_are_not_written_yet(kind: str) -> None:
    gpu = CpuGpu("lazy")
    async with opened(gpu) as cache:
        ids = await store(cache, b"key", PAGES)
        there, stream = gpu.xp.asarray(ids), gpu.new_stream()
        for _ in range(50):
            gpu.enqueue(stream, lambda: None)
        asking = asyncio.create_task(getattr(cache, kind)(there, stream=stream.ptr))
        for _ in range(5):
            await asyncio.sleep(0)
            assert (await cache.read(ids)).ok
            assert (await cache.read(gpu.xp.asarray(ids))).ok
        assert len(stream.queue) > 10
        assert not asking.done()
        answer = await asking
        if kind == "lease":
            answer.release()


@pytest.mark.asyncio
@pytest.mark.parametrize("captures", [True, False])
async def test_of_hits_one_number_comes_to_the_host_and_of_misses_what_they_are(
    captures: bool,
) -> None:
    gpu = CpuGpu("lazy")
    gpu.can_capture = captures
    async with opened(gpu) as cache:
        ids = await store(cache, b"key", PAGES)
        there = gpu.xp.asarray(ids)
        before, launched = gpu.fetched_bytes, len(gpu.launched)
        result = await cache.read(there)
        # A graph tells of misses in pinned memory.
        assert gpu.fetched_bytes - before == (0 if captures else 8)
        kernels = ["graph"] if captures else ["probe", "copy_rows"]
        assert gpu.launched[launched:] == kernels
        np.testing.assert_array_equal(on_host(result.pages), payload(b"key", PAGES))
        cache.driver.indexes[0].invalidate(ids[:3])
        before = gpu.fetched_bytes
        result = await cache.read(there)
        published = 8
        assert gpu.fetched_bytes - before == 8 + 8 * (7 * 3 + 1) + published
        np.testing.assert_array_equal(on_host(result.pages), payload(b"key", PAGES))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("captures", [True, False])
@pytest.mark.parametrize("count", [1, 64, 65, 256, 257, 1024, 1025])
@pytest.mark.asyncio
async def test_a_graph_serves_small_batches_as_kernels_serve_others(
    order: Any, captures: bool, count: int
) -> None:
    gpu = CpuGpu(order)
    gpu.can_capture = captures
    wanted = settings("hbm dram", slots=64)
    wanted = replace(
        wanted, chain=replace(wanted.chain, batch_pages_max=2048, inflight_pages_max=2048)
    )
    async with open_cache(wanted, origin=GatedBackend(PAGE), gpu=gpu) as cache:
        ids = await store(cache, b"key", 32)
        pages = payload(b"key", 32)
        stream = gpu.new_stream()
        for turn in range(3):
            asked = np.random.default_rng(turn).integers(0, 32, count)
            with gpu.on(stream):
                there = gpu.xp.asarray(ids[asked])
            out = gpu.xp.zeros((count, PAGE), np.uint8)
            launched = len(gpu.launched)
            assert (await cache.read(there, out, stream=stream.ptr)).ok
            assert ("graph" in gpu.launched[launched:]) == (captures and count <= 1024)
            with gpu.on(stream):
                np.testing.assert_array_equal(out.get(), pages[asked])
        hbm = cache.driver.chain.counters.levels[0]
        assert (hbm.hits, hbm.rows_delivered) == (3 * count, 3 * count)


@pytest.mark.asyncio
async def test_a_long_read_comes_in_parts(gpu: Gpu) -> None:
    async with opened(gpu, slots=512) as cache:
        ids = np.concatenate([await store(cache, b"%d" % key, 50) for key in range(12)])
        result = await cache.read(gpu.xp.asarray(ids))
        expected = np.concatenate([payload(b"%d" % key, 50) for key in range(12)])
        np.testing.assert_array_equal(on_host(result.pages), expected)
        assert not (await cache.prefetch(gpu.xp.asarray(ids))).any()


@pytest.mark.asyncio
async def test_slots_of_a_lease_are_where_the_ids_are(gpu: Gpu) -> None:
    """They may be let go as soon as their reader is enqueued, as the lease may be released."""
    async with opened(gpu, slots=128) as cache:
        kernels = RowKernels(gpu.kernels(SOURCE, {}))
        tier, stream = cache.driver.tiers[0], gpu.new_stream()
        answers = []
        for number in range(6):
            name = b"key-%d" % number
            ids = (await store(cache, name, 16))[:8]
            await forget_tiers(cache, ids[::2])
            with gpu.on(stream):
                there = gpu.xp.asarray(ids)
            with await cache.lease(there, stream=stream.ptr) as lease:
                assert isinstance(lease.slots, gpu.xp.ndarray)
                with tier.reading(stream):
                    answers.append((name, kernels.sums(tier.arena, lease.slots)))
                lease.slots = np.empty(0, np.int64)
        for name, sums in reversed(answers):
            words = payload(name, 16)[:8].view(np.uint64)
            with gpu.on(stream):
                np.testing.assert_array_equal(on_host(sums), words.sum(axis=1, dtype=np.uint64))


@pytest.mark.asyncio
async def test_a_page_that_is_not_in_the_tier_has_no_slot(gpu: Gpu) -> None:
    wanted = settings("hbm dram", slots=64)
    wanted = replace(wanted, tiers=(replace(wanted.tiers[0], admit=0.0), wanted.tiers[1]))
    async with open_cache(wanted, origin=GatedBackend(PAGE), gpu=gpu) as cache:
        ids = await store(cache, b"key", 8)
        with await cache.lease(gpu.xp.asarray(ids)) as lease:
            assert on_host(lease.slots).tolist() == [-1] * 8


async def decisions(gpu: CpuGpu | None, admit: Admit, there: bool) -> Any:
    """What a cache decides of a load made up from a seed, and the slots that it leaves."""
    wanted = settings("hbm dram", slots=32)
    hbm = replace(wanted.tiers[0], admit=admit)
    wanted = replace(wanted, tiers=(hbm, *wanted.tiers[1:]))
    rng = np.random.default_rng(7)
    answers: list[Any] = []
    async with open_cache(wanted, origin=GatedBackend(PAGE), gpu=gpu) as cache:
        ids = np.concatenate([await store(cache, b"%d" % key, 20) for key in range(6)])
        expected = np.concatenate([payload(b"%d" % key, 20) for key in range(6)])
        for turn in range(30):
            asked = rng.integers(0, len(ids), rng.integers(1, 60))
            page_ids: Any = ids[asked]
            if gpu is not None and there:
                page_ids = gpu.xp.asarray(page_ids)
            result = await cache.read(page_ids)
            answers.append(result.status)
            ok = result.status == PageStatus.OK
            np.testing.assert_array_equal(on_host(result.pages)[ok], expected[asked][ok])
            if turn % 5 == 0:
                cache.driver.invalidate(ids[rng.integers(0, len(ids), 7)])
            await cache.drain()
        snapshots = [tier.index.snapshot() for tier in cache.driver.tiers]
        return cache.driver.chain.counters, snapshots, np.concatenate(answers)


@pytest.mark.asyncio
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("admit", "shut"),
    [
        (1.0, False),
        (0.5, False),
        (0.0, False),
        ("second touch", False),
        (1.0, True),
        (0.5, True),
        ("second touch", True),
    ],
)
async def test_decisions_are_those_of_the_twin_wherever_ids_lie(
    gpu: Gpu, admit: Admit, shut: bool, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of an origin that is shut, only pages that a level below has are admitted.
    monkeypatch.setattr(Levels, "origin_available", not shut)
    ours, our_slots, status = await decisions(gpu, admit, there)  # type: ignore[arg-type]
    theirs, their_slots, expected_status = await decisions(None, admit, there)
    assert ours == theirs
    np.testing.assert_array_equal(status, expected_status)
    assert status.any() == shut
    for mine, expected in zip(our_slots, their_slots, strict=True):
        for name in expected._fields:
            np.testing.assert_array_equal(getattr(mine, name), getattr(expected, name), name)


@pytest.mark.asyncio
async def test_ids_that_do_not_fit_are_refused_in_one_line() -> None:
    gpu = CpuGpu()
    async with opened(gpu) as cache:
        refused = [
            (gpu.xp.zeros(2, np.int64), r"page_ids is int64\[2\]: it must be uint64\[n\]"),
            (gpu.xp.zeros((2, 2), np.uint64), r"uint64\[2, 2\]: it must be"),
            (CpuGpu().xp.zeros(2, np.uint64), "page_ids: the memory lies on another GPU"),
            ([0, 1], r"page_ids is a builtins.list in host memory: give a NumPy array"),
        ]
        for call in (cache.read, cache.prefetch, cache.lease):
            for page_ids, message in refused:
                with pytest.raises(LimitError, match=message) as caught:
                    await call(page_ids)
                assert "\n" not in str(caught.value)
        assert cache.driver.chain.counters.batches == 0


@pytest.mark.asyncio
async def test_without_a_tier_on_a_gpu_its_ids_are_refused() -> None:
    async with opened(None, "dram") as cache:
        message = "page_ids is a cpu_gpu.DeviceArray, and no tier is on a GPU: give a NumPy array"
        with pytest.raises(LimitError, match=message):
            await cache.read(CpuGpu().xp.zeros(2, np.uint64))


@pytest.mark.asyncio
async def test_strided_ids_are_taken(gpu: Gpu) -> None:
    async with opened(gpu) as cache:
        ids = await store(cache, b"key", PAGES)
        there = gpu.xp.asarray(ids)
        np.testing.assert_array_equal(
            on_host((await cache.read(there[::2])).pages), payload(b"key", PAGES)[::2]
        )


@pytest.mark.asyncio
async def test_no_memory_for_the_answer_is_a_device_error() -> None:
    gpu = CpuGpu(memory_bytes=1 << 22)
    async with opened(gpu) as cache:
        ids: U64 = np.zeros(1 << 14, np.uint64)
        with pytest.raises(DeviceError, match="the GPU has no memory for 16384 pages"):
            await cache.read(gpu.xp.asarray(ids))
        assert (await cache.read(await store(cache, b"key", 4))).ok


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["host", "device"])
@pytest.mark.asyncio
async def test_ids_that_are_lost_with_the_gpu_are_failures(order: Any, kind: str) -> None:
    gpu = CpuGpu(order)
    async with opened(gpu) as cache:
        ids = await store(cache, b"key", 8)
        there, more = gpu.xp.asarray(ids), gpu.xp.asarray(ids)
        out = np.zeros((8, PAGE), np.uint8) if kind == "host" else gpu.xp.zeros((8, PAGE), np.uint8)
        # A small batch for the GPU's memory is served by a graph.
        tier = cache.driver.tiers[0]
        where, name = (tier.index, "lookup") if kind == "host" else (tier, "serve")
        asked = getattr(where, name)

        def lost(*arguments: Any, **hints: Any) -> Any:
            gpu.lost = True
            return asked(*arguments, **hints)

        setattr(where, name, lost)
        result = await cache.read(there, out)
        assert (result.status == PageStatus.FAILED).all()
        counters = cache.driver.chain.counters
        assert (counters.unique, counters.failed, counters.levels[0].hits) == (8, 8, 0)
        with pytest.raises(DeviceLostError, match="give page_ids in host memory"):
            await cache.read(more, out)
        assert (await cache.read(ids)).ok
        await cache.drain()


@pytest.mark.asyncio
async def test_ids_that_fail_before_they_are_written_lose_the_gpu() -> None:
    gpu = CpuGpu("lazy")
    async with opened(gpu) as cache:
        ids = await store(cache, b"key", 8)
        there, stream = gpu.xp.asarray(ids), gpu.new_stream()
        gpu.enqueue(stream, gpu._lose)
        with pytest.raises(DeviceLostError, match="illegal address"):
            await cache.read(there, stream=stream.ptr)
        assert (await cache.read(ids)).ok
        assert cache.driver.chain.counters.levels[0].hits == 0
