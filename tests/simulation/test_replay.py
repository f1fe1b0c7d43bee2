"""A trace driven into the real cache and into the emulator: the same decisions, checked bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from kvtier_memory import MemoryBackend
from small_traces import GRAPH, PAGE_BYTES, write_conversations, write_graph_search

from kvtier.backend import ObjectBatch
from kvtier.errors import KvtierError, LimitError, SettingsError
from kvtier.registry import open_backend
from kvtier.replay import replay_trace, simulate_trace
from kvtier.report.soundness import check_sums
from kvtier.server import serve
from kvtier.settings import (
    ChainSettings,
    ComputeSettings,
    DeviceModel,
    FaultSettings,
    OriginSettings,
    ReadFaultSettings,
    ReplaySettings,
    ServingSettings,
    Settings,
    TierSettings,
    WriteFaultSettings,
    validate,
)

MIB = 1 << 20
WEAR = ("written_bytes", "write_amplification", "drive_writes_per_day")


def quiet(*_: object) -> None:
    """No progress, no notices."""


def small(**changes: Any) -> Settings:
    base = Settings(
        device="cpu",
        tiers=(
            TierSettings("hbm", MIB),
            TierSettings("dram", 2 * MIB),
            TierSettings("nvme", 4 * MIB),
        ),
        origin=OriginSettings("memory"),
        replay=ReplaySettings(concurrency=8, verify_share=1.0, pages_per_block=4),
    )
    return replace(base, **changes)


def replay(path: Path, settings: Settings, limit: int | None = None) -> Mapping[str, Any]:
    return asyncio.run(replay_trace(path, settings, limit=limit, progress=quiet, notify=quiet))


def simulate(path: Path, settings: Settings, limit: int | None = None) -> Mapping[str, Any]:
    return simulate_trace(path, settings, limit=limit, progress=quiet, notify=quiet)


def decisions(result: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that must not depend on time."""
    timed = ("engine", "iops", "latency_us", "wrappers", *WEAR)
    levels = [*result["tiers"], result["origin"] or {}]
    return {
        "levels": [{k: v for k, v in level.items() if k not in timed} for level in levels],
        "coalescing": result["coalescing"],
        "writes": result["writes"],
        "demand": {k: result["demand"][k] for k in ("reads", "unique", "absent", "delivered")},
        "by_purpose": {
            name: {**part["coalescing"], "reads": part["demand"]["reads"]}
            for name, part in result.get("by_purpose", {}).items()
        },
    }


@pytest.fixture(params=["page_io", "requests"])
def trace(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "page_io":
        return write_graph_search(tmp_path / "graph.parquet")
    return write_conversations(tmp_path / "conversations.parquet")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tiers": (TierSettings("hbm", MIB, ways=8, admit=0.5), TierSettings("nvme", 2 * MIB))},
        {
            "tiers": (
                TierSettings("hbm", MIB // 4, admit="second touch"),
                TierSettings("nvme", 2 * MIB, admit="second touch"),
            )
        },
        {"tiers": (TierSettings("nvme", 2 * MIB, direct=False, engine="aiofiles"),)},
        {"tiers": ()},
        {"tiers": (), "chain": ChainSettings(coalesce=False)},
        {"seed": 99, "origin": OriginSettings("memory", merge_gap_pages=3, extent_pages_max=8)},
    ],
    ids=[
        "all-tiers",
        "half-admitted",
        "second-touch",
        "device-first",
        "origin-only",
        "coalescing-off",
        "merging-gaps",
    ],
)
def test_replay_and_simulate_take_the_same_decisions(trace: Path, changes: dict[str, Any]) -> None:
    settings = small(**changes)
    replayed, simulated = replay(trace, settings), simulate(trace, settings)
    assert decisions(replayed) == decisions(simulated)
    assert replayed["demand"]["reads"] > 0
    assert replayed["verify"]["corrupt_pages"] == 0
    assert replayed["verify"]["checked_pages"] > 0
    for result in (replayed, simulated):
        assert check_sums(result) == []


