"""Tiers in host memory, and which tier a setting opens."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from io_engines import io_uring_refusal

from kvtier.cuda import open_gpu
from kvtier.errors import DeviceError, SettingsError
from kvtier.index import create_index
from kvtier.pages import U8
from kvtier.settings import TierSettings
from kvtier.tiers import MemoryTier, Tier, open_tier, slots_of
from kvtier.tiers.memory import HostTier

PAGE_BYTES = 512
SLOTS = 64


def open_(settings: TierSettings, page_bytes: int = PAGE_BYTES) -> Tier:
    return asyncio.run(open_tier(settings, page_bytes, seed=1))


def host_tier(name: str = "dram") -> HostTier:
    return HostTier(name, "numba", create_index(SLOTS, 16, 1), SLOTS, PAGE_BYTES)


def random_pages(count: int) -> U8:
    return np.random.default_rng(count).integers(0, 256, (count, PAGE_BYTES), np.uint8)


@settings(deadline=None, max_examples=60)
@given(
    slots=st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=SLOTS, unique=True),
    data=st.data(),
)
def test_what_was_scattered_is_gathered(slots: list[int], data: st.DataObject) -> None:
    rows = data.draw(st.permutations(range(len(slots))))
    source = random_pages(len(slots))
    out = np.zeros_like(source)
    tier = host_tier()
    tier.scatter(np.array(slots), source, np.array(rows))
    tier.gather(np.array(slots), out, np.array(rows))
    np.testing.assert_array_equal(out, source)


def test_without_rows_the_first_ones_are_meant() -> None:
    tier = host_tier()
    source = random_pages(3)
    out = np.zeros((5, PAGE_BYTES), np.uint8)
    tier.scatter(np.array([9, 4]), source)
    tier.gather(np.array([4, 9]), out)
    np.testing.assert_array_equal(out[:2], source[[1, 0]])
    assert not out[2:].any()


def test_a_transfer_copies_from_slot_to_slot() -> None:
    hbm, dram = host_tier("hbm"), host_tier()
    source = random_pages(2)
    dram.scatter(np.array([5, 6]), source)
    hbm.transfer(np.array([60, 1]), dram, np.array([6, 5]))
    np.testing.assert_array_equal(hbm.arena[[1, 60]], source)


@pytest.mark.parametrize("slot", [-1, SLOTS])
def test_a_slot_outside_the_tier_is_refused(slot: int) -> None:
    tier = host_tier()
    pages = random_pages(2)
    with pytest.raises(ValueError, match="outside"):
        tier.gather(np.array([0, slot]), pages)
    with pytest.raises(ValueError, match="outside"):
        tier.scatter(np.array([0, slot]), pages)
    assert not tier.arena.any()


def test_a_closed_tier_lets_its_memory_go() -> None:
    tier = host_tier()
    asyncio.run(tier.close())
    asyncio.run(tier.close())
    with pytest.raises(ValueError, match="outside"):
        tier.gather(np.array([0]), random_pages(1))


def test_memory_that_cannot_be_had_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="cannot map"):
        HostTier("dram", "numba", create_index(SLOTS, 16, 1), 1 << 50, PAGE_BYTES)


@pytest.mark.parametrize(
    ("capacity_bytes", "ways", "slots"), [(8192, 16, 16), (16383, 16, 16), (20480, 8, 40)]
)
def test_a_capacity_is_rounded_down_to_whole_sets(
    capacity_bytes: int, ways: int, slots: int
) -> None:
    tier = open_(TierSettings("dram", capacity_bytes, ways))
    assert isinstance(tier, MemoryTier)
    assert tier.index.slots == slots
    assert tier.arena.shape == (slots, PAGE_BYTES)


@pytest.mark.parametrize("name", ["hbm", "dram", "nvme"])
def test_a_capacity_of_less_than_a_set_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"tier {name}: .* give it 8192 or more"):
        slots_of(TierSettings(name, 8191), PAGE_BYTES)  # type: ignore[arg-type]


def test_a_tier_says_what_it_is() -> None:
    hbm = open_(TierSettings("hbm", 8192))
    dram = open_(TierSettings("dram", 8192))
    nvme = open_(TierSettings("nvme", 8192))
    asyncio.run(nvme.close())
    assert [(t.name, t.engine, t.in_memory) for t in (hbm, dram, nvme)] == [
        ("hbm", "cpu-twin", True),
        ("dram", "numba", True),
        ("nvme", "threads" if io_uring_refusal() else "uring", False),
    ]


def test_cuda_without_cupy_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"CuPy is not installed; install kvtier\[cuda12\]"):
        open_gpu("cuda")


def test_auto_without_cupy_takes_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert open_gpu("auto") is None
