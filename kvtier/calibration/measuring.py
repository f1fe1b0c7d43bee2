"""Measuring a device: which loads, how often, and what came of each."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kvtier.calibration.load import Load, Operations
from kvtier.calibration.running import run_load
from kvtier.calibration.target import Target
from kvtier.errors import DeviceError
from kvtier.pages import I64
from kvtier.units import format_bytes

DEPTHS: Final = (1, 4, 16, 64, 128)
"""Of the random reads of a page."""

WRITE_DEPTHS: Final = (1, 16, 64)
LARGE_BYTES: Final = (64 << 10, 1 << 20)
"""Of the reads that find the bandwidth."""

_LARGE_DEPTH: Final = 16
_MIX: Final = 0.3
TURNS: Final = (3, 15)
"""Of each load, at least and at most, as time allows. They are interleaved, for a shared device
changes from second to second: the more there are, the less a bad second is in the middle of them.
"""

_PROBE_DEPTH: Final = 64
_PAUSE_S: Final = 0.5
"""A throttle's bucket fills a little meanwhile."""

_TURN_S_MIN: Final = 0.1
_WARM_SHARE: Final = 0.15
_BIN_NS: Final = 20_000_000
_BINS_MIN: Final = 10
BURST_RATIO: Final = 1.3
"""How much faster than the sustained rate a burst is, at least: less may be noise."""

_QUARTILES: Final = 1.349
"""Of a normal distribution, so many standard deviations are between them."""

