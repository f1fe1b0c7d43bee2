"""The I/O engines on one file: ``uring`` and ``threads`` beside aiofiles (peer) and fio (limit).

Batches of random 4 KiB reads and writes, one batch after the other, with O_DIRECT; the contenders
take turns. fio keeps as many operations in flight as the batch allows, without a pause between
batches. Before anything is timed, a sample of pages is compared with the pattern that was written.
Without fio on the PATH the limit is null.

    python bench/engines.py [--quick] [--json FILE] [--directory DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fio import fio_jobs, fio_version

from kvtier.environment import describe_environment
from kvtier.io import ENGINE_NAMES, FileEngine, open_engine
from kvtier.io.ring import Ring, explain
from kvtier.pages import I64, U8
from kvtier.rows import aligned_rows

PAGE_BYTES = 4096
QUEUE_DEPTH = 32
CASES = (("read", 256), ("read", 16), ("read", 4), ("write", 256))


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        file_pages: pages of the file; reads are spread over all of it.
        round_pages: pages moved by one contender in one turn.
        rounds: turns of each contender.
        fio_s: seconds of one turn of fio.
    """

    file_pages: int
    round_pages: int
    rounds: int
    fio_s: float


QUICK = Scale(file_pages=1 << 14, round_pages=1 << 12, rounds=3, fio_s=0.5)
FULL = Scale(file_pages=1 << 18, round_pages=1 << 15, rounds=15, fio_s=2)


async def main(scale: Scale, directory: Path | None, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-", dir=directory) as name:
        engines = {engine: open_file(engine, Path(name), scale) for engine in possible_engines()}
        for engine in engines.values():
            await fill(engine, scale)
            await verify(engine, scale, rng)
        rows = []
        for operation, batch in CASES:
            rows += await measure(engines, Path(name), operation, batch, scale, rng)
        direct = engines["threads"].direct
        for engine in engines.values():
            await engine.close()
    environment = describe_environment() | {"direct": direct, "fio": fio_version()}
    return {"environment": environment, "seed": seed, "rows": rows}


def possible_engines() -> list[str]:
    """The engines that this system allows."""
    try:
        Ring(QUEUE_DEPTH).close()
    except OSError as error:
        print(f"without uring: {explain(error)}")
        return [name for name in ENGINE_NAMES if name != "uring"]
    return list(ENGINE_NAMES)


def open_file(engine: str, directory: Path, scale: Scale) -> FileEngine:
    return open_engine(
        engine,
        directory / engine,
        direct=True,
        queue_depth=QUEUE_DEPTH,
        size_bytes=scale.file_pages * PAGE_BYTES,
        create=True,
    )


def pattern(pages: I64) -> U8:
    """What page ``i`` of the file holds: its number, in every word."""
    content = aligned_rows(len(pages), PAGE_BYTES)
    content.view(np.int64)[:] = pages[:, None]
    return content


async def fill(engine: FileEngine, scale: Scale) -> None:
    step = 1024
    for first in range(0, scale.file_pages, step):
        pages = np.arange(first, min(first + step, scale.file_pages))
        offset, length = pages[:1] * PAGE_BYTES, np.array([len(pages) * PAGE_BYTES])
        done = await engine.write(offset, length, pattern(pages), np.array([0]))
        if (done != length).any():
            raise SystemExit(f"bench/engines.py: {engine.name} could not fill its file: {done}")


async def verify(engine: FileEngine, scale: Scale, rng: np.random.Generator) -> None:
    pages = rng.integers(0, scale.file_pages, 1024)
    out = aligned_rows(len(pages), PAGE_BYTES)
    await engine.read(
        pages * PAGE_BYTES, np.full_like(pages, PAGE_BYTES), out, np.arange(len(pages))
    )
    if not np.array_equal(out, pattern(pages)):
        raise SystemExit(f"bench/engines.py: {engine.name} delivered a wrong page")


async def measure(
    engines: dict[str, FileEngine],
    directory: Path,
    operation: str,
    batch: int,
    scale: Scale,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """A row for each engine of kvtier: the median IOPS of the contenders, and their ratios."""
    rates: dict[str, list[float]] = {name: [] for name in (*engines, "fio")}
    for _ in range(scale.rounds):
        for name, engine in engines.items():
            pages = rng.integers(0, scale.file_pages, (scale.round_pages // batch, batch))
            rates[name].append(await turn(engine, operation, pages))
        if fio_version():
            rates["fio"].append(fio_iops(directory / "threads", operation, batch, scale))
    median = {name: statistics.median(samples) for name, samples in rates.items() if samples}
    peer, limit = median["aiofiles"], median.get("fio")
    case = f"random {PAGE_BYTES} B {operation}s in batches of {batch}, depth {QUEUE_DEPTH}"
    return [
        {
            "case": f"{name}: {case}",
            "kvtier": median[name],
            "peer": peer,
            "limit": limit,
            "unit": "IOPS",
            "ratio_peer": median[name] / peer,
            "ratio_limit": None if limit is None else median[name] / limit,
        }
        for name in engines
        if name != "aiofiles"
    ]


async def turn(engine: FileEngine, operation: str, batches: I64) -> float:
    """IOPS of one contender over batches (i64[k, batch] of page numbers)."""
    count = batches.shape[1]
    lengths, rows = np.full(count, PAGE_BYTES), np.arange(count)
    memory = aligned_rows(count, PAGE_BYTES)
    move: Callable[..., Coroutine[Any, Any, I64]] = getattr(engine, operation)
    start = time.perf_counter()
    for pages in batches:
        done = await move(pages * PAGE_BYTES, lengths, memory, rows)
        if (done != PAGE_BYTES).any():
            raise SystemExit(f"bench/engines.py: {engine.name} failed a {operation}: {done}")
    return batches.size / (time.perf_counter() - start)


def fio_iops(path: Path, operation: str, batch: int, scale: Scale) -> float:
    """IOPS of fio on the same file, the depth that a batch has kept busy all the time."""
    depth = min(batch, QUEUE_DEPTH)
    job, *_ = fio_jobs(
        *("--name=limit", f"--filename={path}", f"--rw=rand{operation}", f"--bs={PAGE_BYTES}"),
        *("--direct=1", "--ioengine=io_uring", f"--iodepth={depth}"),
        *("--time_based", f"--runtime={scale.fio_s:g}s"),
    )
    return float(job[operation]["iops"])


def print_row(row: dict[str, Any]) -> None:
    limit = "fio not found" if row["limit"] is None else f"{row['ratio_limit']:.2f} of fio"
    print(
        f"{row['case']}: {row['kvtier']:,.0f} {row['unit']}, "
        f"{row['ratio_peer']:.1f} times aiofiles, {limit}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--directory", type=Path, help="where the files lie (default: $TMPDIR)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    result = asyncio.run(main(scale, arguments.directory, arguments.seed))
    for row in result["rows"]:
        print_row(row)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
