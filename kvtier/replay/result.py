"""The result of a run as the JSON mapping that every report is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvtier.chain import Counters, LevelCounters, total
from kvtier.emulator import ReadLoad
from kvtier.environment import describe_environment
from kvtier.measure import Measurements
from kvtier.metrics import LatencyHistogram
from kvtier.pages import Purpose
from kvtier.replay.crossover import crossover
from kvtier.replay.fleet import Gpu
from kvtier.replay.paced import Pace
from kvtier.replay.payload import Verifier
from kvtier.replay.series import Series
from kvtier.settings import (
    DeviceModel,
    Settings,
    Spread,
    default_model,
    device_names,
    model_source,
    to_dict,
)
from kvtier.settings.rates import reads_per_s
from kvtier.wear import wear

SCHEMA_VERSION = 1

_FLASH_IOPS = "of reads alone, of single pages of this run"
"""A drive that follows from how it is built has no operation rate of its own."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a run leaves behind.

    Attributes:
        mode: ``replay`` or ``simulate``.
        complete: it was not interrupted.
        trace: what was driven, and how it was scaled.
        engines: how each tier worked.
        duration_s: wall time of a replay, virtual time of a simulation.
        pace: of the requests; None in waves.
        requests: what was measured of them.
        counters, measurements: of the reads for each purpose.
        busy_s: in virtual time, how long each device and link was occupied, by its name.
        loads: in virtual time, what each of them let through.
        verifier: None where no bytes moved.
        notes: of the environment (O_DIRECT or page cache, …).
        gpus: of which all that is the sum.
        spread: how requests went to several.
        serving: what a model server did; None in other drives.
        events: the event log that the run wrote or repeated.
        wrappers: what those around the origin did, by name; None where there was none.
        extra_written_bytes: by tier, what its device was written beside pages.
    """

    mode: str
    complete: bool
    trace: Mapping[str, Any]
    settings: Settings
    engines: Sequence[str]
    duration_s: float
    pace: Pace | None
    requests: Mapping[str, Any]
    counters: Mapping[Purpose, Counters]
    measurements: Mapping[Purpose, Measurements]
    series: Series
    busy_s: Mapping[str, float] | None
    loads: Mapping[str, ReadLoad] | None
    verifier: Verifier | None
    notes: Mapping[str, Any]
    gpus: Sequence[Gpu] = ()
    spread: Spread | None = None
    serving: Mapping[str, Any] | None = None
    events: Mapping[str, str] | None = None
    wrappers: Mapping[str, Mapping[str, int]] | None = None
    extra_written_bytes: Mapping[str, int] = field(default_factory=dict)


def to_result(run: Run) -> dict[str, Any]:
    """The mapping of docs/json.md, schema version 1."""
    settings, verifier = run.settings, run.verifier
    counters, measurements = _of_all_purposes(run.counters, run.measurements)
    whole = _part(run, counters, measurements, extra_bytes=run.extra_written_bytes)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": run.mode,
        "mode": run.mode,
        "complete": run.complete,
        "trace": dict(run.trace),
        "config": to_dict(settings),
        "environment": {**describe_environment(), **run.notes},
        "seed": settings.seed,
        "duration_s": run.duration_s,
        "warmup": None,
        "drive": {**_drive(run), "events": run.events},
        "requests": dict(run.requests),
        "serving": run.serving,
        "demand": whole["demand"],
        "batches": whole["batches"],
        "writes": _writes(counters, settings.page_bytes),
        "coalescing": whole["coalescing"],
        "tiers": whole["tiers"],
        "origin": whole["origin"] and {**whole["origin"], "wrappers": run.wrappers},
        "by_purpose": {
            purpose.word: _part(run, run.counters[purpose], run.measurements[purpose])
            for purpose in Purpose
            if run.counters[purpose].reads
        },
        "gpus": None if len(run.gpus) < 2 else [_gpu(run, gpu) for gpu in run.gpus],
        "models": None if run.busy_s is None else _models(settings),
        "series": run.series.to_dict(),
        "utilisation": _utilisation(run),
        "bottleneck": _bottleneck(run),
        "crossover": None if run.loads is None else _crossover(run, counters),
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


def _of_all_purposes(
    counters: Mapping[Purpose, Counters], measurements: Mapping[Purpose, Measurements]
) -> tuple[Counters, Measurements]:
    levels = len(counters[Purpose.UNSTATED].levels)
    whole = Measurements(levels)
    for part in measurements.values():
        whole.merge(part)
    return total(counters.values(), levels), whole


def _gpu(run: Run, gpu: Gpu) -> dict[str, Any]:
    """One of several GPUs; its rates are of the whole run, so they add up."""
    counters, measurements = _of_all_purposes(*gpu.measured)
    return {
        "name": gpu.name,
        "requests": gpu.meter.to_dict(run.duration_s),
        "writes": _writes(counters, run.settings.page_bytes),
        **_part(run, counters, measurements, caches=1),
    }


def _writes(counters: Counters, page_bytes: int) -> dict[str, int]:
    return {
        "objects": counters.written_objects,
        "pages": counters.written_pages,
        "bytes": counters.written_pages * page_bytes,
    }


def _part(
    run: Run,
    counters: Counters,
    measurements: Measurements,
    *,
    caches: int | None = None,
    extra_bytes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """All reads of a run, those for one purpose, or those of one GPU, which has one of the caches.

    ``extra_bytes`` are written by tier for no read in particular: only the whole has them.
    """
    tiers = [
        _tier(run, counters.levels[number], measurements.levels[number], tier.name, engine)
        | wear(
            tier,
            counters.levels[number],
            page_bytes=run.settings.page_bytes,
            extra_bytes=(extra_bytes or {}).get(tier.name, 0),
            caches=caches or max(1, len(run.gpus)),
            duration_s=run.duration_s,
        )
        for number, (tier, engine) in enumerate(zip(run.settings.tiers, run.engines, strict=True))
    ]
    origin = run.settings.origin
    return {
        "demand": {
            "reads": counters.reads,
            "delivered": counters.delivered,
            "unique": counters.unique,
            "absent": counters.absent,
            "late": counters.late,
            "bytes": counters.delivered * run.settings.page_bytes,
            "iops": _rate(counters.delivered, run.duration_s),
            "latency_us": measurements.demand.summary_us(),
        },
        "batches": {
            "count": counters.batches,
            "latency_us": measurements.batches.summary_us(),
        },
        "coalescing": {
            "folded": counters.folded,
            "joined": counters.joined,
            "merged_extents": sum(level.merged_extents for level in counters.levels),
            "factor": _factor(counters.levels[-1]),
        },
        "tiers": tiers,
        "origin": None
        if origin is None
        else _origin(run, counters.levels[-1], measurements.levels[-1], origin.backend),
    }


def _drive(run: Run) -> dict[str, Any]:
    """How requests were driven; None where that is said by the trace, or plays no part."""
    replay, pace = run.settings.replay, run.pace
    compute_ns = None if pace is None else pace.compute_ns
    return {
        "kind": replay.drive,
        "concurrency": replay.concurrency,
        "compute_s": None if compute_ns is None else compute_ns / 1e9,
        "tick_s": None if pace is None else pace.tick_ns / 1e9,
        "gpus": max(1, len(run.gpus)) if run.mode == "simulate" else None,
        "spread": run.spread if len(run.gpus) > 1 else None,
        "speed": replay.speed if replay.drive in ("open", "serving") else None,
    }


def _tier(
    run: Run, level: LevelCounters, latency: LatencyHistogram, name: str, engine: str
) -> dict[str, Any]:
    return {
        "name": name,
        "engine": engine,
        "lookups": level.lookups,
        "hits": level.hits,
        "hit_rate": level.hits / level.lookups if level.lookups else None,
        "device_reads": level.device_reads,
        "device_writes": level.device_writes,
        "moved_pages": level.moved_pages,
        "read_bytes": level.read_bytes,
        "evictions": level.evictions,
        "bypasses": level.bypasses,
        "failures": level.failures,
        "coalescing_factor": _factor(level),
        "iops": _rate(level.rows_delivered, run.duration_s),
        "latency_us": latency.summary_us(),
    }


def _origin(
    run: Run, level: LevelCounters, latency: LatencyHistogram, backend: str
) -> dict[str, Any]:
    return {
        "name": backend,
        "lookups": level.lookups,
        "hits": level.hits,
        "failures": level.failures,
        "device_reads": level.device_reads,
        "read_bytes": level.read_bytes,
        "coalescing_factor": _factor(level),
        "iops": _rate(level.rows_delivered, run.duration_s),
        "latency_us": latency.summary_us(),
    }


def _models(settings: Settings) -> list[dict[str, Any]]:
    """What stood for each level, all of its devices together."""
    models: list[tuple[str, DeviceModel]] = [
        (tier.name, tier.model or default_model(tier.name)) for tier in settings.tiers
    ]
    if settings.origin is not None:
        models.append(("origin", settings.origin.model or default_model("origin")))
    stations = {name: len(set(device_names(settings, name))) for name, _ in models}
    devices = {name: model.devices * stations[name] for name, model in models}
    return [
        {
            "level": name,
            "preset": model.preset,
            "devices": devices[name],
            "latency_us": model.latency_s * 1e6,
            "iops": _model_iops(model, settings.page_bytes) * stations[name],
            "bytes_per_s": model.bytes_per_s * devices[name],
            "source": model_source(model)
            + ("" if model.flash is None else f"; IOPS are {_FLASH_IOPS}"),
        }
        for name, model in models
    ]


def _model_iops(model: DeviceModel, page_bytes: int) -> float:
    if model.flash is None:
        return model.iops * model.devices
    return reads_per_s(model, page_bytes)


def _factor(level: LevelCounters) -> float | None:
    """Demand reads that the level had to answer, folded and joined ones too, per device read."""
    return level.rows_asked / level.device_reads if level.device_reads else None


def _utilisation(run: Run) -> dict[str, float] | None:
    if run.busy_s is None or run.duration_s == 0:
        return None
    # What is booked beyond the end is no part of the run: programs of a flash drive that take what
    # its buffer holds, and after Ctrl-C whatever was under way.
    return {name: min(busy_s / run.duration_s, 1.0) for name, busy_s in run.busy_s.items()}


def _bottleneck(run: Run) -> str | None:
    shares = _utilisation(run)
    return max(shares, key=lambda name: shares[name]) if shares else None


def _crossover(run: Run, counters: Counters) -> dict[str, Any] | None:
    assert run.loads is not None
    names = (device_names(run.settings, tier.name) for tier in run.settings.tiers[:1])
    first = list(dict.fromkeys(name for of_gpus in names for name in of_gpus))
    return crossover(run.loads, first, run.settings.page_bytes, counters.delivered)


def _rate(count: int, duration_s: float) -> float | None:
    return count / duration_s if duration_s > 0 else None
