"""Configurations of a grid, simulated, and measured as targets ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kvtier.errors import TraceError
from kvtier.replay import simulate_trace
from kvtier.settings import Settings
from kvtier.settings.ways import without_places
from kvtier.sizing.economics import Wear, wear
from kvtier.sizing.grid import Grid, Scale
from kvtier.sizing.targets import METRICS, Metrics, Target
from kvtier.sizing.task import SizingTask


class Trials:
    """Simulates configurations, and keeps what came of them.

    Args:
        task: the trace, the settings and the targets.
        grid: the configurations.
        scale: how much smaller than at the full geometry they are simulated.
        recorded_s: from the first to the last arrival in the trace.

    Attributes:
        metrics: of each configuration that was simulated, by its number.
        result: the simulation of the cheapest of those that meet all targets.
    """

    def __init__(self, task: SizingTask, grid: Grid, scale: Scale, recorded_s: float) -> None:
        self.task = task
        self.grid = grid
        self.scale = scale
        self.metrics: dict[int, Metrics] = {}
        self.result: Mapping[str, Any] = {}
        self._recorded_s = recorded_s
        self._cheapest = len(grid)

    def simulate(self, number: int) -> list[Target] | None:
        """Simulate one configuration; returns the targets that it misses, None after Ctrl-C.

        Raises:
            TraceError: the trace reads nothing.
            KvtierError: as :func:`kvtier.replay.simulate_trace`.
        """
        task = self.task
        settings = configured(task.settings, self.grid.capacities(number), self.scale)
        result = simulate_trace(
            task.path, settings, limit=task.limit, progress=_ignore, notify=_ignore
        )
        if not result["complete"]:
            return None
        if not result["demand"]["unique"]:
            raise TraceError(
                f"{task.path}: nothing is read that was there before, so there is no read to size "
                "for; take more requests, or lower replay.concurrency"
            )
        wears = [worn for worn in self.wears(number, result).values() if worn is not None]
        self.metrics[number] = {name: one.measure(result, wears) for name, one in METRICS.items()}
        missed = self.missed(number)
        if not missed and number < self._cheapest:
            self._cheapest, self.result = number, result
        return missed

    def missed(self, number: int) -> list[Target]:
        """The targets that a configuration misses which was simulated."""
        metrics = self.metrics[number]
        return [target for target in self.task.targets if not target.is_met(metrics[target.name])]

    def wears(self, number: int, result: Mapping[str, Any]) -> dict[str, Wear | None]:
        """The wear of each tier of a configuration with this result."""
        full_bytes = self.grid.capacities(number)
        span_s, _ = self.pace(result)
        return {
            tier["name"]: wear(
                self.task.prices[tier["name"]],
                full_bytes[tier["name"]],
                tier["written_bytes"] * self.scale.factor,
                span_s,
            )
            for tier in result["tiers"]
        }

    def pace(self, result: Mapping[str, Any]) -> tuple[float, str]:
        """In how many seconds the writes of a run happen, and what says so."""
        drive = self.task.settings.replay.drive
        if drive in {"open", "serving"}:
            return result["duration_s"], f"virtual time of the drive {drive}"
        if self._recorded_s > 0:
            return self._recorded_s, "recorded, from the first to the last arrival"
        return result["duration_s"], "virtual time, for all arrivals were recorded at one moment"


def configured(settings: Settings, full_bytes: Mapping[str, int], scale: Scale) -> Settings:
    """The settings with tiers of these capacities, scaled down to what is simulated."""
    tiers = tuple(
        replace(tier, capacity_bytes=scale.simulated(full_bytes[tier.name]))
        for tier in settings.tiers
        if full_bytes[tier.name]
    )
    if settings.topology is None:
        return replace(settings, tiers=tiers)
    left_out = [name for name, size in full_bytes.items() if not size]
    return replace(settings, tiers=tiers, topology=without_places(settings.topology, left_out))


def _ignore(*_: object) -> None:
    """One simulation of many tells nobody how far it is."""
