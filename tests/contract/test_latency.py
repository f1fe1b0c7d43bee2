from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from gated_backend import GatedBackend
from kvtier_file import FileBackend
from kvtier_memory import MemoryBackend

from kvtier.backend import Backend
from kvtier.clock import VirtualClock, WallClock
from kvtier.emulator import VirtualLoop
from kvtier.emulator.timeline import Timeline
from kvtier.errors import BackendError, ClosedError, LimitError, SettingsError
from kvtier.settings import MODEL_PRESETS, DeviceModel
from kvtier.testing.batches import list_keys, make_extents, make_objects
from kvtier.testing.contract import BackendContract
from kvtier.testing.pages import make_pages
from kvtier.wrappers.latency import LatencyBackend

PAGE_BYTES = 512
MS = 1_000_000
QUICK = DeviceModel(latency_s=200e-6, iops=1e5, bytes_per_s=1e9)
SLOW = DeviceModel(latency_s=2e-3, iops=1e3, bytes_per_s=1e9)
"""An idle read of one page takes 3 ms; those that wait for it 1 ms more each."""


class TestLatencyBackend(BackendContract):
    @pytest_asyncio.fixture
    async def backend(self) -> AsyncIterator[Backend]:
        inner = await MemoryBackend.open({}, self.page_bytes)
        options = {"inner": inner, "model": QUICK}
        backend = await LatencyBackend.open(options, self.page_bytes)
        yield backend
        await backend.close()


class TestLatencyOfFlash(BackendContract):
    """A model whose queues are compiled, around a store that outlives it."""

    @pytest_asyncio.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[Backend]:
        self.root = tmp_path
        backend = await self.reopen(None)
        yield backend
        await backend.close()

    async def reopen(self, backend: Backend | None) -> Backend:
        inner = await FileBackend.open({"root": self.root, "sync": False}, self.page_bytes)
        return LatencyBackend(inner, MODEL_PRESETS["storage-next"].model, self.page_bytes)


# -- in virtual time -------------------------------------------------------------------------------


