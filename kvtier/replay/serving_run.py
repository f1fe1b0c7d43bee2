"""Whole runs of the drive ``serving``: with the caches, and once more recomputing every prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvtier.clock import VirtualClock
from kvtier.emulator import Timeline, VirtualLoop
from kvtier.replay.fleet import (
    Gpu,
    busy_seconds,
    drive_together,
    merged_measured,
    merged_meter,
    open_emulated_caches,
)
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
from kvtier.replay.spread import Share, shares_of
from kvtier.replay.workload import Workload
from kvtier.serving import ROLES, Arrivals, Engine, Prompts, Role, Roofline, Service, ServingMeter
from kvtier.settings import Settings, TopologySettings, gpus_of
from kvtier.trace import Request, RequestTrace, geometry

Progress = Callable[[int, int | None], None]


class Servers:
    """Services that run to their ends together: one on each GPU, or one on two of them.

    Args:
        workload: whose requests are served.
        settings: of the nodes.
        timeline: of ``clock``.
        clock: the virtual time; 0 when the run begins.
        prompts: the cache of each GPU.
        observe: called with the requests that have ended, every few steps.

    Attributes:
        meter: of the tokens of all requests.
        requests: of each GPU; those of a pair of nodes count at the first of them.
        shares: the requests of each service.
    """

    def __init__(
        self,
        workload: Workload,
        settings: Settings,
        timeline: Timeline,
        clock: VirtualClock,
        prompts: Sequence[Prompts],
        observe: Callable[[int], None],
    ) -> None:
        self.meter = ServingMeter()
        self.requests = [RequestMeter(clock) for _ in prompts]
        self._timeline = timeline
        self._clock = clock
        # A node is called as the GPU whose caches and devices it has.
        names = gpus_of(settings.topology)
        roles = ROLES[settings.serving.roles]
        if settings.serving.roles == "split":
            self.shares = [Share(0, 1, "session", settings.seed)]
            nodes = [tuple(map(_called, roles, names))]
        else:
            self.shares = shares_of(workload.trace, settings)
            nodes = [(_called(roles[0], name),) for name in names]

        def after_round() -> None:
            observe(sum(one.finished for one in self.requests))

        self._services = [
            Service(
                timeline,
                Roofline(geometry(settings.replay.model), settings.compute),
                roles,
                tuple(prompts[share.gpu : share.gpu + len(roles)]),
                bounds_of(settings),
                arrivals=_arrivals(workload, settings, share),
                requests=self.requests[share.gpu],
                meter=self.meter,
                after_round=after_round,
            )
            for share, roles in zip(self.shares, nodes, strict=True)
        ]

    @property
    def engines(self) -> list[Engine]:
        """Every node."""
        return [engine for service in self._services for engine in service.engines]

    @property
    def duration_s(self) -> float:
        """Virtual time until now."""
        return self._clock.now_ns() / 1e9

    @property
    def busy_s(self) -> dict[str, float]:
        """How long each node was in steps; ``compute``, if there is one only."""
        engines = self.engines
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
            await drive_together([service.run() for service in self._services])
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
    """Serve the requests of a trace in virtual time; then recompute every prompt, to compare.

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
    settings = with_nodes(settings)
    clock = VirtualClock()
    caches = open_emulated_caches(settings, clock, {})
    drivers = [cache.driver for cache in caches]
    chains, driver = [one.chain for one in drivers], drivers[0]
    series = Series(clock, settings.replay.series_interval_s, level_names(settings))

    def observe(finished: int) -> None:
        series.observe(chains)
        progress(finished, 2 * workload.requests)

    prompts = [cached_prompts(workload, settings, cache) for cache in caches]
    servers = Servers(workload, settings, driver.timeline, clock, prompts, observe)
    complete = servers.run()
    series.observe(chains, last=True)
    duration_s = servers.duration_s
    serving = describe(settings, servers.meter, servers.engines, duration_s)
    if complete:
        others = _recomputing(workload, settings, progress)
        complete = others.run()
        if complete:
            serving |= describe_uncached(servers.meter, others.meter, others.duration_s)
    gpus = [
        Gpu(name, cache, meter)
        for name, cache, meter in zip(
            gpus_of(settings.topology), caches, servers.requests, strict=True
        )
    ]
    counters, measurements = merged_measured([gpu.measured for gpu in gpus])
    return to_result(
        Run(
            mode="simulate",
            complete=complete,
            trace={**workload.describe(), "page_bytes": settings.page_bytes},
            settings=settings,
            engines=["modelled"] * len(settings.tiers),
            duration_s=duration_s,
            pace=None,
            requests=merged_meter(gpus, clock).to_dict(duration_s),
            counters=counters,
            measurements=measurements,
            series=series,
            busy_s={**servers.busy_s, **busy_seconds(drivers, settings)},
            loads={name: one.load for name, one in driver.hardware.stations.items()},
            verifier=None,
            notes={},
            gpus=gpus,
            spread=servers.shares[0].spread if len(servers.shares) > 1 else None,
            serving=serving,
        )
    )


def _called(role: Role, name: str) -> Role:
    return role._replace(name=name)


def with_nodes(settings: Settings) -> Settings:
    """Settings with a part for each node: two, for a prefill and a decode node.

    Where the settings have no topology, each of the two has drives and memory of its own, and they
    share the origin.
    """
    if settings.serving.roles == "one" or settings.topology is not None:
        return settings
    nodes = tuple(role.name for role in ROLES["split"])
    own: dict[str, str | tuple[str, ...]] = {
        tier.name: nodes for tier in settings.tiers if tier.name != "hbm"
    }
    return replace(settings, topology=TopologySettings(links=(), gpus=nodes, places=own))


def _recomputing(workload: Workload, settings: Settings, progress: Progress) -> Servers:
    """The same requests on the same nodes, every prompt computed.

    A decode node loads what the prefill node has written all the same: it has no other way.
    """

    def observe(finished: int) -> None:
        progress(workload.requests + finished, 2 * workload.requests)

    clock = VirtualClock()
    if settings.serving.roles == "one":
        prompts = [NoPrompts() for _ in gpus_of(settings.topology)]
        return Servers(workload, settings, Timeline(clock), clock, prompts, observe)
    prefill, decode = open_emulated_caches(settings, clock, {})
    pair = [
        cached_prompts(workload, settings, prefill, loads=False),
        cached_prompts(workload, settings, decode),
    ]
    return Servers(workload, settings, prefill.driver.timeline, clock, pair, observe)


def _arrivals(workload: Workload, settings: Settings, share: Share) -> Arrivals:
    trace = workload.trace
    assert isinstance(trace, RequestTrace)

    def requests() -> Iterator[tuple[int, Request]]:
        for number, request in enumerate(trace.requests(workload.limit)):
            if share.has(number, request):
                yield number, request

    return Arrivals(requests(), workload.first_t_ns, settings.replay.speed)
