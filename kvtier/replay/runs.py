"""Whole runs: a trace, settings, and the result as a mapping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kvtier.cache import TieredCache
from kvtier.chain import Chain
from kvtier.clock import Clock, VirtualClock, WallClock
from kvtier.cuda import open_gpu
from kvtier.driver import AsyncDriver
from kvtier.emulator import VirtualLoop
from kvtier.errors import SettingsError
from kvtier.events import EventLog, RecordingChain, open_event_log
from kvtier.machine import check_machine
from kvtier.opening import open_cache
from kvtier.replay.arena import Arena
from kvtier.replay.fleet import (
    Gpu,
    busy_seconds,
    drive_together,
    merged_measured,
    merged_meter,
    open_emulated_caches,
)
from kvtier.replay.logged import check_can_log, describe_log, new_header
from kvtier.replay.meter import RequestMeter
from kvtier.replay.paced import Pace, PacedDrive
from kvtier.replay.payload import Verifier
from kvtier.replay.prepare import is_temporary, prepared_origin, temporary_origin
from kvtier.replay.repetition import repeat_trace
from kvtier.replay.result import Run, level_names, to_result
from kvtier.replay.series import Series
from kvtier.replay.serving import check_drive
from kvtier.replay.serving_run import simulate_serving
from kvtier.replay.spread import Share, shares_of
from kvtier.replay.unused import note_unused
from kvtier.replay.waves import Waves
from kvtier.replay.workload import Workload, check_simulation, load_workload
from kvtier.replay.writing import ObjectWriter
from kvtier.settings import ReplaySettings, Settings, gpus_of, validate
from kvtier.tiers import NvmeTier
from kvtier.tiers.log_opening import check_files
from kvtier.trace import PageTrace
from kvtier.wrappers import counts_of

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
    if len(gpus_of(settings.topology)) > 1:
        raise SettingsError(
            "topology.gpus: a replay is one process with one cache; simulate it, or leave this out"
        )
    check_drive(settings)
    check_machine(settings)
    # Before anything is stored: there may be no GPU, or another file in the place of a tier's.
    for tier in _empty(settings).tiers:
        check_files(tier, settings.page_bytes)
    gpu = open_gpu(settings.device) if any(one.name == "hbm" for one in settings.tiers) else None
    if events is not None:
        check_can_log(settings)
    workload = load_workload(path, settings, limit, scaled=True)
    note_unused(settings, workload, notify)
    notify(workload.summary(settings))
    async with AsyncExitStack() as stack:
        if is_temporary(settings.origin):
            stored = workload.unique_pages * settings.page_bytes
            settings = await stack.enter_async_context(temporary_origin(settings, stored))
        origin = await stack.enter_async_context(prepared_origin(settings, workload.trace, notify))
        clock = WallClock()
        (share,) = shares_of(workload.trace, settings)
        log = logged = None
        make_chain: Callable[..., Chain] = Chain
        if events is not None:
            header = new_header(workload, settings, origin)
            log = stack.enter_context(open_event_log(events, header))
            logged = describe_log(events, header)
            make_chain = partial(RecordingChain, log)
        cache = await stack.enter_async_context(
            open_cache(_empty(settings), clock=clock, origin=origin, make_chain=make_chain, gpu=gpu)
        )
        verifier = Verifier(
            settings.replay.verify_share,
            cache.catalogue.directory,
            np.random.default_rng(settings.seed),
        )
        run = await _drive(workload, settings, {share: cache}, clock, verifier, progress, log)
        if log is not None:
            log.last(cache.driver.chain.counters, complete=run.complete)
        return to_result(_with_devices(run, cache, logged))


def _with_devices(
    run: Run, cache: TieredCache[AsyncDriver], events: Mapping[str, str] | None
) -> Run:
    """A run, and what its real levels say of themselves."""
    tiers = cache.driver.tiers
    drives = [tier for tier in tiers if isinstance(tier, NvmeTier)]
    notes: dict[str, Any] = {"o_direct": {tier.name: tier.direct for tier in drives}}
    if faults := {tier.name: tier.fault_counts for tier in drives if tier.fault_counts}:
        notes["faults"] = faults
    return replace(
        run,
        engines=[tier.engine for tier in tiers],
        notes=notes,
        events=events,
        wrappers=counts_of(cache.catalogue.origin),
        extra_written_bytes={tier.name: tier.metadata_bytes for tier in drives},
    )


def _empty(settings: Settings) -> Settings:
    """No tier is warm from an earlier run: a replay can be repeated, and compared."""
    tiers = (replace(tier, rebuild=True) if tier.files else tier for tier in settings.tiers)
    return replace(settings, tiers=tuple(tiers))


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
        # As on the wall clock, batches are issued when they are: there is no tick.
        pace_of = partial(_pace, settings.replay, is_virtual=False)
        return to_result(repeat_trace(path, settings, events, limit, pace_of, progress, notify))
    workload = load_workload(path, settings, limit, scaled=False)
    check_simulation(workload)
    shares = shares_of(workload.trace, settings)
    note_unused(settings, workload, notify)
    notify(workload.summary(settings))
    if settings.replay.drive == "serving":
        return simulate_serving(workload, settings, progress)
    objects = {}
    if isinstance(workload.trace, PageTrace):
        objects = {one.key: one.pages for one in workload.trace.objects}
    clock = VirtualClock()
    caches = open_emulated_caches(settings, clock, objects)
    driver = caches[0].driver
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(driver.timeline)) as runner:
        run = runner.run(
            _drive(
                workload,
                settings,
                dict(zip(shares, caches, strict=True)),
                clock,
                None,
                progress,
            )
        )
    return to_result(
        replace(
            run,
            engines=["modelled"] * len(settings.tiers),
            busy_s=busy_seconds([cache.driver for cache in caches], settings),
            loads={name: one.load for name, one in driver.hardware.stations.items()},
        )
    )


async def _drive(
    workload: Workload,
    settings: Settings,
    caches: Mapping[Share, TieredCache[Any]],
    clock: Clock,
    verifier: Verifier | None,
    progress: Progress,
    log: EventLog | None = None,
) -> Run:
    """Drive the share of each GPU into its cache."""
    series = Series(clock, settings.replay.series_interval_s, level_names(settings))
    names = gpus_of(settings.topology)
    gpus = [Gpu(names[share.gpu], cache, RequestMeter(clock)) for share, cache in caches.items()]
    chains = [gpu.cache.driver.chain for gpu in gpus]

    def after_round() -> None:
        series.observe(chains)
        progress(sum(gpu.meter.finished for gpu in gpus), workload.requests)

    pace = _pace(settings.replay, workload, is_virtual=verifier is None)
    drives = [
        _make_drive(settings, pace, gpu.cache, verifier, gpu.meter, after_round, log).drive(
            workload.active(gpu.cache, share)
        )
        for gpu, share in zip(gpus, caches, strict=True)
    ]
    start_ns = clock.now_ns()
    complete = True
    try:
        await drive_together(drives)
    except asyncio.CancelledError:
        # Ctrl-C: the counts advance at completion, so what was measured so far is consistent.
        complete = False
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
    duration_s = (clock.now_ns() - start_ns) / 1e9
    series.observe(chains, last=True)
    meter = merged_meter(gpus, clock)
    counters, measurements = merged_measured([gpu.measured for gpu in gpus])
    return Run(
        mode="simulate" if verifier is None else "replay",
        complete=complete,
        trace={**workload.describe(), "page_bytes": settings.page_bytes},
        settings=settings,
        engines=(),
        duration_s=duration_s,
        pace=pace,
        requests=meter.to_dict(duration_s),
        counters=counters,
        measurements=measurements,
        series=series,
        busy_s=None,
        loads=None,
        verifier=verifier,
        notes={},
        gpus=gpus,
        spread=next(iter(caches)).spread,
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


def _pace(replay: ReplaySettings, workload: Workload, *, is_virtual: bool) -> Pace | None:
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
        first_t_ns=workload.first_t_ns if replay.drive == "open" else None,
    )
