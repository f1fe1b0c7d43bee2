"""A replay logs what its chain was told; a simulation of the log decides alike."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kvtier_memory import MemoryBackend
from small_traces import (
    GRAPH,
    PAGE_BYTES,
    Batch,
    page_request,
    write_conversations,
    write_graph_search,
)

from kvtier.backend import ExtentBatch
from kvtier.chain.counters import no_counts
from kvtier.cli import main
from kvtier.clock import VirtualClock
from kvtier.emulator import open_repetition
from kvtier.errors import SettingsError, TraceError
from kvtier.events import EventKind, Flag, LogHeader, open_event_log, read_event_log
from kvtier.pages import U8, PageStatus, Purpose
from kvtier.replay import replay_trace, simulate_trace
from kvtier.replay.meter import RequestMeter
from kvtier.replay.repeated import RepeatedDrive
from kvtier.report.comparison import agreements, differing_decisions, groups_of
from kvtier.report.reading import read_result
from kvtier.report.soundness import check_sums
from kvtier.server import serve
from kvtier.settings import (
    ChainSettings,
    OriginSettings,
    ReplaySettings,
    Settings,
    TierSettings,
    load_settings,
)
from kvtier.trace import READ, WRITE, TraceMetadata, write_page_io

MIB = 1 << 20
TRACES = Path(__file__).parents[2] / "traces"
SMALL = ChainSettings(
    batch_pages_max=32,
    inflight_pages_max=64,
    device_batch_pages=8,
    staging_bytes=4 * 8 * PAGE_BYTES,
)
"""Steps of requests are cut into several batches, and wait for room and for staging."""


def quiet(*_: object) -> None:
    """No progress, no notices."""


def paced(drive: str = "closed", tiers: str = "hbm dram nvme", **pace: Any) -> Settings:
    sizes = {"hbm": MIB // 4, "dram": MIB // 2, "nvme": 2 * MIB}
    return Settings(
        device="cpu",
        tiers=tuple(
            TierSettings(name, sizes[name], extent_pages_max=4, direct=name != "nvme")  # type: ignore[arg-type]
            for name in tiers.split()
        ),
        origin=OriginSettings("memory", extent_pages_max=4),
        chain=SMALL,
        replay=ReplaySettings(drive=drive, concurrency=16, pages_per_block=4, **pace),  # type: ignore[arg-type]
    )


def replay(path: Path, settings: Settings, events: Path | None) -> Mapping[str, Any]:
    work = replay_trace(path, settings, limit=None, progress=quiet, notify=quiet, events=events)
    return asyncio.run(work)


def simulate(
    path: Path, settings: Settings, events: Path, limit: int | None = None
) -> Mapping[str, Any]:
    return simulate_trace(path, settings, limit=limit, progress=quiet, notify=quiet, events=events)


class TroubledBackend(MemoryBackend):
    """It takes some turns of the loop to answer, and cannot read what 7 divides."""

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        for _ in range(int(batch.first_page[0]) % 9):
            await asyncio.sleep(0)
        status = await super().read(batch, out)
        first, pages = batch.first_page.astype(np.int64), batch.page_count.astype(np.int64)
        status[(first + pages - 1) // 7 * 7 >= first] = PageStatus.FAILED
        return status


async def replay_troubled(path: Path, settings: Settings, events: Path) -> Mapping[str, Any]:
    server = await serve(await TroubledBackend.open({}, PAGE_BYTES), page_bytes=PAGE_BYTES)
    try:
        assert settings.origin is not None
        url = MappingProxyType({"url": server.url})
        origin = replace(settings.origin, backend="tcp", options=url)
        return await replay_trace(
            path,
            replace(settings, origin=origin),
            limit=None,
            progress=quiet,
            notify=quiet,
            events=events,
        )
    finally:
        await server.close()


def assert_repeated(logged: Mapping[str, Any], repeated: Mapping[str, Any]) -> None:
    """Both decided alike, and the reports say so."""
    (group,) = groups_of([logged, repeated])
    (agreement,) = agreements(group)
    assert len(agreement.runs) == 2
    assert differing_decisions([logged, repeated]) == []
    assert repeated["demand"]["delivered"] == logged["demand"]["delivered"]
    assert repeated["writes"] == logged["writes"]
    assert repeated["requests"]["count"] == logged["requests"]["count"]
    assert check_sums(repeated) == []


@pytest.fixture(params=["page_io", "requests"])
def trace(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "page_io":
        return write_graph_search(tmp_path / "graph.parquet")
    return write_conversations(tmp_path / "conversations.parquet")


# -- the same decisions -----------------------------------------------------------------------


def test_what_the_write_limit_left_out_is_left_out_again(trace: Path, tmp_path: Path) -> None:
    events = tmp_path / "events.parquet"
    settings = paced(tiers="hbm nvme")
    hbm, nvme = settings.tiers
    nvme = replace(nvme, write_limit_bytes_per_s=float(64 << 10), admit="second touch")
    settings = replace(settings, tiers=(hbm, nvme))
    logged = replay(trace, settings, events)
    repeated = simulate(trace, settings, events)
    assert_repeated(logged, repeated)
    for key in ("write_capped_pages", "written_bytes", "device_writes"):
        assert logged["tiers"][1][key] == repeated["tiers"][1][key] > 0
    unlimited = replace(settings, tiers=(hbm, replace(nvme, write_limit_bytes_per_s=None)))
    with pytest.raises(SettingsError, match=r"tiers\.nvme\.write_limit was 65536\.0"):
        simulate(trace, unlimited, events)


@pytest.mark.parametrize("sample", ["sample.parquet", "kv-sample.parquet"])
def test_of_a_recorded_sample_every_decision_is_repeated(sample: str, tmp_path: Path) -> None:
    events, outputs = tmp_path / "events.parquet", [tmp_path / "r.json", tmp_path / "s.json"]
    for command, output in zip(("replay", "simulate"), outputs, strict=True):
        arguments = [command, str(TRACES / sample), "--limit", "400", "--device", "cpu"]
        arguments += ["--set", "replay.drive=closed", "--set", "replay.concurrency=64"]
        arguments += ["--events", str(events), "--json", str(output)]
        assert main(arguments) == 0
    logged, repeated = (read_result(path) for path in outputs)
    assert logged["coalescing"]["joined"] > 0
    assert_repeated(logged, repeated)
    assert repeated["bottleneck"] is not None
    assert repeated["crossover"] is not None
    assert repeated["requests"]["latency_us"]["p50"] < logged["requests"]["latency_us"]["p50"]


@pytest.mark.parametrize("drive", ["closed", "open"])
@pytest.mark.parametrize("tiers", ["hbm dram nvme", "nvme", ""])
def test_any_tiers_and_both_loops_are_repeated(
    trace: Path, tmp_path: Path, drive: str, tiers: str
) -> None:
    events = tmp_path / "events.parquet"
    settings = paced(drive, tiers, compute_s=20e-6, speed=100.0)
    logged = replay(trace, settings, events)
    assert_repeated(logged, simulate(trace, settings, events))


@pytest.mark.parametrize("drive", ["closed", "open"])
def test_failures_of_the_origin_are_repeated(tmp_path: Path, drive: str) -> None:
    trace = write_graph_search(tmp_path / "graph.parquet")
    events = tmp_path / "events.parquet"
    settings = paced(drive, speed=100.0)
    logged = asyncio.run(replay_troubled(trace, settings, events))
    assert logged["origin"]["failures"] > 0
    repeated = simulate(trace, settings, events)
    assert_repeated(logged, repeated)
    assert repeated["origin"]["failures"] == logged["origin"]["failures"]


def test_writes_go_to_the_origin_before_the_tiers_take_them(tmp_path: Path) -> None:
    trace = write_conversations(tmp_path / "conversations.parquet")
    events = tmp_path / "events.parquet"
    settings = paced("closed", "dram")
    logged = replay(trace, settings, events)
    kinds = [event.kind for event in read_event_log(events).events()]
    assert kinds.index(EventKind.PUT) < kinds.index(EventKind.WRITE)
    repeated = simulate(trace, settings, events)
    assert_repeated(logged, repeated)
    assert repeated["writes"]["pages"] > 0
    assert repeated["utilisation"]["origin"] > 0


def test_without_an_origin_written_blocks_are_all_there_is(tmp_path: Path) -> None:
    trace = write_conversations(tmp_path / "conversations.parquet")
    events = tmp_path / "events.parquet"
    settings = replace(paced("closed", "dram nvme"), origin=None)
    logged = replay(trace, settings, events)
    assert_repeated(logged, simulate(trace, settings, events))


def test_without_coalescing_too(trace: Path, tmp_path: Path) -> None:
    events = tmp_path / "events.parquet"
    settings = paced("closed", "")
    settings = replace(settings, chain=replace(settings.chain, coalesce=False))
    logged = replay(trace, settings, events)
    assert_repeated(logged, simulate(trace, settings, events))


def test_an_interrupted_run_is_repeated_as_far_as_it_came(trace: Path, tmp_path: Path) -> None:
    events, settings = tmp_path / "events.parquet", paced()

    def interrupt(done: int, _: int | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        if 10 <= done < 20 and not task.cancelling():
            task.cancel()

    work = replay_trace(
        trace, settings, limit=None, progress=interrupt, notify=quiet, events=events
    )
    logged = asyncio.run(work)
    repeated = simulate(trace, settings, events)
    assert not logged["complete"]
    assert not repeated["complete"]
    one, other = ({**result, "complete": True} for result in (logged, repeated))
    assert_repeated(one, other)


def test_an_interrupted_repetition_says_what_it_measured(tmp_path: Path) -> None:
    trace = write_graph_search(tmp_path / "graph.parquet", requests=400)
    events, settings = tmp_path / "events.parquet", paced()
    logged = replay(trace, settings, events)

    def interrupt(done: int, _: int | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        if done >= 10 and not task.cancelling():
            task.cancel()

    result = simulate_trace(
        trace, settings, limit=None, progress=interrupt, notify=quiet, events=events
    )
    assert not result["complete"]
    assert 10 <= result["requests"]["count"] < logged["requests"]["count"]
    assert check_sums(result) == []


# -- time -------------------------------------------------------------------------------------


def test_the_same_log_gives_the_same_result_byte_for_byte(trace: Path, tmp_path: Path) -> None:
    events, settings = tmp_path / "events.parquet", paced("open", speed=10.0)
    replay(trace, settings, events)
    first, second = (json.dumps(simulate(trace, settings, events)) for _ in range(2))
    assert first == second


def test_a_faster_device_answers_sooner_and_decides_alike(trace: Path, tmp_path: Path) -> None:
    events, settings = tmp_path / "events.parquet", paced(tiers="dram")
    replay(trace, settings, events)
    slow, fast = (
        simulate(trace, with_origin_latency(settings, latency_s), events)
        for latency_s in (5e-3, 50e-6)
    )
    assert slow["duration_s"] > 10 * fast["duration_s"]
    assert differing_decisions([slow, fast]) == []


def with_origin_latency(settings: Settings, latency_s: float) -> Settings:
    model = load_settings(
        None, [f"origin.model.latency={latency_s * 1e6} us", "origin.model.preset=gen5-nvme"]
    )
    assert settings.origin is not None
    assert model.origin is not None
    return replace(settings, origin=replace(settings.origin, model=model.origin.model))


@pytest.mark.parametrize("drive", ["closed", "open"])
def test_requests_that_wait_for_little_take_the_time_that_they_compute(
    tmp_path: Path, drive: str
) -> None:
    path, events = tmp_path / "one-page.parquet", tmp_path / "events.parquet"
    metadata = TraceMetadata(kind="page_io", page_bytes=PAGE_BYTES, objects=(GRAPH,))
    reads = [Batch(READ, step * 10_000_000, [(0, 7, 1)]) for step in range(6)]
    write_page_io(path, metadata, [page_request(number, *reads) for number in range(3)])
    settings = paced(drive, compute_s=0.01 if drive == "closed" else None)
    replay(path, settings, events)
    requests = simulate(path, settings, events)["requests"]
    assert requests["latency_us"]["p50"] == pytest.approx(50e3, rel=0.05)
    assert requests["stall_share"] < 0.05


def test_an_open_loop_comes_when_it_came(tmp_path: Path) -> None:
    path, events = tmp_path / "arrivals.parquet", tmp_path / "events.parquet"
    metadata = TraceMetadata(kind="page_io", page_bytes=PAGE_BYTES, objects=(GRAPH,))
    requests = [
        page_request(number, Batch(READ, number * 20_000_000, [(0, number, 1)]))
        for number in range(6)
    ]
    write_page_io(path, metadata, requests)
    settings = paced("open")
    replay(path, settings, events)
    result = simulate(path, settings, events)
    assert result["duration_s"] == pytest.approx(0.1, rel=0.05)
    assert result["requests"]["latency_us"]["max"] < 50e3  # of requests that came 20 ms apart


# -- what does not fit ------------------------------------------------------------------------


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph_search(tmp_path / "graph.parquet", requests=40)


@pytest.fixture
def log(graph: Path, tmp_path: Path) -> Path:
    """Of a run in which device reads failed in part."""
    path = tmp_path / "events.parquet"
    asyncio.run(replay_troubled(graph, paced(), path))
    return path


def test_waves_are_neither_logged_nor_repeated(graph: Path, tmp_path: Path) -> None:
    for run in (replay, simulate):
        with pytest.raises(SettingsError, match=r"^replay\.drive is 'waves'"):
            run(graph, paced("waves"), tmp_path / "none.parquet")
    assert not (tmp_path / "none.parquet").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 2}, "seed was 1 when it was logged, and is 2 now"),
        ({"origin": None}, r"origin\.write was 'through' when it was logged, and is not set now"),
        ({"tiers": paced(tiers="dram").tiers}, r"tiers\.hbm\.capacity was 262144"),
        ({"chain": replace(SMALL, inflight_pages_max=99)}, r"chain\.inflight_pages_max was 64"),
        ({"replay": paced(compute_s=1e-3).replay}, r"replay\.compute was not set .* 0\.001 now"),
        ({"replay": paced("open").replay}, r"replay\.drive was 'closed'"),
    ],
)
def test_other_settings_are_refused_by_their_key(
    log: Path, graph: Path, changed: dict[str, Any], message: str
) -> None:
    if "origin" in changed:
        graph = write_conversations(graph.with_name("conversations.parquet"))
    with pytest.raises(SettingsError, match=message):
        simulate(graph, replace(paced(), **changed), log)


def test_another_trace_and_another_part_of_it_are_refused(log: Path, graph: Path) -> None:
    other = write_graph_search(graph.with_name("other.parquet"), requests=40, seed=4)
    with pytest.raises(TraceError, match=r"other\.parquet: is not the trace of"):
        simulate(other, paced(), log)
    with pytest.raises(TraceError, match="its requests is 7, the logged one 40"):
        simulate(graph, paced(), log, limit=7)


def test_what_is_no_log_is_refused(log: Path, graph: Path, tmp_path: Path) -> None:
    whole = log.read_bytes()
    broken = tmp_path / "broken.parquet"
    for content, message in (
        (None, "cannot be read"),
        (b"", r"no Parquet file; make one with 'kvtier replay"),
        (whole[:-3], "truncated"),
        (whole[: len(whole) // 2] + whole[-200:], "damaged"),
        (graph.read_bytes(), "but no event log"),
    ):
        if content is not None:
            broken.write_bytes(content)
        with pytest.raises(TraceError, match=message):
            simulate(graph, paced(), broken)


def rewritten(log: Path, rows: list[dict[str, Any]], header: dict[str, Any] | None = None) -> Path:
    """A log of other rows; its columns and its header stay, but for what ``header`` has."""
    schema = pq.read_schema(log)
    known = json.loads(schema.metadata[b"kvtier.events"])
    encoded = json.dumps({**known, **(header or {})}).encode()
    schema = schema.with_metadata({b"kvtier.events": encoded})
    path = log.with_name("rewritten.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


def rows_of(log: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(log).to_pylist()
    return rows


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"version": 1}, "is no event log of version 2"),
        ({"log_id": 7}, "its header has no log_id"),
        ({"trace": None}, "its header has no trace"),
        ({"origin_extent_pages_max": 0}, "its origin_extent_pages_max is 0"),
    ],
)
def test_a_header_that_cannot_be_is_refused(
    log: Path, graph: Path, header: dict[str, Any], message: str
) -> None:
    with pytest.raises(TraceError, match=rf"rewritten\.parquet: {message}"):
        simulate(graph, paced(), rewritten(log, rows_of(log), header))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (EventKind.READ, {"event": 99}, "is of a kind that is not known"),
        (EventKind.READ, {"purpose": 9}, "has a purpose that is not known"),
        (EventKind.READ, {"flags": 64}, "has flags that are not known"),
        (EventKind.READ, {"run_len": []}, "has a run without a length"),
        (EventKind.READ, {"owner_pages": []}, "does not say which owner"),
        (EventKind.READ, {"owners": [], "owner_pages": [], "flags": 5}, "goes on for nobody"),
        (EventKind.READ, {"run_start": [0], "run_len": [33], "owner_pages": [33]}, "33 pages"),
        (EventKind.READ, {"owners": [4_000]}, "request 4000 is not under way"),
        (EventKind.READ, {"name": 77}, "it has epoch .* when repeated, and had 77"),
        (EventKind.BEGIN, {"ns": -1}, "has a time before the run"),
        (EventKind.BEGIN, {"name": 4_000}, "request . is not under way"),
        (EventKind.END, {"name": 4_000}, "request 4000 is not under way"),
        (EventKind.FETCHED, {"name": 9_999}, "flight 9999 reads from no device"),
        (EventKind.FETCHED, {"status": [0] * 999}, "it fits .* badly"),
        (EventKind.FETCHED, {"counts": [0] * 999}, "it fits .* badly"),
        (EventKind.FETCHED, {"status": [9]}, "has a status that no device gives"),
        (EventKind.FILLED, {"name": 9_999}, "nothing of 9999 is written to level 2"),
        (EventKind.FILLED, {"level": 1}, "nothing of .* is written to level 1"),
        (EventKind.FILLED, {"status": [3] * 999}, "it has 999 slots"),
        (EventKind.LAST, {"summary": ""}, "its summary cannot be read"),
        (EventKind.LAST, {"summary": '{"complete": 1}'}, "its summary cannot be read"),
        (
            EventKind.LAST,
            {"summary": '{"complete": true, "counters": {"reads": 1}}'},
            ".* when repeated, and was None",
        ),
    ],
)
def test_an_event_that_cannot_be_is_refused_by_its_number(
    log: Path, graph: Path, kind: EventKind, change: dict[str, Any], message: str
) -> None:
    rows = rows_of(log)
    number = next(
        number
        for number, row in enumerate(rows)
        if row["event"] == kind and len(row["owners"]) < 2 and not row["flags"] & Flag.GOES_ON
    )
    rows[number] |= change
    with pytest.raises(TraceError, match=rf"event \d+.*: {message}") as refused:
        simulate(graph, paced(), rewritten(log, rows))
    assert int(str(refused.value).split("event ")[1].split(" ")[0].rstrip(":")) >= number
    assert "\n" not in str(refused.value)


def test_a_log_without_its_end_is_refused_and_so_is_more_than_its_end(
    log: Path, graph: Path
) -> None:
    rows = rows_of(log)
    with pytest.raises(TraceError, match="ends before its last event"):
        simulate(graph, paced(), rewritten(log, rows[:-1]))
    with pytest.raises(TraceError, match="comes after the last one"):
        simulate(graph, paced(), rewritten(log, [*rows, rows[-1]]))


@pytest.mark.parametrize("seed", range(3))
def test_a_log_of_which_rows_are_lost_doubled_or_swapped_never_hangs(
    log: Path, graph: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows, refused = rows_of(log), 0
    for _ in range(12):
        changed = list(rows)
        one, other = rng.integers(0, len(rows), 2).tolist()
        match rng.integers(3):
            case 0:
                del changed[one]
            case 1:
                changed.insert(other, rows[one])
            case _:
                changed[one], changed[other] = rows[other], rows[one]
        try:
            result = simulate(graph, paced(), rewritten(log, changed))
        except TraceError:
            refused += 1
        else:
            assert check_sums(result) == []
    assert refused > 6


def test_requests_without_a_step_end_as_soon_as_there_is_room_for_them(tmp_path: Path) -> None:
    """However many of them wait behind one whose hits take long to arrive."""
    settings = replace(paced(tiers="dram"), origin=None)
    settings = replace(settings, replay=replace(settings.replay, concurrency=2))
    requests, page_ids = 3_000, np.arange(4, dtype=np.uint64)
    path = tmp_path / "events.parquet"
    with open_event_log(path, LogHeader("made", {}, {}, 1, 1)) as log:
        for number in (0, 1):
            log.begin(number, 0)
        log.write(1, page_ids, 1, Flag(0), [0])
        log.read(2, page_ids, Purpose.PREFIX, Flag.WANTS_BYTES, [0, 1], [2, 2])
        for number in range(requests):
            if number > 1:
                log.begin(number, 0)
            log.end(number)
        log.last(no_counts(1), complete=True)
    clock = VirtualClock()
    driver = open_repetition(settings, clock, origin_extent_pages_max=1, origin_batch_extents_max=1)
    meter = RequestMeter(clock)
    drive = RepeatedDrive(
        read_event_log(path), driver, settings=settings, meter=meter, after_batch=lambda: None
    )
    # The counts of this log are made up, and that is all that is wrong with it.
    with pytest.raises(TraceError, match=r"\(last\): .* is 4 when repeated, and was 0"):
        asyncio.run(drive.drive())
    assert meter.finished == requests
    assert meter.in_flight == 0


# -- the file ---------------------------------------------------------------------------------


def test_a_run_that_fails_leaves_no_log(tmp_path: Path) -> None:
    path, events = tmp_path / "writes.parquet", tmp_path / "events.parquet"
    metadata = TraceMetadata(kind="page_io", page_bytes=PAGE_BYTES, objects=(GRAPH,))
    write_page_io(path, metadata, [page_request(0, Batch(WRITE, 0, [(0, 1, 1)]))])
    with pytest.raises(TraceError, match="request 0 writes pages"):
        replay(path, paced(), events)
    assert list(tmp_path.iterdir()) == [path]


FULL = """
import asyncio, resource, sys
from pathlib import Path
from kvtier.errors import TraceError
from kvtier.replay import replay_trace
from kvtier.settings import load_settings

