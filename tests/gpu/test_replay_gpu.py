"""A trace replayed with its first tier on a GPU: the decisions of the CPU twin and the emulator."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_traces import write_conversations, write_graph_search

import kvtier.opening
from kvtier.gpu import Gpu
from kvtier.replay import replay_trace, simulate_trace
from kvtier.settings import OriginSettings, ReplaySettings, Settings, TierSettings

MIB = 1 << 20
WEAR = ("written_bytes", "write_amplification", "drive_writes_per_day")
TIMED = ("engine", "iops", "latency_us", *WEAR)


def quiet(*_: object) -> None:
    """No progress, no notices."""


def decisions(result: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that must not depend on where the pages lie."""
    levels = [*result["tiers"], result["origin"]]
    demand = {key: value for key, value in result["demand"].items() if key not in TIMED}
    return {
        "levels": [{k: v for k, v in level.items() if k not in TIMED} for level in levels],
        "coalescing": result["coalescing"],
        "writes": result["writes"],
        "demand": demand,
    }


@pytest.mark.parametrize("admit", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["page_io", "requests"])
def test_a_replay_on_a_gpu_decides_as_the_twin_and_the_emulator(
    gpu: Gpu, kind: str, admit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_graph_search if kind == "page_io" else write_conversations
    trace = write(tmp_path / "trace.parquet")
    settings = Settings(
        device="cpu",
        tiers=(
            TierSettings("hbm", MIB // 2, admit=admit),
            TierSettings("dram", MIB),
            TierSettings("nvme", 2 * MIB),
        ),
        origin=OriginSettings("memory"),
        replay=ReplaySettings(concurrency=8, verify_share=1.0, pages_per_block=4),
    )

    def replayed(made: Settings) -> Mapping[str, Any]:
        return asyncio.run(replay_trace(trace, made, limit=None, progress=quiet, notify=quiet))

    twin = replayed(settings)
    emulated = simulate_trace(trace, settings, limit=None, progress=quiet, notify=quiet)
    monkeypatch.setattr(kvtier.opening, "open_gpu", lambda _: gpu)
    ours = replayed(replace(settings, device="auto"))
    assert ours["tiers"][0]["engine"] == "cuda"
    assert twin["tiers"][0]["engine"] == "cpu-twin"
    assert decisions(ours) == decisions(twin)
    assert decisions(emulated)["levels"] == decisions(ours)["levels"]
    assert ours["verify"]["corrupt_pages"] == 0
    assert ours["tiers"][0]["hits"] > 0
    assert ours["tiers"][0]["evictions"] > 0
