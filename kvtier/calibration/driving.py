"""What the drive of a trace takes, and what is waited for: short replays, beside simulations.

Requests that find nearly all in the first memory say what a drive takes for each. Requests whose
pages are on all levels say what operations wait for beyond the devices and the host: for threads
that must be woken, and that get in each other's way.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np

from kvtier.calibration.explaining import explain
from kvtier.environment import event_loop_factory
from kvtier.replay import replay_trace, simulate_trace
from kvtier.settings import HostSettings, OriginSettings, ReplaySettings, Settings, TierSettings
from kvtier.trace import RandomReads, write_random_reads

_READS: Final = (640, 6400)
"""Of a replay, at least and at most; fewer where they would be more than :data:`_READ_BYTES`."""

_READS_PER_S: Final = 2500
"""So many for each second that replays may take."""

_READ_BYTES: Final = 1 << 30
_HOPS_MIN: Final = 4
_REQUESTS: Final = 64
_WAVES: Final = (16, 128)
"""Requests that ask together: a few operations for each device, and many."""

_HOT_PAGES: Final = 16
"""Distinct pages of requests that find nearly all in the first memory."""

_STEP_S: Final = 100e-6
"""A wait whose effect is simulated; it is nearly in proportion."""


@dataclass(frozen=True, slots=True)
class _Short:
    """A short replay.

    Attributes:
        trace: its requests.
        settings: with a host.
        steps: batches that the requests ask for, all together.
    """

    trace: Path
    settings: Settings
    steps: int

    def replayed_s(self) -> float:
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            result = runner.run(
                replay_trace(self.trace, self.settings, limit=None, progress=_quiet, notify=_quiet)
            )
        return float(result["duration_s"])

    def simulated_s(self, host: HostSettings) -> float:
        settings = replace(self.settings, host=host)
        result = simulate_trace(self.trace, settings, limit=None, progress=_quiet, notify=_quiet)
        return float(result["duration_s"])


def measure_drives(mixed: Settings, pages: int, directory: Path, seconds: float) -> HostSettings:
    """The host of ``mixed``, with what drives take and what operations wait.

    Args:
        mixed: a cache whose levels all have a part of what is read, models of its devices, and a
            host.
        pages: of the object that is read.
        directory: for traces, removed by the caller.
        seconds: replay for about so long; each replay is made twice at least.
    """
    first = TierSettings("hbm", 4 * _HOT_PAGES * mixed.page_bytes, extent_pages_max=1)
    hot = replace(mixed, tiers=(first,), origin=OriginSettings("memory", extent_pages_max=1))
    reads = round(min(max(seconds * _READS_PER_S, _READS[0]), _READS[1]))
    reads = min(reads, _READ_BYTES // mixed.page_bytes)
    requests = _short(hot, directory, reads, _REQUESTS, _HOT_PAGES, "waves")
    waves = [_short(mixed, directory, reads, each, pages, "waves") for each in _WAVES]
    paced = _short(mixed, directory, reads, _REQUESTS, pages, "closed")
    requests_s, *waves_s, paced_s = _medians([requests, *waves, paced], seconds)
    host = mixed.host
    assert host is not None
    host = replace(host, request_s=_left(requests, host, requests_s))
    wait_s, operation_wait_s = _waits(waves, host, waves_s)
    host = replace(host, wait_s=wait_s, operation_wait_s=operation_wait_s)
    return replace(host, paced_request_s=_left(paced, host, paced_s))


def _short(
    cache: Settings,
    directory: Path,
    reads: int,
    requests: int,
    pages: int,
    drive: Literal["waves", "closed"],
) -> _Short:
    """A replay of requests that read a random page at a time."""
    hops = max(reads // requests, _HOPS_MIN)
    trace = directory / f"{requests}-{pages}.parquet"
    load = RandomReads(threads=requests, hops=hops, page_bytes=cache.page_bytes, object_pages=pages)
    write_random_reads(trace, load)
    drive_settings = ReplaySettings(drive=drive, concurrency=requests, verify_share=0)
    return _Short(trace, replace(cache, replay=drive_settings), requests * hops)


def _medians(replays: Sequence[_Short], seconds: float) -> list[float]:
    """What each takes in s, of several in turn; the first ones store the objects and compile."""
    for each in replays:
        each.replayed_s()
    taken_s: list[list[float]] = [[] for _ in replays]
    end_s = time.perf_counter() + seconds
    for turn in itertools.count():
        if turn and time.perf_counter() > end_s:
            break
        for each, found in zip(replays, taken_s, strict=True):
            found.append(each.replayed_s())
    return [statistics.median(found) for found in taken_s]


def _left(replay: _Short, host: HostSettings, taken_s: float) -> float:
    """What a step takes beyond what ``host`` explains."""
    return max(taken_s - replay.simulated_s(host), 0.0) / replay.steps


def _waits(
    waves: Sequence[_Short], host: HostSettings, taken_s: Sequence[float]
) -> tuple[float, float]:
    """Waits of a device batch and of an operation that explain what ``host`` does not."""
    plain_s = np.array([each.simulated_s(host) for each in waves])
    slower = (replace(host, wait_s=_STEP_S), replace(host, operation_wait_s=_STEP_S))
    effects = np.array([[each.simulated_s(one) for one in slower] for each in waves])
    effects = (effects - plain_s[:, None]) / _STEP_S
    taken = np.array(taken_s)
    wait_s, operation_wait_s = explain(effects, np.maximum(taken - plain_s, 0.0), 1 / taken)
    return wait_s, operation_wait_s


def _quiet(*_: object) -> None:
    """No progress, no notices."""
