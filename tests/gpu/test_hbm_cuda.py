"""The tier in GPU memory moves the same bytes as its twin in host memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kvtier.errors import DeviceError
from kvtier.pages import U8
from kvtier.settings import Device, TierSettings
from kvtier.tiers import MemoryTier, open_tier
from kvtier.tiers.cuda import STAGING_BYTES

pytestmark = pytest.mark.gpu

PAGE_BYTES = 4096
SLOTS = 1024


def open_hbm(device: Device, slots: int = SLOTS, page_bytes: int = PAGE_BYTES) -> MemoryTier:
    wanted = TierSettings("hbm", slots * page_bytes)
    tier = asyncio.run(open_tier(wanted, page_bytes, seed=1, device=device))
    assert isinstance(tier, MemoryTier)
    return tier


@pytest.fixture
def tier() -> Iterator[MemoryTier]:
    tier = open_hbm("cuda")
    yield tier
    asyncio.run(tier.close())


@pytest.fixture(params=["numpy", "cupy"])
def xp(request: pytest.FixtureRequest) -> Any:
    """The library whose arrays the caller has."""
    return pytest.importorskip(request.param)


def random_pages(count: int, page_bytes: int = PAGE_BYTES) -> U8:
    return np.random.default_rng(count).integers(0, 256, (count, page_bytes), np.uint8)


def on_host(pages: Any) -> U8:
    host: U8 = pages.get() if hasattr(pages, "get") else pages
    return host


def test_auto_takes_the_gpu() -> None:
    tier = open_hbm("auto")
    assert (tier.name, tier.engine) == ("hbm", "cuda")
    asyncio.run(tier.close())


def test_cpu_takes_the_twin() -> None:
    assert open_hbm("cpu").engine == "cpu-twin"


def test_what_was_scattered_is_gathered(tier: MemoryTier, xp: Any) -> None:
    rng = np.random.default_rng(1)
    source = random_pages(300)
    slots, rows = rng.permutation(SLOTS)[:300], rng.permutation(300)
    out = xp.zeros((300, PAGE_BYTES), xp.uint8)
    tier.scatter(slots, xp.asarray(source), rows)
    tier.gather(slots, out, rows)
    np.testing.assert_array_equal(on_host(out), source)


def test_without_rows_the_first_ones_are_meant(tier: MemoryTier, xp: Any) -> None:
    source = random_pages(3)
    out = xp.zeros((5, PAGE_BYTES), xp.uint8)
    tier.scatter(np.array([9, 4]), xp.asarray(source))
    tier.gather(np.array([4, 9]), out)
    np.testing.assert_array_equal(on_host(out)[:2], source[[1, 0]])
    assert not on_host(out)[2:].any()


def test_no_pages_are_no_work(tier: MemoryTier, xp: Any) -> None:
    none = np.empty(0, np.int64)
    out = xp.zeros((1, PAGE_BYTES), xp.uint8)
    tier.scatter(none, xp.asarray(random_pages(1)), none)
    tier.gather(none, out, none)
    assert not on_host(out).any()


def test_a_copy_may_be_larger_than_the_staging() -> None:
    page_bytes = 1 << 20
    slots = 2 * STAGING_BYTES // page_bytes + 16
    tier = open_hbm("cuda", slots, page_bytes)
    source = random_pages(slots, page_bytes)
    out = np.zeros_like(source)
    order = np.random.default_rng(2).permutation(slots)
    tier.scatter(order, source)
    tier.gather(order, out)
    np.testing.assert_array_equal(out, source)
    asyncio.run(tier.close())


@pytest.mark.parametrize("page_bytes", [512, 1536, 4 << 20])
def test_every_page_size_works(page_bytes: int) -> None:
    tier = open_hbm("cuda", 16, page_bytes)
    source = random_pages(16, page_bytes)
    out = np.zeros_like(source)
    tier.scatter(np.arange(16)[::-1].copy(), source)
    tier.gather(np.arange(16)[::-1].copy(), out)
    np.testing.assert_array_equal(out, source)
    asyncio.run(tier.close())


def test_transfers_to_and_from_host_memory(tier: MemoryTier) -> None:
    twin = open_hbm("cpu")
    source = random_pages(2)
    twin.scatter(np.array([5, 6]), source)
    tier.transfer(np.array([60, 1]), twin, np.array([6, 5]))
    twin.transfer(np.array([7, 8]), tier, np.array([1, 60]))
    np.testing.assert_array_equal(twin.arena[7:9], source)


@pytest.mark.parametrize("slot", [-1, SLOTS])
def test_a_slot_outside_the_tier_is_refused(tier: MemoryTier, xp: Any, slot: int) -> None:
    pages = xp.asarray(random_pages(2))
    with pytest.raises(ValueError, match="outside"):
        tier.gather(np.array([0, slot]), pages)
    with pytest.raises(ValueError, match="outside"):
        tier.scatter(np.array([0, slot]), pages)


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_outside_the_memory_is_refused(tier: MemoryTier, xp: Any, row: int) -> None:
    pages = xp.asarray(random_pages(2))
    with pytest.raises(ValueError, match="outside"):
        tier.gather(np.array([0, 1]), pages, np.array([0, row]))


def test_bytes_are_in_place_when_the_call_returns_on_any_stream(tier: MemoryTier) -> None:
    cupy = pytest.importorskip("cupy")
    source = random_pages(SLOTS)
    out = np.zeros_like(source)
    slots = np.arange(SLOTS)
    with cupy.cuda.Stream(non_blocking=True):
        tier.scatter(slots, source)
    tier.gather(slots, out)
    np.testing.assert_array_equal(out, source)


def test_more_than_the_gpu_has_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="does not fit"):
        open_hbm("cuda", 1 << 20, 4 << 20)


def test_the_index_takes_the_same_decisions_as_the_twins(tier: MemoryTier) -> None:
    twin = open_hbm("cpu")
    rng = np.random.default_rng(3)
    for epoch in range(1, 20):
        page_ids = rng.integers(0, 4 * SLOTS, 256).astype(np.uint64)
        results = [t.index.lookup(page_ids, epoch, epoch) for t in (tier, twin)]
        np.testing.assert_array_equal(results[0].slots, results[1].slots)
        np.testing.assert_array_equal(results[0].evicted, results[1].evicted)
        for each, result in zip((tier, twin), results, strict=True):
            reserved = result.slots[(result.states == 0) & (result.slots >= 0)]
            each.index.publish(np.unique(reserved))
