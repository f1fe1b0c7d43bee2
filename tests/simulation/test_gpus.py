"""Several GPUs with a cache each, over hardware and an origin that they share."""

from __future__ import annotations

import asyncio
import io
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_traces import (
    GRAPH,
    PAGE_BYTES,
    Batch,
    page_request,
    write_conversations,
    write_graph_search,
)

from kvtier.errors import SettingsError, TraceError
from kvtier.replay import replay_trace, simulate_trace
from kvtier.report.comparison import agreements, groups_of
from kvtier.report.json_file import write_json
from kvtier.report.reading import read_result
from kvtier.report.soundness import check_sums
from kvtier.report.terminal import print_report
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
    load_settings,
)
from kvtier.trace import (
    READ,
    WRITE,
    PageRequest,
    PageTrace,
    RandomReads,
    TraceMetadata,
    open_trace,
    write_page_io,
    write_random_reads,
)

MIB = 1 << 20
DRIVES = ("waves", "closed", "open")
DRIVE = DeviceModel(latency_s=60e-6, iops=1e6, bytes_per_s=1e12)


def quiet(*_: object) -> None:
    """No progress, no notices."""


def small(gpus: int | Sequence[str] = 1, drive: Any = "waves", **changes: Any) -> Settings:
    names = tuple(f"gpu{number}" for number in range(gpus)) if isinstance(gpus, int) else gpus
    base = Settings(
        tiers=(
            TierSettings("hbm", MIB // 4),
            TierSettings("dram", MIB // 2),
            TierSettings("nvme", MIB),
        ),
        origin=OriginSettings("memory"),
        replay=ReplaySettings(concurrency=8, pages_per_block=4, drive=drive),
        topology=TopologySettings(gpus=tuple(names)),
    )
    return replace(base, **changes)


def simulate(
    path: Path,
    settings: Settings,
    limit: int | None = None,
    progress: Callable[[int, int | None], None] = quiet,
) -> Mapping[str, Any]:
    result = simulate_trace(path, settings, limit=limit, progress=progress, notify=quiet)
    assert check_sums(result) == []
    json.dumps(result, allow_nan=False)
    return result


def without(result: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in keys}


@pytest.fixture(params=["page_io", "requests"])
def trace(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "page_io":
        return write_graph_search(tmp_path / "graph.parquet")
    return write_conversations(tmp_path / "conversations.parquet")


def load(tmp_path: Path, threads: int = 2_000, hops: int = 12) -> Path:
    """Dependent random reads that nothing caches."""
    path = tmp_path / "load.parquet"
    if not path.exists():
        write_random_reads(path, RandomReads(threads=threads, hops=hops))
    return path


def loaded(topology: TopologySettings, origin: DeviceModel = DRIVE) -> Settings:
    """GPUs without tiers, which read as fast as the origin and the links let them."""
    return Settings(
        origin=OriginSettings("memory", model=origin),
        chain=ChainSettings(staging_bytes=1 << 30),
        replay=ReplaySettings(drive="closed", concurrency=1_000),
        topology=topology,
    )


def test_the_example_of_a_server_names_its_gpus_and_what_they_share(tmp_path: Path) -> None:
    settings = load_settings(Path(__file__).parents[2] / "examples" / "server.toml")
    result = simulate(write_graph_search(tmp_path / "graph.parquet"), settings)
    assert [gpu["name"] for gpu in result["gpus"]] == [f"gpu{number}" for number in range(8)]
    shared = {"dram", "nvme (drives0)", "nvme (drives1)", "origin", "issue", "root (nic to host)"}
    assert shared <= set(result["utilisation"])
    assert result["utilisation"]["network (server to nic)"] > 0


# -- one GPU, and several that have nothing to do with each other ---------------------------------


@pytest.mark.parametrize("drive", DRIVES)
def test_one_gpu_by_name_is_the_same_as_none(trace: Path, drive: str) -> None:
    alone = simulate(trace, small(drive=drive, topology=None))
    assert without(simulate(trace, small(["gpu"], drive)), "config") == without(alone, "config")
    assert alone["gpus"] is None


@pytest.mark.parametrize("spread", ["round_robin", "session"])
@pytest.mark.parametrize("drive", DRIVES)
def test_the_same_seed_gives_several_gpus_the_same_result(
    tmp_path: Path, drive: str, spread: Any
) -> None:
    path = write_conversations(tmp_path / "trace.parquet")
    settings = small(3, drive)
    settings = replace(settings, replay=replace(settings.replay, spread=spread))
    assert simulate(path, settings) == simulate(path, settings)


def test_in_waves_a_gpu_decides_as_if_it_had_its_requests_alone(tmp_path: Path) -> None:
    path = write_graph_search(tmp_path / "whole.parquet")
    result = simulate(path, small(3))
    whole = open_trace(path)
    assert isinstance(whole, PageTrace)
    for number, gpu in enumerate(result["gpus"]):
        share = tmp_path / f"{number}.parquet"
        own = [one for one in whole.requests() if one.request % 3 == number]
        made = [replace(one, request=position) for position, one in enumerate(own)]
        write_page_io(share, whole.metadata, made)
        assert decided(simulate(share, small())) == decided(gpu)


def decided(part: Mapping[str, Any]) -> list[Any]:
    """Every count of a result or of one GPU; only the whole has the wrappers of the origin."""
    others = ("iops", "latency_us", "wrappers", "drive_writes_per_day")
    tables = [part["coalescing"], part["writes"], part["origin"], *part["tiers"]]
    return [without(table, *others) for table in tables]


# -- what they share ------------------------------------------------------------------------------


def test_gpus_on_the_same_drives_share_what_the_drives_can_do(tmp_path: Path) -> None:
    path = load(tmp_path)
    one = simulate(path, loaded(TopologySettings()))
    four = simulate(path, loaded(TopologySettings(gpus=("a", "b", "c", "d"))))
    assert 0.95e6 < one["demand"]["iops"] < 1.001e6
    assert 0.95e6 < four["demand"]["iops"] < 1.001e6
    assert four["bottleneck"] == "origin"
    # Its rate times the time of one operation, 1 us, is the time for which a device is busy.
    busy = four["origin"]["device_reads"] * 1e-6 / four["duration_s"]
    assert four["utilisation"]["origin"] == pytest.approx(busy, rel=1e-3)
    rates = [gpu["demand"]["iops"] for gpu in four["gpus"]]
    assert max(rates) < 1.1 * min(rates)
    assert sum(rates) == pytest.approx(four["demand"]["iops"])


def test_gpus_with_drives_of_their_own_are_that_many_times_faster(tmp_path: Path) -> None:
    path = load(tmp_path)
    places = {"origin": ("shelf0", "shelf1", "shelf2", "shelf3")}
    gpus = ("a", "b", "c", "d")
    links = tuple(
        LinkSettings(f"up{number}", (gpu, f"shelf{number}"), DeviceModel(1e-6, 1e15, 1e12))
        for number, gpu in enumerate(gpus)
    )
    result = simulate(path, loaded(TopologySettings(links, places, gpus=gpus)))
    assert 3.8e6 < result["demand"]["iops"] < 4.004e6
    assert {f"origin (shelf{number})" for number in range(4)} <= set(result["utilisation"])
    assert result["models"][0]["devices"] == 4
    assert result["models"][0]["iops"] == 4e6


def test_contention_makes_the_tail_longer(tmp_path: Path) -> None:
    path = load(tmp_path)
    tails = []
    for count in (1, 2, 4):
        gpus = tuple(f"gpu{number}" for number in range(count))
        settings = loaded(TopologySettings(gpus=gpus))
        settings = replace(settings, replay=replace(settings.replay, concurrency=250))
        tails.append(simulate(path, settings)["demand"]["latency_us"]["p99"])
    assert tails[0] * 1.5 < tails[1] < tails[2] / 1.5


def test_through_the_host_all_gpus_pass_its_link(tmp_path: Path) -> None:
    model = DeviceModel(0.5e-6, 1e15, 50e9)
    links = (
        LinkSettings("up", (("gpu0", "gpu1", "drives"), "switch"), model),
        LinkSettings("root", ("switch", "host"), replace(model, bytes_per_s=10e9)),
    )
    topology = TopologySettings(links, {"origin": "drives"}, gpus=("gpu0", "gpu1"), route="host")
    result = simulate(load(tmp_path), loaded(topology, DeviceModel(5e-6, 1e9, 1e12)))
    assert 0.9 * 10e9 < result["demand"]["iops"] * PAGE_BYTES < 1.002 * 10e9
    assert result["bottleneck"] in ("root (switch to host)", "root (host to switch)")


def test_a_link_that_all_pass_carries_its_bandwidth_and_no_more(tmp_path: Path) -> None:
    fast = DeviceModel(5e-6, 1e9, 1e12)
    model = DeviceModel(0.5e-6, 1e15, 10e9)
    links = (
        LinkSettings("up", (("gpu0", "gpu1"), "switch"), replace(model, bytes_per_s=8e9)),
        LinkSettings("slots", ("switch", "drives"), model),
    )
    topology = TopologySettings(links, {"origin": "drives"}, gpus=("gpu0", "gpu1"))
    path = load(tmp_path)
    both = simulate(path, loaded(topology, fast))
    one = simulate(path, loaded(replace(topology, gpus=(), gpu="gpu0"), fast))
    assert 0.95 * 8e9 < one["demand"]["iops"] * PAGE_BYTES < 1.002 * 8e9
    assert 0.95 * 10e9 < both["demand"]["iops"] * PAGE_BYTES < 1.002 * 10e9
    assert both["bottleneck"] == "slots (drives to switch)"


@pytest.mark.parametrize(
    ("preset", "issue_by", "rate"),
    [("gpu-sm", None, 2e6), ("host-core", None, 1e6), ("host-core", "gpu", 2e6)],
)
def test_host_cores_are_shared_and_each_gpu_has_sms_of_its_own(
    tmp_path: Path, preset: str, issue_by: Any, rate: float
) -> None:
    issue = replace(MODEL_PRESETS[preset].model, iops=1e6)
    topology = TopologySettings(gpus=("a", "b"), issue=issue, issue_by=issue_by)
    result = simulate(load(tmp_path), loaded(topology, DeviceModel(5e-6, 1e9, 1e12)))
    assert 0.95 * rate < result["demand"]["iops"] < 1.004 * rate
    names = {"issue"} if rate == 1e6 else {"issue (a)", "issue (b)"}
    assert {name for name in result["utilisation"] if name.startswith("issue")} == names


def test_flash_that_gpus_share_reaches_what_it_reaches_for_one(tmp_path: Path) -> None:
    path = load(tmp_path)
    drive = MODEL_PRESETS["storage-next"].model
    one = simulate(path, loaded(TopologySettings(), drive))
    two = simulate(path, loaded(TopologySettings(gpus=("a", "b")), drive))
    assert two["demand"]["iops"] == pytest.approx(one["demand"]["iops"], rel=0.1)


def test_no_device_is_busy_for_longer_than_the_run(trace: Path) -> None:
    for drive in DRIVES:
        utilisation = simulate(trace, small(4, drive))["utilisation"]
        assert {"hbm (gpu0)", "hbm (gpu3)", "dram", "nvme", "origin"} <= set(utilisation)
        assert all(0 <= share <= 1 for share in utilisation.values())


@pytest.mark.parametrize("drive", DRIVES)
def test_requests_in_flight_are_their_rate_times_their_latency(trace: Path, drive: str) -> None:
    settings = small(3, drive)
    # Room for all, for the latency of an open loop counts the wait for it.
    settings = replace(settings, replay=replace(settings.replay, concurrency=1_000))
    result = simulate(trace, settings)
    for part in (result, *result["gpus"]):
        requests = part["requests"]
        mean = requests["per_s"] * requests["latency_us"]["mean"] * 1e-6
        assert requests["in_flight_mean"] == pytest.approx(mean, rel=0.02)


def test_the_first_tiers_of_all_gpus_together_are_what_stations_keep_up_with(trace: Path) -> None:
    one = simulate(trace, small())["crossover"]
    three = simulate(trace, small(3))["crossover"]
    assert three["first_tier"] == "hbm (gpu0) + hbm (gpu1) + hbm (gpu2)"
    assert three["pages_per_s"] == pytest.approx(3 * one["pages_per_s"])


# -- objects and requests -------------------------------------------------------------------------


def test_what_one_gpu_wrote_to_the_origin_another_finds(tmp_path: Path) -> None:
    path = write_conversations(tmp_path / "trace.parquet", sessions=2)
    settings = small(2, "open")
    # A request every second: the one before has written everything long ago.
    spread = replace(settings.replay, spread="round_robin", speed=1e-6)
    result = simulate(path, replace(settings, tiers=(), replay=spread))
    alone = simulate(path, replace(small(1, "open"), tiers=(), replay=spread))
    assert result["writes"] == alone["writes"]
    assert result["origin"]["hits"] == alone["origin"]["hits"] > 0
    assert all(gpu["origin"]["hits"] > 0 for gpu in result["gpus"])


def test_what_one_gpu_cached_another_reads_from_the_origin(tmp_path: Path) -> None:
    requests = [
        page_request(number, Batch(READ, number * 1_000_000, [(0, 7, 1)])) for number in range(4)
    ]
    path = pages(tmp_path, requests)
    result = simulate(path, small(2, "open"))
    assert [gpu["origin"]["hits"] for gpu in result["gpus"]] == [1, 1]
    assert [gpu["tiers"][0]["hits"] for gpu in result["gpus"]] == [1, 1]


def test_gpus_of_an_open_loop_begin_at_the_same_recorded_time(tmp_path: Path) -> None:
    requests = [page_request(number, Batch(READ, number * 10**9, [(0, 7, 1)])) for number in (0, 1)]
    result = simulate(pages(tmp_path, requests), small(2, "open"))
    assert 1 < result["duration_s"] < 1.001


def test_all_requests_of_a_session_go_to_one_gpu(tmp_path: Path) -> None:
    path = write_conversations(tmp_path / "trace.parquet", sessions=16)
    result = simulate(path, small(4))
    counts = [gpu["requests"]["count"] for gpu in result["gpus"]]
    assert sum(counts) == 16 * 6
    assert all(count % 6 == 0 for count in counts)  # six turns of each session
    assert len(set(counts)) > 1
    assert result["drive"]["spread"] == "session"
    other = replace(small(4), seed=2)
    assert counts != [gpu["requests"]["count"] for gpu in simulate(path, other)["gpus"]]


def test_page_requests_go_to_one_gpu_after_the_other(tmp_path: Path) -> None:
    result = simulate(write_graph_search(tmp_path / "graph.parquet", requests=10), small(4))
    assert [gpu["requests"]["count"] for gpu in result["gpus"]] == [3, 3, 2, 2]
    assert result["drive"]["spread"] == "round_robin"


@pytest.mark.parametrize("drive", DRIVES)
def test_of_gpus_that_ask_at_the_same_time_the_first_is_served_first(
    tmp_path: Path, drive: str
) -> None:
    slow = DeviceModel(latency_s=0, iops=1000, bytes_per_s=1e12)
    settings = loaded(TopologySettings(gpus=("z", "m", "a")), slow)
    settings = replace(settings, replay=ReplaySettings(drive=drive, concurrency=1))  # type: ignore[arg-type]
    result = simulate(load(tmp_path, threads=3, hops=1), settings)
    latencies = [gpu["requests"]["latency_us"]["max"] for gpu in result["gpus"]]
    assert latencies == pytest.approx([1000, 2000, 3000])


@pytest.mark.parametrize("drive", DRIVES)
def test_gpus_without_requests_do_no_harm(trace: Path, drive: str) -> None:
    result = simulate(trace, small(8, drive), limit=3)
    counts = [gpu["requests"]["count"] for gpu in result["gpus"]]
    assert sum(counts) == 3
    assert counts.count(0) >= 5
    idle = next(gpu for gpu in result["gpus"] if gpu["requests"]["count"] == 0)
    assert idle["demand"]["reads"] == 0
    assert idle["demand"]["latency_us"]["p99"] is None


def test_no_requests_at_all_are_a_run_of_nothing(trace: Path) -> None:
    result = simulate(trace, small(2), limit=0)
    assert result["demand"]["reads"] == result["duration_s"] == 0
    assert result["bottleneck"] is None


def test_the_series_counts_the_reads_of_all_gpus(trace: Path) -> None:
    for drive in DRIVES:
        result = simulate(trace, small(3, drive))
        assert sum(result["series"]["reads"]) == result["demand"]["reads"]
        for name, level in (("hbm", result["tiers"][0]), ("origin", result["origin"])):
            assert sum(result["series"]["hits"][name]) == level["hits"]


# -- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("drive", DRIVES)
def test_ctrl_c_keeps_what_all_gpus_have_done(trace: Path, drive: str) -> None:
    def interrupt(finished: int, _: int | None) -> None:
        if finished >= 20:
            signal.raise_signal(signal.SIGINT)

    result = simulate(trace, small(3, drive), progress=interrupt)
    assert not result["complete"]
    assert 20 <= result["requests"]["count"] < 72
    assert result["requests"]["count"] == sum(gpu["requests"]["count"] for gpu in result["gpus"])


@pytest.mark.parametrize("drive", DRIVES)
def test_a_gpu_that_fails_ends_the_run_with_its_error(tmp_path: Path, drive: str) -> None:
    requests = [
        page_request(number, Batch(WRITE if number == 7 else READ, number, [(0, 7 * number, 1)]))
        for number in range(60)
    ]
    with pytest.raises(TraceError, match="request 7 writes pages"):
        simulate(pages(tmp_path, requests), small(4, drive))


def pages(tmp_path: Path, requests: Sequence[PageRequest]) -> Path:
    path = tmp_path / "pages.parquet"
    metadata = TraceMetadata(kind="page_io", page_bytes=PAGE_BYTES, objects=(GRAPH,))
    write_page_io(path, metadata, requests)
    return path


def test_a_replay_of_several_gpus_is_refused(trace: Path) -> None:
    run = replay_trace(trace, small(2), limit=None, progress=quiet, notify=quiet)
    with pytest.raises(SettingsError, match=r"topology\.gpus: a replay is one process"):
        asyncio.run(run)


def test_a_page_trace_has_no_sessions_to_spread(tmp_path: Path) -> None:
    path = write_graph_search(tmp_path / "graph.parquet")
    settings = small(2)
    settings = replace(settings, replay=replace(settings.replay, spread="session"))
    with pytest.raises(SettingsError, match=r"replay\.spread is session: .* page trace"):
        simulate(path, settings)


def test_a_gpu_that_no_link_reaches_is_refused(tmp_path: Path) -> None:
    links = (LinkSettings("up", ("a", "drives"), DRIVE),)
    topology = TopologySettings(links, {"origin": "drives"}, gpus=("a", "b"))
    with pytest.raises(SettingsError, match=r"topology\.gpus has b, where no link ends"):
        simulate(load(tmp_path), loaded(topology))


# -- reports --------------------------------------------------------------------------------------


def test_a_result_of_several_gpus_is_read_back_and_shown(trace: Path, tmp_path: Path) -> None:
    result = simulate(trace, small(3))
    file = tmp_path / "result.json"
    write_json(file, result)
    shown = io.StringIO()
    print_report(read_result(file), Console(file=shown, width=160))
    lines = shown.getvalue().splitlines()
    for gpu in result["gpus"]:
        (line,) = (line for line in lines if line.startswith(f" {gpu['name']} "))
        assert f"{gpu['demand']['reads']:,}" in line


def test_a_result_that_knows_of_no_gpus_is_read_and_shown(trace: Path, tmp_path: Path) -> None:
    old = json.loads(json.dumps(simulate(trace, small())))
    del old["gpus"], old["drive"]["gpus"], old["drive"]["spread"]
    file = tmp_path / "old.json"
    write_json(file, old)
    shown = io.StringIO()
    print_report(read_result(file), Console(file=shown, width=160))
    assert "GPUs" not in shown.getvalue()


def test_a_gpu_whose_counts_do_not_add_up_is_found(trace: Path) -> None:
    result = json.loads(json.dumps(simulate(trace, small(3))))
    result["gpus"][1]["demand"]["reads"] += 1
    broken = check_sums(result)
    assert any(text.startswith("not so: gpu1: ") for text in broken)
    assert any(" reads = " in text and "gpu2" in text for text in broken)


def test_as_many_gpus_must_decide_alike_whatever_their_drives(tmp_path: Path) -> None:
    path = write_graph_search(tmp_path / "graph.parquet")
    slow = small(3)
    origin = OriginSettings("memory", model=DRIVE)
    results = [
        simulate(path, settings)
        for settings in (slow, replace(slow, origin=origin), small(2), small(1))
    ]
    (group,) = groups_of(results)
    (agreement,) = agreements(group)
    assert [run.number for run in agreement.runs] == [0, 1]
    assert agreement.differing == ()


def test_gpus_that_write_need_not_decide_alike(tmp_path: Path) -> None:
    path = write_conversations(tmp_path / "trace.parquet")
    results = [simulate(path, small(3)), simulate(path, small(3))]
    assert agreements(groups_of(results)[0]) == []
