"""The origin of files, measured: a backend beside the device, whose files the system has cached."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np

from kvtier.backend import Backend, ExtentBatch, ObjectBatch
from kvtier.calibration.explaining import explain
from kvtier.errors import DeviceError
from kvtier.pages import U8
from kvtier.settings import DeviceModel

KEY: Final = b"calibration"
"""Of the object that is read."""

_EXTENTS: Final = (1, 8, 64)
"""Of the batches of single pages."""

_LONG_BYTES: Final = 4 << 20
"""Of the batch that finds the bandwidth, one extent; or the whole object if that is less."""

_TURNS: Final = 3
_READS_MIN: Final = 5
_UNLIMITED: Final = 1e12
"""A rate that no measurement limits."""


async def store(backend: Backend, pages: int, page_bytes: int, rng: np.random.Generator) -> None:
    """Put the object that is read, of random bytes.

    Raises:
        DeviceError: the backend refused it.
    """
    payload = np.frombuffer(rng.bytes(pages * page_bytes), np.uint8).reshape(pages, page_bytes)
    result = await backend.put(ObjectBatch((KEY,), np.array([pages], np.uint32), payload))
    if result.status[0]:
        raise DeviceError(f"{pages} pages cannot be stored as a file; is there space left?")


async def measure_origin(
    backend: Backend, pages: int, page_bytes: int, seconds: float, rng: np.random.Generator
) -> DeviceModel:
    """A model of a backend that holds the object: ``latency + operations / iops``.

    What it occupies this thread for is no part of it: that is the host's.

    Raises:
        DeviceError: a read failed.
    """
    version = (await backend.stat([KEY])).versions[:1]
    long_pages = max(min(_LONG_BYTES // page_bytes, pages, backend.capability.extent_pages_max), 1)
    shapes = [(min(count, pages), 1) for count in _EXTENTS] + [(1, long_pages)]
    out = np.empty((max(count * each for count, each in shapes), page_bytes), np.uint8)

    def batch(extents: int, each: int) -> ExtentBatch:
        zeros = np.zeros(extents, np.uint32)
        first = rng.integers(0, pages - each + 1, extents).astype(np.uint32)
        counts = np.full(extents, each, np.uint32)
        rows = np.arange(extents, dtype=np.uint32) * np.uint32(each)
        return ExtentBatch((KEY,), version, zeros, first, counts, rows)

    turn_s = seconds / (_TURNS * len(shapes))
    turns: list[list[float]] = [[] for _ in shapes]
    for _ in range(_TURNS):
        for times, shape in zip(turns, shapes, strict=True):
            times.append(await _mean_s(backend, partial(batch, *shape), out, turn_s))
    *short_s, long_s = (statistics.median(times) for times in turns)
    terms = np.array([[1, count] for count, _ in shapes[:-1]], np.float64)
    taken_s = np.array(short_s)
    latency_s, operation_s = explain(terms, taken_s, 1 / np.maximum(taken_s, 1 / _UNLIMITED))
    byte_s = max(long_s - latency_s, 0.0) / (long_pages * page_bytes)
    return DeviceModel(
        latency_s=latency_s,
        iops=1 / max(operation_s, 1 / _UNLIMITED),
        bytes_per_s=1 / max(byte_s, 1 / (_UNLIMITED * page_bytes)),
    )


async def _mean_s(
    backend: Backend, next_batch: Callable[[], ExtentBatch], out: U8, seconds: float
) -> float:
    """The mean time of a read beyond what it occupies this thread for, in s."""
    reads, taken_s, busy_s = 0, 0.0, 0.0
    while reads < _READS_MIN or taken_s < seconds:
        batch = next_batch()
        start_s, start_busy_s = time.perf_counter(), time.thread_time()
        status = await backend.read(batch, out)
        taken_s += time.perf_counter() - start_s
        busy_s += time.thread_time() - start_busy_s
        reads += 1
        if status.any():
            raise DeviceError("a read of a stored file failed; choose another path")
    return max(taken_s - busy_s, 0.0) / reads