settings = load_settings(None, [
    "replay.drive=closed", "origin.backend=memory", "tiers.nvme.capacity=0", "device=cpu",
])

def fill_disk(*_):  # once all is compiled
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

work = replay_trace(
    Path(sys.argv[1]), settings, limit=None, progress=fill_disk, notify=lambda *_: None,
    events=Path(sys.argv[2]),
)
try:
    asyncio.run(work)
except TraceError as error:
    print(error)
"""


def test_a_disk_that_is_full_ends_the_run_in_one_line(graph: Path, tmp_path: Path) -> None:
    events = tmp_path / "events.parquet"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(graph), str(events)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"{events}: cannot be written (")
    assert done.stdout.endswith("check the folder and its free space\n")
    assert [path.name for path in tmp_path.iterdir() if "events" in path.name] == []


def test_logging_replaces_an_older_log_and_nothing_else(
    graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = tmp_path / "events.parquet"
    events.write_text("an older one")
    replay(graph, paced(), events)
    assert read_event_log(events).header.log_id
    for place, message in (
        ("-", "--events -: a log needs a file of its own"),
        ("/dev/null", "--events /dev/null: a log needs a file of its own"),
        (str(graph), "is read by this command"),
        (str(tmp_path), "a log needs a file of its own"),
    ):
        assert main(["replay", str(graph), "--events", place]) == 2
        assert message in capsys.readouterr().err
    assert main(["simulate", str(graph), "--events", str(events), "--json", str(events)]) == 2
    assert "is read by this command" in capsys.readouterr().err
