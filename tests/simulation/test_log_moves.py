"""A log on a drive that is too small: hot pages move, decisions repeat, bytes stay right."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gated_backend import GatedBackend
from small_cache import PAGE, forget_tiers, opened, payload, settings, store
from small_traces import write_conversations, write_graph_search

from kvtier.errors import TraceError
from kvtier.events import EventKind, read_event_log
from kvtier.replay import replay_trace, simulate_trace
from kvtier.report.comparison import differing_decisions
from kvtier.report.soundness import check_sums
from kvtier.settings import OriginSettings, ReplaySettings, Settings, TierSettings

MIB = 1 << 20


def quiet(*_: object) -> None:
    """No progress, no notices."""


def small(drive: Any = "waves") -> Settings:
    return Settings(
        device="cpu",
        tiers=(TierSettings("dram", MIB // 4), TierSettings("nvme", MIB)),
        origin=OriginSettings("memory"),
        replay=ReplaySettings(
            drive=drive, concurrency=8, verify_share=1.0, pages_per_block=4, compute_s=0.0
        ),
    )


@pytest.fixture(params=["page_io", "requests"])
def trace(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "page_io":
        return write_graph_search(tmp_path / "graph.parquet")
    return write_conversations(tmp_path / "conversations.parquet")


def replay(path: Path, wanted: Settings, events: Path | None = None) -> Mapping[str, Any]:
    work = replay_trace(path, wanted, limit=None, progress=quiet, notify=quiet, events=events)
    return asyncio.run(work)


def simulate(path: Path, wanted: Settings, events: Path | None = None) -> Mapping[str, Any]:
    return simulate_trace(path, wanted, limit=None, progress=quiet, notify=quiet, events=events)


def assert_alike(replayed: Mapping[str, Any], simulated: Mapping[str, Any]) -> None:
    assert differing_decisions([replayed, simulated]) == []
    assert replayed["tiers"][1]["moved_pages"] == simulated["tiers"][1]["moved_pages"] > 0
    assert replayed["verify"]["corrupt_pages"] == 0
    assert check_sums(replayed) == check_sums(simulated) == []


def test_in_waves_both_move_the_same_pages(trace: Path) -> None:
    wanted = small()
    assert_alike(replay(trace, wanted), simulate(trace, wanted))


def test_the_moves_of_a_closed_loop_are_logged_and_repeated(trace: Path, tmp_path: Path) -> None:
    events = tmp_path / "events.parquet"
    wanted = small("closed")
    replayed = replay(trace, wanted, events)
    kinds = {event.kind for event in read_event_log(events).events()}
    assert EventKind.MOVED in kinds
    assert_alike(replayed, simulate(trace, wanted, events))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 9_999}, "nothing is moved as 9999 on level 1"),
        ({"level": 0}, "nothing is moved as .* on level 0"),
        ({"status": [3] * 9_999}, "it has 9999 pages"),
    ],
)
def test_a_logged_move_that_cannot_be_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    graph, events = write_graph_search(tmp_path / "graph.parquet"), tmp_path / "events.parquet"
    replay(graph, small("closed"), events)
    schema, rows = pq.read_schema(events), pq.read_table(events).to_pylist()
    next(row for row in rows if row["event"] == EventKind.MOVED).update(change)
    pq.write_table(pa.Table.from_pylist(rows, schema), events)
    with pytest.raises(TraceError, match=rf"event \d+ \(moved\): {message}"):
        simulate(graph, small("closed"), events)


def test_moves_are_part_of_what_the_device_writes(trace: Path) -> None:
    tier = simulate(trace, small())["tiers"][1]
    admitted = tier["device_writes"] - tier["moved_pages"]
    assert tier["evictions"] <= admitted
    assert tier["moved_pages"] <= admitted  # at most half of what is written


@pytest.mark.asyncio
async def test_a_page_that_is_asked_for_again_outlives_all_others(tmp_path: Path) -> None:
    """Four times the tier's capacity is written past it, and it moves several times."""
    async with opened(GatedBackend(PAGE), on_a_file(tmp_path)) as cache:
        hot = await store(cache, b"hot", 2)
        for number in range(32):
            await store(cache, b"cold %d" % number, 32)
            np.testing.assert_array_equal((await cache.read(hot)).pages, payload(b"hot", 2))
        counters = cache.driver.chain.counters.levels[0]
        assert counters.hits == 2 * 32
        assert counters.moved_pages >= 4
        assert counters.failures == 0


@pytest.mark.asyncio
async def test_pages_that_cannot_be_moved_are_misses_and_never_wrong(tmp_path: Path) -> None:
    file = tmp_path / "pages"
    async with opened(GatedBackend(PAGE), on_a_file(tmp_path)) as cache:
        hot = await store(cache, b"hot", 2)
        assert (await cache.read(hot)).ok
        file.write_bytes(b"\x55" * file.stat().st_size)
        for number in range(16):
            await store(cache, b"cold %d" % number, 32)
        await cache.drain()
        level = cache.driver.chain.counters.levels[0]
        assert level.moved_pages == 2
        assert (cache.driver.indexes[0].peek(hot) == -1).all()
        np.testing.assert_array_equal((await cache.read(hot)).pages, payload(b"hot", 2))


@pytest.mark.asyncio
async def test_pages_that_nobody_has_push_no_others_out(tmp_path: Path) -> None:
    async with opened(GatedBackend(PAGE), on_a_file(tmp_path)) as cache:
        kept = await store(cache, b"kept", 64)
        beyond = kept + np.uint64(64)
        for _ in range(50):
            assert not (await cache.read(beyond)).ok
        assert (cache.driver.indexes[0].peek(kept) >= 0).all()
        await forget_tiers(cache, kept)
        assert (cache.driver.indexes[0].peek(kept) == -1).all()


def on_a_file(folder: Path) -> Settings:
    """A tier of 256 pages."""
    wanted = settings("nvme")
    return replace(wanted, tiers=(replace(wanted.tiers[0], path=folder / "pages", direct=False),))
