"""Random reads of a drive: engine ``uring`` beside engine ``threads`` (peer) and fio (limit).

Direct reads of one file by all contenders in turn, so many in flight all the time: fio with
io_uring, a registered file and registered buffers; the engines with batches enough to keep a queue
of them. Rows tell operations per second, and the processor time that each took; of the engines also
with a checksum of every page, as the ``nvme`` tier makes one. The last batches of a turn are
compared with what was written. Without fio on the PATH the limit is null. Then come
fills and reads through a whole cache (``bench/nvme_cache.py``), and last writes of whole segments,
and reads while segments are written (``bench/nvme_filling.py``), whose limit is the same engine's
p99 without filling.

    python bench/nvme.py [--quick] [--json FILE] [--directory DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fio import fio_jobs, fio_version
from nvme_cache import CacheTurns, cache_settings, new_payload, processor_s
from nvme_filling import fio_written_per_s, measure_filling

from kvtier import open_cache
from kvtier.checksum import xxh64_rows
from kvtier.environment import describe_environment, event_loop_factory
from kvtier.io import open_engine
from kvtier.rows import aligned_rows

PAGE_BYTES = 4096
ENGINES = ("uring", "threads")
SUMMED_PAGES = 1 << 15


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of the drive.

    Attributes:
        io_pages: pages of one read.
        depth: reads in flight.
        batch: reads of one batch.
        summed: the engines' pages get a checksum, as those of a tier do; fio's do not.
    """

    io_pages: int
    depth: int
    batch: int
    summed: bool = False

    @property
    def tasks(self) -> int:
        """Batches at once: twice what is in flight, so that there is always a next read."""
        return 2 * self.depth // self.batch

    def __str__(self) -> str:
        what = f"random reads of {self.io_pages * PAGE_BYTES >> 10} KiB, depth {self.depth}"
        return f"{what}, with checksums" if self.summed else what


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: pages of the file, turns of each contender, seconds of one."""

    file_pages: int
    rounds: int
    turn_s: float


@dataclass(frozen=True, slots=True)
class Rate:
    """What one turn of a contender gave: reads per second, and processor time of each."""

    iops: float
    cpu_us: float


CASES = (
    Case(1, 128, 64),
    Case(1, 64, 32),
    Case(1, 128, 64, summed=True),
    Case(1, 64, 32, summed=True),
    Case(16, 32, 16),
    Case(256, 16, 8),
)
QUICK = Scale(file_pages=1 << 16, rounds=3, turn_s=0.5)
FULL = Scale(file_pages=1 << 19, rounds=15, turn_s=2)


async def main(scale: Scale, directory: Path | None, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-", dir=directory) as name:
        path = Path(name) / "pages"
        direct = await fill(path, scale)
        for case in CASES:
            rows += await measure(path, case, scale, rng)
        rows.append(measure_checksums(scale, rng))
        rows += await measure_cache(Path(name), path, scale, rng)
        path.unlink()
        rows += await measure_filling(Path(name), scale.file_pages, scale.rounds, scale.turn_s, rng)
    environment = describe_environment() | {"direct": direct, "fio": fio_version()}
    return {"environment": environment, "seed": seed, "rows": rows}


async def fill(path: Path, scale: Scale) -> bool:
    """Write the number of each page into its words; whether past the page cache."""
    engine = open_engine(
        "auto",
        path,
        direct=True,
        queue_depth=16,
        size_bytes=scale.file_pages * PAGE_BYTES,
        create=True,
    )
    step = 1024
    content = aligned_rows(step, PAGE_BYTES)
    for first in range(0, scale.file_pages, step):
        content.view(np.int64)[:] = np.arange(first, first + step)[:, None]
        offset, length = np.array([first * PAGE_BYTES]), np.array([content.nbytes])
        if (await engine.write(offset, length, content, np.array([0])) != length).any():
            raise SystemExit(f"bench/nvme.py: cannot fill {path}")
    await engine.close()
    return engine.direct


async def measure(
    path: Path, case: Case, scale: Scale, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Two rows: reads per second, and processor time of each; medians over the turns."""
    rates: dict[str, list[Rate]] = {name: [] for name in (*ENGINES, "fio")}
    for _ in range(scale.rounds):
        for name in ENGINES:
            rates[name].append(await turn(name, path, case, scale, rng))
        if fio_version():
            rates["fio"].append(fio_rate(path, case, scale))
    return [
        row(str(case), "IOPS", {name: [rate.iops for rate in of] for name, of in rates.items()}),
        row(
            f"processor time, {case}",
            "us per read",
            {name: [rate.cpu_us for rate in of] for name, of in rates.items()},
        ),
    ]


