"""An asyncio loop whose time is that of a timeline."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from kvtier.cache import TieredCache
from kvtier.clock import VirtualClock
from kvtier.directory import ObjectDirectory
from kvtier.emulator import VirtualLoop, open_emulator
from kvtier.emulator.timeline import Timeline
from kvtier.errors import LimitError
from kvtier.settings import OriginSettings, Settings

T = TypeVar("T")


@pytest.fixture
def timeline() -> Timeline:
    return Timeline(VirtualClock())


def run(timeline: Timeline, work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(timeline)) as runner:
        return runner.run(work)


def test_a_day_of_sleep_takes_a_day_of_virtual_time_only(timeline: Timeline) -> None:
    run(timeline, asyncio.sleep(86_400 * 3))
    assert timeline.now_ns == 86_400 * 3 * 10**9


def test_events_and_sleeps_happen_in_the_order_of_their_times(timeline: Timeline) -> None:
    seen: list[tuple[str, int]] = []

    def note(name: str) -> None:
        seen.append((name, timeline.now_ns))

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        note(name)

    async def both() -> None:
        timeline.at(1_500, lambda: note("event"))
        await asyncio.gather(sleeper("late", 2e-6), sleeper("early", 1e-6))

    run(timeline, both())
    assert seen == [("early", 1_000), ("event", 1_500), ("late", 2_000)]


def test_time_stands_still_while_a_task_can_go_on(timeline: Timeline) -> None:
    async def busy() -> int:
        timeline.at(1, lambda: None)
        for _ in range(10):
            await asyncio.sleep(0)
        return timeline.now_ns

    assert run(timeline, busy()) == 0


def test_an_event_wakes_the_task_that_waits_for_it_at_its_own_time(timeline: Timeline) -> None:
    async def waiting() -> int:
        woken = asyncio.Event()
        timeline.at(700, woken.set)
        timeline.at(701, lambda: None)
        await woken.wait()
        return timeline.now_ns

    assert run(timeline, waiting()) == 700


def test_a_timeout_is_in_virtual_time(timeline: Timeline) -> None:
    async def too_long() -> None:
        async with asyncio.timeout(1.0):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        run(timeline, too_long())
    assert timeline.now_ns == 10**9


def test_a_task_that_waits_for_nothing_is_an_error_not_a_hang(timeline: Timeline) -> None:
    async def stuck() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="virtual time stands still"):
        run(timeline, stuck())


def test_an_emulated_cache_on_another_loop_is_refused_and_does_not_hang() -> None:
    settings = Settings(origin=OriginSettings("memory"))
    directory = ObjectDirectory(4)
    driver, origin = open_emulator(settings, directory, VirtualClock(), {b"one": 8})
    cache = TieredCache(driver, directory, origin, settings)

    async def read() -> None:
        opened = await cache.open([b"one"])
        await cache.read_into(opened.page_ids(), None)

    with pytest.raises(LimitError, match="no virtual time passes"):
        asyncio.run(read())
