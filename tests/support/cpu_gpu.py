"""A GPU for tests, on a CPU: its memory is apart, and its streams run when they please.

Kernels are the real ones, compiled by g++. What is enqueued runs as late as it may (``lazy``), at
once (``eager``) or in a random order from a seed: whatever relies on an order that it has not asked
for gives wrong bytes in one of them. The device can be made to fail at its n-th call.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from index_engines import cpu_kernels

from kvtier.errors import LimitError
from kvtier.gpu import GpuFacts

ORDERS = ["lazy", "eager", 1, 2, 3]


class CudaFailedError(RuntimeError):
    """What CUDA answers, to this call and all later ones."""


class OutOfDeviceMemoryError(MemoryError):
    pass


class CpuGpu:
    """:class:`kvtier.gpu.Gpu` on a CPU.

    Args:
        order: ``lazy``, ``eager``, or the seed of a random order.
        memory_bytes: of the device.
        fails_at: the number of the call, from 1, at which the device is lost; 0: never.
        fails_late: that call is accepted if it only enqueues, and fails when it runs.
        cost_ns: virtual time that a kernel takes, by its name and its threads; of what else the
            device does with an array, by the word ``array`` and its bytes.
    """

    errors = (CudaFailedError, OutOfDeviceMemoryError)

    def __init__(
        self,
        order: str | int = "lazy",
        memory_bytes: int = 1 << 30,
        fails_at: int = 0,
        fails_late: bool = False,
        cost_ns: Callable[[str, int], int] = lambda name, amount: (
            1000 + (amount >> 8 if name == "array" else amount)
        ),
    ) -> None:
        self.xp = DeviceArrays(self)
        self.calls = 0
        self.launched: list[str] = []
        self.pinned_bytes = 0
        self.allocated_bytes = 0
        self.host_waits = 0
        self.fetched_bytes = 0
        self.now_ns = 0
        self.fails_at = fails_at
        self._fails_late = fails_late
        self.lost = False
        self._memory_bytes = memory_bytes
        self._order = order
        self._random = random.Random(order if isinstance(order, int) else 0)
        self._default = CpuStream(self, 0)
        self._streams = [self._default]
        self._current = [self._default]
        self._captured: list[Callable[[], object]] | None = None
        self.can_capture = True
        self.cost_ns = cost_ns

    # -- Gpu ----------------------------------------------------------------------------------

    def facts(self) -> GpuFacts:
        self.call()
        free_bytes = self._memory_bytes - self.allocated_bytes
        return GpuFacts("a CPU", "9.0", "13.0", "NumPy", free_bytes, self._memory_bytes)

    def kernels(self, path: Path, defines: dict[str, int]) -> Any:
        self.call()
        return _Kernels(self, cpu_kernels(path, **defines))

    def pin(self, rows: Any) -> Any:
        assert type(rows) is np.ndarray
        self.call()
        return _Pinned(self, rows)

    def new_stream(self) -> CpuStream:
        self.call()
        self._streams.append(CpuStream(self, len(self._streams)))
        return self._streams[-1]

    def current_stream(self) -> CpuStream:
        return self._current[-1]

    def stream_at(self, handle: int) -> CpuStream:
        return self._streams[handle]

    @contextlib.contextmanager
    def on(self, stream: CpuStream) -> Iterator[None]:
        self._current.append(stream)
        try:
            yield
        finally:
            self._current.pop()

    def capture(self, stream: CpuStream, work: Callable[[], None]) -> CpuGraph | None:
        self.call()
        if not self.can_capture:
            return None
        self._captured = []
        with self.on(stream):
            work()
        captured, self._captured = self._captured, None
        return CpuGraph(self, captured)

    def adopt(self, memory: Any) -> DeviceArray | None:
        if isinstance(memory, DeviceArray):
            if memory.gpu is not self:
                raise LimitError("the memory lies on another GPU: give memory of the cache's GPU")
            return memory
        return memory.held if isinstance(memory, ForeignArray) else None

    def elapsed_ms(self, start: CpuEvent, end: CpuEvent) -> float:
        assert start.passed
        assert end.passed
        return (end.passed_ns - start.passed_ns) / 1e6

    # -- the device ---------------------------------------------------------------------------

    def call(self, enqueues: bool = False) -> bool:
        """Count a call; True if what it enqueues is to fail. Raises when the device is lost."""
        self.calls += 1
        if self.calls == self.fails_at:
            if self._fails_late and enqueues:
                return True
            self.lost = True
        self.check()
        return False

    def check(self) -> None:
        if self.lost:
            raise CudaFailedError(f"illegal address at call {self.fails_at}")

    def enqueue(self, stream: CpuStream, work: Callable[[], object]) -> None:
        if self._captured is not None:
            assert stream is self.current_stream(), "another stream than the one captured"
            self._captured.append(work)
            return
        if self.call(enqueues=True):
            work = self._lose
        stream.queue.append(work)
        if self._order == "eager":
            self.run(stream)
        while self._order not in ("lazy", "eager") and self._random.random() < 0.7:
            self._random.choice(self._streams).step()

    def tick(self, name: str, amount: int) -> None:
        """Let the time pass that something takes."""
        self.now_ns += self.cost_ns(name, amount)

    def run(self, stream: CpuStream) -> None:
        """Do all that is enqueued on a stream."""
        while stream.queue:
            stream.step()

    def _lose(self) -> None:
        self.lost = True
        raise CudaFailedError(f"illegal address at call {self.fails_at}")


class CpuStream:
    """:class:`kvtier.gpu.Stream`."""

    def __init__(self, gpu: CpuGpu, ptr: int) -> None:
        self.ptr = ptr
        self.queue: deque[Callable[[], object]] = deque()
        self._gpu = gpu

    def record(self) -> CpuEvent:
        event = CpuEvent(self._gpu, self)
        self._gpu.enqueue(self, event.pass_by)
        return event

    def wait_event(self, event: CpuEvent) -> None:
        self._gpu.enqueue(self, event.run)

    def synchronize(self) -> None:
        self._gpu.call()
        self._gpu.host_waits += 1
        self._gpu.run(self)

    def reuse(self, change: Callable[[], object]) -> None:
        """Memory of the stream is somebody else's, as soon as what is enqueued is done."""
        if self.queue:
            self.queue.append(change)
        else:
            change()

    def step(self) -> None:
        """Do the oldest work, and what it waits for."""
        self._gpu.check()
        if self.queue:
            self.queue.popleft()()