def measure_checksums(scale: Scale, rng: np.random.Generator) -> dict[str, Any]:
    """A row: checksums of pages that no cache of the processor has; the limit reads them only."""
    pages = aligned_rows(SUMMED_PAGES, PAGE_BYTES)
    pages.view(np.int64)[:] = np.arange(SUMMED_PAGES)[:, None]
    order, seeds = rng.permutation(SUMMED_PAGES), np.zeros(SUMMED_PAGES, np.uint64)
    speeds: dict[str, list[float]] = {"kvtier": [], "reading": []}
    for _ in range(scale.rounds):
        start = time.perf_counter()
        xxh64_rows(pages, order, seeds)
        middle = time.perf_counter()
        pages.view(np.uint64).max()
        end = time.perf_counter()
        speeds["kvtier"].append(pages.nbytes / (middle - start) / 1e9)
        speeds["reading"].append(pages.nbytes / (end - middle) / 1e9)
    ours, limit = (statistics.median(of) for of in speeds.values())
    return {
        "case": "checksums of pages of 4 KiB in random order, one thread",
        "kvtier": ours,
        "peer": None,
        "limit": limit,
        "limit_is": "reading the same memory in order",
        "unit": "GB/s",
        "ratio_peer": None,
        "ratio_limit": ours / limit,
    }