def test_every_level_of_the_default_shape_serves_a_share(trace: Path) -> None:
    tiers = (
        TierSettings("hbm", MIB // 4),
        TierSettings("dram", MIB // 2),
        TierSettings("nvme", MIB),
    )
    result = replay(trace, small(tiers=tiers))
    assert all(tier["hits"] > 0 for tier in result["tiers"])


def test_the_second_touch_writes_a_drive_less(trace: Path) -> None:
    tiers = (TierSettings("hbm", MIB // 4), TierSettings("nvme", 4 * MIB))
    everything = simulate(trace, small(tiers=tiers))
    tiers = (tiers[0], replace(tiers[1], admit="second touch"))
    touched = simulate(trace, small(tiers=tiers))
    assert touched["tiers"][1]["hits"] > 0
    assert 0 < touched["tiers"][1]["device_writes"] < everything["tiers"][1]["device_writes"]


@pytest.mark.parametrize("drive", [replay, simulate], ids=["replay", "simulate"])
def test_a_write_limit_holds_and_everything_is_served(trace: Path, drive: Any) -> None:
    limit = 64 << 10
    tiers = (
        TierSettings("hbm", MIB // 8),
        TierSettings("nvme", 4 * MIB, write_limit_bytes_per_s=limit),
    )
    result = drive(trace, small(tiers=tiers))
    nvme = result["tiers"][1]
    assert nvme["write_capped_pages"] > 0
    # One write may go beyond what is paid for; none of these is larger than a wave's.
    wave_bytes = result["writes"]["bytes"] or 256 * result["trace"]["page_bytes"]
    assert 0 < nvme["written_bytes"] <= limit * (result["duration_s"] + 1) + wave_bytes
    assert nvme["hits"] > 0
    assert result["demand"]["delivered"] + result["demand"]["absent"] == result["demand"]["reads"]
    if result["verify"] is not None:
        assert result["verify"]["corrupt_pages"] == 0
        assert result["verify"]["checked_pages"] > 0
    assert check_sums(result) == []


def test_a_drive_that_misbehaves_is_named_and_serves_no_wrong_byte(trace: Path) -> None:
    faults = FaultSettings(
        reads=ReadFaultSettings(fail_share=0.1, flipped_share=0.1),
        writes=WriteFaultSettings(torn_share=0.6, misdirected_share=0.2),
    )
    result = replay(trace, small(tiers=(TierSettings("nvme", 2 * MIB, faults=faults),)))
    assert result["tiers"][0]["engine"].endswith(" with faults")
    assert result["config"]["tiers"][0]["faults"]["reads"]["fail_share"] == 0.1
    counts = result["environment"]["faults"]["nvme"]
    assert all(counts[key] for key in ("read_fail", "read_flipped", "write_torn")), counts
    assert result["tiers"][0]["failures"] > 0
    assert result["verify"]["corrupt_pages"] == 0
    assert result["verify"]["checked_pages"] > 0
    assert check_sums(result) == []


def test_a_tier_striped_over_files_decides_as_one_in_one_file(trace: Path, tmp_path: Path) -> None:
    paths = tuple(tmp_path / name for name in ("a", "b", "c"))
    tiers = TierSettings("nvme", 2 * MIB), TierSettings("nvme", 2 * MIB, paths=paths)
    one, striped = (replay(trace, small(tiers=(tier,))) for tier in tiers)
    assert decisions(one) == decisions(striped)
    assert striped["verify"]["corrupt_pages"] == 0
    assert all(path.stat().st_size for path in paths)


def test_without_an_origin_requests_are_served_from_what_the_tiers_kept(tmp_path: Path) -> None:
    trace = write_conversations(tmp_path / "trace.parquet")
    settings = small(origin=None, tiers=(TierSettings("hbm", MIB // 4),))
    replayed, simulated = replay(trace, settings), simulate(trace, settings)
    assert decisions(replayed) == decisions(simulated)
    assert replayed["origin"] is None
    assert replayed["verify"]["corrupt_pages"] == 0
    assert check_sums(replayed) == []


def test_the_same_seed_simulates_the_same_result(trace: Path) -> None:
    first, second = simulate(trace, small()), simulate(trace, small())
    assert first == second
    json.dumps(first, allow_nan=False)


def test_the_same_replay_twice_takes_the_same_decisions(trace: Path) -> None:
    assert decisions(replay(trace, small())) == decisions(replay(trace, small()))


def test_another_seed_takes_other_decisions(tmp_path: Path) -> None:
    trace = write_graph_search(tmp_path / "graph.parquet")
    tiers = (TierSettings("hbm", MIB // 4),)
    one, two = (simulate(trace, small(tiers=tiers, seed=seed)) for seed in (1, 2))
    assert decisions(one) != decisions(two)


def test_a_limit_takes_the_first_requests(trace: Path) -> None:
    result = simulate(trace, small(), limit=7)
    assert result["trace"]["requests"] == 7
    assert result["demand"]["reads"] < simulate(trace, small())["demand"]["reads"]


def test_fewer_pages_a_block_than_the_model_has_is_labelled_scaled(tmp_path: Path) -> None:
    trace = write_conversations(tmp_path / "trace.parquet")
    assert simulate(trace, small())["trace"]["scaled"]
    full = small(replay=replace(small().replay, pages_per_block=0))
    result = simulate(trace, full, limit=5)
    assert not result["trace"]["scaled"]
    assert result["trace"]["pages_per_block"] == 512


def test_a_simulation_of_too_many_pages_is_refused_with_an_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = write_conversations(tmp_path / "trace.parquet")
    monkeypatch.setattr("kvtier.replay.workload.SIMULATED_PAGES_MAX", 1000)
    with pytest.raises(LimitError, match=r"page accesses over .* --pages-per-block"):
        simulate(trace, small())


def test_a_cancelled_replay_returns_what_it_measured_and_its_sums_hold(trace: Path) -> None:
    async def interrupted() -> Mapping[str, Any]:
        running = asyncio.current_task()
        assert running is not None

        def progress(done: int, _: int | None) -> None:
            if done >= 10:
                running.cancel()

        return await replay_trace(trace, small(), limit=None, progress=progress, notify=quiet)

    result = asyncio.run(interrupted())
    assert not result["complete"]
    assert 0 < result["demand"]["reads"] < simulate(trace, small())["demand"]["reads"]
    assert check_sums(result) == []


def test_wrong_bytes_of_the_origin_are_seen(tmp_path: Path) -> None:
    trace = write_graph_search(tmp_path / "graph.parquet")
    root = tmp_path / "origin"
    root.mkdir()
    settings = small(tiers=(), origin=OriginSettings("file", MappingProxyType({"root": str(root)})))
    replay(trace, settings, limit=1)
    largest = max((p for p in root.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    for page in range(1, GRAPH.pages):
        content[page * PAGE_BYTES + 99] ^= 1
    largest.write_bytes(content)
    result = replay(trace, settings)
    assert result["verify"]["corrupt_pages"] > 0


def store(path: Path, key: bytes, payload: np.ndarray) -> OriginSettings:
    options = MappingProxyType({"root": str(path)})

    async def put() -> None:
        backend = await open_backend("file", options, PAGE_BYTES)
        counts = np.array([len(payload)], np.uint32)
        assert not (await backend.put(ObjectBatch((key,), counts, payload))).status.any()
        await backend.close()

    path.mkdir()
    asyncio.run(put())
    return OriginSettings("file", options)


def test_an_object_that_kvtier_did_not_store_cannot_be_verified(tmp_path: Path) -> None:
    trace = write_graph_search(tmp_path / "graph.parquet")
    foreign = np.full((GRAPH.pages, PAGE_BYTES), 7, np.uint8)
    origin = store(tmp_path / "origin", GRAPH.key, foreign)
    with pytest.raises(SettingsError, match="verify_share = 0"):
        replay(trace, small(origin=origin))
    unverified = replace(small().replay, verify_share=0.0)
    result = replay(trace, small(origin=origin, replay=unverified))
    assert result["demand"]["delivered"] == result["demand"]["reads"]


def test_an_object_of_the_same_name_but_shorter_is_refused(tmp_path: Path) -> None:
    trace = write_graph_search(tmp_path / "graph.parquet")
    origin = store(tmp_path / "origin", GRAPH.key, np.zeros((2, PAGE_BYTES), np.uint8))
    with pytest.raises(SettingsError, match="has 2 pages, the trace reads 3000"):
        replay(trace, small(origin=origin))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (small(page_bytes=512), "set page_bytes = 4096"),
        (small(origin=None), "configure an .origin."),
        (small(origin=OriginSettings("memorry")), "memory"),
    ],
)
def test_settings_that_do_not_fit_the_trace_are_refused(
    tmp_path: Path, settings: Settings, message: str
) -> None:
    trace = write_graph_search(tmp_path / "graph.parquet")
    with pytest.raises(KvtierError, match=message):
        replay(trace, settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"chain": ChainSettings(batch_pages_max=16, inflight_pages_max=16)},
        {"chain": ChainSettings(batch_pages_max=64, inflight_pages_max=64, objects_max=24)},
        {
            "tiers": (TierSettings("nvme", MIB // 4),),
            "chain": ChainSettings(batch_pages_max=32, device_batch_pages=32),
        },
        {"tiers": (TierSettings("dram", MIB // 4), TierSettings("nvme", MIB // 2))},
    ],
    ids=["cut-waves", "few-objects", "small-nvme-first", "small-tiers"],
)
def test_decisions_do_not_depend_on_how_long_fills_take(
    trace: Path, changes: dict[str, Any]
) -> None:
    settings = small(**changes)
    first, second = replay(trace, settings), replay(trace, settings)
    assert decisions(first) == decisions(second) == decisions(simulate(trace, settings))
    assert check_sums(first) == []


def test_a_request_of_more_blocks_than_the_directory_holds_is_refused(tmp_path: Path) -> None:
    trace = write_conversations(tmp_path / "trace.parquet")
    settings = small(chain=ChainSettings(objects_max=4))
    with pytest.raises(SettingsError, match=r"raise chain\.objects_max, now 4"):
        replay(trace, settings)


class ReadOnlyBackend(MemoryBackend):
    capability = replace(MemoryBackend.capability, writable=False)


def test_a_read_only_origin_that_lacks_the_object_is_refused(tmp_path: Path) -> None:
    trace = write_graph_search(tmp_path / "graph.parquet")

    async def served() -> Mapping[str, Any]:
        server = await serve(await ReadOnlyBackend.open({}, PAGE_BYTES), page_bytes=PAGE_BYTES)
        try:
            origin = OriginSettings("tcp", MappingProxyType({"url": server.url}))
            settings = small(origin=origin)
            return await replay_trace(trace, settings, limit=None, progress=quiet, notify=quiet)
        finally:
            await server.close()

    with pytest.raises(SettingsError, match="lacks object b'graph' of 3000 pages"):
        asyncio.run(served())


# -- a slower origin -------------------------------------------------------------------------------


def test_an_origin_is_slowed_down_to_a_device_and_nothing_else_changes(trace: Path) -> None:
    slow = DeviceModel(latency_s=2e-3, iops=1e6, bytes_per_s=1e12)
    settings = small(tiers=(TierSettings("dram", MIB),))
    slowed = replace(settings, origin=OriginSettings("memory", latency=slow))
    plain, result = replay(trace, settings), replay(trace, slowed)
    assert decisions(result) == decisions(plain)
    assert check_sums(result) == []
    assert result["verify"]["corrupt_pages"] == 0
    assert result["origin"]["hits"] > 0
    # The histogram's bins are a few percent wide.
    assert result["origin"]["latency_us"]["p50"] >= 0.95 * 2000
    assert result["config"]["origin"]["latency"]["latency_s"] == 2e-3


@pytest.mark.parametrize("figures", [{"iops": 0.0}, {"latency_s": -1.0}])
def test_a_latency_out_of_range_is_refused(figures: dict[str, float]) -> None:
    model = replace(DeviceModel(1e-3, 1e6, 1e9), **figures)  # type: ignore[arg-type]
    with pytest.raises(SettingsError) as refusal:
        validate(small(origin=OriginSettings("memory", latency=model)))
    assert str(refusal.value).startswith("origin.latency.")


def test_a_run_names_what_was_set_and_its_drive_does_not_use(tmp_path: Path) -> None:
    path = write_conversations(tmp_path / "t.parquet")
    told: list[str] = []

    def told_of(**changes: Any) -> str:
        told.clear()
        simulate_trace(path, small(**changes), limit=1, progress=quiet, notify=told.append)
        return told[0]

    paced = ReplaySettings(speed=2.0, tick_s=1e-3, compute_s=1e-3, spread="session")
    model = {"compute": ComputeSettings(devices=8), "serving": ServingSettings("split")}
    idle = "of no effect in this run, whose drive is"
    assert told_of(replay=paced, **model) == (
        f"{idle} waves: replay.compute, replay.tick, replay.speed, replay.spread, "
        "compute.devices, serving.roles"
    )
    closed = replace(paced, drive="closed")
    assert told_of(replay=closed) == f"{idle} closed: replay.speed, replay.spread"
    assert idle not in told_of(replay=replace(closed, drive="open", spread=None))
    path = write_graph_search(tmp_path / "graph.parquet")
    blocks = ReplaySettings(pages_per_block=4, model="qwen3-8b")
    assert told_of(replay=blocks) == f"{idle} waves: replay.pages_per_block, replay.model"
    settings = small(replay=blocks)
    asyncio.run(replay_trace(path, settings, limit=1, progress=quiet, notify=told.append))
    assert told.count(f"{idle} waves: replay.pages_per_block, replay.model") == 2
