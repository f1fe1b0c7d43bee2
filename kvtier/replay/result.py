"""The result of a run as the JSON mapping that every report is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvtier.chain import Counters, LevelCounters
from kvtier.environment import describe_environment
from kvtier.measure import Measurements
from kvtier.replay.payload import Verifier
from kvtier.replay.series import Series
from kvtier.settings import Settings, to_dict

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Run:
    """What a run leaves behind.

    Attributes:
        mode: ``replay`` or ``simulate``.
        complete: it was not interrupted.
        trace: what was driven, and how it was scaled.
        engines: how each tier worked.
        duration_s: wall time of a replay, virtual time of a simulation.
        busy_s: in virtual time, how long each level's device was occupied.
        verifier: None where no bytes moved.
        notes: of the environment (O_DIRECT or page cache, …).
    """

    mode: str
    complete: bool
    trace: Mapping[str, Any]
    settings: Settings
    engines: Sequence[str]
    duration_s: float
    counters: Counters
    measurements: Measurements
    series: Series
    busy_s: Sequence[float] | None
    verifier: Verifier | None
    notes: Mapping[str, Any]


def to_result(run: Run) -> dict[str, Any]:
    """The mapping of docs/json.md, schema version 1."""
    counters, settings = run.counters, run.settings
    duration_s = run.duration_s
    verifier = run.verifier
    return {
        "schema_version": SCHEMA_VERSION,
        "mode": run.mode,
        "complete": run.complete,
        "trace": dict(run.trace),
        "config": to_dict(settings),
        "environment": {**describe_environment(), **run.notes},
        "seed": settings.seed,
        "duration_s": duration_s,
        "warmup": None,
        "demand": {
            "reads": counters.reads,
            "delivered": counters.delivered,
            "unique": counters.unique,
            "absent": counters.absent,
            "late": counters.late,
            "bytes": counters.delivered * settings.page_bytes,
            "iops": _rate(counters.delivered, duration_s),
            "latency_us": run.measurements.demand.summary_us(),
        },
        "batches": {
            "count": counters.batches,
            "latency_us": run.measurements.batches.summary_us(),
        },
        "writes": {
            "objects": counters.written_objects,
            "pages": counters.written_pages,
            "bytes": counters.written_pages * settings.page_bytes,
        },
        "coalescing": _coalescing(counters),
        "tiers": [
            _tier(run, number, tier.name, engine)
            for number, (tier, engine) in enumerate(zip(settings.tiers, run.engines, strict=True))
        ],
        "origin": _origin(run),
        "series": run.series.to_dict(),
        "utilisation": _utilisation(run),
        "bottleneck": _bottleneck(run),
        "verify": None
        if verifier is None
        else {
            "checked_pages": verifier.checked_pages,
            "corrupt_pages": verifier.corrupt_pages,
        },
    }


def level_names(settings: Settings) -> list[str]:
    """The levels in the order of the chain."""
    origin = [] if settings.origin is None else ["origin"]
    return [tier.name for tier in settings.tiers] + origin


def _coalescing(counters: Counters) -> dict[str, Any]:
    return {
        "folded": counters.folded,
        "joined": counters.joined,
        "merged_extents": sum(level.merged_extents for level in counters.levels),
        "factor": _factor(counters.levels[-1]),
    }


def _tier(run: Run, number: int, name: str, engine: str) -> dict[str, Any]:
    level = run.counters.levels[number]
    return {
        "name": name,
        "engine": engine,
        "lookups": level.lookups,
        "hits": level.hits,
        "hit_rate": level.hits / level.lookups if level.lookups else None,
        "device_reads": level.device_reads,
        "device_writes": level.device_writes,
        "read_bytes": level.read_bytes,
        "evictions": level.evictions,
        "bypasses": level.bypasses,
        "failures": level.failures,
        "coalescing_factor": _factor(level),
        "iops": _rate(level.rows_delivered, run.duration_s),
        "latency_us": run.measurements.levels[number].summary_us(),
    }


def _origin(run: Run) -> dict[str, Any] | None:
    if run.settings.origin is None:
        return None
    level = run.counters.levels[-1]
    return {
        "name": run.settings.origin.backend,
        "lookups": level.lookups,
        "hits": level.hits,
        "failures": level.failures,
        "device_reads": level.device_reads,
        "read_bytes": level.read_bytes,
        "coalescing_factor": _factor(level),
        "iops": _rate(level.rows_delivered, run.duration_s),
        "latency_us": run.measurements.levels[-1].summary_us(),
    }


def _factor(level: LevelCounters) -> float | None:
    """Demand reads that the level had to answer, folded and joined ones too, per device read."""
    return level.rows_asked / level.device_reads if level.device_reads else None


def _utilisation(run: Run) -> dict[str, float] | None:
    if run.busy_s is None or run.duration_s == 0:
        return None
    names = level_names(run.settings)
    return {name: busy / run.duration_s for name, busy in zip(names, run.busy_s, strict=True)}


def _bottleneck(run: Run) -> str | None:
    shares = _utilisation(run)
    return max(shares, key=lambda name: shares[name]) if shares else None


def _rate(count: int, duration_s: float) -> float | None:
    return count / duration_s if duration_s > 0 else None
