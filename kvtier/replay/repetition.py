"""A whole run that repeats an event log in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from kvtier.clock import VirtualClock
from kvtier.emulator import open_repetition
from kvtier.replay.fleet import busy_seconds
from kvtier.replay.logged import check_can_log, describe_log, open_fitting_log
from kvtier.replay.meter import RequestMeter
from kvtier.replay.paced import Pace
from kvtier.replay.repeated import RepeatedDrive
from kvtier.replay.result import Run, level_names
from kvtier.replay.series import Series
from kvtier.replay.unused import note_unused
from kvtier.replay.workload import Workload, load_workload
from kvtier.settings import Settings


def repeat_trace(
    path: Path,
    settings: Settings,
    events: Path,
    limit: int | None,
    pace_of: Callable[[Workload], Pace | None],
    progress: Callable[[int, int | None], None],
    notify: Callable[[str], None],
) -> Run:
    """Repeat a log; blocks of the trace have as many pages as in a replay.

    Args:
        path: the trace that was logged.
        settings: those of the replay, but for its models.
        events: the log.
        limit: requests that were taken, None for all.
        pace_of: how the requests of a workload went.
        progress: as of :func:`kvtier.replay.replay_trace`.
        notify: as of it.

    Raises:
        TraceError: the log is damaged, or of another trace.
        SettingsError: it was made with other settings.
    """
    check_can_log(settings)
    workload = load_workload(path, settings, limit, scaled=True)
    logged = open_fitting_log(events, workload, settings)
    note_unused(settings, workload, notify)
    notify(workload.summary(settings))
    clock = VirtualClock()
    driver = open_repetition(
        settings,
        clock,
        origin_extent_pages_max=logged.header.origin_extent_pages_max,
        origin_batch_extents_max=logged.header.origin_batch_extents_max,
    )
    series = Series(clock, settings.replay.series_interval_s, level_names(settings))
    meter = RequestMeter(clock)

    def after_batch() -> None:
        series.observe([driver.chain])
        progress(meter.finished, workload.requests)

    drive = RepeatedDrive(logged, driver, settings=settings, meter=meter, after_batch=after_batch)
    with asyncio.Runner() as runner:
        complete = runner.run(_drive(drive))
    duration_s = clock.now_ns() / 1e9
    series.observe([driver.chain], last=True)
    return Run(
        mode="simulate",
        complete=complete,
        trace={**workload.describe(), "page_bytes": settings.page_bytes},
        settings=settings,
        engines=["modelled"] * len(settings.tiers),
        duration_s=duration_s,
        pace=pace_of(workload),
        requests=meter.to_dict(duration_s),
        counters=driver.chain.by_purpose,
        measurements=driver.measurements,
        series=series,
        busy_s=busy_seconds([driver], settings),
        loads={name: one.load for name, one in driver.hardware.stations.items()},
        verifier=None,
        notes={},
        events=describe_log(events, logged.header),
    )


async def _drive(drive: RepeatedDrive) -> bool:
    """Whether the whole log was repeated, and is of a whole run; Ctrl-C ends it in between."""
    try:
        return await drive.drive()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        return False
