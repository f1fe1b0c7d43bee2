"""What kvtier needs of a GPU, and CuPy's answer to it.

Whoever uses a GPU is written against :class:`Gpu`, so that the tests can run all of it on a CPU:
the very same ``.cu`` files, and streams that run as late, and as mixed, as a device's may.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from kvtier.errors import DeviceError, DeviceLostError, LimitError
from kvtier.pages import U8
from kvtier.settings import Device
from kvtier.units import format_bytes

THREADS_PER_BLOCK: Final = 256
"""Enough warps of one block to hide a memory latency, few enough registers to keep 8 blocks."""

ALIGNMENT_BYTES: Final = 16
"""Of rows on a GPU: what a thread moves at once."""

Array = Any
"""An array of the kernels' own kind: CuPy's on a GPU, NumPy's in tests without one."""


class Kernels(Protocol):
    """The kernels of one ``.cu`` file, ready to be launched.

    Attributes:
        xp: the module of the arrays that they take: ``cupy``, or one like it in tests.
    """

    @property
    def xp(self) -> Any: ...

    def launch(self, name: str, threads: int, *arguments: Array | np.generic | None) -> None:
        """Enqueue a kernel on the current stream, with ``threads`` threads or up to a block more.

        Args:
            name: of the kernel.
            threads: none at all are launched for 0.
            arguments: arrays are passed by address, NumPy scalars and records by value, None as a
                null pointer. Their types must be those of the kernel: nothing converts them.
        """
        ...


class Event(Protocol):
    """A mark in a stream."""

    def synchronize(self) -> None:
        """Wait on the host until the stream has come there."""
        ...


class Stream(Protocol):
    """Work that a GPU does in order. CuPy's streams are such.

    Attributes:
        ptr: the ``cudaStream_t``; 0 is the default stream.
    """

    @property
    def ptr(self) -> int: ...

    def record(self) -> Any:
        """An :class:`Event` after all that was enqueued so far."""
        ...

    def wait_event(self, event: Any) -> None:
        """What is enqueued from now on begins after ``event``; the host does not wait."""
        ...

    def synchronize(self) -> None:
        """Wait on the host until everything enqueued is done."""
        ...


class Pinned(Protocol):
    """Host memory that cannot be paged out, and that kernels read and write over the bus.

    Attributes:
        view: the same memory as an array for kernels; not to be used after ``close``.
    """

    @property
    def view(self) -> Array: ...

    def close(self) -> None:
        """Let the memory be paged again; no kernel may be at it. A second call does nothing."""
        ...


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What is told of a GPU.

    Attributes:
        name: of the device.
        capability: of its architecture, ``9.0``.
        driver: the CUDA version that its driver speaks, ``13.0``.
        library: what kvtier reaches it by, and its version.
        free_bytes, total_bytes: of its memory.
    """

    name: str
    capability: str
    driver: str
    library: str
    free_bytes: int
    total_bytes: int


class Gpu(Protocol):
    """One device. Its methods are called from one thread.

    Attributes:
        xp: the module of arrays in its memory: ``cupy``, or one like it in tests.
        errors: what any call may raise when the device fails or has no memory left.
    """

    @property
    def xp(self) -> Any: ...

    @property
    def errors(self) -> tuple[type[Exception], ...]: ...

    def facts(self) -> GpuFacts:
        """What the device is, and its free memory now."""
        ...

    def kernels(self, path: Path, defines: dict[str, int]) -> Kernels:
        """The kernels of a ``.cu`` file, compiled with macros by name."""
        ...

    def pin(self, rows: U8) -> Pinned:
        """Make memory of :func:`kvtier.rows.aligned_rows` readable and writable by kernels."""
        ...

    def new_stream(self) -> Stream:
        """A stream that waits for no other by itself."""
        ...

    def current_stream(self) -> Stream:
        """The one that calls outside of :meth:`on` are enqueued on."""
        ...

    def stream_at(self, handle: int) -> Stream:
        """The stream of a ``cudaStream_t`` that somebody else made and keeps."""
        ...

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        """Within, launches and array operations are enqueued on ``stream``. Never await within."""
        ...

    def adopt(self, memory: object) -> Array | None:
        """An array of ``xp`` over memory of this device, without a copy.

        Args:
            memory: has ``__cuda_array_interface__`` or DLPack.

        Returns:
            None if it is host memory, or no memory at all.

        Raises:
            LimitError: it lies on another device, is read-only, or cannot be taken over.
        """
        ...

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Time between two events that have passed."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class DeviceRows:
    """Rows in the memory of a GPU, and the stream on which their owner uses them.

    Attributes:
        array: u8[n, row_bytes], C-contiguous.
        stream: whatever its owner enqueues there sees what was written before.
    """

    array: Array
    stream: Stream

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, part: slice) -> DeviceRows:
        return DeviceRows(self.array[part], self.stream)


Rows: TypeAlias = U8 | DeviceRows
"""Where pages are brought to: host memory, or a GPU's."""


