"""What the host adds to a device: the time of the I/O engine for a batch and for an operation."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from kvtier.calibration.load import Load
from kvtier.calibration.prediction import closed_loop
from kvtier.calibration.target import Target
from kvtier.errors import DeviceError
from kvtier.io import FileEngine
from kvtier.io.threads import ThreadEngine
from kvtier.pages import I64
from kvtier.rows import aligned_rows
from kvtier.settings import DeviceModel

_QUEUE_DEPTH: Final = 32
_BATCHES: Final = (1, 32, 256)
_RUNS: Final = 64


@dataclass(frozen=True, slots=True)
class HostCost:
    """Time of the engine ``threads`` beyond that of the device, in s.

    Attributes:
        batch_s: of a batch.
        operation_s: of each operation in it.
    """

    batch_s: float
    operation_s: float


def measure_host(
    target: Target, model: DeviceModel, page_bytes: int, seconds: float, rng: np.random.Generator
) -> HostCost:
    """Reads in batches, one after the other, less what the model says that the device takes.

    Raises:
        DeviceError: there are no threads for the engine, or a read failed.
    """
    taken_s = asyncio.run(_time_batches(target, page_bytes, seconds / len(_BATCHES), rng))
    extra_s = [
        total_s - _device_s(model, count, page_bytes)
        for count, total_s in zip(_BATCHES, taken_s, strict=True)
    ]
    weights = 1 / np.array(taken_s)
    terms = np.stack([np.ones(len(_BATCHES)), np.array(_BATCHES, np.float64)], axis=1)
    (batch_s, operation_s), *_ = np.linalg.lstsq(
        terms * weights[:, None], np.array(extra_s) * weights, rcond=None
    )
    return HostCost(max(float(batch_s), 0.0), max(float(operation_s), 0.0))


async def _time_batches(
    target: Target, page_bytes: int, seconds: float, rng: np.random.Generator
) -> list[float]:
    """The median time of a batch of each size, in s."""
    engine = ThreadEngine(replace(target.file, fd=os.dup(target.file.fd)), _QUEUE_DEPTH)
    try:
        return [
            await _time_batch(
                engine, count, target.size_bytes // page_bytes, page_bytes, seconds, rng
            )
            for count in _BATCHES
        ]
    finally:
        await engine.close()


async def _time_batch(
    engine: FileEngine,
    count: int,
    file_pages: int,
    page_bytes: int,
    seconds: float,
    rng: np.random.Generator,
) -> float:
    out = aligned_rows(count, page_bytes)
    lengths, rows = np.full(count, page_bytes), np.arange(count)
    times: list[float] = []
    end_s = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end_s:
        offsets: I64 = rng.integers(0, file_pages, count) * page_bytes
        start_s = time.perf_counter()
        done = await engine.read(offsets, lengths, out, rows)
        times.append(time.perf_counter() - start_s)
        if (done != page_bytes).any():
            raise DeviceError("a read failed or came short; choose another path")
    return statistics.median(times)


def _device_s(model: DeviceModel, count: int, page_bytes: int) -> float:
    """The median time of a batch at the modelled device alone, in s."""
    load = Load(min(count, _QUEUE_DEPTH), page_bytes)
    runs = [closed_loop(model, load, count, seed) for seed in range(_RUNS)]
    return statistics.median(float(run.ends_ns[-1]) for run in runs) / 1e9
