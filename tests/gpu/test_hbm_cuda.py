"""The tier in GPU memory moves the same bytes as its twin in host memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cpu_gpu import CpuGpu
from index_engines import OnHost, assert_same_answer

from kvtier.errors import DeviceError, LimitError
from kvtier.gpu import DeviceRows, Gpu
from kvtier.pages import U8
from kvtier.rows import aligned_rows
from kvtier.settings import TierName, TierSettings
from kvtier.tiers import MemoryTier, open_tier
from kvtier.tiers.crossing import CHUNK_BYTES
from kvtier.tiers.cuda import CudaTier

PAGE_BYTES = 4096
SLOTS = 128


def open_memory(
    gpu: Gpu | None, slots: int = SLOTS, page_bytes: int = PAGE_BYTES, name: TierName = "hbm"
) -> Any:
    wanted = TierSettings(name, slots * page_bytes)
    tier = asyncio.run(open_tier(wanted, page_bytes, seed=1, gpu=gpu))
    assert isinstance(tier, MemoryTier)
    return tier


@pytest.fixture
def tier(gpu: Gpu) -> Iterator[CudaTier]:
    tier = open_memory(gpu)
    yield tier
    asyncio.run(tier.close())


@pytest.fixture(params=["host", "device"])
def xp(request: pytest.FixtureRequest, gpu: Gpu) -> Any:
    """The library whose arrays the caller has."""
    return np if request.param == "host" else gpu.xp


def random_pages(count: int, page_bytes: int = PAGE_BYTES) -> U8:
    return np.random.default_rng(count).integers(0, 256, (count, page_bytes), np.uint8)


def on_host(pages: Any) -> U8:
    host: U8 = pages.get() if hasattr(pages, "get") else pages
    return host


def test_a_tier_on_a_gpu_says_so(tier: CudaTier) -> None:
    assert (tier.name, tier.engine, open_memory(None).engine) == ("hbm", "cuda", "cpu-twin")


def test_what_was_scattered_is_gathered(tier: CudaTier, xp: Any) -> None:
    rng = np.random.default_rng(1)
    source = random_pages(100)
    slots, rows = rng.permutation(SLOTS)[:100], rng.permutation(100)
    out = xp.zeros((100, PAGE_BYTES), np.uint8)
    tier.scatter(slots, xp.asarray(source), rows)
    tier.gather(slots, out, rows)
    np.testing.assert_array_equal(on_host(out), source)


def test_without_rows_the_first_ones_are_meant(tier: CudaTier, xp: Any) -> None:
    source = random_pages(3)
    out = xp.zeros((5, PAGE_BYTES), np.uint8)
    tier.scatter(np.array([9, 4]), xp.asarray(source))
    tier.gather(np.array([4, 9]), out)
    np.testing.assert_array_equal(on_host(out)[:2], source[[1, 0]])
    assert not on_host(out)[2:].any()


def test_no_pages_are_no_work(tier: CudaTier, xp: Any) -> None:
    none = np.empty(0, np.int64)
    out = xp.zeros((1, PAGE_BYTES), np.uint8)
    tier.scatter(none, xp.asarray(random_pages(1)), none)
    tier.gather(none, out, none)
    assert not on_host(out).any()


@pytest.mark.parametrize("page_bytes", [512 << 10, CHUNK_BYTES, 2 * CHUNK_BYTES])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9])
def test_a_copy_may_be_larger_than_the_pinned_buffers(
    gpu: Gpu, page_bytes: int, count: int
) -> None:
    tier = open_memory(gpu, 16, page_bytes)
    source = random_pages(count, page_bytes)
    out = np.zeros_like(source)
    slots = np.random.default_rng(2).permutation(16)[:count]
    tier.scatter(slots, source)
    source_then = source.copy()
    source[:] = 0  # the caller's again
    tier.gather(slots, out)
    np.testing.assert_array_equal(out, source_then)
    asyncio.run(tier.close())


@pytest.mark.parametrize("page_bytes", [512, 1536, 4 << 20])
def test_every_page_size_works(gpu: Gpu, page_bytes: int) -> None:
    tier = open_memory(gpu, 16, page_bytes)
    source = random_pages(16, page_bytes)
    out = np.zeros_like(source)
    tier.scatter(np.arange(16)[::-1].copy(), source)
    tier.gather(np.arange(16)[::-1].copy(), out)
    np.testing.assert_array_equal(out, source)
    asyncio.run(tier.close())


def test_transfers_to_and_from_host_memory(tier: CudaTier) -> None:
    twin = open_memory(None)
    source = random_pages(2)
    twin.scatter(np.array([5, 6]), source)
    tier.transfer(np.array([60, 1]), twin, np.array([6, 5]))
    twin.transfer(np.array([7, 8]), tier, np.array([1, 60]))
    np.testing.assert_array_equal(twin.arena[7:9], source)


def test_pinned_memory_is_read_by_one_launch_and_not_changed_under_it(
    gpu: Gpu, tier: CudaTier
) -> None:
    dram = open_memory(gpu, name="dram")
    old, new = random_pages(SLOTS), random_pages(SLOTS + 1)[1:].copy()
    slots = np.arange(SLOTS)
    dram.scatter(slots, old)
    before = list(getattr(gpu, "launched", []))
    tier.transfer(slots[::-1].copy(), dram, slots)
    if isinstance(gpu, CpuGpu):
        assert gpu.launched[len(before) :] == ["copy_rows"]
    dram.scatter(slots, new)
    out = np.zeros_like(old)
    tier.gather(slots[::-1].copy(), out)
    np.testing.assert_array_equal(out, old)
    asyncio.run(dram.close())


def test_pinned_memory_goes_to_the_owner_s_stream(gpu: Gpu) -> None:
    dram = open_memory(gpu, name="dram")
    old = random_pages(SLOTS)
    slots = np.arange(SLOTS)
    dram.scatter(slots, old)
    stream = gpu.new_stream()
    out = gpu.xp.zeros((SLOTS, PAGE_BYTES), np.uint8)
    gpu.current_stream().synchronize()
    dram.gather(slots, DeviceRows(out, stream))
    dram.scatter(slots, np.zeros_like(old))
    with gpu.on(stream):
        np.testing.assert_array_equal(on_host(out), old)
    asyncio.run(dram.close())


def test_host_rows_are_brought_to_a_caller_s_memory(gpu: Gpu, tier: CudaTier) -> None:
    source = random_pages(SLOTS)
    out = gpu.xp.zeros((SLOTS, PAGE_BYTES), np.uint8)
    gpu.current_stream().synchronize()
    stream = gpu.new_stream()
    rows = np.random.default_rng(0).permutation(SLOTS)
    tier.bring(DeviceRows(out, stream), rows, source, rows[::-1].copy())
    expected = np.zeros_like(source)
    expected[rows] = source[rows[::-1]]
    source[:] = 0
    with gpu.on(stream):
        np.testing.assert_array_equal(on_host(out), expected)


@pytest.mark.parametrize("slot", [-1, SLOTS])
def test_a_slot_outside_the_tier_is_refused(tier: CudaTier, xp: Any, slot: int) -> None:
    pages = xp.asarray(random_pages(2))
    with pytest.raises(ValueError, match="outside"):
        tier.gather(np.array([0, slot]), pages)
    with pytest.raises(ValueError, match="outside"):
        tier.scatter(np.array([0, slot]), pages)


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_outside_the_memory_is_refused(tier: CudaTier, xp: Any, row: int) -> None:
    pages = xp.asarray(random_pages(2))
    with pytest.raises(ValueError, match="outside"):
        tier.gather(np.array([0, 1]), pages, np.array([0, row]))


def test_memory_that_is_no_rows_of_pages_is_refused(tier: CudaTier, xp: Any) -> None:
    slots = np.array([0, 1])
    for wrong in (
        xp.zeros((2, 512), np.uint8),
        xp.zeros((2, PAGE_BYTES), np.int8),
        xp.zeros((1, PAGE_BYTES), np.uint8),
        xp.zeros((PAGE_BYTES,), np.uint8),
    ):
        with pytest.raises(ValueError, match="memory"):
            tier.gather(slots, wrong)


def test_a_slot_is_written_after_its_readers_on_whatever_streams(gpu: Gpu, tier: CudaTier) -> None:
    """The host never waits, and yet every reader gets the page of its time."""
    slots = np.arange(SLOTS)
    streams = [gpu.new_stream() for _ in range(3)]
    outs, contents = [], []
    for turn in range(6):
        content = random_pages(SLOTS + turn)[turn:].copy()
        tier.scatter(slots, content)
        for stream in streams:
            out = gpu.xp.zeros((SLOTS, PAGE_BYTES), np.uint8)
            gpu.current_stream().synchronize()
            waits = getattr(gpu, "host_waits", 0)
            tier.gather(slots, DeviceRows(out, stream))
            assert getattr(gpu, "host_waits", 0) == waits
            outs.append((out, stream))
            contents.append(content)
    for (out, stream), content in zip(reversed(outs), reversed(contents), strict=True):
        with gpu.on(stream):
            np.testing.assert_array_equal(on_host(out), content)


def test_the_last_write_of_a_slot_stays_whichever_way_it_came(gpu: Gpu, tier: CudaTier) -> None:
    dram = open_memory(gpu, name="dram")
    slots = np.arange(SLOTS)
    contents = [random_pages(SLOTS + turn)[turn:].copy() for turn in range(3)]
    for _ in range(3):
        tier.scatter(slots, contents[0])
        dram.scatter(slots, contents[1])
        tier.transfer(slots, dram, slots)
        tier.scatter(slots, gpu.xp.asarray(contents[2]))
        tier.scatter(slots[::2].copy(), contents[0], slots[::2].copy())
        tier.transfer(slots[::4].copy(), dram, slots[::4].copy())
    expected = contents[2].copy()
    expected[::2], expected[::4] = contents[0][::2], contents[1][::4]
    out = np.zeros_like(expected)
    tier.gather(slots, out)
    np.testing.assert_array_equal(out, expected)
    asyncio.run(dram.close())


def test_a_caller_s_rows_are_written_after_it_used_them(gpu: Gpu, tier: CudaTier) -> None:
    """Its own stream orders that: what it enqueued before sees the old rows."""
    old, new = random_pages(SLOTS), random_pages(SLOTS + 1)[1:].copy()
    slots = np.arange(SLOTS)
    other = open_memory(gpu)
    tier.scatter(slots, new)
    stream = gpu.new_stream()
    out = gpu.xp.asarray(old)
    gpu.current_stream().synchronize()
    rows = DeviceRows(out, stream)
    other.scatter(slots, rows)
    tier.gather(slots, rows)
    stream.synchronize()
    seen = np.zeros_like(old)
    other.gather(slots, seen)
    np.testing.assert_array_equal(seen, old)
    newest = random_pages(SLOTS + 2)[2:].copy()
    tier.scatter(slots, newest)
    tier.gather(slots, rows)
    other.scatter(slots, rows)
    other.gather(slots, seen)
    np.testing.assert_array_equal(seen, newest)
    tier.bring(rows, None, old, slots)
    with gpu.on(stream):
        np.testing.assert_array_equal(on_host(out), old)
    asyncio.run(other.close())


def test_bytes_are_in_place_when_the_call_returns_on_any_stream(gpu: Gpu, tier: CudaTier) -> None:
    source = random_pages(SLOTS)
    out = np.zeros_like(source)
    slots = np.arange(SLOTS)
    with gpu.on(gpu.new_stream()):
        tier.scatter(slots, source)
    tier.gather(slots, out)
    np.testing.assert_array_equal(out, source)


def test_more_than_the_gpu_has_is_a_device_error_that_says_how_much(gpu: Gpu) -> None:
    message = r"an hbm tier of 4.00 TiB does not fit: the GPU \(.*\) has .* of .* free; lower"
    with pytest.raises(DeviceError, match=message):
        open_memory(gpu, 1 << 20, 4 << 20)


def test_closing_gives_everything_back(gpu: Gpu) -> None:
    tiers = [open_memory(gpu), open_memory(gpu, name="dram")]
    tiers[0].transfer(np.arange(8), tiers[1], np.arange(8))
    for tier in tiers:
        asyncio.run(tier.close())
        asyncio.run(tier.close())
        assert len(tier.arena) == 0
    if isinstance(gpu, CpuGpu):
        assert gpu.pinned_bytes == 0


def test_memory_of_another_gpu_is_refused() -> None:
    mine, other = CpuGpu(), CpuGpu()
    tier = open_memory(mine)
    with pytest.raises(LimitError, match="lies on another GPU"):
        tier.gather(np.array([0]), other.xp.zeros((1, PAGE_BYTES), np.uint8))
    asyncio.run(tier.close())


def test_the_index_takes_the_same_decisions_as_the_twins(tier: CudaTier) -> None:
    twin = open_memory(None)
    rng = np.random.default_rng(3)
    for epoch in range(1, 20):
        page_ids = rng.integers(0, 4 * SLOTS, 32).astype(np.uint64)
        results = [
            index.lookup(page_ids, epoch, epoch) for index in (OnHost(tier.index), twin.index)
        ]
        assert_same_answer(*results)
        for each, result in zip((tier, twin), results, strict=True):
            each.index.publish(result.misses.reserved[result.misses.reserved >= 0])


def test_the_gpu_that_a_cpu_plays_keeps_its_memory_apart() -> None:
    gpu = CpuGpu()
    host, device = random_pages(2), gpu.xp.zeros((2, PAGE_BYTES), np.uint8)
    with pytest.raises(TypeError, match="taken for NumPy's"):
        np.asarray(device)
    with pytest.raises(TypeError):
        _ = host >= device
    with pytest.raises(TypeError, match="host memory"):
        device[:] = host
    with pytest.raises(ValueError, match=r"C-contiguous|uint8|u8"):
        open_memory(None).scatter(np.array([0, 1]), aligned_rows(2, PAGE_BYTES)[:, ::2])