_STALL: Final = 20
"""A gap of so many times that between two operations at the sustained rate is a stall."""


Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians over the turns of a load.

    Attributes:
        load: what was asked for.
        iops: operations per second.
        latency_p50_s: median latency of an operation.
        latency_p99_s: 99th percentile.
        iops_spread: the largest IOPS of a turn over the smallest.
        p99_spread: the same of the 99th percentile.
        iops_noise: standard error of the median of the IOPS, as a share of it.
        p99_noise: the same of the 99th percentile.
    """

    load: Load
    iops: float
    latency_p50_s: float
    latency_p99_s: float
    iops_spread: float = 1.0
    p99_spread: float = 1.0
    iops_noise: float = 0.0
    p99_noise: float = 0.0


@dataclass(frozen=True, slots=True)
class Throttle:
    """What a device that is throttled does under full load after a pause.

    Attributes:
        peak_iops: before the burst was used up.
        sustained_iops: after that.
        burst: operations that were let through beyond the sustained rate.
        refill_s: between two steps; None: none are seen.
    """

    peak_iops: float
    sustained_iops: float
    burst: int
    refill_s: float | None


def plan_loads(page_bytes: int, *, writes: bool) -> list[Load]:
    """Every load of a calibration: reads of a page, large reads, then writes and a mix."""
    loads = [Load(depth, page_bytes) for depth in DEPTHS]
    loads += [Load(_LARGE_DEPTH, size) for size in LARGE_BYTES if size > page_bytes]
    if writes:
        loads += [Load(depth, page_bytes, 1.0) for depth in WRITE_DEPTHS]
        loads.append(Load(_LARGE_DEPTH, LARGE_BYTES[0], 1.0))
        loads.append(Load(_LARGE_DEPTH, page_bytes, _MIX))
    return loads


def measure_loads(
    target: Target, loads: list[Load], seconds: float, rng: np.random.Generator, progress: Progress
) -> list[list[Operations]]:
    """Measure every load in interleaved turns that take ``seconds`` together.

    A turn takes 0.1 s at least: large operations need that to have a rate. There are as many of
    them as that allows, within :data:`TURNS`. Reads come first: after writes a device is slower
    for a while.

    Args:
        target: the device.
        loads: of it.
        seconds: for how long.
        rng: chooses the pages.
        progress: told how many turns are over, of those of this call.

    Returns:
        The turns of each load.

    Raises:
        DeviceError: an operation failed.
    """
    count = min(max(int(seconds / (_TURN_S_MIN * len(loads))), TURNS[0]), TURNS[1])
    turn_s = max(seconds / (count * len(loads)), _TURN_S_MIN)
    reads = [number for number, load in enumerate(loads) if not load.write_share]
    writes = [number for number, load in enumerate(loads) if load.write_share]
    schedule = reads * count + writes * count
    turns: list[list[Operations]] = [[] for _ in loads]
    for over, number in enumerate(schedule, 1):
        done = _run(target, loads[number], turn_s, rng)
        turns[number].append(done.after(round(_WARM_SHARE * turn_s * 1e9)))
        progress(over, len(schedule))
    return turns


def summarise(load: Load, turns: list[Operations]) -> Measured:
    """Medians over turns; those in which too little was done to have a rate are left out.

    Raises:
        DeviceError: that was so in all.
    """
    turns = [turn for turn in turns if turn.iops]
    if not turns:
        raise DeviceError(
            f"hardly an operation of {format_bytes(load.io_bytes)} ended in time; "
            "give more --seconds"
        )
    rates = [turn.iops for turn in turns]
    tails = [turn.latency_s(0.99) for turn in turns]
    return Measured(
        load,
        iops=statistics.median(rates),
        latency_p50_s=statistics.median(turn.latency_s(0.5) for turn in turns),
        latency_p99_s=statistics.median(tails),
        iops_spread=max(rates) / min(rates),
        p99_spread=max(tails) / min(tails),
        iops_noise=_noise(rates),
        p99_noise=_noise(tails),
    )


def _noise(turns: Sequence[float]) -> float:
    """Standard error of the logarithm of a median, by the quartiles of a normal distribution."""
    low, high = np.quantile(np.log(turns), (0.25, 0.75))
    return float((high - low) / _QUARTILES * math.sqrt(math.pi / 2 / len(turns)))


def probe_throttle(
    target: Target, page_bytes: int, seconds: float, rng: np.random.Generator
) -> Throttle | None:
    """Whether full load after a pause is let through faster at first than later."""
    time.sleep(min(_PAUSE_S, seconds / 4))
    return find_throttle(_run(target, Load(_PROBE_DEPTH, page_bytes), seconds, rng))


def _run(target: Target, load: Load, seconds: float, rng: np.random.Generator) -> Operations:
    return run_load(target.file, target.size_bytes, load, seconds, rng, target.engine)


def find_throttle(done: Operations) -> Throttle | None:
    """The split of a load into a burst and the rest; None unless the burst is 1.3 times as fast.

    The split is where the number of operations done is furthest above the straight line from the
    first to the last: at the bend, if there is one.
    """
    counts = np.bincount(done.ends_ns // _BIN_NS)[:-1]  # the last is not whole
    if len(counts) < 2 * _BINS_MIN:
        return None
    total = np.cumsum(counts)
    bend = int(np.argmax(total - total[-1] * np.arange(1, len(total) + 1) / len(total))) + 1
    bend = min(max(bend, 1), len(counts) - _BINS_MIN)
    per_s = 1e9 / _BIN_NS
    peak = float(np.median(counts[:bend])) * per_s
    sustained = float(np.mean(counts[bend:])) * per_s
    if sustained == 0 or peak < BURST_RATIO * sustained:
        return None
    burst = round(float(total[bend - 1]) - sustained * bend * _BIN_NS / 1e9)
    late = done.ends_ns[done.ends_ns >= bend * _BIN_NS]
    return Throttle(peak, sustained, max(burst, 1), _find_steps(late, sustained))


def _find_steps(ends_ns: I64, sustained: float) -> float | None:
    """The time between two refills, where stalls fill most of the time that the throttle takes."""
    gaps = np.diff(ends_ns)
    stalls = np.flatnonzero(gaps > _STALL * 1e9 / sustained)
    if len(stalls) < _BINS_MIN or gaps[stalls].sum() < (ends_ns[-1] - ends_ns[0]) / 10:
        return None
    return float(np.median(np.diff(ends_ns[stalls + 1]))) / 1e9