class CpuEvent:
    """:class:`kvtier.gpu.Event`."""

    def __init__(self, gpu: CpuGpu, stream: CpuStream) -> None:
        self.passed = False
        self.passed_ns = 0
        self._gpu = gpu
        self._stream = stream

    @property
    def done(self) -> bool:
        """Whoever asks again and again finds it so at last."""
        self._gpu.call()
        if not self.passed:
            self._stream.step()
        return self.passed

    def pass_by(self) -> None:
        self.passed = True
        self.passed_ns = self._gpu.now_ns

    def run(self) -> None:
        while not self.passed:
            self._stream.step()

    def synchronize(self) -> None:
        self._gpu.call()
        self._gpu.host_waits += 1
        self.run()


class CpuGraph:
    """:class:`kvtier.gpu.Graph`."""

    def __init__(self, gpu: CpuGpu, captured: list[Callable[[], object]]) -> None:
        self._gpu = gpu
        self._captured = captured

    def launch(self, stream: CpuStream) -> None:
        self._gpu.launched.append("graph")
        for work in self._captured:
            self._gpu.enqueue(stream, work)


class _Pinned:
    def __init__(self, gpu: CpuGpu, rows: Any) -> None:
        self.view = DeviceArray(gpu, rows)
        self._gpu = gpu
        self._bytes = rows.nbytes
        gpu.pinned_bytes += rows.nbytes

    def close(self) -> None:
        self._gpu.pinned_bytes -= self._bytes
        self._bytes = 0
        self._gpu.call()


