"""The cases of ``bench/nvme.py`` in which a drive is filled, and read meanwhile.

Each engine has a file of its own: pages of its first half are read, its second half is written in
whole segments, as a log is. The writer keeps to a pace, half of what the same engine wrote alone.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fio import fio_jobs, fio_version

from kvtier.io import FileEngine, open_engine
from kvtier.pages import I64, U8
from kvtier.rows import aligned_rows

PAGE_BYTES = 4096
ENGINES = ("uring", "threads")
QUEUE_DEPTH = 128
SEGMENT_PAGES = 1024
SEGMENT_BYTES = SEGMENT_PAGES * PAGE_BYTES
SEGMENTS_AT_ONCE = 4
READERS = 16
"""Reads under way, so that the drive has work and is not overrun."""


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """An engine and its file.

    Attributes:
        engine: open for reading and writing.
        pages: of the half that is read, which is as large as the other.
        offsets: i64[n], random pages of that half.
        out: u8[READERS, PAGE_BYTES].
        segment: u8[SEGMENT_PAGES, PAGE_BYTES], what is written.
    """

    engine: FileEngine
    pages: int
    offsets: I64
    out: U8
    segment: U8

    async def write(self, number: int) -> None:
        """Write a segment into its place of the second half."""
        place = self.pages + number * SEGMENT_PAGES % self.pages
        await write_segment(self.engine, place, self.segment)

    async def written_per_s(self, turn_s: float) -> float:
        """Bytes that it writes per second, while nothing is read."""
        done, start = 0, time.perf_counter()

        async def keep_writing(first: int) -> None:
            nonlocal done
            number = first
            while time.perf_counter() < start + turn_s:
                await self.write(number)
                number += SEGMENTS_AT_ONCE
                done += SEGMENT_BYTES

        await asyncio.gather(*map(keep_writing, range(SEGMENTS_AT_ONCE)))
        return done / (time.perf_counter() - start)

    async def p99_us(self, turn_s: float, fill_bytes_per_s: float | None) -> tuple[float, float]:
        """The 99th percentile of reads of a page, and bytes per second that were filled."""
        end_s = time.perf_counter() + turn_s
        latencies: list[float] = []

        async def keep_reading(reader: int) -> None:
            row, length = np.array([reader]), np.array([PAGE_BYTES])
            number = reader
            while (begin := time.perf_counter()) < end_s:
                offset = self.offsets[number % len(self.offsets)]
                done = await self.engine.read(np.array([offset]), length, self.out, row)
                latencies.append(time.perf_counter() - begin)
                if done[0] != PAGE_BYTES or self.out[reader].view(np.int64)[0] != offset:
                    raise SystemExit(f"bench/nvme.py: {self.engine.name} delivered a wrong page")
                number += READERS

        start_s = time.perf_counter()
        filling = asyncio.ensure_future(self.fill(fill_bytes_per_s, end_s))
        await asyncio.gather(*map(keep_reading, range(READERS)))
        filled_bytes = await filling
        filled_per_s = filled_bytes / (time.perf_counter() - start_s)
        return float(np.quantile(latencies, 0.99)) * 1e6, filled_per_s

    async def fill(self, bytes_per_s: float | None, end_s: float) -> int:
        """Write segments at a pace until ``end_s``; the bytes written."""
        if bytes_per_s is None:
            return 0
        under_way: list[asyncio.Future[None]] = []
        number, start_s = 0, time.perf_counter()
        while (due_s := start_s + number * SEGMENT_BYTES / bytes_per_s) < end_s:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            if len(under_way) == SEGMENTS_AT_ONCE:  # it does not keep up: what is filled tells
                await under_way.pop(0)
            under_way.append(asyncio.ensure_future(self.write(number)))
            number += 1
        await asyncio.gather(*under_way)
        return number * SEGMENT_BYTES


async def measure_filling(
    directory: Path, file_pages: int, rounds: int, turn_s: float, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Two rows: how fast segments are written, and the p99 of reads meanwhile; medians."""
    contenders = {
        name: await opened(name, directory / f"filled-{name}", file_pages, rng) for name in ENGINES
    }
    speeds: dict[str, list[float]] = {name: [] for name in (*ENGINES, "fio")}
    for _ in range(rounds):
        for name, contender in contenders.items():
            speeds[name].append(await contender.written_per_s(turn_s))
        if fio_version():
            speeds["fio"].append(fio_written_per_s(directory / "filled-fio", file_pages, turn_s))
    speed = {name: statistics.median(of) for name, of in speeds.items() if of}
    alone: dict[str, list[float]] = {name: [] for name in ENGINES}
    filling: dict[str, list[float]] = {name: [] for name in ENGINES}
    filled: dict[str, list[float]] = {name: [] for name in ENGINES}
    for _ in range(rounds):
        for name, contender in contenders.items():
            alone[name].append((await contender.p99_us(turn_s, None))[0])
            p99_us, filled_per_s = await contender.p99_us(turn_s, speed[name] / 2)
            filling[name].append(p99_us)
            filled[name].append(filled_per_s)
    fio_ratios: list[float] = []
    if fio_version():
        fio_ratios = [
            fio_p99_us(directory, file_pages, turn_s, speed["uring"] / 2)
            / fio_p99_us(directory, file_pages, turn_s, None)
            for _ in range(rounds)
        ]
    for contender in contenders.values():
        await contender.engine.close()
    ours, peer = (statistics.median(filling[name]) for name in ENGINES)
    limit, limit_speed = statistics.median(alone["uring"]), speed.get("fio")
    filled_mb_s = statistics.median(filled["uring"]) / 1e6
    return [
        {
            "case": f"writes of segments of {SEGMENT_BYTES >> 20} MiB",
            "kvtier": speed["uring"] / 1e6,
            "peer": speed["threads"] / 1e6,
            "limit": None if limit_speed is None else limit_speed / 1e6,
            "unit": "MB/s",
            "ratio_peer": speed["uring"] / speed["threads"],
            "ratio_limit": None if limit_speed is None else speed["uring"] / limit_speed,
        },
        {
            "case": f"p99 of random reads of 4 KiB, {READERS} at once, while {filled_mb_s:,.0f} "
            "MB/s are filled (asked: half of what is written alone)",
            "kvtier": ours,
            "peer": peer,
            "limit": limit,
            "limit_is": "the p99 without filling",
            "fio_ratio_limit": statistics.median(fio_ratios) if fio_ratios else None,
            "unit": "us",
            "ratio_peer": ours / peer,
            "ratio_limit": ours / limit,
        },
    ]


