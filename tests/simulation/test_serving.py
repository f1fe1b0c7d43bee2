"""The drive ``serving``: whole runs of request traces on caches in virtual time."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from small_traces import write_conversations, write_graph_search

from kvtier.cli import main
from kvtier.errors import KvtierError, SettingsError, TraceError
from kvtier.replay import replay_trace, simulate_trace
from kvtier.report.reading import read_result
from kvtier.report.sections import every_number, headline, setup
from kvtier.report.soundness import check_figures, check_sums
from kvtier.report.terminal import print_report
from kvtier.settings import (
    ComputeSettings,
    DeviceModel,
    HostSettings,
    OriginSettings,
    ReplaySettings,
    ServingSettings,
    Settings,
    TierSettings,
    TopologySettings,
    load_settings,
)
from kvtier.trace import NO_PARENT, Request, TraceMetadata, write_requests

GIB = 1 << 30
BLOCK_TOKENS = 256
PAGE_BYTES = 4 << 20
ROOT = Path(__file__).parents[2]

both_roles = pytest.mark.parametrize("roles", ["one", "split"])


def quiet(*_: object) -> None:
    """No progress, no notices."""


def served(roles: str = "one", **changes: Any) -> Settings:
    """A small server of llama-3-8b: a block of 256 tokens is 32 MiB, 8 pages."""
    replay = {"concurrency": 16, "drive": "serving"} | changes.pop("replay", {})
    base = Settings(
        page_bytes=PAGE_BYTES,
        tiers=(TierSettings("hbm", 2 * GIB), TierSettings("dram", 32 * GIB)),
        origin=OriginSettings("memory"),
        chain=replace(Settings().chain, device_batch_pages=32, staging_bytes=GIB),
        replay=ReplaySettings(**replay),
        serving=ServingSettings(roles),  # type: ignore[arg-type]
    )
    return replace(base, **changes)


def simulate(path: Path, settings: Settings, limit: int | None = None) -> Mapping[str, Any]:
    return simulate_trace(path, settings, limit=limit, progress=quiet, notify=quiet)


def write_prompts(
    path: Path,
    prompts: list[list[int]],
    *,
    gap_ns: int = 100_000_000,
    out_tokens: int = 20,
    parents: list[int] | None = None,
) -> Path:
    """A request per list of blocks, whose last one is half full."""
    made = [
        Request(
            t_ns=number * gap_ns,
            session=number,
            parent=parents[number] if parents else NO_PARENT,
            turn=0,
            model="",
            in_tokens=len(blocks) * BLOCK_TOKENS - BLOCK_TOKENS // 2,
            out_tokens=out_tokens,
            block_ids=np.array(blocks, np.uint64),
        )
        for number, blocks in enumerate(prompts)
    ]
    metadata = TraceMetadata(kind="requests", block_tokens=BLOCK_TOKENS, id_scope="global")
    write_requests(path, metadata, made)
    return path


@pytest.fixture
def shared_prefix(tmp_path: Path) -> Path:
    """30 questions to one document of 24 blocks, 0.1 s apart."""
    prompts = [[*range(24), 100 + number] for number in range(30)]
    return write_prompts(tmp_path / "shared.parquet", prompts)


@pytest.fixture
def no_prefix(tmp_path: Path) -> Path:
    """30 prompts that have nothing in common."""
    prompts = [list(range(25 * number, 25 * number + 25)) for number in range(30)]
    return write_prompts(tmp_path / "alone.parquet", prompts)


# -- what is served ---------------------------------------------------------------------------


@both_roles
def test_every_token_is_prompted_and_answered(shared_prefix: Path, roles: str) -> None:
    result = simulate(shared_prefix, served(roles))
    serving, nodes = result["serving"], result["serving"]["nodes"]
    prompt_tokens = 30 * (25 * BLOCK_TOKENS - BLOCK_TOKENS // 2)
    assert result["complete"]
    assert result["requests"]["count"] == 30
    assert serving["prompt_tokens"] == prompt_tokens
    assert serving["loaded_tokens"] + serving["computed_tokens"] == prompt_tokens
    assert serving["output_tokens"] == sum(node["output_tokens"] for node in nodes) == 30 * 20
    assert serving["uncached"]["output_tokens"] == 30 * 20
    assert check_sums(result) == check_figures(result) == []


def test_shared_blocks_are_loaded_and_each_is_written_once(shared_prefix: Path) -> None:
    result = simulate(shared_prefix, served())
    assert result["writes"]["objects"] == 24 + 30
    # The first one finds nothing, and so may those that come before it has written.
    assert result["serving"]["loaded_tokens"] >= 25 * 24 * BLOCK_TOKENS
    assert result["by_purpose"]["prefix"]["demand"]["reads"] == result["demand"]["reads"]
    assert result["demand"]["reads"] * PAGE_BYTES == (
        result["serving"]["loaded_tokens"] * result["serving"]["model"]["kv_token_bytes"]
    )


def test_with_hits_the_first_token_comes_sooner_than_without(
    shared_prefix: Path, no_prefix: Path
) -> None:
    hits, misses = simulate(shared_prefix, served()), simulate(no_prefix, served())
    assert hits["serving"]["ttft_us"]["p50"] < misses["serving"]["ttft_us"]["p50"] / 3
    saved = hits["serving"]["ttft_saved"]
    assert saved["share"] > 0.5
    difference = hits["serving"]["uncached"]["ttft_us"]["mean"] - hits["serving"]["ttft_us"]["mean"]
    assert saved["mean_us"] == pytest.approx(difference)
    assert misses["serving"]["loaded_tokens"] == 0
    assert misses["serving"]["ttft_saved"]["mean_us"] == pytest.approx(0, abs=1)
    assert hits["serving"]["recompute_s"] > 0 == misses["serving"]["recompute_s"]


def test_one_request_alone_takes_the_time_of_the_roofline(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "one.parquet", [list(range(4))], out_tokens=1)
    result = simulate(path, served())
    tokens = 4 * BLOCK_TOKENS - BLOCK_TOKENS // 2
    flops = 2 * 8.03e9 * tokens + 32 * 16_384 * tokens * (tokens + 1) / 2
    expected_us = flops / (989e12 * 0.5) * 1e6
    assert result["serving"]["ttft_us"]["max"] == pytest.approx(expected_us, abs=0.002)


def test_a_slow_store_makes_the_node_stall_and_requests_slower_than_recomputing(
    tmp_path: Path,
) -> None:
    prompts = [[*range(24), 100 + number] for number in range(8)]
    path = write_prompts(tmp_path / "slow.parquet", prompts, gap_ns=5_000_000_000)
    origin = OriginSettings("memory", model=DeviceModel(50e-6, 1e6, 1e9))
    # The tier holds next to nothing, so that the document comes from the origin each time.
    tiny = (TierSettings("dram", 16 * PAGE_BYTES),)
    result = simulate(path, served(tiers=tiny, origin=origin))
    serving = result["serving"]
    assert check_figures(result) == []
    assert serving["ttft_saved"]["slower_share"] == 7 / 8
    assert serving["ttft_saved"]["mean_us"] < 0
    node = serving["nodes"][0]
    assert node["stalled_s"] == pytest.approx(7 * 24 * 32 * 2**20 / 1e9, rel=0.1)
    assert node["stall_per_step_us"] * node["steps"] == pytest.approx(node["stalled_s"] * 1e6)


def test_the_node_itself_can_be_the_bottleneck(no_prefix: Path) -> None:
    result = simulate(no_prefix, served(replay={"speed": 100.0}))
    assert result["bottleneck"] == "compute"
    assert result["utilisation"]["compute"] > 0.9


def test_a_turn_waits_for_the_one_that_it_continues(tmp_path: Path) -> None:
    prompts = [list(range(40)), list(range(41))]
    path = write_prompts(
        tmp_path / "turns.parquet", prompts, gap_ns=1, out_tokens=50, parents=[NO_PARENT, 0]
    )
    result = simulate(path, served())
    # It loads what the first turn wrote, and was never in flight beside it.
    assert result["serving"]["loaded_tokens"] == 40 * BLOCK_TOKENS
    assert result["requests"]["in_flight_mean"] <= 1


def test_without_an_origin_a_node_serves_from_what_its_tiers_kept(shared_prefix: Path) -> None:
    result = simulate(shared_prefix, served(origin=None, tiers=(TierSettings("dram", GIB),)))
    serving = result["serving"]
    assert result["requests"]["count"] == 30
    assert 0 < serving["loaded_tokens"] < 29 * 24 * BLOCK_TOKENS
    assert check_sums(result) == check_figures(result) == []


# -- prefill and decode nodes -----------------------------------------------------------------


def test_a_decode_node_loads_every_prompt_that_it_goes_on_with(shared_prefix: Path) -> None:
    result = simulate(shared_prefix, served("split"))
    prefill, decode = result["serving"]["nodes"]
    assert (prefill["name"], decode["name"]) == ("prefill", "decode")
    assert decode["loaded_tokens"] == result["serving"]["prompt_tokens"]
    assert decode["computed_tokens"] == 0
    assert (prefill["output_tokens"], decode["output_tokens"]) == (30, 30 * 19)
    assert result["utilisation"].keys() >= {"compute (prefill)", "compute (decode)", "origin"}
    gpus = {gpu["name"]: gpu for gpu in result["gpus"]}
    assert gpus["decode"]["origin"]["hits"] >= (24 + 30) * 8
    assert gpus["decode"]["writes"]["objects"] == 0
    assert gpus["prefill"]["writes"]["objects"] == 54


def test_a_node_is_called_alike_in_all_parts_of_a_result(shared_prefix: Path) -> None:
    tiers = (TierSettings("hbm", GIB), TierSettings("dram", GIB))
    topology = TopologySettings(gpus=("left", "right"))
    settings = served("split", tiers=tiers, topology=topology, host=HostSettings(batch_s=1e-6))
    result = simulate(shared_prefix, settings)
    assert [node["name"] for node in result["serving"]["nodes"]] == ["left", "right"]
    assert [gpu["name"] for gpu in result["gpus"]] == ["left", "right"]
    of_nodes = {name for name in result["utilisation"] if "(" in name}
    names = ("left", "right")
    assert of_nodes == {f"{what} ({one})" for what in ("compute", "hbm", "host") for one in names}
    prefill, decode = result["serving"]["nodes"]
    assert (prefill["output_tokens"], decode["computed_tokens"]) == (30, 0)


def test_a_prefill_node_keeps_decoding_from_being_held_up(no_prefix: Path) -> None:
    busy = {"speed": 3.0}
    one, split = (simulate(no_prefix, served(roles, replay=busy)) for roles in ("one", "split"))
    steps = [result["serving"]["nodes"][-1]["step_us"]["p99"] for result in (one, split)]
    assert steps[1] < steps[0] / 3


def test_several_nodes_share_the_origin_and_the_requests(shared_prefix: Path) -> None:
    settings = served(topology=TopologySettings(links=(), gpus=("a", "b")))
    result = simulate(shared_prefix, settings)
    names = [node["name"] for node in result["serving"]["nodes"]]
    assert names == ["a", "b"]
    assert result["serving"]["output_tokens"] == 600
    assert result["drive"]["gpus"] == 2
    assert result["requests"]["count"] == 30 == sum(g["requests"]["count"] for g in result["gpus"])
    assert check_sums(result) == check_figures(result) == []


# -- laws -------------------------------------------------------------------------------------


@both_roles
def test_the_same_seed_gives_the_same_result_byte_for_byte(tmp_path: Path, roles: str) -> None:
    path = write_conversations(tmp_path / "trace.parquet")
    first, second = (json.dumps(simulate(path, served(roles)), allow_nan=False) for _ in range(2))
    assert first == second


@both_roles
def test_the_time_of_a_node_adds_up_and_no_bound_is_passed(no_prefix: Path, roles: str) -> None:
    compute = ComputeSettings(batch_tokens_max=512, kv_capacity_bytes=3 * GIB)
    replay = {"concurrency": 4, "speed": 10.0}
    result = simulate(no_prefix, served(roles, compute=compute, replay=replay))
    assert result["requests"]["count"] == 30
    for node in result["serving"]["nodes"]:
        spent_s = node["busy_s"] + node["stalled_s"] + node["idle_s"]
        assert spent_s == pytest.approx(result["duration_s"])
        assert node["idle_s"] >= 0
        assert node["batch_tokens_peak"] <= 512
        assert node["kv_peak_bytes"] <= 3 * GIB
        assert node["batch_mean"] <= 4


def test_more_sequences_at_once_give_more_tokens_per_second(shared_prefix: Path) -> None:
    rates = [
        simulate(shared_prefix, served(replay={"concurrency": count, "speed": 1000.0}))
        for count in (1, 4, 16)
    ]
    per_s = [result["serving"]["output_tokens_per_s"] for result in rates]
    assert per_s[0] * 1.5 < per_s[1]
    assert per_s[1] < per_s[2]


@pytest.mark.parametrize(
    "settings",
    [served(), served("split"), served(topology=TopologySettings(links=(), gpus=("a", "b")))],
    ids=["one", "split", "two"],
)
@pytest.mark.parametrize("after", [10, 40], ids=["serving", "comparing"])
def test_an_interrupted_run_says_what_it_measured(
    shared_prefix: Path, settings: Settings, after: int
) -> None:
    interrupts: list[int] = []

    def interrupt(done: int, _: int | None) -> None:
        if done >= after and not interrupts:
            interrupts.append(done)
            signal.raise_signal(signal.SIGINT)

    result = simulate_trace(shared_prefix, settings, limit=None, progress=interrupt, notify=quiet)
    assert not result["complete"]
    assert result["serving"]["uncached"] is result["serving"]["ttft_saved"] is None
    assert result["requests"]["count"] == 30 if after > 30 else result["requests"]["count"] < 30
    assert check_sums(result) == check_figures(result) == []


# -- reports ----------------------------------------------------------------------------------


@both_roles
def test_a_result_is_read_again_and_shown(shared_prefix: Path, tmp_path: Path, roles: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(simulate(shared_prefix, served(roles))), encoding="utf-8")
    result = read_result(path)
    console = Console(width=1000)
    with console.capture() as captured:
        print_report(result, console)
    shown = captured.get()
    assert "llama-3-8b on 1 x h200" in shown
    assert "TTFT saved" in shown
    assert f"node {'gpu' if roles == 'one' else 'decode'}" in shown
    for sections in (headline, every_number, setup):
        keys = [row.key for section in sections(result) for row in section.rows]
        assert any(key.startswith("serving.") for key in keys)


def test_other_drives_serve_nothing(shared_prefix: Path) -> None:
    assert simulate(shared_prefix, served(replay={"drive": "closed"}))["serving"] is None


# -- refusals ---------------------------------------------------------------------------------


def test_the_example_settings_serve(shared_prefix: Path) -> None:
    settings = load_settings(ROOT / "examples" / "serving.toml")
    result = simulate(shared_prefix, settings, limit=5)
    assert result["requests"]["count"] == 5
    assert result["serving"]["compute"]["devices"] == 4


def test_a_replay_does_not_serve(shared_prefix: Path) -> None:
    work = replay_trace(shared_prefix, served(), limit=None, progress=quiet, notify=quiet)
    with pytest.raises(SettingsError, match="a replay computes nothing; simulate it"):
        asyncio.run(work)


def test_page_reads_cannot_be_served(tmp_path: Path) -> None:
    path = write_graph_search(tmp_path / "graph.parquet")
    with pytest.raises(SettingsError, match="has no tokens to serve"):
        simulate(path, replace(served(), page_bytes=4096))


def test_scaled_blocks_are_not_served(shared_prefix: Path) -> None:
    with pytest.raises(SettingsError, match=r"replay\.pages_per_block is 4 of 8"):
        simulate(shared_prefix, served(replay={"pages_per_block": 4}))


def test_a_request_that_can_never_fit_is_refused_before_any_is_served(no_prefix: Path) -> None:
    compute = ComputeSettings(kv_capacity_bytes=GIB // 2)
    with pytest.raises(TraceError, match=r"request 0 has 6,292 tokens, and .* holds 4,096"):
        simulate(no_prefix, served(compute=compute))


def test_turns_of_a_session_are_not_spread_over_nodes_that_do_not_wait(tmp_path: Path) -> None:
    talk = write_conversations(tmp_path / "talk.parquet")
    nodes = TopologySettings(gpus=("gpu0", "gpu1", "gpu2", "gpu3", "gpu4"))
    dealt = served(topology=nodes, replay={"spread": "round_robin"}, page_bytes=1 << 20)
    with pytest.raises(SettingsError, match=r"^replay.spread: request 12 .*'session'"):
        simulate(talk, dealt)
    dealt = replace(dealt, replay=replace(dealt.replay, spread="session"))
    assert simulate(talk, dealt)["complete"]
    # Those that continue nothing may go anywhere.
    prompts = write_prompts(tmp_path / "prompts.parquet", [[one] for one in range(10)])
    assert simulate(prompts, served(topology=nodes, replay={"spread": "round_robin"}))["complete"]


def test_a_model_that_does_not_fit_is_refused(no_prefix: Path) -> None:
    with pytest.raises(SettingsError, match="deepseek-v3 has 625 GiB of weights"):
        simulate(no_prefix, served(replay={"model": "deepseek-v3"}))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("compute.efficiency=0", r"compute\.efficiency is 0\.0: it must be from"),
        ("compute.efficiency=1.5", r"compute\.efficiency is 1\.5: it must be from"),
        ("compute.preset=h20", "compute.preset is 'h20': it must be one of h200"),
        ("compute.flops=0", r"compute\.flops is 0\.0"),
        ("compute.devices=0", r"compute\.devices is 0"),
        ("compute.bandwidth=5", "is no rate"),
        ("compute.kv_capacity=0", r"compute\.kv_capacity is 0 B"),
        ("compute.batch_tokens_max=63", r"a token for each of replay\.concurrency = 64"),
        ("serving.roles=both", r"serving\.roles is 'both': it must be one of one, split"),
        ("replay.compute=1 ms", r"replay\.compute: in the drive serving"),
        ("compute.flop=1", "did you mean compute.flops"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_one_line(assignment: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refusal:
        load_settings(None, ["replay.drive=serving", assignment])
    assert "\n" not in str(refusal.value)


def test_roles_are_split_over_two_nodes_and_a_shared_origin() -> None:
    split = ["replay.drive=serving", "serving.roles=split"]
    with pytest.raises(SettingsError, match=r"topology\.gpus are 3, and it needs two"):
        load_settings(None, [*split, "topology.gpus=3"])
    with pytest.raises(SettingsError, match="the decode node reads what the prefill node wrote"):
        load_settings(None, [*split, "origin.write=none"])


def test_a_preset_of_a_gpu_gives_what_is_left_out() -> None:
    compute = load_settings(None, ["compute.preset=b200", "compute.devices=2"]).compute
    assert (compute.flops, compute.devices) == (2250e12, 2)
    assert load_settings(None).compute == ComputeSettings()


# -- sizing -----------------------------------------------------------------------------------


def test_tiers_are_sized_for_tokens_and_first_tokens(shared_prefix: Path, tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text(
        'page_bytes = "4 MiB"\n[replay]\ndrive = "serving"\n[tiers.dram]\ncapacity = "1 GiB"\n'
        '[origin]\nbackend = "memory"\n[chain]\ndevice_batch_pages = 32\nstaging = "1 GiB"\n',
        encoding="utf-8",
    )
    out = tmp_path / "result.json"
    targets = ["--target", "ttft_p99=300ms", "--target", "tokens_per_s=100"]
    command = ["size", str(shared_prefix), "--config", str(config), *targets]
    assert main([*command, "--json", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["complete"]
    assert main([*command, "--set", "replay.drive=open"]) == 2
    assert main([*command, "--set", "serving.roles=split"]) == 2


def test_a_failure_of_the_origin_ends_the_run_with_its_error(
    shared_prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> Any:
        raise KvtierError("the origin is gone")

    monkeypatch.setattr("kvtier.emulator.origin.ModelledOrigin.put", refuse)
    with pytest.raises(KvtierError, match="the origin is gone"):
        simulate(shared_prefix, served())