def device_rows(gpu: Gpu, memory: object, stream: int | None = None) -> DeviceRows | None:
    """``memory`` as rows that belong to a stream; None if it is host memory.

    Args:
        gpu: where it has to lie.
        memory: see :meth:`Gpu.adopt`; DeviceRows are returned as they are.
        stream: the ``cudaStream_t`` on which its owner uses it; None: the current one.

    Raises:
        LimitError: see :meth:`Gpu.adopt`; or the memory is misaligned.
    """
    if isinstance(memory, DeviceRows):
        return memory
    array = gpu.adopt(memory)
    if array is None:
        return None
    if array.data.ptr % ALIGNMENT_BYTES:
        raise LimitError(
            f"the memory begins at {array.data.ptr:#x} on the GPU: it must be a multiple of "
            f"{ALIGNMENT_BYTES}"
        )
    return DeviceRows(array, gpu.current_stream() if stream is None else gpu.stream_at(stream))


@contextlib.contextmanager
def device_calls(gpu: Gpu) -> Iterator[None]:
    """Within, a failure of the device is a DeviceLostError: CUDA goes on after none."""
    try:
        yield
    except gpu.errors as error:
        raise DeviceLostError(f"the GPU failed: {type(error).__name__}: {error}") from error


def open_gpu(device: Device) -> Gpu | None:
    """The current CUDA device for ``cuda``; None for ``cpu``; whichever works for ``auto``.

    Raises:
        DeviceError: ``cuda``, and CuPy can use no GPU.
    """
    if device == "cpu":
        return None
    trouble = find_cuda_trouble()
    if trouble is None:
        return CudaGpu()
    if device == "cuda":
        raise DeviceError(f"device cuda cannot be used: {trouble}, or use --device cpu")
    return None


def find_cuda_trouble() -> str | None:
    """Why CuPy cannot use a GPU here, and what to do about it; None if it can."""
    try:
        import cupy  # noqa: PLC0415 -- not a base dependency
    except ImportError:
        return "CuPy is not installed; install kvtier[cuda12] or kvtier[cuda13]"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"the CUDA driver answers {error}; check nvidia-smi"
    return None if count else "CuPy finds no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"


def check_free(gpu: Gpu, wanted_bytes: int, name: str) -> None:
    """Refuse to allocate more than is free.

    Raises:
        DeviceError: there is less.
    """
    facts = gpu.facts()
    if wanted_bytes > facts.free_bytes:
        raise DeviceError(
            f"{name} of {format_bytes(wanted_bytes)} does not fit: the GPU ({facts.name}) has "
            f"{format_bytes(facts.free_bytes)} of {format_bytes(facts.total_bytes)} free; lower "
            "its capacity"
        )


