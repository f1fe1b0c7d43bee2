"""Page reads simulated per second: four tiers with device queues, in virtual time.

Reads of a zipf distribution (0.99) go through ``hbm``, ``dram``, ``nvme`` and a remote origin, in
waves, one owner thread, no bytes. Beside it, for scale, libCacheSim's LRU on the same ids: one
tier, no time, no devices (``pip install libcachesim``; the column stays empty without it). Both
run interleaved. The last row reads on for 50 million pages (5 with ``--quick``) and tells how much
memory that took.

    python bench/emulator.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import mmap
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvtier.cache import TieredCache
from kvtier.clock import VirtualClock
from kvtier.directory import ObjectDirectory
from kvtier.emulator import VirtualDriver, VirtualLoop, open_emulator
from kvtier.environment import describe_environment
from kvtier.pages import U64
from kvtier.settings import load_settings

PAGES = 1 << 22
TIERS = {"hbm": "1GiB", "dram": "2GiB", "nvme": "8GiB"}
WAVES = (4096, 16_384, 65_536)


def zipf_pages(count: int, seed: int) -> U64:
    """Pages (u64[count]) of an object of ``PAGES``, zipf 0.99, the popular ones anywhere."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, PAGES + 1, dtype=np.float64) ** -0.99
    ranks = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(count))
    return rng.permutation(PAGES)[ranks].astype(np.uint64)


def open_cache(batch_pages: int) -> tuple[asyncio.Runner, TieredCache[VirtualDriver], np.uint64]:
    """What runs an emulated cache, the cache, and the PageId of page 0 of its object."""
    overrides = [f"tiers.{name}.capacity={capacity}" for name, capacity in TIERS.items()]
    overrides += [f"chain.batch_pages_max={batch_pages}", "chain.device_batch_pages=1024"]
    settings = load_settings(None, overrides)
    directory = ObjectDirectory(16)
    driver, origin = open_emulator(settings, directory, VirtualClock(), {b"pages": PAGES})
    cache = TieredCache(driver, directory, origin, settings)
    runner = asyncio.Runner(loop_factory=lambda: VirtualLoop(driver.timeline))
    opened = runner.run(cache.open([b"pages"]))
    return runner, cache, np.uint64(int(opened.object_ids[0]) << 32)


async def read_in_waves(cache: TieredCache[VirtualDriver], page_ids: U64, wave: int) -> None:
    for start in range(0, len(page_ids), wave):
        await cache.read_into(page_ids[start : start + wave], None)
        await cache.drain()


def resident_bytes() -> int:
    """Memory of this process that is in RAM now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def lru_of_libcachesim(pages: U64, directory: Path) -> Callable[[], float] | None:
    """A function that runs its LRU over the pages once, and returns the seconds that took."""
    if importlib.util.find_spec("libcachesim") is None:
        return None
    import libcachesim as lcs  # noqa: PLC0415  # a peer, there or not

    # oracleGeneral: u32 time, u64 id, u32 size, i64 next access, packed.
    kind = np.dtype([("t", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
    rows = np.zeros(len(pages), kind)
    rows["id"], rows["size"], rows["next"] = pages + np.uint64(1), 1, -1
    path = directory / "ids.oracleGeneral"
    rows.tofile(path)
    slots = (1 << 30) // 4096

    def run() -> float:
        reader = lcs.TraceReader(str(path), lcs.TraceType.ORACLE_GENERAL_TRACE)
        cache = lcs.LRU(slots)
        start = time.perf_counter()
        cache.process_trace(reader)
        return time.perf_counter() - start

    return run


def measure(wave: int, pages: U64, rounds: int, peer: Callable[[], float] | None) -> Any:
    """One row: median page reads per second, warm."""
    runner, cache, base = open_cache(max(WAVES))
    page_ids = base | pages
    runner.run(read_in_waves(cache, page_ids, wave))
    ours, theirs = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        runner.run(read_in_waves(cache, page_ids, wave))
        ours.append(len(pages) / (time.perf_counter() - start))
        if peer is not None:
            theirs.append(len(pages) / peer())
    runner.close()
    kvtier = statistics.median(ours)
    libcachesim = statistics.median(theirs) if theirs else None
    levels = cache.driver.chain.counters.levels
    return {
        "case": f"waves of {wave}, hit rates "
        + "/".join(f"{level.hits / level.lookups:.2f}" for level in levels[:-1]),
        "kvtier": kvtier,
        "peer": libcachesim,
        "limit": None,
        "unit": "page reads/s",
        "ratio_peer": kvtier / libcachesim if libcachesim else None,
        "ratio_limit": None,
    }


def measure_memory(pages: U64, total: int) -> dict[str, Any]:
    """How much resident memory grew from the first pass over the pages to the last."""
    runner, cache, base = open_cache(max(WAVES))
    page_ids = base | pages
    runner.run(read_in_waves(cache, page_ids, 16_384))
    gc.collect()
    first = resident_bytes()
    for _ in range(total // len(pages) - 1):
        runner.run(read_in_waves(cache, page_ids, 16_384))
    gc.collect()
    grown = resident_bytes() - first
    runner.close()
    return {
        "case": f"memory grown over {total:,} page reads",
        "kvtier": grown / (1 << 20),
        "peer": None,
        "limit": None,
        "unit": "MiB",
        "ratio_peer": None,
        "ratio_limit": None,
    }


def run(*, quick: bool, seed: int) -> dict[str, Any]:
    count, rounds = (1_000_000, 3) if quick else (4_000_000, 7)
    pages = zipf_pages(count, seed)
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as directory:
        peer = lru_of_libcachesim(pages, Path(directory))
        rows = [measure(wave, pages, rounds, peer) for wave in WAVES]
    rows.append(measure_memory(pages, 5_000_000 if quick else 52_000_000))
    return {"environment": describe_environment(), "seed": seed, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    result = run(quick=arguments.quick, seed=arguments.seed)
    for row in result["rows"]:
        against = "" if row["peer"] is None else f", {row['ratio_peer']:.2f} of libCacheSim's LRU"
        print(f"{row['case']}: {row['kvtier']:,.0f} {row['unit']}{against}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
