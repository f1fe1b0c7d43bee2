"""The calls of CuPy that kvtier makes, over NumPy: to run what speaks to CuPy where no GPU is.

Names and arguments are CuPy's; ``tests/unit/test_gpu.py`` compares them with CuPy where it is
installed. Streams and events do nothing: :mod:`cpu_gpu` is where order is tested.
"""

from __future__ import annotations

import ctypes
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class CUDARuntimeError(RuntimeError):
    pass


class CUDADriverError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class FakeDevice:
    id = 0
    mem_info = (3 << 30, 4 << 30)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class FakeStream:
    current: FakeStream

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else id(self)
        self.non_blocking = non_blocking
        self.launched: list[Any] = []

    def begin_capture(self) -> None:
        self.captured: list[Any] | None = []

    def end_capture(self) -> Any:
        captured, self.captured = self.captured, None
        return FakeGraph(captured)

    def is_capturing(self) -> bool:
        return self.captured is not None

    def __enter__(self) -> FakeStream:
        self._before, FakeStream.current = FakeStream.current, self
        return self

    def __exit__(self, *_: object) -> None:
        FakeStream.current = self._before


FakeStream.current = FakeStream(null=True)


class FakeGraph:
    def __init__(self, captured: Any) -> None:
        self.captured = captured

    def launch(self, stream: FakeStream) -> None:
        stream.launched.append(self.captured)


class FakeExternalStream(FakeStream):
    def __init__(self, ptr: int, device_id: int = -1) -> None:
        super().__init__()
        self.ptr = ptr
        self.device_id = device_id


class FakeUnownedMemory:
    def __init__(self, ptr: int, size: int, owner: object, device_id: int = -1) -> None:
        self.ptr, self.size, self.owner, self.device_id = ptr, size, owner, device_id


class FakeMemoryPointer:
    def __init__(self, mem: FakeUnownedMemory, offset: int) -> None:
        self.mem = mem
        self.ptr = mem.ptr + offset


class FakeArray:
    """``cupy.ndarray``, of memory that the host may look at."""

    def __init__(self, shape: Any, dtype: Any, memptr: FakeMemoryPointer) -> None:
        self.shape, self.data = shape, memptr
        self.device = SimpleNamespace(id=max(memptr.mem.device_id, 0))
        raw = (ctypes.c_uint8 * memptr.mem.size).from_address(memptr.ptr)
        self.held = np.frombuffer(raw, dtype).reshape(shape)
        self.dtype, self.nbytes = self.held.dtype, self.held.nbytes

    def get(self, out: Any) -> None:
        assert (out.shape, out.dtype) == (self.shape, self.dtype)
        out[...] = self.held


class FakeModule:
    """``cupy.RawModule``, which notes what is launched."""

    launched: list[tuple[Any, ...]]

    def __init__(self, *, code: str, options: tuple[str, ...]) -> None:
        self.code, self.options = code, options
        FakeModule.launched = []

    def compile(self) -> None:
        assert "extern" in self.code

    def get_function(self, name: str) -> Any:
        def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            FakeModule.launched.append((name, grid, block, arguments))

        return launch


def fake_cupy(devices: int = 1) -> Any:
    """A module to put at ``cupy``'s place; its ``registered`` maps addresses to bytes."""
    module: Any = ModuleType("cupy")
    module.registered = {}
    module.__version__ = "13.6.0"

    def pointer_attributes(ptr: int) -> Any:
        if ptr not in module.registered:
            raise CUDARuntimeError("cudaErrorInvalidValue")
        return SimpleNamespace(device=0, devicePointer=ptr, hostPointer=ptr, type=1)

    def register(ptr: int, size: int, flags: int) -> None:
        assert flags == 3
        module.registered[ptr] = size

    properties = {"name": b"NVIDIA H200", "major": 9, "minor": 0}
    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: devices,
        getDeviceProperties=lambda device: properties,
        driverGetVersion=lambda: 13010,
        hostAllocPortable=1,
        hostAllocMapped=2,
        hostRegister=register,
        hostUnregister=module.registered.pop,
        pointerGetAttributes=pointer_attributes,
    )
    module.cuda = SimpleNamespace(
        runtime=runtime,
        driver=SimpleNamespace(CUDADriverError=CUDADriverError),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        Device=FakeDevice,
        Stream=FakeStream,
        Graph=FakeGraph,
        ExternalStream=FakeExternalStream,
        UnownedMemory=FakeUnownedMemory,
        MemoryPointer=FakeMemoryPointer,
        alloc_pinned_memory=bytearray,
        get_current_stream=lambda: FakeStream.current,
        get_elapsed_time=lambda start, end: 2.5,
    )
    module.ndarray = FakeArray
    module.RawModule = FakeModule
    module.get_default_memory_pool = lambda: SimpleNamespace(free_bytes=lambda: 1 << 20)
    module.asarray = _asarray
    module.from_dlpack = lambda memory: memory.array
    return module


def _asarray(memory: Any) -> FakeArray:
    described = memory.__cuda_array_interface__
    if described["typestr"] != "|u1":
        raise TypeError(f"unsupported typestr {described['typestr']}")
    size = int(np.prod(described["shape"]))
    held = FakeUnownedMemory(described["data"][0], size, memory, memory.device_id)
    return FakeArray(described["shape"], np.uint8, FakeMemoryPointer(held, 0))
