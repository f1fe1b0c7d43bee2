"""``kvtier size``: its answer is the cheapest of all, and ``simulate`` comes to its numbers."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_traces import write_conversations, write_graph_search

from kvtier.cli import main
from kvtier.errors import KvtierError, SettingsError, TraceError
from kvtier.settings import (
    OriginSettings,
    ReplaySettings,
    Settings,
    TierSettings,
    TopologySettings,
    load_settings,
)
from kvtier.sizing import SizingTask, parse_target, size_trace
from kvtier.sizing import trials as sizing_trials
from kvtier.sizing.economics import YEARS_MAX
from kvtier.sizing.grid import Scale
from kvtier.sizing.prices import PRESETS
from kvtier.sizing.targets import METRICS
from kvtier.sizing.trials import Trials

KIB, MIB = 1 << 10, 1 << 20


def quiet(*_: object) -> None:
    """No progress, no notices."""


def two_tiers(**changes: Any) -> Settings:
    base = Settings(
        device="cpu",
        tiers=(TierSettings("dram", MIB, ways=8), TierSettings("nvme", MIB, ways=8)),
        origin=OriginSettings("memory"),
        replay=ReplaySettings(concurrency=8, pages_per_block=4),
    )
    return replace(base, **changes)


def size(task: SizingTask) -> Mapping[str, Any]:
    return size_trace(task, progress=quiet, notify=quiet)


@pytest.fixture(params=["page_io", "requests"])
def trace(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "page_io":
        return write_graph_search(tmp_path / "graph.parquet")
    return write_conversations(tmp_path / "conversations.parquet")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph_search(tmp_path / "graph.parquet")


def capacities(result: Mapping[str, Any]) -> dict[str, int]:
    levels = result["answer"]["levels"]
    return {level["name"]: level["full_bytes"] for level in levels if level["name"] != "origin"}


def every_configuration(task: SizingTask, sizes: list[int]) -> list[dict[str, Any]]:
    """All pairs of capacities, simulated one by one, the cheapest first."""
    made = []
    for dram, nvme in itertools.product([0, *sizes], repeat=2):
        full_bytes = {"dram": dram, "nvme": nvme}
        settings = sizing_trials.configured(task.settings, full_bytes, Scale(1, 1))
        run = sizing_trials.simulate_trace(
            task.path, settings, limit=task.limit, progress=quiet, notify=quiet
        )
        price = sum(PRESETS[name].dollars(count) for name, count in full_bytes.items())
        there = {name: count for name, count in full_bytes.items() if count}
        made.append({"price": price, "full_bytes": there, "run": run})
    return sorted(made, key=lambda one: one["price"])


@pytest.mark.parametrize("exhaustive", [False, True], ids=["bisecting", "exhaustive"])
@pytest.mark.parametrize(
    "wanted", [["hit_rate=0.3"], ["hit_rate=0.6", "p50=40us"], ["iops=200k"], ["origin_iops=60k"]]
)
def test_the_answer_is_the_cheapest_of_all_configurations(
    graph: Path, wanted: list[str], exhaustive: bool
) -> None:
    targets = [parse_target(text) for text in wanted]
    bounds = {"dram": 256 * KIB, "nvme": 512 * KIB}
    task = SizingTask(
        graph, two_tiers(), targets, most_bytes=bounds, exhaustive=exhaustive, limit=60
    )
    result = size(task)
    meeting = [
        one
        for one in every_configuration(task, [32 * KIB << step for step in range(5)])
        if one["full_bytes"].get("dram", 0) <= bounds["dram"]
        and all(target.is_met(METRICS[target.name].measure(one["run"], [])) for target in targets)
    ]
    assert capacities(result) == meeting[0]["full_bytes"]
    assert result["answer"]["dollars"] == pytest.approx(meeting[0]["price"])
    assert result["search"]["ended"] == "settled"
    if exhaustive:
        assert result["search"]["cheaper_not_simulated"] == 0


def test_simulate_confirms_the_answer_with_the_file_that_size_wrote(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sized, simulated = (tmp_path / name for name in ("out.toml", "size.json", "run.json"))
    options = ["--set", "origin.backend=memory", "--set", "replay.concurrency=8"]
    options += ["--limit", "60", "--max", "hbm=0"]
    if "conversations" in trace.name:
        options += ["--pages-per-block", "4"]
    argv = ["size", str(trace), "--target", "hit_rate=0.4", "--out", str(out), *options]
    assert main([*argv, "--json", str(sized)]) == 0
    result = json.loads(sized.read_text())
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("confirm with: "))
    assert command[:3] == ["kvtier", "simulate", str(trace)]
    assert main([*command[1:], "--json", str(simulated)]) == 0
    run = json.loads(simulated.read_text())
    metrics = {name: metric.measure(run, []) for name, metric in METRICS.items() if name != "years"}
    assert metrics == {name: result["answer"]["metrics"][name] for name in metrics}
    assert metrics["hit_rate"] is not None
    assert metrics["hit_rate"] >= 0.4
    assert {tier["name"]: tier["hits"] for tier in run["tiers"]} == {
        level["name"]: level["hits"]
        for level in result["answer"]["levels"]
        if level["name"] != "origin"
    }


def test_without_a_file_the_command_that_confirms_names_every_setting(
    graph: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--set", "origin.backend=memory", "--set", "tiers.hbm.capacity=0"]
    assert main(["size", str(graph), "--target", "hit_rate=0.3", *given]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("confirm with: "))
    settings = load_settings(None, [word for word in command if "=" in word])
    assert {tier.name for tier in settings.tiers} <= {"dram", "nvme"}
    assert settings.origin is not None
    assert settings.origin.backend == "memory"


def test_a_scaled_trace_states_both_capacities_and_prices_the_full_one(tmp_path: Path) -> None:
    path = write_conversations(tmp_path / "conversations.parquet")
    result = size(SizingTask(path, two_tiers(), [parse_target("hit_rate=0.5")]))
    factor = result["trace"]["full_pages_per_block"] / 4
    assert result["scale"] == factor > 1
    price = 0.0
    for level in result["answer"]["levels"]:
        assert level["full_bytes"] == level["simulated_bytes"] * factor
        if level["name"] != "origin":
            price += PRESETS[level["name"]].dollars(level["full_bytes"])
    assert result["answer"]["dollars"] == pytest.approx(price)
    assert "replay.pages_per_block=4" in result["answer"]["settings"]


def test_a_target_of_years_looks_at_the_writes_of_every_drive(tmp_path: Path) -> None:
    path = write_conversations(tmp_path / "conversations.parquet")
    hit_rate = parse_target("hit_rate=0.5")
    worn = size(SizingTask(path, two_tiers(), [hit_rate]))
    lasting = size(SizingTask(path, two_tiers(), [hit_rate, parse_target("years=5")]))
    # The trace takes microseconds, so any drive that it writes is worn in no time.
    assert [level["name"] for level in worn["answer"]["levels"]] == ["nvme", "origin"]
    assert worn["answer"]["metrics"]["years"] < 1
    wear = worn["answer"]["levels"][0]["wear"]
    assert wear["years"] == pytest.approx(5 / wear["drive_writes_per_day"])
    assert [level["name"] for level in lasting["answer"]["levels"]] == ["dram", "origin"]
    assert lasting["answer"]["metrics"]["years"] == YEARS_MAX


def test_break_even_is_given_for_every_tier_and_between_the_levels_of_the_answer(
    graph: Path,
) -> None:
    targets = [parse_target("hit_rate=0.3"), parse_target("years=5")]
    result = size(SizingTask(graph, two_tiers(), targets))
    assert capacities(result).keys() == {"dram"}
    pairs = [(one["upper"], one["lower"]) for one in result["break_even"]]
    assert pairs == [("dram", "nvme"), ("nvme", "origin"), ("dram", "origin")]
    for one in result["break_even"]:
        assert one["interval_s"] == pytest.approx(
            one["pages_per_mib"]
            / one["accesses_per_s"]
            * one["dollars_per_device"]
            / one["dollars_per_mib"]
        )


def test_what_is_cheaper_is_listed_with_what_it_misses(graph: Path) -> None:
    target = parse_target("hit_rate=0.5")
    result = size(SizingTask(graph, two_tiers(), [target]))
    assert result["cheaper"]
    for one in result["cheaper"]:
        assert one["dollars"] < result["answer"]["dollars"]
        assert one["missed"] == ["hit_rate"]
        assert not target.is_met(one["metrics"]["hit_rate"])


def test_a_budget_ends_the_search_and_the_answer_says_so(
    graph: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settled = size(SizingTask(graph, two_tiers(), [parse_target("hit_rate=0.3")]))
    few = settled["search"]["simulated"] - 1
    argv = ["size", str(graph), "--target", "hit_rate=0.3", "--budget", str(few)]
    given = ["--set", "origin.backend=memory", "--set", "tiers.hbm.capacity=0"]
    ways = ["--set", "tiers.dram.ways=8", "--set", "tiers.nvme.ways=8"]
    assert main([*argv, *given, *ways, "--set", "replay.concurrency=8"]) == 0
    assert "not proven to be the" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (
            ["--target", "hit_rate=1"],
            1,
            "no configuration within the bounds meets hit_rate >= 100.00%: lower the target. at b",
        ),
        (["--target", "p50=0us"], 1, "no configuration within the bounds meets p50 <= 0 ns: lower"),
        (["--target", "p50=0us", "--budget", "4"], 1, "no configuration within the bounds meets"),
        (["--target", "hit_rate=0.99", "--max", "dram=1MiB"], 1, "lower the target or raise --max"),
        (["--target", "hit_rate=0.9", "--max", "dram=0,nvme=64KiB"], 1, "with nvme 64 KiB"),
        (
            ["--target", "hit_rate=1", "--budget", "1"],
            1,
            "the largest misses too, so lower the target, or raise --budget for the others. at",
        ),
        (["--target", "hitrate=1"], 2, "unknown target hitrate; did you mean hit_rate?"),
        (["--target", "p99=5"], 2, "--target p99: '5' is no time"),
        (["--target", "p99=5ms", "--target", "p99=4ms"], 2, "--target p99 is given twice"),
        (["--target", "hit_rate=1", "--max", "dram=1KiB"], 2, "must hold one set at least, 64 KiB"),
        (["--target", "hit_rate=1", "--max", "disk=1GiB"], 2, "no tier disk here: dram, nvme"),
        (["--target", "hit_rate=1", "--max", "dram=0,nvme=0"], 2, "--max leaves every tier out"),
        (["--target", "hit_rate=1", "--budget", "0"], 2, "argument --budget: '0' is no whole"),
        (["--target", "hit_rate=1", "--prices", "/none.toml"], 2, "--prices /none.toml: cannot"),
        (["--target", "hit_rate=1", "--out", "/none/a.toml"], 2, "/none/a.toml: there is no dir"),
        (["--target", "hit_rate=1", "--out", "a", "--json", "a"], 2, "--json names the same file"),
        ([], 2, "the following arguments are required: --target"),
    ],
)
def test_what_cannot_be_sized_is_one_line(
    graph: Path,
    options: list[str],
    code: int,
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--set", "origin.backend=memory", "--set", "tiers.hbm.capacity=0"]
    try:
        ended = int(main(["size", str(graph), "--limit", "30", *given, *options]))
    except SystemExit as end:  # what argparse does
        ended = int(end.code or 0)
    captured = capsys.readouterr()
    assert (ended, captured.out) == (code, "")
    # What the simulations will take is said before; the refusal is the last line, and one line.
    lines = captured.err.splitlines()
    assert complaint in lines[-1]
    assert len(lines) == (2 if code == 1 else 1)


def test_settings_need_a_tier_and_an_origin(graph: Path) -> None:
    targets = [parse_target("hit_rate=0.5")]
    with pytest.raises(SettingsError, match="no tier"):
        size(SizingTask(graph, two_tiers(tiers=()), targets))
    with pytest.raises(SettingsError, match=r"no \[origin\]"):
        size(SizingTask(graph, two_tiers(origin=None), targets))


def test_the_tiers_of_one_gpu_are_sized(graph: Path) -> None:
    settings = two_tiers(topology=TopologySettings(gpus=("gpu0", "gpu1")))
    with pytest.raises(SettingsError, match=r"topology\.gpus: the tiers of one GPU are sized"):
        size(SizingTask(graph, settings, [parse_target("hit_rate=0.5")]))


def test_a_trace_that_reads_nothing_again_cannot_be_sized(tmp_path: Path) -> None:
    path = write_conversations(tmp_path / "conversations.parquet")
    with pytest.raises(TraceError, match="nothing is read that was there before"):
        size(SizingTask(path, two_tiers(), [parse_target("hit_rate=0.5")], limit=1))


def test_ctrl_c_keeps_the_cheapest_that_was_found(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = SizingTask(graph, two_tiers(), [parse_target("hit_rate=0.3")])
    simulate = Trials.simulate

    def interrupted_once_one_meets(trials: Trials, number: int) -> Any:
        return None if trials.result else simulate(trials, number)

    monkeypatch.setattr(Trials, "simulate", interrupted_once_one_meets)
    result = size(task)
    assert not result["complete"]
    assert result["search"]["ended"] == "interrupted"
    monkeypatch.setattr(Trials, "simulate", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        size(task)


def test_nothing_met_is_an_error_of_the_target_and_not_of_the_input(graph: Path) -> None:
    with pytest.raises(KvtierError) as refusal:
        size(SizingTask(graph, two_tiers(), [parse_target("p50=1ns")]))
    assert not isinstance(refusal.value, ValueError)
    assert "at best, p50 was " in str(refusal.value)
