"""What the drive of a trace takes for each batch of a request: collecting, and handing on."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from pathlib import Path
from typing import Final

from kvtier.environment import event_loop_factory
from kvtier.replay import replay_trace, simulate_trace
from kvtier.settings import HostSettings, OriginSettings, ReplaySettings, Settings, TierSettings
from kvtier.trace import RandomReads, write_random_reads

_REQUESTS: Final = 64
_HOPS: Final = 100
_PAGES: Final = 64
"""Distinct pages: few, so that nearly all reads are hits in the first memory."""

_RUNS: Final = 3


def measure_requests(host: HostSettings, page_bytes: int) -> float:
    """Seconds of each batch of a request: a replay's time beyond what ``host`` explains.

    Requests read a page at a time, in waves, and nearly all of it from the first memory.
    """
    load = RandomReads(threads=_REQUESTS, hops=_HOPS, page_bytes=page_bytes, object_pages=_PAGES)
    settings = Settings(
        page_bytes=page_bytes,
        device="cpu",
        tiers=(TierSettings("hbm", 8 * _PAGES * page_bytes),),
        origin=OriginSettings("memory"),
        replay=ReplaySettings(concurrency=_REQUESTS, verify_share=0),
        host=host,
    )
    with tempfile.TemporaryDirectory(prefix="kvtier-requests-") as directory:
        trace = Path(directory) / "load.parquet"
        write_random_reads(trace, load)
        simulated = simulate_trace(trace, settings, limit=None, progress=_quiet, notify=_quiet)
        taken_s = statistics.median(_replay_s(trace, settings) for _ in range(_RUNS))
    return max(taken_s - float(simulated["duration_s"]), 0.0) / (_REQUESTS * _HOPS)


def _replay_s(trace: Path, settings: Settings) -> float:
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        result = runner.run(
            replay_trace(trace, settings, limit=None, progress=_quiet, notify=_quiet)
        )
    return float(result["duration_s"])


def _quiet(*_: object) -> None:
    """No progress, no notices."""
