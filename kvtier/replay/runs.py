"""Whole runs: a trace, settings, and the result as a mapping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kvtier.cache import TieredCache
from kvtier.clock import Clock, VirtualClock, WallClock
from kvtier.directory import ObjectDirectory
from kvtier.emulator import open_emulator
from kvtier.opening import open_cache
from kvtier.replay.payload import Verifier
from kvtier.replay.prepare import is_temporary, prepared_origin, temporary_origin
from kvtier.replay.result import Run, level_names, to_result
from kvtier.replay.series import Series
from kvtier.replay.waves import Waves
from kvtier.replay.workload import Workload, check_simulation, load_workload
from kvtier.settings import Settings, check_machine, validate
from kvtier.tiers import NvmeTier
from kvtier.trace import PageTrace

Progress = Callable[[int, int | None], None]
Notify = Callable[[str], None]

_WAVE_BYTES_MAX = 64 << 20
"""Bytes of one chain batch; what a wave has more is read in further batches."""


async def replay_trace(
    path: Path, settings: Settings, *, limit: int | None, progress: Progress, notify: Notify
) -> Mapping[str, Any]:
    """Drive a trace into a real cache.

    An origin of files that names no directory gets a temporary one.

    Args:
        path: the trace.
        settings: the cache, and how it is driven.
        limit: requests to take, None for all.
        progress: called with requests done and requests in all.
        notify: called with one line on what the run will take, and what it prepares.

    Returns:
        The result (docs/json.md). A cancelled run returns what was measured so far, with
        ``complete`` false.

    Raises:
        KvtierError: the trace, the settings or a level cannot be used.
    """
    validate(settings)
    check_machine(settings)
    workload = load_workload(path, settings, limit, scaled=True)
    notify(workload.summary(settings))
    async with AsyncExitStack() as stack:
        if is_temporary(settings.origin):
            stored = workload.unique_pages * settings.page_bytes
            settings = await stack.enter_async_context(temporary_origin(settings, stored))
        origin = await stack.enter_async_context(prepared_origin(settings, workload.trace, notify))
        clock = WallClock()
        cache = await stack.enter_async_context(open_cache(settings, clock=clock, origin=origin))
        verifier = Verifier(
            settings.replay.verify_share,
            cache.catalogue.directory,
            np.random.default_rng(settings.seed),
        )
        run = await _drive(workload, settings, cache, clock, verifier, progress)
        tiers = cache.driver.tiers
        direct = {tier.name: tier.direct for tier in tiers if isinstance(tier, NvmeTier)}
        return to_result(
            replace(run, engines=[tier.engine for tier in tiers], notes={"o_direct": direct})
        )


def simulate_trace(
    path: Path, settings: Settings, *, limit: int | None, progress: Progress, notify: Notify
) -> Mapping[str, Any]:
    """Drive a trace in virtual time; arguments and result as of :func:`replay_trace`."""
    return asyncio.run(_simulate(path, settings, limit, progress, notify))


async def _simulate(
    path: Path, settings: Settings, limit: int | None, progress: Progress, notify: Notify
) -> Mapping[str, Any]:
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
    run = await _drive(workload, settings, cache, clock, None, progress)
    return to_result(
        replace(
            run,
            engines=["modelled"] * len(settings.tiers),
            busy_s=[
                max(station.busy_ns for station in route.stations) / 1e9 for route in driver.routes
            ],
        )
    )


async def _drive(
    workload: Workload,
    settings: Settings,
    cache: TieredCache[Any],
    clock: Clock,
    verifier: Verifier | None,
    progress: Progress,
) -> Run:
    chain = cache.driver.chain
    series = Series(clock, settings.replay.series_interval_s, level_names(settings))

    def after_wave(finished: int) -> None:
        series.observe(chain.counters)
        progress(finished, workload.requests)

    waves = Waves(
        cache,
        concurrency=settings.replay.concurrency,
        batch_pages=_batch_pages(settings),
        objects_max=settings.chain.objects_max,
        page_bytes=settings.page_bytes,
        verifier=verifier,
        after_wave=after_wave,
    )
    start_ns = clock.now_ns()
    complete = True
    try:
        await waves.drive(workload.active(cache))
    except asyncio.CancelledError:
        # Ctrl-C: the counts advance at completion, so what was measured so far is consistent.
        complete = False
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
    duration_s = (clock.now_ns() - start_ns) / 1e9
    series.observe(chain.counters, last=True)
    return Run(
        mode="simulate" if verifier is None else "replay",
        complete=complete,
        trace={**workload.describe(), "page_bytes": settings.page_bytes},
        settings=settings,
        engines=(),
        duration_s=duration_s,
        counters=chain.by_purpose,
        measurements=cache.driver.measurements,
        series=series,
        busy_s=None,
        verifier=verifier,
        notes={},
    )


def _batch_pages(settings: Settings) -> int:
    return max(1, min(settings.chain.batch_pages_max, _WAVE_BYTES_MAX // settings.page_bytes))
