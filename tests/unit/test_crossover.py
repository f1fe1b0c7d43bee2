"""From which hit rate on a station below the first tier does not bind; and the rates behind it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvtier.emulator import ModelledDevice, ReadLoad
from kvtier.emulator.station import Work
from kvtier.replay.crossover import crossover, hit_rate_needed
from kvtier.settings import MODEL_PRESETS, DeviceModel
from kvtier.settings.rates import reads_per_s
from kvtier.ssd import STORAGE_NEXT_SLC

PAGE_BYTES = 4096
HBM = MODEL_PRESETS["h200"].model
LINK = MODEL_PRESETS["pcie-gen5"].model


@pytest.mark.parametrize(("first", "needed"), [(518e6, "97.4%"), (150e6, "91.1%")])
def test_the_documented_crossovers_of_a_gen5_link(first: float, needed: str) -> None:
    assert f"{hit_rate_needed(13.4e6, first):.1%}" == needed


def test_the_presets_come_to_the_documented_crossover() -> None:
    loads = {"hbm": ReadLoad(HBM, 900, 900), "dram": ReadLoad(LINK, 100, 100)}
    found = crossover(loads, ["hbm"], PAGE_BYTES, 1000)
    assert found is not None
    assert found["pages_per_s"] == pytest.approx(518e6)
    (link,) = found["stations"]
    assert f"{link['hit_rate_needed']:.1%}" == "97.4%"
    assert (link["station"], link["hit_rate"], link["binds"]) == ("dram", 0.9, True)


@pytest.mark.parametrize(("passed", "binds"), [(25, False), (27, True)])
def test_a_station_binds_until_the_hit_rate_that_it_takes(passed: int, binds: bool) -> None:
    loads = {"hbm": ReadLoad(HBM, 1000, 1000), "dram": ReadLoad(LINK, passed, passed)}
    found = crossover(loads, ["hbm"], PAGE_BYTES, 1000)
    assert found is not None
    assert found["stations"][0]["binds"] is binds


def test_a_station_as_fast_as_the_first_tier_takes_no_hits() -> None:
    assert hit_rate_needed(2.0, 1.0) == 0.0
    loads = {"hbm": ReadLoad(LINK, 1, 1), "nvme": ReadLoad(HBM, 500, 500)}
    found = crossover(loads, ["hbm"], PAGE_BYTES, 500)
    assert found is not None
    one = found["stations"][0]
    assert (one["hit_rate_needed"], one["hit_rate"], one["binds"]) == (0.0, 0.0, False)


def test_several_first_tiers_are_so_many_times_as_fast() -> None:
    loads = {"a": ReadLoad(HBM, 1, 1), "b": ReadLoad(HBM, 1, 1), "dram": ReadLoad(LINK, 1, 1)}
    found = crossover(loads, ["a", "b"], PAGE_BYTES, 100)
    assert found is not None
    assert found["first_tier"] == "a + b"
    assert found["pages_per_s"] == pytest.approx(2 * 518e6)
    assert [one["station"] for one in found["stations"]] == ["dram"]


def test_long_extents_bring_more_pages_past_who_issues_them() -> None:
    issue = MODEL_PRESETS["host-core"].model
    loads = {"hbm": ReadLoad(HBM, 1, 1), "issue": ReadLoad(issue, 10, 320)}
    found = crossover(loads, ["hbm"], PAGE_BYTES, 400)
    assert found is not None
    one = found["stations"][0]
    assert (one["pages_per_read"], one["pages_per_s"]) == (32, pytest.approx(32e6))


def test_gaps_and_prefetches_do_not_make_a_hit_rate_negative() -> None:
    loads = {"hbm": ReadLoad(HBM, 1, 1), "nvme": ReadLoad(LINK, 10, 320)}
    found = crossover(loads, ["hbm"], PAGE_BYTES, 100)
    assert found is not None
    assert found["stations"][0]["hit_rate"] == 0.0


def test_without_a_first_tier_or_a_delivered_page_there_is_no_crossover() -> None:
    loads = {"origin": ReadLoad(LINK, 10, 10)}
    assert crossover(loads, [], PAGE_BYTES, 10) is None
    assert crossover({"hbm": ReadLoad(HBM, 0, 0)}, ["hbm"], PAGE_BYTES, 0) is None


DRIVE = DeviceModel(80e-6, 1e6, 4e9, devices=3)


@pytest.mark.parametrize(
    "model",
    [
        DRIVE,
        replace(DRIVE, sustained_iops=3e5, burst=2),
        replace(DRIVE, batch=16),
        replace(DRIVE, batch=16, tail_latency_s=200e-6),
        replace(DRIVE, tail_latency_s=500e-6),
        DeviceModel(0.0, 1e15, 4e9),
        replace(MODEL_PRESETS["storage-next"].model, devices=2),
    ],
    ids=["rates", "throttle", "batch", "tail in batches", "tail", "link", "flash"],
)
@pytest.mark.parametrize("pages", [1, 8])
def test_a_device_that_is_never_idle_reaches_its_rate(model: DeviceModel, pages: int) -> None:
    reads = 400_000
    device = ModelledDevice(model)
    work = Work(
        np.arange(reads, dtype=np.uint64) * np.uint64(pages),
        np.full(reads, pages, np.int64),
        PAGE_BYTES,
        is_write=False,
    )
    measured = reads / (device.serve(0, work) / 1e9)
    assert measured == pytest.approx(reads_per_s(model, PAGE_BYTES, pages), rel=0.03)
    assert device.load == ReadLoad(model, reads, reads * pages)


def test_a_flash_drive_has_the_rate_of_reads_of_the_size_asked_for() -> None:
    model = MODEL_PRESETS["storage-next"].model
    one, two = (reads_per_s(model, 512, pages) for pages in (1, 2))
    between = reads_per_s(model, 512, 1.5)
    assert one == replace(STORAGE_NEXT_SLC, reads_per_write=float("inf")).capacity_iops(512)
    assert 1 / between == pytest.approx((1 / one + 1 / two) / 2)