async def opened(name: str, path: Path, file_pages: int, rng: np.random.Generator) -> Contender:
    """A contender whose first half holds in its words where each page is."""
    pages = file_pages // 4 // SEGMENT_PAGES * SEGMENT_PAGES
    engine = open_engine(
        name,
        path,
        direct=True,
        queue_depth=QUEUE_DEPTH,
        size_bytes=2 * pages * PAGE_BYTES,
        create=True,
    )
    segment = aligned_rows(SEGMENT_PAGES, PAGE_BYTES)
    for first in range(0, 2 * pages, SEGMENT_PAGES):
        places = np.arange(first, first + SEGMENT_PAGES) * PAGE_BYTES
        segment.view(np.int64)[:] = places[:, None]
        await write_segment(engine, first, segment)
    offsets = rng.integers(0, pages, 1 << 14) * PAGE_BYTES
    return Contender(engine, pages, offsets, aligned_rows(READERS, PAGE_BYTES), segment)


async def write_segment(engine: FileEngine, first_page: int, segment: U8) -> None:
    length = np.array([segment.nbytes])
    place = np.array([first_page * PAGE_BYTES])
    if (await engine.write(place, length, segment, np.array([0])) != length).any():
        raise SystemExit(f"bench/nvme.py: {engine.name} cannot write")


def fio_p99_us(
    directory: Path, file_pages: int, turn_s: float, fill_bytes_per_s: float | None
) -> float:
    """The 99th percentile of fio's reads of a page, while it fills another file at that pace."""
    size = f"--size={file_pages // 4 * PAGE_BYTES}"
    options = [
        *("--ioengine=io_uring", "--direct=1", "--time_based", f"--runtime={turn_s:g}s"),
        *("--name=read", f"--filename={directory / 'filled-uring'}"),
        *("--rw=randread", f"--bs={PAGE_BYTES}", f"--iodepth={READERS}", size),
    ]
    if fill_bytes_per_s is not None:
        options += [
            *("--name=fill", f"--filename={directory / 'filled-fio'}", "--rw=write", size),
            *("--overwrite=1", "--bs=64k", "--iodepth=4", f"--rate={round(fill_bytes_per_s)}"),
        ]
    read = fio_jobs(*options)[0]["read"]
    return float(read["clat_ns"]["percentile"]["99.000000"]) / 1e3


def fio_written_per_s(path: Path, file_pages: int, turn_s: float) -> float:
    job, *_ = fio_jobs(
        *("--name=limit", f"--filename={path}", "--rw=write", "--overwrite=1"),
        *("--bs=256k", "--direct=1", "--iodepth=16", "--ioengine=io_uring", "--registerfiles=1"),
        *("--fixedbufs=1", f"--size={file_pages // 4 * PAGE_BYTES}", "--time_based"),
        f"--runtime={turn_s:g}s",
    )
    return float(job["write"]["bw_bytes"])