class CudaGpu:
    """The current CUDA device, by CuPy; see :class:`Gpu`.

    Raises:
        ImportError: CuPy is not installed.
    """

    def __init__(self) -> None:
        import cupy  # noqa: PLC0415 -- not a base dependency

        self.xp: Any = cupy
        cuda = cupy.cuda
        self.errors: tuple[type[Exception], ...] = (
            cuda.runtime.CUDARuntimeError,
            cuda.driver.CUDADriverError,
            cuda.memory.OutOfMemoryError,
        )
        self._cuda: Any = cuda
        self._device = cuda.Device()

    def facts(self) -> GpuFacts:
        runtime = self._cuda.runtime
        properties = runtime.getDeviceProperties(self._device.id)
        free_bytes, total_bytes = self._device.mem_info
        # What CuPy's pool keeps for later is free as well.
        kept_bytes = self.xp.get_default_memory_pool().free_bytes()
        driver = runtime.driverGetVersion()
        return GpuFacts(
            name=properties["name"].decode(),
            capability=f"{properties['major']}.{properties['minor']}",
            driver=f"{driver // 1000}.{driver % 1000 // 10}",
            library=f"CuPy {self.xp.__version__}",
            free_bytes=free_bytes + kept_bytes,
            total_bytes=total_bytes,
        )

    def kernels(self, path: Path, defines: dict[str, int]) -> Kernels:
        return CudaKernels(path, defines)

    def pin(self, rows: U8) -> Pinned:
        return _CudaPinned(self._cuda, self.xp, self._device.id, rows)

    def new_stream(self) -> Any:
        with self._device:
            return self._cuda.Stream(non_blocking=True)

    def current_stream(self) -> Any:
        return self._cuda.get_current_stream()

    def stream_at(self, handle: int) -> Any:
        return self._cuda.ExternalStream(handle, self._device.id)

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        with self._device, stream:
            yield

    def adopt(self, memory: object) -> Array | None:
        if isinstance(memory, np.ndarray):
            return None
        array = memory if isinstance(memory, self.xp.ndarray) else self._taken_over(memory)
        if array is not None and array.device.id != self._device.id:
            raise LimitError(
                f"the memory lies on GPU {array.device.id}, and the cache on {self._device.id}: "
                "give memory of the cache's GPU"
            )
        return array

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(self._cuda.get_elapsed_time(start, end))

    def _taken_over(self, memory: Any) -> Array | None:
        described = getattr(memory, "__cuda_array_interface__", None)
        if described is not None and described["data"][1]:
            raise LimitError("the memory is read-only: give memory that can be written")
        try:
            if described is not None:
                return self.xp.asarray(memory)
            # DLPack's kDLCUDA and kDLCUDAManaged.
            if hasattr(memory, "__dlpack__") and memory.__dlpack_device__()[0] in (2, 13):
                return self.xp.from_dlpack(memory)
        except (BufferError, TypeError, ValueError) as error:
            raise LimitError(f"the memory cannot be taken over: {error}") from error
        return None


class _CudaPinned:
    """See :class:`Pinned`; the memory is registered with the driver, for every device."""

    def __init__(self, cuda: Any, cupy: Any, device_id: int, rows: U8) -> None:
        self._runtime = cuda.runtime
        self._address = rows.ctypes.data
        # cudaHostRegister's flags are those of cudaHostAlloc.
        flags = self._runtime.hostAllocPortable | self._runtime.hostAllocMapped
        self._runtime.hostRegister(self._address, rows.nbytes, flags)
        self._is_open = True
        pointer = self._runtime.pointerGetAttributes(self._address).devicePointer
        memory = cuda.UnownedMemory(pointer, rows.nbytes, rows, device_id)
        self.view: Array = cupy.ndarray(rows.shape, np.uint8, cuda.MemoryPointer(memory, 0))

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._runtime.hostUnregister(self._address)


class CudaKernels:
    """Kernels of a file, compiled by NVRTC for the current device and kept in CuPy's cache.

    Args:
        path: of the ``.cu`` file; what it includes lies beside it.
        defines: macros, by name.

    Raises:
        ImportError: CuPy is not installed.
        cupy.cuda.compiler.CompileException: the file cannot be compiled for this device.
    """

    def __init__(self, path: Path, defines: dict[str, int]) -> None:
        import cupy  # noqa: PLC0415 -- not a base dependency

        self.xp: Any = cupy
        self._module = cupy.RawModule(code=path.read_text(), options=compile_options(path, defines))
        self._functions: dict[str, Any] = {}
        self._module.compile()

    def launch(self, name: str, threads: int, *arguments: Array | np.generic | None) -> None:
        """See :meth:`Kernels.launch`."""
        if threads == 0:
            return
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = self._module.get_function(name)
        # CuPy takes a record by value only as an array of one.
        passed = tuple(
            np.array([one], one.dtype) if isinstance(one, np.void) else one for one in arguments
        )
        function((-(-threads // THREADS_PER_BLOCK),), (THREADS_PER_BLOCK,), passed)


def compile_options(path: Path, defines: dict[str, int]) -> tuple[str, ...]:
    """What NVRTC must be told to compile ``path``."""
    macros = (f"-D{name}={value}" for name, value in defines.items())
    return ("-std=c++17", f"-I{path.parent}", *macros)
