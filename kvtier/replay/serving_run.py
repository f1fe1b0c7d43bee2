"""Whole runs of the drive ``serving``: with the cache, and once more without any."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from kvtier.cache import TieredCache
from kvtier.clock import VirtualClock
from kvtier.directory import ObjectDirectory
from kvtier.emulator import Timeline, VirtualLoop, open_emulator
from kvtier.replay.meter import RequestMeter
from kvtier.replay.result import Run, level_names, to_result
from kvtier.replay.series import Series
from kvtier.replay.serving import (
    NoPrompts,
    bounds_of,
    cached_prompts,
    check_serving,
    describe,
    describe_uncached,
)
from kvtier.replay.workload import Workload
from kvtier.serving import ROLES, Arrivals, Prompts, Roofline, Service
from kvtier.settings import Settings
from kvtier.trace import RequestTrace, geometry

Progress = Callable[[int, int | None], None]


class Server:
    """A service that is run to its end.

    Args:
        workload: whose requests are served.
        settings: of the nodes.
        timeline: of ``clock``.
        clock: the virtual time; 0 when the run begins.
        prompts: the cache of each node.
        observe: called with the requests that have ended, every few steps.
    """

    def __init__(
        self,
        workload: Workload,
        settings: Settings,
        timeline: Timeline,
        clock: VirtualClock,
        prompts: tuple[Prompts, ...],
        observe: Callable[[int], None],
    ) -> None:
        assert isinstance(workload.trace, RequestTrace)
        self.requests = RequestMeter(clock)
        self.service = Service(
            timeline,
            Roofline(geometry(settings.replay.model), settings.compute),
            ROLES[settings.serving.roles],
            prompts,
            bounds_of(settings),
            arrivals=Arrivals(
                workload.trace.requests(workload.limit), clock.now_ns(), settings.replay.speed
            ),
            requests=self.requests,
            after_round=lambda: observe(self.requests.finished),
        )
        self._timeline = timeline
        self._clock = clock

    @property
    def duration_s(self) -> float:
        """Virtual time until now."""
        return self._clock.now_ns() / 1e9

    @property
    def busy_s(self) -> dict[str, float]:
        """How long each node was in steps; ``compute``, if there is one only."""
        engines = self.service.engines
        names = [f"compute ({engine.role.name})" for engine in engines]
        if len(names) == 1:
            names = ["compute"]
        return {
            name: engine.meter.busy_ns / 1e9 for name, engine in zip(names, engines, strict=True)
        }

    def run(self) -> bool:
        """Serve every request; returns False if Ctrl-C ended it before."""
        with asyncio.Runner(loop_factory=lambda: VirtualLoop(self._timeline)) as runner:
            return runner.run(self._run())

    async def _run(self) -> bool:
        try:
            await self.service.run()
        except asyncio.CancelledError:
            # Ctrl-C: the counts advance at completion, so what was measured is consistent.
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            return False
        return True


def simulate_serving(
    workload: Workload, settings: Settings, progress: Progress
) -> Mapping[str, Any]:
    """Serve the requests of a trace in virtual time; then again without a cache, to compare.

    Args:
        workload: the trace.
        settings: checked.
        progress: called with requests done and requests in all, those of both runs together.

    Returns:
        The result (docs/json.md). After Ctrl-C it is what was measured so far, without the
        comparison if that had not ended.

    Raises:
        KvtierError: the trace or the settings cannot be used.
    """
    check_serving(workload, settings)
    clock = VirtualClock()
    directory = ObjectDirectory(settings.chain.objects_max)
    driver, origin = open_emulator(settings, directory, clock, {})
    cache = TieredCache(driver, directory, origin, settings)
    series = Series(clock, settings.replay.series_interval_s, level_names(settings))

    def observe(finished: int) -> None:
        series.observe(driver.chain)
        progress(finished, 2 * workload.requests)

    prompts = cached_prompts(workload, settings, cache)
    server = Server(workload, settings, driver.timeline, clock, (prompts,), observe)
    complete = server.run()
    series.observe(driver.chain, last=True)
    serving = describe(settings, server.service, server.duration_s)
    if complete:
        other, complete = _recompute(workload, settings, progress)
        if complete:
            serving |= describe_uncached(server.service, other.service, other.duration_s)
    devices = {name: one.busy_ns / 1e9 for name, one in driver.stations.items()}
    return to_result(
        Run(
            mode="simulate",
            complete=complete,
            trace={**workload.describe(), "page_bytes": settings.page_bytes},
            settings=settings,
            engines=["modelled"] * len(settings.tiers),
            duration_s=server.duration_s,
            pace=None,
            requests=server.requests.to_dict(server.duration_s),
            counters=driver.chain.by_purpose,
            measurements=driver.measurements,
            series=series,
            busy_s={**server.busy_s, **devices},
            verifier=None,
            notes={},
            serving=serving,
        )
    )


def _recompute(workload: Workload, settings: Settings, progress: Progress) -> tuple[Server, bool]:
    """The same requests on the same node, every prompt computed; and whether that is complete."""

    def observe(finished: int) -> None:
        progress(workload.requests + finished, 2 * workload.requests)

    clock = VirtualClock()
    server = Server(workload, settings, Timeline(clock), clock, (NoPrompts(),), observe)
    return server, server.run()
