"""From measurements to the model that repeats them best when it is emulated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from kvtier.calibration.measuring import BURST_RATIO, DEPTHS, Measured, Throttle
from kvtier.calibration.prediction import ROUNDS, predict
from kvtier.settings import DeviceModel
from kvtier.settings.models import TAIL_RATIO_MAX

_MISFIT: Final = 0.05
"""What a rate may be off by for no other reason than that models are simpler than devices."""

_TAIL_MISFIT: Final = 0.1
"""The same of a 99th percentile."""

_LARGE_MISFIT: Final = 4
"""So many times as much of operations larger than a page: they only find the bandwidth."""

_STEPS: Final = (1.5, 1.2, 1.1, 1.05, 1.02)
_SEARCH_ROUNDS: Final = 100
"""Fewer than a prediction takes: the same numbers are drawn for every model that is tried."""

_WORTH: Final = 0.999
"""A step is taken if it brings the loss below this share of what it was."""

_TAIL_MIN: Final = 1.001
_DIGITS: Final = 4


@dataclass(frozen=True, slots=True)
class Fit:
    """What the model does under a load, beside what was measured.

    Attributes:
        measured: by the calibration.
        iops: predicted.
        latency_p50_s: predicted.
        latency_p99_s: predicted.
    """

    measured: Measured
    iops: float
    latency_p50_s: float
    latency_p99_s: float

    @property
    def iops_error(self) -> float:
        """Predicted over measured, less 1."""
        return self.iops / self.measured.iops - 1

    @property
    def p99_error(self) -> float:
        """Predicted over measured, less 1."""
        return self.latency_p99_s / self.measured.latency_p99_s - 1


def compare(model: DeviceModel, measured: Sequence[Measured], rounds: int = ROUNDS) -> list[Fit]:
    """What the model predicts for each load."""
    return [_predicted(model, each, rounds) for each in measured]


def fit_model(measured: Sequence[Measured], throttle: Throttle | None) -> DeviceModel:
    """The model whose emulated device comes nearest to what was measured.

    Reads are fitted first, with latencies that overlap and with batches as large as the greatest
    depth; the better of the two stays. Writes are fitted then, with what reads have settled. Mixed
    loads take no part: they check the result.

    Args:
        measured: reads of several depths and sizes; writes too, or none.
        throttle: as :func:`kvtier.calibration.measuring.probe_throttle` found it. One that a
            later load was faster than was no throttle: the device had been slow for a moment.
    """
    reads = [each for each in measured if each.load.write_share == 0.0]
    if throttle is not None:
        fastest = max(each.iops for each in reads)
        throttle = throttle if fastest < BURST_RATIO * throttle.sustained_iops else None
    writes = [each for each in measured if each.load.write_share == 1.0]
    model = min(
        (_fit_reads(reads, throttle, batch) for batch in (None, DEPTHS[-1])),
        key=lambda candidate: _loss(candidate, reads),
    )
    if writes:
        model = _fit_writes(writes, model)
    return _rounded(model)


def _fit_reads(
    reads: Sequence[Measured], throttle: Throttle | None, batch: int | None
) -> DeviceModel:
    idle = min(reads, key=lambda each: (each.load.depth, each.load.io_bytes))
    start = DeviceModel(
        latency_s=idle.latency_p50_s,
        iops=max(each.iops for each in reads),
        bytes_per_s=max(each.iops * each.load.io_bytes for each in reads),
        tail_latency_s=max(idle.latency_p99_s, idle.latency_p50_s * _TAIL_MIN),
        batch=batch,
    )
    if throttle is not None:
        start = replace(
            start,
            iops=throttle.peak_iops,
            sustained_iops=throttle.sustained_iops,
            burst=throttle.burst,
            refill_s=throttle.refill_s,
        )

    def build(figures: Mapping[str, float]) -> DeviceModel:
        tail = min(max(figures["tail"], _TAIL_MIN), TAIL_RATIO_MAX)
        known = {name: value for name, value in figures.items() if name != "tail"}
        return _replaced(start, known | {"tail_latency_s": tail * figures["latency_s"]})

    figures = {
        "latency_s": start.latency_s,
        "iops": start.iops,
        "bytes_per_s": start.bytes_per_s,
        "tail": (start.tail_latency_s or start.latency_s) / start.latency_s,
    }
    return _search(figures, build, reads)


def _fit_writes(writes: Sequence[Measured], model: DeviceModel) -> DeviceModel:
    idle = min(writes, key=lambda each: (each.load.depth, each.load.io_bytes))
    start = {
        "write_latency_s": idle.latency_p50_s,
        "write_iops": max(each.iops for each in writes),
        "write_bytes_per_s": max(each.iops * each.load.io_bytes for each in writes),
    }
    return _search(start, lambda figures: _replaced(model, figures), writes)


def _search(
    start: Mapping[str, float],
    build: Callable[[Mapping[str, float]], DeviceModel],
    measured: Sequence[Measured],
) -> DeviceModel:
    """Multiply or divide one figure at a time while that helps, by ever smaller steps."""
    best = dict(start)
    least = _loss(build(best), measured)
    for step in _STEPS:
        improved = True
        while improved:
            improved = False
            for name, factor in itertools.product(start, (step, 1 / step)):
                tried = best | {name: best[name] * factor}
                loss = _loss(build(tried), measured)
                if loss < least * _WORTH:
                    best, least, improved = tried, loss, True
    return build(best)


def _loss(model: DeviceModel, measured: Sequence[Measured]) -> float:
    """Squared errors, each over what is to be expected of it: so noise has little say."""
    loss = 0.0
    page_bytes = min(each.load.io_bytes for each in measured)
    for fit in compare(model, measured, _SEARCH_ROUNDS):
        each = fit.measured
        scale = 1 if each.load.io_bytes == page_bytes else _LARGE_MISFIT
        loss += math.log1p(fit.iops_error) ** 2 / ((scale * _MISFIT) ** 2 + each.iops_noise**2)
        loss += math.log1p(fit.p99_error) ** 2 / ((scale * _TAIL_MISFIT) ** 2 + each.p99_noise**2)
    return loss


def _predicted(model: DeviceModel, measured: Measured, rounds: int) -> Fit:
    done = predict(model, measured.load, rounds=rounds)
    return Fit(measured, done.iops, done.latency_s(0.5), done.latency_s(0.99))


def _rounded(model: DeviceModel) -> DeviceModel:
    """Figures as they are written: more digits than anyone measures."""
    names = (
        *("latency_s", "iops", "bytes_per_s", "tail_latency_s", "sustained_iops", "refill_s"),
        *("write_latency_s", "write_iops", "write_bytes_per_s"),
    )
    figures = {name: getattr(model, name) for name in names}
    kept = {
        name: float(f"{value:.{_DIGITS - 1}e}")
        for name, value in figures.items()
        if value is not None
    }
    rounded = _replaced(model, kept)
    if rounded.burst is None or rounded.sustained_iops is None or rounded.refill_s is None:
        return rounded
    # What a device let through in one step, it let through at once.
    step = math.ceil(rounded.sustained_iops * rounded.refill_s)
    return replace(rounded, burst=max(rounded.burst, step))


def _replaced(model: DeviceModel, figures: Mapping[str, Any]) -> DeviceModel:
    return replace(model, **figures)
