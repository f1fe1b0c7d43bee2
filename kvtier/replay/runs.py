"""Whole runs: a trace, settings, and the result as a mapping."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kvtier.cache import Driver, TieredCache
from kvtier.chain import Chain
from kvtier.clock import Clock, VirtualClock, WallClock
from kvtier.directory import ObjectDirectory
from kvtier.emulator import VirtualLoop, open_emulator, open_repetition
from kvtier.emulator.repeating import RepeatingDriver
from kvtier.events import EventLog, RecordingChain, open_event_log
from kvtier.opening import open_cache
from kvtier.replay.arena import Arena
from kvtier.replay.logged import check_can_log, describe_log, new_header, open_fitting_log
from kvtier.replay.meter import RequestMeter
from kvtier.replay.paced import Pace, PacedDrive
from kvtier.replay.payload import Verifier
from kvtier.replay.prepare import is_temporary, prepared_origin, temporary_origin
from kvtier.replay.repeated import RepeatedDrive
from kvtier.replay.result import Run, level_names, to_result
from kvtier.replay.series import Series
from kvtier.replay.waves import Waves
from kvtier.replay.workload import Workload, check_simulation, load_workload
from kvtier.replay.writing import ObjectWriter
from kvtier.settings import ReplaySettings, Settings, check_machine, validate
from kvtier.tiers import NvmeTier
from kvtier.trace import PageTrace

Progress = Callable[[int, int | None], None]
Notify = Callable[[str], None]

_MEMORY_BYTES = 64 << 20
"""Bytes read into at once: of one chain batch in waves, of all of them in the other drives."""

_BATCHES_AT_ONCE = 4
"""Batches of the largest size for which those drives have memory."""


async def replay_trace(
    path: Path,
    settings: Settings,
    *,
    limit: int | None,
    progress: Progress,
    notify: Notify,
    events: Path | None = None,
) -> Mapping[str, Any]:
    """Drive a trace into a real cache.

    An origin of files that names no directory gets a temporary one.

    Args:
        path: the trace.
        settings: the cache, and how it is driven.
        limit: requests to take, None for all.
        progress: called with requests done and requests in all.
        notify: called with one line on what the run will take, and what it prepares.
        events: where to log the order of completions, for a simulation to repeat.

    Returns:
        The result (docs/json.md). A cancelled run returns what was measured so far, with
        ``complete`` false.

    Raises:
        KvtierError: the trace, the settings or a level cannot be used.
    """
    validate(settings)
    check_machine(settings)
    if events is not None:
        check_can_log(settings)
    workload = load_workload(path, settings, limit, scaled=True)
    notify(workload.summary(settings))
    async with AsyncExitStack() as stack:
        if is_temporary(settings.origin):
            stored = workload.unique_pages * settings.page_bytes
            settings = await stack.enter_async_context(temporary_origin(settings, stored))
        origin = await stack.enter_async_context(prepared_origin(settings, workload.trace, notify))
        clock = WallClock()
        log = logged = None
        make_chain: Callable[..., Chain] = Chain
        if events is not None:
            header = new_header(workload, settings, origin)
            log = stack.enter_context(open_event_log(events, header))
            logged = describe_log(events, header)
            make_chain = partial(RecordingChain, log)
        cache = await stack.enter_async_context(
            open_cache(settings, clock=clock, origin=origin, make_chain=make_chain)
        )
        verifier = Verifier(
            settings.replay.verify_share,
            cache.catalogue.directory,
            np.random.default_rng(settings.seed),
        )
        run = await _drive(workload, settings, cache, clock, verifier, progress, log)
        if log is not None:
            log.last(cache.driver.chain.counters, complete=run.complete)
        tiers = cache.driver.tiers
        direct = {tier.name: tier.direct for tier in tiers if isinstance(tier, NvmeTier)}
        engines = [tier.engine for tier in tiers]
        return to_result(replace(run, engines=engines, notes={"o_direct": direct}, events=logged))


def simulate_trace(
    path: Path,
    settings: Settings,
    *,
    limit: int | None,
    progress: Progress,
    notify: Notify,
    events: Path | None = None,
) -> Mapping[str, Any]:
    """Drive a trace in virtual time; arguments and result as of :func:`replay_trace`.

    ``events`` is a log that a replay wrote, of the same trace and settings: its order of
    completions is repeated, and so are all decisions.
    """
    if events is not None:
        return _repeat_trace(path, settings, events, limit, progress, notify)
    workload = load_workload(path, settings, limit, scaled=False)
    check_simulation(workload)
    notify(workload.summary(settings))
    objects = {}
    if isinstance(workload.trace, PageTrace):
        objects = {one.key: one.pages for one in workload.trace.objects}
    clock = VirtualClock()
    directory = ObjectDirectory(settings.chain.objects_max)
    driver, origin = open_emulator(settings, directory, clock, objects)
    cache = TieredCache(driver, directory, origin, settings)
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(driver.timeline)) as runner:
        run = runner.run(_drive(workload, settings, cache, clock, None, progress))
    return to_result(
        replace(
            run,
            engines=["modelled"] * len(settings.tiers),
            busy_s={name: one.busy_ns / 1e9 for name, one in driver.stations.items()},
            loads={name: one.load for name, one in driver.stations.items()},
        )
    )


def _repeat_trace(
    path: Path,
    settings: Settings,
    events: Path,
    limit: int | None,
    progress: Progress,
    notify: Notify,
) -> Mapping[str, Any]:
    """Repeat a log in virtual time; blocks have as many pages as in a replay."""
    check_can_log(settings)
    workload = load_workload(path, settings, limit, scaled=True)
    logged = open_fitting_log(events, workload, settings)
    notify(workload.summary(settings))
    clock = VirtualClock()
    driver = open_repetition(
        settings,
        clock,
        origin_extent_pages_max=logged.header.origin_extent_pages_max,
        origin_batch_extents_max=logged.header.origin_batch_extents_max,
    )

    def repeat(meter: RequestMeter, after_batch: Callable[[], None]) -> Awaitable[bool]:
        drive = RepeatedDrive(
            logged, driver, settings=settings, meter=meter, after_batch=after_batch
        )
        return drive.drive()

    # As on the wall clock, batches are issued when they are: there is no tick.
    pace = _pace(settings.replay, is_virtual=False)
    with asyncio.Runner() as runner:
        work = _measure(workload, settings, driver, clock, None, pace, progress, repeat)
        run = runner.run(work)
    return to_result(
        replace(
            run,
            engines=["modelled"] * len(settings.tiers),
            busy_s={name: one.busy_ns / 1e9 for name, one in driver.stations.items()},
            loads={name: one.load for name, one in driver.stations.items()},
            events=describe_log(events, logged.header),
        )
    )


async def _drive(
    workload: Workload,
    settings: Settings,
    cache: TieredCache[Any],
    clock: Clock,
    verifier: Verifier | None,
    progress: Progress,
    log: EventLog | None = None,
) -> Run:
    pace = _pace(settings.replay, is_virtual=verifier is None)

    async def drive(meter: RequestMeter, after_round: Callable[[], None]) -> bool:
        made = _make_drive(settings, pace, cache, verifier, meter, after_round, log)
        await made.drive(workload.active(cache))
        return True

    return await _measure(workload, settings, cache.driver, clock, verifier, pace, progress, drive)


async def _measure(
    workload: Workload,
    settings: Settings,
    driver: Driver | RepeatingDriver,
    clock: Clock,
    verifier: Verifier | None,
    pace: Pace | None,
    progress: Progress,
    drive: Callable[[RequestMeter, Callable[[], None]], Awaitable[bool]],
) -> Run:
    """Measure a drive, which returns whether it took the whole trace."""
    chain = driver.chain
    series = Series(clock, settings.replay.series_interval_s, level_names(settings))
    meter = RequestMeter(clock)

    def after_round() -> None:
        series.observe(chain)
        progress(meter.finished, workload.requests)

    start_ns = clock.now_ns()
    complete = False
    try:
        complete = await drive(meter, after_round)
    except asyncio.CancelledError:
        # Ctrl-C: the counts advance at completion, so what was measured so far is consistent.
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
    duration_s = (clock.now_ns() - start_ns) / 1e9
    series.observe(chain, last=True)
    return Run(
        mode="simulate" if verifier is None else "replay",
        complete=complete,
        trace={**workload.describe(), "page_bytes": settings.page_bytes},
        settings=settings,
        engines=(),
        duration_s=duration_s,
        pace=pace,
        requests=meter.to_dict(duration_s),
        counters=chain.by_purpose,
        measurements=driver.measurements,
        series=series,
        busy_s=None,
        loads=None,
        verifier=verifier,
        notes={},
    )


def _make_drive(
    settings: Settings,
    pace: Pace | None,
    cache: TieredCache[Any],
    verifier: Verifier | None,
    meter: RequestMeter,
    after_round: Callable[[], None],
    log: EventLog | None,
) -> Waves | PacedDrive:
    page_bytes = settings.page_bytes
    batch_pages = max(1, min(settings.chain.batch_pages_max, _MEMORY_BYTES // page_bytes))
    writer = ObjectWriter(
        cache,
        batch_pages=batch_pages,
        objects_max=settings.chain.objects_max,
        page_bytes=page_bytes,
        has_payload=verifier is not None,
        log=log,
    )
    if pace is None:
        return Waves(
            cache,
            concurrency=settings.replay.concurrency,
            batch_pages=batch_pages,
            page_bytes=page_bytes,
            verifier=verifier,
            writer=writer,
            meter=meter,
            after_round=after_round,
        )
    return PacedDrive(
        cache,
        pace=pace,
        batch_pages=max(1, batch_pages // _BATCHES_AT_ONCE),
        arena=None if verifier is None else Arena(batch_pages, page_bytes),
        verifier=verifier,
        writer=writer,
        meter=meter,
        after_round=after_round,
        log=log,
    )


def _pace(replay: ReplaySettings, *, is_virtual: bool) -> Pace | None:
    """How requests go at their own pace; None in waves."""
    if replay.drive == "waves":
        return None
    compute_s = replay.compute_s
    if compute_s is None and replay.drive == "closed":
        compute_s = 0.0
    return Pace(
        concurrency=replay.concurrency,
        compute_ns=None if compute_s is None else round(compute_s * 1e9),
        tick_ns=round(replay.tick_s * 1e9) if is_virtual else 0,
        speed=replay.speed if replay.drive == "open" else None,
    )