class VirtualWait:
    """Lets virtual time pass."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    async def until(self, t_ns: int) -> None:
        reached = asyncio.Event()
        self._timeline.at(max(t_ns, self._timeline.now_ns), reached.set)
        await reached.wait()

    def check(self) -> None: ...

    def close(self) -> None: ...


class Bench:
    """A slow device around a gated store, and the virtual time."""

    def __init__(self, clock: VirtualClock, timeline: Timeline, model: DeviceModel) -> None:
        self.clock = clock
        self.inner = GatedBackend(PAGE_BYTES)
        self.backend = LatencyBackend(
            self.inner, model, PAGE_BYTES, clock=clock, wait=VirtualWait(timeline)
        )
        self.version = 0

    async def store(self) -> None:
        result = await self.inner.put(make_objects({b"a": self.pages}, PAGE_BYTES))
        self.version = int(result.versions[0])

    @property
    def pages(self) -> Any:
        return make_pages(b"a", 0, 8, PAGE_BYTES)

    async def read(self, count: int = 1) -> int:
        """Read so many single pages; returns when that was done, in ns."""
        out = np.zeros((count, PAGE_BYTES), np.uint8)
        extents = [(b"a", row, 1, row) for row in range(count)]
        status = await self.backend.read(make_extents({b"a": self.version}, extents), out)
        assert not status.any()
        np.testing.assert_array_equal(out, self.pages[:count])
        return self.clock.now_ns()


def in_virtual_time(
    work: Callable[[Bench], Coroutine[Any, Any, None]], model: DeviceModel = SLOW
) -> None:
    clock = VirtualClock()
    timeline = Timeline(clock)

    async def run() -> None:
        bench = Bench(clock, timeline, model)
        await bench.store()
        await work(bench)
        await bench.backend.close()

    with asyncio.Runner(loop_factory=lambda: VirtualLoop(timeline)) as runner:
        runner.run(run())


def test_a_read_takes_as_long_as_the_device_and_no_less() -> None:
    async def work(bench: Bench) -> None:
        assert await bench.read() == 3 * MS
        assert await bench.read(4) == 3 * MS + 6 * MS

    in_virtual_time(work)


def test_batches_under_way_queue_at_the_device() -> None:
    async def work(bench: Bench) -> None:
        ends = await asyncio.gather(bench.read(), bench.read(2), bench.read())
        assert ends == [3 * MS, 5 * MS, 6 * MS]

    in_virtual_time(work)


def test_puts_take_the_time_of_writes() -> None:
    async def work(bench: Bench) -> None:
        await bench.backend.put(make_objects({b"b": bench.pages}, PAGE_BYTES))
        assert bench.clock.now_ns() == 12 * MS

    in_virtual_time(work, replace(SLOW, write_latency_s=2e-3, write_iops=1e2))


def test_what_the_device_does_not_do_takes_no_time() -> None:
    async def work(bench: Bench) -> None:
        assert (await bench.backend.stat([b"a"])).pages.tolist() == [8]
        assert await list_keys(bench.backend) == [b"a"]
        await bench.backend.delete([b"a"])
        assert bench.clock.now_ns() == 0

    in_virtual_time(work)


def test_a_slower_store_alone_decides() -> None:
    async def work(bench: Bench) -> None:
        bench.inner.gate.clear()
        read = asyncio.ensure_future(bench.read())
        await asyncio.sleep(0.05)
        assert not read.done()
        bench.inner.gate.set()
        assert await read == 50 * MS

    in_virtual_time(work)


@pytest.mark.parametrize("error", [BackendError("gone"), RuntimeError("a defect")])
def test_an_error_comes_when_the_device_would_have_answered(error: Exception) -> None:
    async def work(bench: Bench) -> None:
        bench.inner.answer = error
        with pytest.raises(type(error), match=str(error)):
            await bench.read()
        assert bench.clock.now_ns() == 3 * MS

    in_virtual_time(work)


def test_a_batch_that_cannot_be_is_refused_at_once_and_takes_no_time_of_the_device() -> None:
    async def work(bench: Bench) -> None:
        extents = make_extents({b"a": bench.version}, [(b"a", 0, 2, 0)])
        with pytest.raises(LimitError):
            await bench.backend.read(extents, np.zeros((1, PAGE_BYTES), np.uint8))
        assert bench.clock.now_ns() == 0
        assert await bench.read() == 3 * MS

    in_virtual_time(work)


def test_a_cancelled_read_leaves_at_once_but_has_used_the_device() -> None:
    async def work(bench: Bench) -> None:
        read = asyncio.ensure_future(bench.read())
        await asyncio.sleep(0.001)
        read.cancel()
        with pytest.raises(asyncio.CancelledError):
            await read
        assert bench.clock.now_ns() == 1 * MS
        assert await bench.read() == 4 * MS

    in_virtual_time(work)


# -- on the wall clock -----------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_reads_never_end_before_the_device_says() -> None:
    inner = await MemoryBackend.open({}, PAGE_BYTES)
    clock = WallClock()
    backend = LatencyBackend(inner, SLOW, PAGE_BYTES, clock=clock)
    pages = make_pages(b"a", 0, 1, PAGE_BYTES)
    version = int((await backend.put(make_objects({b"a": pages}, PAGE_BYTES))).versions[0])
    start_ns = clock.now_ns()

    async def read() -> int:
        out = np.zeros((1, PAGE_BYTES), np.uint8)
        await backend.read(make_extents({b"a": version}, [(b"a", 0, 1, 0)]), out)
        np.testing.assert_array_equal(out, pages)
        return clock.now_ns() - start_ns

    ends = await asyncio.gather(*(read() for _ in range(5)))
    assert all(end >= (3 + number) * MS for number, end in enumerate(ends))
    await backend.close()


@pytest.mark.asyncio
async def test_close_ends_reads_that_wait_for_the_device() -> None:
    inner = GatedBackend(PAGE_BYTES)
    backend = LatencyBackend(inner, replace(SLOW, latency_s=3600), PAGE_BYTES)
    pages = make_pages(b"a", 0, 1, PAGE_BYTES)
    version = int((await inner.put(make_objects({b"a": pages}, PAGE_BYTES))).versions[0])
    out = np.zeros((1, PAGE_BYTES), np.uint8)
    batch = make_extents({b"a": version}, [(b"a", 0, 1, 0)])
    reads = [asyncio.ensure_future(backend.read(batch, out)) for _ in range(3)]
    await inner.arrived.wait()
    await backend.close()
    for result in await asyncio.gather(*reads, return_exceptions=True):
        assert isinstance(result, ClosedError)


@pytest.mark.asyncio
async def test_a_released_wrapper_leaves_its_store_open() -> None:
    inner = await MemoryBackend.open({}, PAGE_BYTES)
    backend = LatencyBackend(inner, QUICK, PAGE_BYTES)
    await backend.release()
    with pytest.raises(ClosedError):
        await backend.put(make_objects({b"a": make_pages(b"a", 0, 1, PAGE_BYTES)}, PAGE_BYTES))
    assert (await inner.stat([b"a"])).pages.tolist() == [-1]
    await inner.close()


@pytest.mark.parametrize(
    "options",
    [{}, {"model": QUICK}, {"inner": "memory", "model": QUICK}, {"latency": QUICK}],
)
@pytest.mark.asyncio
async def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        await LatencyBackend.open(options, PAGE_BYTES)