async def measure_cache(
    directory: Path, path: Path, scale: Scale, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Three rows: fills and reads through a whole cache beside fio's on files of their own."""
    case = Case(1, 128, 64)
    filled: dict[str, list[float]] = {"kvtier": [], "fio": []}
    iops: dict[str, list[float]] = {"kvtier": [], "fio": []}
    cpu_us: dict[str, list[float]] = {"kvtier": [], "fio": []}
    has_fio = fio_version() is not None
    async with open_cache(cache_settings(directory / "cache", scale.file_pages)) as cache:
        turns = CacheTurns(cache, new_payload())
        for _ in range(scale.rounds):
            filled["kvtier"].append(await turns.filled_per_s(scale.turn_s) / 1e6)
            if has_fio:
                written = directory / "written"
                speed = fio_written_per_s(written, scale.file_pages, scale.turn_s)
                filled["fio"].append(speed / 1e6)
        page_ids = await turns.resident()
        for _ in range(scale.rounds):
            found = await turns.read(page_ids, scale.turn_s, rng)
            iops["kvtier"].append(found[0])
            cpu_us["kvtier"].append(found[1])
            if has_fio:
                rate = fio_rate(path, case, scale)
                iops["fio"].append(rate.iops)
                cpu_us["fio"].append(rate.cpu_us)
    what = "random reads of 4 KiB through TieredCache, every one missing above the drive"
    return [
        cache_row("fills through TieredCache, new objects", "MB/s", filled),
        cache_row(what, "IOPS", iops),
        cache_row(f"processor time, {what}", "us per read", cpu_us),
    ]


def cache_row(case: str, unit: str, samples: dict[str, list[float]]) -> dict[str, Any]:
    """A row without a peer."""
    median = {name: statistics.median(of) for name, of in samples.items() if of}
    ours, limit = median["kvtier"], median.get("fio")
    return {
        "case": case,
        "kvtier": ours,
        "peer": None,
        "limit": limit,
        "unit": unit,
        "ratio_peer": None,
        "ratio_limit": None if limit is None else ours / limit,
    }


def row(case: str, unit: str, samples: dict[str, list[float]]) -> dict[str, Any]:
    median = {name: statistics.median(of) for name, of in samples.items() if of}
    ours, peer, limit = median["uring"], median["threads"], median.get("fio")
    return {
        "case": case,
        "kvtier": ours,
        "peer": peer,
        "limit": limit,
        "unit": unit,
        "ratio_peer": ours / peer,
        "ratio_limit": None if limit is None else ours / limit,
    }


async def turn(name: str, path: Path, case: Case, scale: Scale, rng: np.random.Generator) -> Rate:
    """One engine: every task has a batch under way, until the time is up."""
    engine = open_engine(
        name, path, direct=True, queue_depth=case.depth, size_bytes=None, create=False
    )
    rows = case.batch * case.io_pages
    memory = aligned_rows(case.tasks * rows, PAGE_BYTES)
    engine.pin(memory)
    places = np.arange(case.batch) * case.io_pages
    lengths = np.full(case.batch, case.io_pages * PAGE_BYTES)
    # Drawn before the clock runs: fio spends next to nothing on that.
    reads = rng.integers(0, scale.file_pages // case.io_pages, (1024, case.batch))
    offsets = reads * (case.io_pages * PAGE_BYTES)
    last = np.zeros((case.tasks, case.batch), np.int64)
    seeds = np.zeros(rows, np.uint64)
    done = 0
    start, used = time.perf_counter(), processor_s()

    async def keep_reading(task: int) -> None:
        nonlocal done
        out = memory[task * rows : (task + 1) * rows]
        mine = np.arange(rows)
        number = task
        while time.perf_counter() < start + scale.turn_s:
            moved = await engine.read(offsets[number % len(offsets)], lengths, out, places)
            if (moved != lengths).any():
                raise SystemExit(f"bench/nvme.py: {name} failed: {moved}")
            if case.summed:
                xxh64_rows(out, mine, seeds)
            done += case.batch
            number += case.tasks
        last[task] = offsets[(number - case.tasks) % len(offsets)]

    await asyncio.gather(*map(keep_reading, range(case.tasks)))
    duration, used = time.perf_counter() - start, processor_s() - used
    await engine.close()
    pages = (last // PAGE_BYTES)[:, :, None] + np.arange(case.io_pages)
    if (memory.view(np.int64) != pages.reshape(-1, 1)).any():
        raise SystemExit(f"bench/nvme.py: {name} delivered a wrong page")
    return Rate(done / duration, used / done * 1e6)


def fio_rate(path: Path, case: Case, scale: Scale) -> Rate:
    job, *_ = fio_jobs(
        *("--name=limit", f"--filename={path}", "--rw=randread", "--norandommap"),
        *(f"--bs={case.io_pages * PAGE_BYTES}", "--direct=1", f"--iodepth={case.depth}"),
        *("--ioengine=io_uring", "--registerfiles=1", "--fixedbufs=1", "--time_based"),
        f"--runtime={scale.turn_s:g}s",
    )
    used_us = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] * 1000
    return Rate(float(job["read"]["iops"]), used_us / job["read"]["total_ios"])


def print_row(row: dict[str, Any]) -> None:
    limit = "fio not found"
    if row["limit"] is not None:
        limit = f"{row['ratio_limit']:.2f} of {row.get('limit_is', 'fio')}"
    if row.get("fio_ratio_limit"):
        limit += f", where fio's own reads beside its own fills have {row['fio_ratio_limit']:.2f}"
    peer = "" if row["peer"] is None else f"{row['ratio_peer']:.2f} of threads, "
    print(f"{row['case']}: {row['kvtier']:,.2f} {row['unit']}, {peer}{limit}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--directory", type=Path, help="where the file lies (default: $TMPDIR)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        result = runner.run(
            main(QUICK if arguments.quick else FULL, arguments.directory, arguments.seed)
        )
    for one in result["rows"]:
        print_row(one)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
