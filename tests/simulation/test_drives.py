"""Requests at their own pace: the closed loop and the open loop, in virtual time and for real."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from kvtier_memory import MemoryBackend
from rich.console import Console
from small_traces import (
    GRAPH,
    PAGE_BYTES,
    Batch,
    page_request,
    write_conversations,
    write_graph_search,
)

from kvtier.backend import ExtentBatch
from kvtier.errors import SettingsError, TraceError
from kvtier.pages import U8, PageStatus
from kvtier.replay import replay_trace, simulate_trace
from kvtier.report.comparison import differing_decisions
from kvtier.report.reading import read_result
from kvtier.report.soundness import check_sums
from kvtier.report.terminal import print_report
from kvtier.server import serve
from kvtier.settings import (
    ChainSettings,
    OriginSettings,
    ReplaySettings,
    Settings,
    TierSettings,
    load_settings,
)
from kvtier.trace import (
    READ,
    WRITE,
    PageTrace,
    TraceMetadata,
    open_trace,
    write_page_io,
)

MIB = 1 << 20
SAMPLE = Path(__file__).parents[2] / "traces" / "sample.parquet"
TINY = ChainSettings(
    batch_pages_max=8,
    inflight_pages_max=8,
    device_batch_pages=2,
    staging_bytes=4 * PAGE_BYTES,
)
"""A batch, the in-flight table and staging hold less than what requests ask for at once."""


def quiet(*_: object) -> None:
    """No progress, no notices."""


def driven(drive: str, *, settings: Settings | None = None, **pace: Any) -> Settings:
    """Small tiers, or other ``settings``, under a drive."""
    base = settings or Settings(
        device="cpu",
        tiers=(
            TierSettings("hbm", MIB // 2),
            TierSettings("dram", MIB),
            TierSettings("nvme", 4 * MIB),
        ),
        origin=OriginSettings("memory"),
        replay=ReplaySettings(concurrency=8, verify_share=1.0, pages_per_block=4),
    )
    return replace(base, replay=replace(base.replay, drive=drive, **pace))


def replay(path: Path, settings: Settings) -> Mapping[str, Any]:
    return asyncio.run(replay_trace(path, settings, limit=None, progress=quiet, notify=quiet))


def simulate(path: Path, settings: Settings, limit: int | None = None) -> Mapping[str, Any]:
    return simulate_trace(path, settings, limit=limit, progress=quiet, notify=quiet)


def sample(drive: str, limit: int = 60, **pace: Any) -> Mapping[str, Any]:
    """The recorded graph searches, on the modelled devices of the default settings."""
    return simulate(SAMPLE, driven(drive, settings=load_settings(None), **pace), limit)


def decisions(result: Mapping[str, Any]) -> list[Any]:
    timed = ("iops", "latency_us", "drive_writes_per_day")
    levels = [*result["tiers"], result["origin"]]
    demand = {key: result["demand"][key] for key in ("reads", "delivered", "unique", "absent")}
    counts = [{k: v for k, v in level.items() if k not in timed} for level in levels]
    return [demand, result["coalescing"], result["writes"], counts]


@pytest.fixture(params=["page_io", "requests"])
def trace(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "page_io":
        return write_graph_search(tmp_path / "graph.parquet")
    return write_conversations(tmp_path / "conversations.parquet")


both_loops = pytest.mark.parametrize("drive", ["closed", "open"])
every_drive = pytest.mark.parametrize("drive", ["waves", "closed", "open"])


# -- decisions --------------------------------------------------------------------------------


def test_in_a_closed_loop_requests_join_the_fetches_of_others() -> None:
    result = sample("closed", concurrency=64)
    assert result["coalescing"]["joined"] > 0
    assert sample("waves", concurrency=64)["coalescing"]["joined"] == 0
    assert check_sums(result) == []


def test_one_request_at_a_time_that_computes_while_fills_end_decides_as_in_waves(
    trace: Path,
) -> None:
    waves = simulate(trace, driven("waves", concurrency=1))
    closed = simulate(trace, driven("closed", concurrency=1, compute_s=0.01))
    assert decisions(closed) == decisions(waves)


def test_one_request_at_a_time_reads_what_it_reads_in_waves(trace: Path) -> None:
    waves = simulate(trace, driven("waves", concurrency=1))
    closed = simulate(trace, driven("closed", concurrency=1))
    for key in ("reads", "delivered", "absent"):
        assert closed["demand"][key] == waves["demand"][key]
    assert closed["origin"]["hits"] == waves["origin"]["hits"]
    assert closed["writes"] == waves["writes"]


@every_drive
def test_the_same_seed_gives_the_same_result_byte_for_byte(trace: Path, drive: str) -> None:
    first, second = (json.dumps(simulate(trace, driven(drive)), allow_nan=False) for _ in range(2))
    assert first == second


# -- time -------------------------------------------------------------------------------------


def test_the_longer_requests_compute_the_fewer_reads_they_ask_for() -> None:
    results = [sample("closed", compute_s=compute_s) for compute_s in (0.0, 100e-6, 1e-3)]
    rates = [result["demand"]["iops"] for result in results]
    stalls = [result["requests"]["stall_share"] for result in results]
    assert rates[0] > 1.5 * rates[1] > 3 * rates[2]
    assert stalls[0] == 1.0
    assert stalls[0] > stalls[1] > stalls[2] > 0


def test_requests_that_wait_for_nothing_take_the_time_that_they_compute(tmp_path: Path) -> None:
    path = tmp_path / "one-page.parquet"
    metadata = TraceMetadata(kind="page_io", page_bytes=PAGE_BYTES, objects=(GRAPH,))
    reads = [Batch(READ, 0, [(0, 7, 1)])] * 11
    write_page_io(path, metadata, [page_request(number, *reads) for number in range(4)])
    result = simulate(path, driven("closed", concurrency=1, compute_s=0.5, tick_s=0.0))
    assert result["requests"]["latency_us"]["p50"] == pytest.approx(10 * 0.5e6, rel=1e-2)
    assert result["requests"]["stall_share"] < 1e-3


def littles_law_holds(requests: Mapping[str, Any]) -> bool:
    under_way_us = requests["latency_us"]["mean"] - requests["queue_us"]["mean"]
    by_law = requests["per_s"] * under_way_us / 1e6
    return bool(requests["in_flight_mean"] == pytest.approx(by_law, rel=0.01))


@pytest.mark.parametrize("concurrency", [1, 7, 20])
def test_in_a_closed_loop_littles_law_holds(concurrency: int) -> None:
    requests = sample("closed", concurrency=concurrency, compute_s=20e-6)["requests"]
    assert littles_law_holds(requests)
    assert 0.5 * concurrency < requests["in_flight_mean"] <= concurrency


def test_an_open_loop_that_is_fast_enough_saturates_like_a_closed_one() -> None:
    pace = {"compute_s": 0.0, "concurrency": 8}
    fast, closed = (sample(drive, speed=1e6, **pace) for drive in ("open", "closed"))
    assert fast["requests"]["per_s"] == pytest.approx(closed["requests"]["per_s"], rel=0.1)
    # Requests that found no room waited, and that is latency of theirs.
    waited = fast["requests"]["latency_us"]["p50"]
    assert waited > 2 * closed["requests"]["latency_us"]["p50"]
    assert fast["requests"]["queue_us"]["p50"] > waited / 2
    assert closed["requests"]["queue_us"]["max"] == 0
    assert littles_law_holds(fast["requests"])


def test_in_a_slow_open_loop_a_request_takes_as_long_as_alone() -> None:
    slow = sample("open", speed=0.1, compute_s=0.0)["requests"]
    alone = sample("closed", concurrency=1)["requests"]
    assert slow["latency_us"]["mean"] == pytest.approx(alone["latency_us"]["mean"], rel=0.03)
    assert slow["in_flight_mean"] < 0.5


@pytest.mark.parametrize("speed", [1.0, 4.0])
def test_an_open_loop_computes_as_recorded_unless_told(speed: float) -> None:
    opened = open_trace(SAMPLE)
    assert isinstance(opened, PageTrace)
    spans = [request.t_ns[-1] - request.t_ns[0] for request in opened.requests(60)]
    recorded_us = np.mean(spans) / 1e3 / speed
    with_gaps = sample("open", speed=speed)
    without = sample("open", speed=speed, compute_s=0.0)
    assert with_gaps["drive"]["compute_s"] is None
    means_us = [one["requests"]["latency_us"]["mean"] for one in (with_gaps, without)]
    assert means_us[0] - means_us[1] == pytest.approx(recorded_us, rel=0.1)
    assert without["requests"]["stall_share"] == 1.0


def test_a_longer_tick_merges_more_requests_into_a_batch() -> None:
    counts = [
        sample("closed", tick_s=tick_s)["batches"]["count"] for tick_s in (0.0, 10e-6, 100e-6)
    ]
    assert counts[0] > counts[1] > counts[2]


# -- bounds and faults ------------------------------------------------------------------------


@both_loops
@pytest.mark.parametrize("is_real", [True, False], ids=["replay", "simulate"])
def test_a_tiny_in_flight_table_and_staging_hold_nobody_up(
    trace: Path, drive: str, is_real: bool
) -> None:
    settings = driven(drive, concurrency=32)
    settings = replace(
        settings,
        chain=TINY,
        tiers=tuple(replace(tier, extent_pages_max=2) for tier in settings.tiers),
        origin=OriginSettings("memory", extent_pages_max=2),
    )
    result = replay(trace, settings) if is_real else simulate(trace, settings)
    assert result["requests"]["count"] == result["trace"]["requests"]
    assert result["demand"]["delivered"] == result["demand"]["reads"] > 0
    assert check_sums(result) == []


@both_loops
def test_a_replay_delivers_every_page_and_all_bytes_are_right(trace: Path, drive: str) -> None:
    result = replay(trace, driven(drive, compute_s=1e-5, speed=10.0))
    assert result["demand"]["delivered"] == result["demand"]["reads"] > 0
    assert result["verify"]["checked_pages"] == result["demand"]["delivered"]
    assert result["verify"]["corrupt_pages"] == 0
    assert result["requests"]["count"] == result["trace"]["requests"]
    if result["trace"]["kind"] == "page_io":
        assert result["demand"]["reads"] == result["trace"]["references"]
    assert check_sums(result) == []


class FailingBackend(MemoryBackend):
    """Every page of an index that 7 divides cannot be read."""

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        status = await super().read(batch, out)
        first, pages = batch.first_page.astype(np.int64), batch.page_count.astype(np.int64)
        status[(first + pages - 1) // 7 * 7 >= first] = PageStatus.FAILED
        return status


@both_loops
def test_requests_whose_pages_fail_go_on_and_the_failures_are_counted(
    tmp_path: Path, drive: str
) -> None:
    trace = write_graph_search(tmp_path / "graph.parquet")

    async def served() -> Mapping[str, Any]:
        server = await serve(await FailingBackend.open({}, PAGE_BYTES), page_bytes=PAGE_BYTES)
        try:
            origin = OriginSettings("tcp", MappingProxyType({"url": server.url}))
            settings = replace(driven(drive), origin=origin)
            return await replay_trace(trace, settings, limit=None, progress=quiet, notify=quiet)
        finally:
            await server.close()

    result = asyncio.run(served())
    assert result["requests"]["count"] == result["trace"]["requests"]
    assert result["origin"]["failures"] > 0
    assert result["origin"]["wrappers"]["retry"]["given_up"] > 0
    assert list(result["origin"]["wrappers"]) == ["retry", "breaker", "deadline"]
    assert 0 < result["demand"]["delivered"] < result["demand"]["reads"]
    assert result["verify"]["corrupt_pages"] == 0
    assert check_sums(result) == []


@both_loops
@pytest.mark.parametrize("is_real", [True, False], ids=["replay", "simulate"])
def test_an_interrupted_run_says_what_it_measured_and_its_sums_hold(
    trace: Path, drive: str, is_real: bool
) -> None:
    tasks: list[asyncio.Task[Any]] = []

    def interrupt(done: int, _: int | None) -> None:
        task = asyncio.current_task()
        if done >= 10 and not tasks:
            assert task is not None
            task.cancel()
            tasks.append(task)

    settings = driven(drive)
    if is_real:
        work = replay_trace(trace, settings, limit=None, progress=interrupt, notify=quiet)
        result = asyncio.run(work)
    else:
        result = simulate_trace(trace, settings, limit=None, progress=interrupt, notify=quiet)
    assert not result["complete"]
    assert 10 <= result["requests"]["count"] < result["trace"]["requests"]
    assert check_sums(result) == []


@both_loops
def test_a_request_that_cannot_be_driven_ends_the_run_with_its_error(
    tmp_path: Path, drive: str
) -> None:
    path = tmp_path / "writes.parquet"
    metadata = TraceMetadata(kind="page_io", page_bytes=PAGE_BYTES, objects=(GRAPH,))
    good = page_request(0, *[Batch(READ, 0, [(0, 1, 1)])] * 50)
    bad = page_request(1, Batch(READ, 0, [(0, 1, 1)]), Batch(WRITE, 1, [(0, 1, 1)]))
    write_page_io(path, metadata, [good, bad])
    with pytest.raises(TraceError, match="request 1 writes pages"):
        simulate(path, driven(drive))


@st.composite
def page_traces(draw: st.DrawFn) -> list[list[Batch]]:
    """A few requests of a few batches over few pages, so that they meet."""
    extents = st.tuples(st.just(0), st.integers(0, 30), st.integers(1, 9))
    batches = st.lists(extents, min_size=1, max_size=6)
    requests = draw(st.lists(st.lists(batches, min_size=1, max_size=5), min_size=1, max_size=8))
    t_ns, made = 0, []
    for request in requests:
        rows = []
        for batch in request:
            t_ns += draw(st.sampled_from([0, 1, 30_000, 1_000_000]))
            rows.append(Batch(READ, t_ns, batch))
        made.append(rows)
    return made


@given(
    requests=page_traces(),
    drive=st.sampled_from(["waves", "closed", "open"]),
    concurrency=st.integers(1, 5),
    compute_s=st.sampled_from([None, 0.0, 5e-6]),
    tick_s=st.sampled_from([0.0, 1e-5]),
    tiers=st.sets(st.sampled_from(["hbm", "dram", "nvme"])),
    is_real=st.booleans(),
)
@examples(max_examples=40, deadline=None)
def test_any_trace_comes_to_its_end_in_any_drive(
    requests: list[list[Batch]],
    drive: str,
    concurrency: int,
    compute_s: float | None,
    tick_s: float,
    tiers: set[Any],
    is_real: bool,
) -> None:
    order = ("hbm", "dram", "nvme")
    settings = driven(drive, concurrency=concurrency, compute_s=compute_s, tick_s=tick_s)
    settings = replace(
        settings,
        tiers=tuple(
            TierSettings(name, 16 * PAGE_BYTES, direct=name != "nvme", extent_pages_max=2)
            for name in order
            if name in tiers
        ),
        origin=OriginSettings("memory", extent_pages_max=2),
        chain=TINY,
    )
    metadata = TraceMetadata(kind="page_io", page_bytes=PAGE_BYTES, objects=(GRAPH,))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.parquet"
        made = [page_request(number, *batches) for number, batches in enumerate(requests)]
        write_page_io(path, metadata, made)
        result = replay(path, settings) if is_real else simulate(path, settings)
    asked = sum(count for one in requests for batch in one for _, _, count in batch.extents)
    assert result["requests"]["count"] == len(requests)
    assert result["demand"]["reads"] == result["demand"]["delivered"] == asked
    assert check_sums(result) == []


# -- reports ----------------------------------------------------------------------------------


def test_only_waves_are_held_to_the_same_decisions(trace: Path) -> None:
    waves, closed = (simulate(trace, driven(drive)) for drive in ("waves", "closed"))
    other = {**closed, "coalescing": {**closed["coalescing"], "joined": -1}}
    assert differing_decisions([waves, closed, other]) == []
    assert differing_decisions([waves, {**other, "drive": waves["drive"]}])


@every_drive
def test_a_result_is_read_again_and_shown(trace: Path, tmp_path: Path, drive: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(simulate(trace, driven(drive, tick_s=3e-6))), encoding="utf-8")
    console = Console(width=200)
    with console.capture() as captured:
        print_report(read_result(path), console)
    assert f"{drive}, at once 8" in captured.get()
    assert ("tick 3 us" in captured.get()) == (drive != "waves")


# -- settings ---------------------------------------------------------------------------------


def test_a_drive_is_described_as_it_was(trace: Path) -> None:
    pace = {"concurrency": 3, "compute_s": 2e-6, "tick_s": 5e-6, "speed": 2.0}
    one = {"gpus": 1, "spread": None, "events": None}
    assert simulate(trace, driven("open", **pace))["drive"] == {"kind": "open", **pace, **one}
    closed = simulate(trace, driven("closed", concurrency=3))["drive"]
    assert (closed["compute_s"], closed["speed"]) == (0.0, None)
    waves = simulate(trace, driven("waves", **pace))["drive"]
    assert waves == {"kind": "waves", "concurrency": 3, **dict.fromkeys(list(pace)[1:]), **one}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("replay.drive=opened", "did you mean open"),
        ("replay.compute=-1 us", r"replay\.compute"),
        ("replay.tick=2 h", r"replay\.tick is .*: it must be from"),
        ("replay.speed=0", r"replay\.speed is 0\.0: it must be from"),
    ],
)
def test_a_drive_that_cannot_be_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(None, [assignment])
