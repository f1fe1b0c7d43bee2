"""What the drive of a trace takes for each batch of a request: collecting, and handing on."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from pathlib import Path
from typing import Final

from kvtier.environment import event_loop_factory
from kvtier.replay import replay_trace, simulate_trace
from kvtier.settings import (
    ChainSettings,
    HostSettings,
    OriginSettings,
    ReplaySettings,
    Settings,
    TierSettings,
)
from kvtier.trace import RandomReads, write_random_reads

_REQUESTS: Final = 64
_HOPS: Final = 100
_HOPS_MIN: Final = 4
_READ_BYTES: Final = 1 << 30
"""What a run reads at most, unless that were fewer hops."""

_PAGES: Final = 16
"""Distinct pages: few, so that nearly all reads are hits in the first memory."""

_RUNS: Final = 3


def measure_requests(host: HostSettings, page_bytes: int) -> float:
    """Seconds of each batch of a request: a replay's time beyond what ``host`` explains.

    Requests read a page at a time, in waves, and nearly all of it from the first memory.
    """
    hops = max(min(_HOPS, _READ_BYTES // (_REQUESTS * page_bytes)), _HOPS_MIN)
    load = RandomReads(threads=_REQUESTS, hops=hops, page_bytes=page_bytes, object_pages=_PAGES)
    settings = Settings(
        page_bytes=page_bytes,
        device="cpu",
        tiers=(TierSettings("hbm", 4 * _PAGES * page_bytes, extent_pages_max=1),),
        origin=OriginSettings("memory", extent_pages_max=1),
        chain=ChainSettings(device_batch_pages=_PAGES, staging_bytes=4 * _PAGES * page_bytes),
        replay=ReplaySettings(concurrency=_REQUESTS, verify_share=0),
        host=host,
    )
    with tempfile.TemporaryDirectory(prefix="kvtier-requests-") as directory:
        trace = Path(directory) / "load.parquet"
        write_random_reads(trace, load)
        simulated = simulate_trace(trace, settings, limit=None, progress=_quiet, notify=_quiet)
        taken_s = statistics.median(_replay_s(trace, settings) for _ in range(_RUNS))
    return max(taken_s - float(simulated["duration_s"]), 0.0) / (_REQUESTS * hops)


def _replay_s(trace: Path, settings: Settings) -> float:
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        result = runner.run(
            replay_trace(trace, settings, limit=None, progress=_quiet, notify=_quiet)
        )
    return float(result["duration_s"])


def _quiet(*_: object) -> None:
    """No progress, no notices."""
