"""What the host's software takes, and copies out of staging, in virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvtier.errors import SettingsError
from kvtier.replay import simulate_trace
from kvtier.report.soundness import check_sums
from kvtier.settings import (
    DeviceModel,
    HostSettings,
    OriginSettings,
    ReplaySettings,
    Settings,
    TierSettings,
    TopologySettings,
    load_settings,
    validate,
)
from kvtier.settings.values import Drive
from kvtier.trace import RandomReads, write_random_reads

MIB = 1 << 20
INSTANT = DeviceModel(latency_s=0.0, iops=1e15, bytes_per_s=1e18)
REQUESTS, HOPS = 40, 10
READS = REQUESTS * HOPS
EVERYTHING = HostSettings(
    batch_s=50e-6,
    copy_s=10e-6,
    page_s=1e-6,
    device_batch_s=200e-6,
    operation_s=5e-6,
    request_s=4e-6,
    paced_request_s=9e-6,
    wait_s=30e-6,
    operation_wait_s=2e-6,
)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("host") / "load.parquet"
    write_random_reads(path, RandomReads(threads=REQUESTS, hops=HOPS, object_pages=4096))
    return path


def settings_of(host: HostSettings | None, **changes: Any) -> Settings:
    """Requests one after the other, at devices that take no time."""
    base = Settings(
        tiers=(),
        origin=OriginSettings("memory", model=INSTANT),
        replay=ReplaySettings(concurrency=1),
        host=host,
    )
    return replace(base, **changes)


def simulate(trace: Path, settings: Settings) -> Mapping[str, Any]:
    result = simulate_trace(
        trace, settings, limit=None, progress=lambda *_: None, notify=lambda *_: None
    )
    assert check_sums(result) == []
    return result


def decisions(result: Mapping[str, Any]) -> list[Any]:
    levels = [*result["tiers"], result["origin"]]
    return [
        result["coalescing"],
        [(one["hits"], one["device_reads"], one.get("evictions")) for one in levels],
    ]


def busy_s(result: Mapping[str, Any], name: str) -> float:
    share = result["utilisation"][name]
    assert isinstance(share, float)
    return share * float(result["duration_s"])


@pytest.mark.parametrize(
    ("host", "drive", "each_s"),
    [
        (HostSettings(batch_s=50e-6), "waves", 50e-6),
        (HostSettings(device_batch_s=200e-6), "waves", 200e-6),
        (HostSettings(operation_s=5e-6), "waves", 5e-6),
        (HostSettings(copy_s=10e-6), "waves", 10e-6),
        (HostSettings(page_s=1e-6), "waves", 1e-6),
        (HostSettings(request_s=4e-6), "waves", 4e-6),
        (HostSettings(paced_request_s=9e-6), "closed", 9e-6),
        (EVERYTHING, "waves", 270e-6),
        (EVERYTHING, "closed", 275e-6),
    ],
)
def test_reads_one_after_the_other_take_what_the_host_takes_for_each(
    trace: Path, host: HostSettings, drive: Drive, each_s: float
) -> None:
    # Each is a batch of the chain with one operation of the origin, and one copy of a page.
    pace = ReplaySettings(drive=drive, concurrency=1, tick_s=0.0)
    result = simulate(trace, settings_of(host, replay=pace))
    waiting_s = host.wait_s + host.operation_wait_s
    assert result["duration_s"] == pytest.approx(READS * (each_s + waiting_s), rel=2e-3)
    assert busy_s(result, "host") == pytest.approx(READS * each_s)
    assert result["bottleneck"] == "host"
    request_s = host.request_s if drive == "waves" else host.paced_request_s
    waited_s = each_s + waiting_s - request_s  # a page's latency begins when it is submitted
    assert result["demand"]["latency_us"]["p50"] == pytest.approx(waited_s * 1e6, rel=0.05, abs=0.1)


def test_batches_share_one_host(trace: Path) -> None:
    host = HostSettings(device_batch_s=200e-6)
    closed = ReplaySettings(drive="closed", concurrency=REQUESTS, tick_s=0.0)
    slow = OriginSettings("memory", model=replace(INSTANT, latency_s=1e-3))
    result = simulate(trace, settings_of(host, origin=slow, replay=closed))
    assert result["utilisation"]["host"] <= 1.0
    fetches = round(busy_s(result, "host") / 200e-6)
    assert result["duration_s"] >= fetches * 200e-6


@pytest.mark.parametrize("drive", ["closed", "open"])
def test_a_request_is_under_way_until_it_is_answered_however_late_that_is_seen(
    trace: Path, drive: str
) -> None:
    # A drive sees answers when the host has prepared what it issued meanwhile.
    pace = ReplaySettings(drive=drive, concurrency=REQUESTS, tick_s=0.0)  # type: ignore[arg-type]
    tiers = (TierSettings("hbm", MIB), TierSettings("nvme", 4 * MIB))
    settings = settings_of(EVERYTHING, tiers=tiers, replay=pace)
    requests = simulate(trace, settings)["requests"]
    by_law = requests["per_s"] * requests["latency_us"]["mean"] / 1e6
    assert requests["in_flight_mean"] == pytest.approx(by_law, rel=1e-9)


def test_each_of_several_gpus_has_a_host_of_its_own(trace: Path) -> None:
    topology = TopologySettings(gpus=("left", "right"))
    alone, pair = (
        simulate(trace, settings_of(EVERYTHING, topology=there)) for there in (None, topology)
    )
    assert pair["duration_s"] == pytest.approx(alone["duration_s"] / 2, rel=1e-3)
    assert pair["bottleneck"] in ("host (left)", "host (right)")
    for name in ("host (left)", "host (right)"):
        assert busy_s(pair, name) == pytest.approx(busy_s(alone, "host") / 2)


def test_nothing_of_a_host_that_is_not_described_is_reported(trace: Path) -> None:
    assert "host" not in simulate(trace, settings_of(None))["utilisation"]


@pytest.mark.parametrize("drive", ["waves", "closed"])
def test_a_host_that_takes_no_time_changes_nothing(trace: Path, drive: str) -> None:
    tiers = (TierSettings("hbm", MIB), TierSettings("nvme", 4 * MIB))
    replay = ReplaySettings(drive=drive, concurrency=8)  # type: ignore[arg-type]
    results = [
        simulate(trace, settings_of(host, tiers=tiers, replay=replay))
        for host in (None, HostSettings())
    ]
    assert results[0]["duration_s"] == results[1]["duration_s"]
    assert decisions(results[0]) == decisions(results[1])


def test_in_waves_the_host_changes_no_decision(trace: Path) -> None:
    tiers = (TierSettings("hbm", MIB), TierSettings("dram", 2 * MIB), TierSettings("nvme", 4 * MIB))
    waves = ReplaySettings(concurrency=8)
    plain, charged = (
        simulate(trace, settings_of(host, tiers=tiers, replay=waves)) for host in (None, EVERYTHING)
    )
    assert decisions(plain) == decisions(charged)
    assert charged["duration_s"] > plain["duration_s"]


def test_the_same_seed_gives_the_same_result(trace: Path) -> None:
    closed = ReplaySettings(drive="closed", concurrency=16)
    settings = settings_of(EVERYTHING, tiers=(TierSettings("nvme", MIB),), replay=closed)
    first, second = simulate(trace, settings), simulate(trace, settings)
    assert first["duration_s"] == second["duration_s"]
    assert first["demand"] == second["demand"]


# -- copies out of staging -------------------------------------------------------------------------


def test_copies_out_of_staging_pass_the_memory_of_the_first_tier(trace: Path) -> None:
    page_s = 10e-6
    memory = DeviceModel(0.0, 1 / page_s, 1e18)
    # No page is admitted, so nothing is filled: whatever passes the memory comes out of staging.
    tiers = (TierSettings("hbm", MIB, admit=0.0, model=memory),)
    result = simulate(trace, settings_of(None, tiers=tiers))
    assert result["tiers"][0]["hits"] == 0
    assert busy_s(result, "hbm") == pytest.approx(READS * page_s)
    assert result["duration_s"] == pytest.approx(READS * page_s, rel=2e-3)


def test_copies_out_of_staging_take_no_time_where_no_tier_is_in_memory(trace: Path) -> None:
    tiers = (TierSettings("nvme", MIB, admit=0.0, model=INSTANT),)
    assert simulate(trace, settings_of(None, tiers=tiers))["duration_s"] < READS * 10e-9


def test_no_more_pages_are_copied_per_second_than_memory_copies(tmp_path: Path) -> None:
    load = RandomReads(threads=500, hops=40, object_pages=1024)
    path = tmp_path / "hits.parquet"
    write_random_reads(path, load)
    memory = DeviceModel(1e-6, 5e7, 1e15)
    settings = settings_of(
        None,
        tiers=(TierSettings("hbm", 8 * MIB, model=memory),),
        replay=ReplaySettings(drive="closed", concurrency=500, tick_s=1e-6),
    )
    rate = simulate(path, settings)["demand"]["iops"]
    assert 0.5 * 5e7 < rate <= 5e7


# -- settings --------------------------------------------------------------------------------------


def test_a_host_is_read_from_settings_with_its_units(tmp_path: Path) -> None:
    path = tmp_path / "host.toml"
    path.write_text(
        '[tiers.dram]\ncapacity = "1 MiB"\n'
        '[host]\nbatch = "50 us"\ncopy = "10 us"\npage = "1 us"\n'
        'device_batch = "200 us"\noperation = "5 us"\nrequest = "4 us"\n'
        'paced_request = "9 us"\nwait = "30 us"\noperation_wait = "2 us"\n'
    )
    host = load_settings(path).host
    assert host is not None
    assert [getattr(host, name) for name in HostSettings.__slots__] == pytest.approx(
        [getattr(EVERYTHING, name) for name in HostSettings.__slots__]
    )


@pytest.mark.parametrize("name", HostSettings.__slots__)
@pytest.mark.parametrize("value", [-1e-9, 3601.0, float("nan"), float("inf")])
def test_a_time_out_of_range_is_refused(name: str, value: float) -> None:
    settings = settings_of(replace(HostSettings(), **{name: value}))
    with pytest.raises(SettingsError) as refusal:
        validate(settings)
    assert str(refusal.value).startswith(f"host.{name.removesuffix('_s')} is ")
