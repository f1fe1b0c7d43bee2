"""Hits of the first tier: ``TieredCache.read`` beside the copies that it cannot do without.

Batches of resident 4 KiB pages, chosen uniformly from an arena far larger than the caches of the
CPU, are read through the whole cache (kvtier), with ``np.take`` (what a user would write, the
peer) and with a gather that calls ``memcpy`` (the limit). All three run interleaved on the same
pages; every page of every batch is compared with the arena once before anything is timed.

    python bench/hits.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvtier import Settings, TieredCache, open_cache
from kvtier.driver import AsyncDriver
from kvtier.environment import describe_environment
from kvtier.pages import I64, U8, U64
from kvtier.replay.payload import pattern_pages
from kvtier.rows import copy_rows
from kvtier.settings import TierSettings
from kvtier.tiers import MemoryTier

PAGE_BYTES = 4096
OBJECT_PAGES = 4096
Case = Callable[[int], Awaitable[None]]


async def measure(pages: int, batch: int, rounds: int, seed: int) -> dict[str, Any]:
    """One row: median pages per second of each contender, and their ratios."""
    tier = TierSettings("hbm", capacity_bytes=2 * pages * PAGE_BYTES)
    async with open_cache(Settings(tiers=(tier,), device="cpu")) as cache:
        page_ids = await fill(cache, pages)
        hbm = cache.driver.tiers[0]
        assert isinstance(hbm, MemoryTier)
        arena = hbm.arena
        out = np.zeros((batch, PAGE_BYTES), np.uint8)
        rng = np.random.default_rng(seed)
        batches = [page_ids[rng.integers(0, pages, batch)] for _ in range(16)]
        slots = [cache.driver.indexes[0].peek(ids) for ids in batches]
        for ids, where in zip(batches, slots, strict=True):
            await verify(cache, arena, ids, where, out)

        async def through_cache(number: int) -> None:
            await cache.read(batches[number], out)

        async def take(number: int) -> None:
            np.take(arena, slots[number], axis=0, out=out, mode="clip")

        async def gather(number: int) -> None:
            copy_rows(out, None, arena, slots[number])

        rates = await interleave([through_cache, take, gather], batch, rounds)
    return {
        "case": f"{batch} resident pages of {PAGE_BYTES} B, arena {pages * PAGE_BYTES >> 20} MiB",
        "kvtier": rates[0],
        "peer": rates[1],
        "limit": rates[2],
        "unit": "pages/s",
        "ratio_peer": rates[0] / rates[1],
        "ratio_limit": rates[0] / rates[2],
    }


async def fill(cache: TieredCache[AsyncDriver], pages: int) -> U64:
    """Write objects until the tier holds ``pages`` pages; returns the ids of resident ones."""
    keys = [b"object-%d" % number for number in range(pages // OBJECT_PAGES)]
    for key in keys:
        counts = np.array([OBJECT_PAGES])
        await cache.write([key], counts, pattern_pages([key], counts, PAGE_BYTES))
    page_ids = (await cache.open(keys)).page_ids()
    resident = page_ids[cache.driver.resident(page_ids)]
    return np.resize(resident, pages)


async def verify(cache: TieredCache[AsyncDriver], arena: U8, ids: U64, slots: I64, out: U8) -> None:
    result = await cache.read(ids, out)
    if not result.ok or not np.array_equal(out, arena[slots]):
        raise SystemExit("bench/hits.py: the cache delivered a wrong page")


async def interleave(cases: list[Case], batch: int, rounds: int) -> list[float]:
    """Median pages per second of each case, the cases taking turns."""
    rates: list[list[float]] = [[] for _ in cases]
    for _ in range(rounds):
        for case, samples in zip(cases, rates, strict=True):
            start = time.perf_counter()
            for number in range(16):
                await case(number)
            samples.append(16 * batch / (time.perf_counter() - start))
    return [statistics.median(samples) for samples in rates]


async def run(*, quick: bool, seed: int) -> dict[str, Any]:
    pages, rounds = (1 << 16, 15) if quick else (1 << 18, 41)
    rows = [await measure(pages, batch, rounds, seed) for batch in (256, 1024, 4096)]
    return {"environment": describe_environment(), "seed": seed, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    result = asyncio.run(run(quick=arguments.quick, seed=arguments.seed))
    for row in result["rows"]:
        print(
            f"{row['case']}: {row['kvtier']:,.0f} {row['unit']}, "
            f"{row['ratio_peer']:.2f} of np.take, {row['ratio_limit']:.2f} of the memcpy gather"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
