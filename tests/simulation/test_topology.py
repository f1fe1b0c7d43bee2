"""Made-up reads over modelled machines: what binds is what should."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvtier.replay import simulate_trace
from kvtier.report.soundness import check_sums
from kvtier.settings import (
    MODEL_PRESETS,
    ChainSettings,
    DeviceModel,
    LinkSettings,
    OriginSettings,
    ReplaySettings,
    Settings,
    TierSettings,
    TopologySettings,
)
from kvtier.ssd import STORAGE_NEXT_SLC
from kvtier.trace import RandomReads, write_random_reads

PAGE_BYTES = 4096
THREADS = 2_000
FAST = DeviceModel(latency_s=5e-6, iops=1e9, bytes_per_s=1e12)


def link(name: str, one: str, other: str, bytes_per_s: float) -> LinkSettings:
    return LinkSettings(name, (one, other), DeviceModel(0.5e-6, 1e15, bytes_per_s))


def server(root_bytes_per_s: float = 50e9) -> TopologySettings:
    return TopologySettings(
        links=(
            link("up", "gpu", "switch", 50e9),
            link("slots", "switch", "drives", 50e9),
            link("root", "switch", "host", root_bytes_per_s),
        ),
        places={"origin": "drives"},
    )


def simulate(
    tmp_path: Path, topology: TopologySettings | None, drives: DeviceModel
) -> Mapping[str, Any]:
    trace = tmp_path / "load.parquet"
    if not trace.exists():
        write_random_reads(trace, RandomReads(threads=THREADS, hops=20))
    settings = Settings(
        origin=OriginSettings("memory", model=drives),
        chain=ChainSettings(staging_bytes=1 << 30),
        replay=ReplaySettings(drive="closed", concurrency=THREADS),
        topology=topology,
    )
    result = simulate_trace(
        trace, settings, limit=None, progress=lambda *_: None, notify=lambda *_: None
    )
    assert check_sums(result) == []
    return result


def rate(result: Mapping[str, Any]) -> float:
    iops = result["demand"]["iops"]
    assert isinstance(iops, float)
    return iops


def test_a_link_carries_its_bandwidth_and_no_more(tmp_path: Path) -> None:
    carried = rate(simulate(tmp_path, server(), FAST)) * PAGE_BYTES
    assert 0.95 * 50e9 < carried < 1.002 * 50e9


def test_the_way_through_the_host_passes_its_link_twice(tmp_path: Path) -> None:
    narrow = server(root_bytes_per_s=10e9)
    straight = rate(simulate(tmp_path, narrow, FAST))
    detour = rate(simulate(tmp_path, replace(narrow, route="host"), FAST))
    assert straight > 4 * detour
    assert 0.9 * 10e9 < detour * PAGE_BYTES < 1.002 * 10e9


def test_two_host_cores_issue_two_million_reads_per_second(tmp_path: Path) -> None:
    cores = replace(MODEL_PRESETS["host-core"].model, devices=2)
    by_host = rate(simulate(tmp_path, replace(server(), issue=cores), FAST))
    assert 1.9e6 < by_host < 2.004e6


def test_flash_reaches_most_of_its_capacity_and_no_more(tmp_path: Path) -> None:
    drive = MODEL_PRESETS["storage-next"].model
    reads_only = replace(STORAGE_NEXT_SLC, reads_per_write=float("inf"))
    reached = rate(simulate(tmp_path, None, drive))
    assert 0.8 < reached / reads_only.capacity_iops(PAGE_BYTES) < 1.01


@pytest.mark.parametrize("drives", [1, 3])
def test_more_drives_serve_as_many_times_more(tmp_path: Path, drives: int) -> None:
    drive = DeviceModel(latency_s=60e-6, iops=3e6, bytes_per_s=1e12, devices=drives)
    reached = rate(simulate(tmp_path, None, drive))
    assert 0.9 < reached / (3e6 * drives) < 1.01


def test_a_result_says_which_hit_rate_each_station_takes(tmp_path: Path) -> None:
    trace = tmp_path / "load.parquet"
    write_random_reads(
        trace, RandomReads(threads=64, hops=20, popular_share=0.9, popular_pages=256)
    )
    topology = replace(server(), issue=DeviceModel(0.0, 1e6, 1e15, devices=4))
    settings = Settings(
        tiers=(TierSettings("hbm", 8 << 20),),
        origin=OriginSettings("memory", model=FAST),
        topology=topology,
    )
    result = simulate_trace(
        trace, settings, limit=None, progress=lambda *_: None, notify=lambda *_: None
    )
    crossover = result["crossover"]
    stations = {one["station"]: one for one in crossover["stations"]}
    assert crossover["first_tier"] == "hbm"
    assert list(stations) == [
        "origin",
        "issue",
        "slots (drives to switch)",
        "up (switch to gpu)",
    ]
    passed = result["origin"]["read_bytes"] / PAGE_BYTES
    reads = result["origin"]["device_reads"]
    for one in stations.values():
        assert one["hit_rate"] == 1 - passed / result["demand"]["delivered"]
        assert one["pages_per_read"] == passed / reads
        assert one["binds"] is (one["hit_rate"] < one["hit_rate_needed"])
    link, issue = stations["up (switch to gpu)"], stations["issue"]
    assert link["pages_per_s"] == pytest.approx(50e9 / PAGE_BYTES)
    assert issue["pages_per_s"] == pytest.approx(4e6 * passed / reads)
    assert link["hit_rate_needed"] == pytest.approx(1 - link["pages_per_s"] / 518e6)


def test_flash_drives_work_for_months(tmp_path: Path) -> None:
    trace = tmp_path / "load.parquet"
    write_random_reads(trace, RandomReads(threads=20, hops=100))
    settings = Settings(
        origin=OriginSettings("memory", model=MODEL_PRESETS["storage-next"].model),
        replay=ReplaySettings(drive="closed", concurrency=1, compute_s=3600.0),
    )
    result = simulate_trace(
        trace, settings, limit=None, progress=lambda *_: None, notify=lambda *_: None
    )
    assert result["complete"]
    assert result["duration_s"] > 80 * 86_400
    assert result["demand"]["latency_us"]["max"] < 10
