"""A GPU by CuPy, which is imported when one is opened: it is no base dependency."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from kvtier.errors import DeviceError, LimitError
from kvtier.gpu import Array, Gpu, GpuFacts, Graph, Kernels, Pinned
from kvtier.pages import U8
from kvtier.settings import Device

THREADS_PER_BLOCK: Final = 256
"""Enough warps of one block to hide a memory latency, few enough registers to keep 8 blocks."""


_READ_BYTES: Final = 1 << 12
"""Of pinned memory for what the host reads of a kernel's results, at first."""


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

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph | None:
        try:
            with self.on(stream):
                stream.begin_capture()
                try:
                    work()
                finally:
                    graph: Graph = stream.end_capture()
        except self._cuda.runtime.CUDARuntimeError:
            return None  # a lost device says so at the next call
        return graph

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
        self._pinned = self._pin(_READ_BYTES)

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

    def read(self, values: Array) -> Any:
        """See :meth:`Kernels.read`; through pinned memory, so that it is one copy by the device."""
        size = values.nbytes
        if size == 0:
            return np.empty(values.shape, values.dtype)
        if size > self._pinned.nbytes:
            self._pinned = self._pin(2 * size)
        staged = self._pinned[:size].view(values.dtype).reshape(values.shape)
        values.get(out=staged)
        return staged.copy()

    def _pin(self, size: int) -> U8:
        return np.frombuffer(self.xp.cuda.alloc_pinned_memory(size), np.uint8, size)


def compile_options(path: Path, defines: dict[str, int]) -> tuple[str, ...]:
    """What NVRTC must be told to compile ``path``."""
    macros = (f"-D{name}={value}" for name, value in defines.items())
    return ("-std=c++17", f"-I{path.parent}", *macros)