class _Kernels:
    """The kernels of a file, which take memory of their GPU only."""

    def __init__(self, gpu: CpuGpu, kernels: Any) -> None:
        self.xp = gpu.xp
        self._gpu = gpu
        self._kernels = kernels

    def launch(self, name: str, threads: int, *arguments: Any) -> None:
        if threads == 0:
            return
        gpu = self._gpu
        values = [_passed(gpu, argument) for argument in arguments]

        def work() -> None:
            self._kernels.launch(name, threads, *values)
            gpu.tick(name, threads)

        gpu.launched.append(name)
        gpu.enqueue(gpu.current_stream(), work)

    def read(self, values: DeviceArray) -> Any:
        self._gpu.host_waits += 1
        return values.get()


def _passed(gpu: CpuGpu, argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        raise TypeError("a kernel is given host memory: bring it to the device, or pin it")
    return _inside(gpu, argument)


def _inside(gpu: CpuGpu, value: Any) -> Any:
    """The host's view of a device array; scalars as they are."""
    if isinstance(value, DeviceArray):
        assert value.gpu is gpu, "an array of another device"
        return value.held
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("host memory is mixed with memory of the device: transfer it")
    return value


class DeviceArray:
    """Memory of the device: everything but its shape is reached by the device only."""

    __array_priority__ = 1000
    __array_ufunc__ = None

    def __init__(self, gpu: CpuGpu, held: Any, base: DeviceArray | None = None) -> None:
        self.gpu = gpu
        self.held = held
        self._base = base
        self._pool: CpuStream | None = None

    def owned(self) -> DeviceArray:
        """Memory of CuPy's pool: once nobody holds it, the current stream gives it away again.

        Whatever is enqueued there afterwards may find it changed, and other streams at any time.
        """
        self._pool = self.gpu.current_stream()
        return self

    def __del__(self) -> None:
        held, pool = self.held, self._pool
        if pool is not None and isinstance(held, np.ndarray) and not self.gpu.lost:
            pool.reuse(lambda: held.fill(1))

    # What costs no access.
    shape = property(lambda self: self.held.shape)
    dtype = property(lambda self: self.held.dtype)
    ndim = property(lambda self: self.held.ndim)
    size = property(lambda self: self.held.size)
    nbytes = property(lambda self: self.held.nbytes)
    flags = property(lambda self: self.held.flags)

    @property
    def data(self) -> Any:
        return _Pointer(self.held.ctypes.data)

    def __len__(self) -> int:
        return len(self.held)

    def view(self, dtype: Any) -> DeviceArray:
        return DeviceArray(self.gpu, self.held.view(dtype), self)

    def reshape(self, *shape: int) -> DeviceArray:
        return DeviceArray(self.gpu, self.held.reshape(*shape), self)

    # What reads or writes it, in the order of the current stream.
    def __getitem__(self, key: Any) -> DeviceArray:
        if isinstance(key, slice):
            return DeviceArray(self.gpu, self.held[key], self)
        return self._result(lambda held: held[_inside(self.gpu, key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._touch()
        self.held[_inside(self.gpu, key)] = _inside(self.gpu, value)

    def __int__(self) -> int:
        self._touch()
        self.gpu.fetched_bytes += self.held.nbytes
        return int(self.held)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("memory of the device is taken for NumPy's: use get()")

    def __lt__(self, other: Any) -> DeviceArray:
        return self._result(lambda held: held < _inside(self.gpu, other))

    def __ge__(self, other: Any) -> DeviceArray:
        return self._result(lambda held: held >= _inside(self.gpu, other))

    def __eq__(self, other: object) -> DeviceArray:  # type: ignore[override]
        return self._result(lambda held: held == _inside(self.gpu, other))

    def __ne__(self, other: object) -> DeviceArray:  # type: ignore[override]
        return self._result(lambda held: held != _inside(self.gpu, other))

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: Any) -> DeviceArray:
        return self._result(lambda held: held & _inside(self.gpu, other))

    def __xor__(self, other: Any) -> DeviceArray:
        return self._result(lambda held: held ^ _inside(self.gpu, other))

    def __mul__(self, other: Any) -> DeviceArray:
        return self._result(lambda held: held * _inside(self.gpu, other))

    def __rshift__(self, other: Any) -> DeviceArray:
        return self._result(lambda held: held >> _inside(self.gpu, other))

    def __mod__(self, other: Any) -> DeviceArray:
        return self._result(lambda held: held % _inside(self.gpu, other))

    def sum(self, axis: int) -> DeviceArray:
        return self._result(lambda held: held.sum(axis=axis, dtype=held.dtype))

    def astype(self, dtype: Any) -> DeviceArray:
        return self._result(lambda held: held.astype(dtype))

    def copy(self) -> DeviceArray:
        return self._result(_aligned)

    def get(self) -> Any:
        self._touch()
        self.gpu.fetched_bytes += self.held.nbytes
        return self.held.copy()

    def set(self, values: Any) -> None:
        assert type(values) is np.ndarray
        self._touch()
        self.held[...] = values

    def _touch(self) -> None:
        self.gpu.call()
        self.gpu.run(self.gpu.current_stream())
        self.gpu.tick("array", self.held.nbytes)

    def _result(self, function: Callable[[Any], Any]) -> DeviceArray:
        self._touch()
        return DeviceArray(self.gpu, function(self.held)).owned()


@dataclass(frozen=True)
class _Pointer:
    ptr: int


class ForeignArray:
    """Memory of the device that another library owns."""

    def __init__(self, held: DeviceArray) -> None:
        self.held = held


class DeviceArrays:
    """The part of ``cupy`` that kvtier uses."""

    ndarray = DeviceArray

    def __init__(self, gpu: CpuGpu) -> None:
        self._gpu = gpu

    def empty(self, shape: Any, dtype: Any) -> DeviceArray:
        # What fresh memory holds is no page of anybody's.
        return self.full(shape, 0xA5, dtype)

    def zeros(self, shape: Any, dtype: Any) -> DeviceArray:
        return self.full(shape, 0, dtype)

    def full(self, shape: Any, value: int, dtype: Any) -> DeviceArray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self._gpu.allocated_bytes + size > self._gpu._memory_bytes:
            raise OutOfDeviceMemoryError(f"{size} bytes")
        self._gpu.call()
        held = _aligned(np.full(shape, value, dtype))
        return DeviceArray(self._gpu, held).owned()

    def asarray(self, values: Any) -> DeviceArray:
        if isinstance(values, DeviceArray):
            return values
        copy = _aligned(np.array(values))
        self._gpu.enqueue(self._gpu.current_stream(), lambda: self._gpu.tick("array", copy.nbytes))
        return DeviceArray(self._gpu, copy).owned()

    def ascontiguousarray(self, values: DeviceArray) -> DeviceArray:
        if values.flags.c_contiguous:
            return values
        return values._result(lambda held: _aligned(np.ascontiguousarray(held)))

    def arange(self, *bounds: int, dtype: Any = np.int64) -> DeviceArray:
        self._gpu.call()
        return DeviceArray(self._gpu, np.arange(*bounds, dtype=dtype)).owned()

    def take(self, values: DeviceArray, rows: DeviceArray, axis: int, out: DeviceArray) -> None:
        out._touch()
        np.take(values.held, rows.held, axis=axis, out=out.held)

    def copyto(self, target: DeviceArray, source: DeviceArray) -> None:
        target._touch()
        target.held[...] = source.held

    def cumsum(self, values: DeviceArray) -> DeviceArray:
        return self._of(np.cumsum, values)

    def argsort(self, values: DeviceArray, kind: Any) -> DeviceArray:
        return values._result(lambda held: np.argsort(held, kind=kind))

    def sort(self, values: DeviceArray) -> DeviceArray:
        return self._of(np.sort, values)

    def unique(self, values: DeviceArray, return_index: bool) -> tuple[DeviceArray, DeviceArray]:
        values._touch()
        found, first = np.unique(values.held, return_index=True)
        return DeviceArray(self._gpu, found).owned(), DeviceArray(self._gpu, first).owned()

    def _of(self, function: Callable[[Any], Any], values: DeviceArray) -> DeviceArray:
        return values._result(function)


def _aligned(values: Any) -> Any:
    """A copy that begins at a multiple of 256 bytes, as all device memory does."""
    memory = np.empty(values.nbytes + 256, np.uint8)
    start = -memory.ctypes.data % 256
    copy = memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy
