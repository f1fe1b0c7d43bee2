"""What speaks to CuPy: its calls run against a stand-in, whose names are compared with CuPy's."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cupy import CUDARuntimeError, FakeArray, FakeModule, FakeStream, fake_cupy

from kvtier.cuda import CudaGpu, find_cuda_trouble, open_gpu
from kvtier.errors import DeviceError, DeviceLostError, LimitError
from kvtier.gpu import DeviceRows, check_free, device_calls, device_rows
from kvtier.rows import aligned_rows
from kvtier.tiers.cuda_rows import SOURCE, RowKernels


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


class Cai:
    """Memory of a device, as PyTorch, Numba and CuPy describe theirs."""

    def __init__(
        self, shape: tuple[int, int] = (2, 512), *, device: int = 0, read_only: bool = False,
        typestr: str = "|u1",
    ) -> None:  # fmt: skip
        self.memory = aligned_rows(*shape)
        self.device_id = device
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (self.memory.ctypes.data, read_only),
            "version": 3,
        }


class Dlpack:
    def __init__(self, array: Any, device: tuple[int, int]) -> None:
        self.array = array
        self._device = device

    def __dlpack__(self) -> Any: ...

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


def test_facts_of_a_device(cupy: Any) -> None:
    facts = CudaGpu().facts()
    assert (facts.name, facts.capability, facts.driver) == ("NVIDIA H200", "9.0", "13.1")
    assert facts.library == "CuPy 13.6.0"
    assert (facts.free_bytes, facts.total_bytes) == ((3 << 30) + (1 << 20), 4 << 30)


def test_pinned_memory_is_registered_whole_and_given_back_once(cupy: Any) -> None:
    rows = aligned_rows(4, 512)
    pinned = CudaGpu().pin(rows)
    assert cupy.registered == {rows.ctypes.data: 2048}
    pinned.view.held[1] = 7
    assert (rows[1] == 7).all()
    pinned.close()
    pinned.close()
    assert cupy.registered == {}


def test_streams_are_cupy_s(cupy: Any) -> None:
    gpu = CudaGpu()
    before, stream = gpu.current_stream(), gpu.new_stream()
    assert isinstance(stream, FakeStream)
    assert stream.non_blocking
    with gpu.on(stream):
        assert gpu.current_stream() is stream
    assert gpu.current_stream() is before
    external: Any = gpu.stream_at(99)
    assert (external.ptr, external.device_id) == (99, 0)
    assert gpu.elapsed_ms(None, None) == 2.5


def test_memory_with_the_array_interface_is_taken_over_where_it_is(cupy: Any) -> None:
    gpu, memory = CudaGpu(), Cai()
    array = gpu.adopt(memory)
    assert array.data.ptr == memory.memory.ctypes.data
    assert gpu.adopt(array) is array
    assert gpu.adopt(Dlpack(array, (2, 0))) is array
    assert gpu.adopt(Dlpack(array, (13, 0))) is array


def test_host_memory_is_nobody_s_array(cupy: Any) -> None:
    gpu = CudaGpu()
    assert gpu.adopt(np.zeros(3)) is None
    assert gpu.adopt(Dlpack(None, (1, 0))) is None
    assert gpu.adopt([1, 2]) is None


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (Cai(device=1), "lies on GPU 1, and the cache on 0"),
        (Cai(read_only=True), "read-only"),
        (Cai(typestr="<V2"), "cannot be taken over: unsupported typestr <V2"),
    ],
)
def test_memory_that_cannot_be_used_is_refused(cupy: Any, memory: Cai, message: str) -> None:
    with pytest.raises(LimitError, match=message):
        CudaGpu().adopt(memory)


def test_rows_belong_to_the_current_stream_or_the_named_one(cupy: Any) -> None:
    gpu = CudaGpu()
    current = device_rows(gpu, Cai())
    named = device_rows(gpu, Cai(), stream=5)
    assert current is not None
    assert named is not None
    assert (current.stream, named.stream.ptr) == (gpu.current_stream(), 5)
    assert device_rows(gpu, named) is named
    assert device_rows(gpu, np.zeros(3)) is None
    part = DeviceRows(np.zeros((4, 512), np.uint8), named.stream)[1:3]
    assert (len(part), part.stream) == (2, named.stream)


def test_a_kernel_is_launched_with_whole_blocks_and_records_by_value(cupy: Any) -> None:
    gpu = CudaGpu()
    kernels = gpu.kernels(SOURCE, {"SOME": 3})
    record = np.zeros(1, [("tags", np.uint64)])[0]
    kernels.launch("copy_rows", 257, None, np.int64(4), record)
    kernels.launch("copy_rows", 0, None)
    ((name, grid, block, arguments),) = FakeModule.launched
    assert (name, grid, block) == ("copy_rows", (2,), (256,))
    assert arguments[:2] == (None, 4)
    assert arguments[2].shape == (1,)
    RowKernels(gpu.kernels(SOURCE, {}))


def test_results_of_kernels_are_read_whatever_their_size(cupy: Any) -> None:
    gpu = CudaGpu()
    kernels = gpu.kernels(SOURCE, {})
    for rows in (1, 64, 3):
        memory = Cai((rows, 512))
        memory.memory[:] = np.arange(rows)[:, None]
        seen = kernels.read(gpu.adopt(memory))
        np.testing.assert_array_equal(seen, memory.memory)
        kernels.read(gpu.adopt(Cai()))
        np.testing.assert_array_equal(seen, memory.memory)


def test_launches_are_captured_on_their_stream(cupy: Any) -> None:
    gpu = CudaGpu()
    stream: Any = gpu.new_stream()
    graph = gpu.capture(stream, lambda: stream.captured.append("a launch"))
    assert graph is not None
    graph.launch(stream)
    assert stream.launched == [["a launch"]]


def test_a_driver_that_cannot_capture_is_no_failure(cupy: Any) -> None:
    gpu = CudaGpu()
    stream: Any = gpu.new_stream()

    def refuse() -> None:
        raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported")

    assert gpu.capture(stream, refuse) is None
    assert not stream.is_capturing()


def test_a_failure_of_the_device_is_its_loss(cupy: Any) -> None:
    gpu = CudaGpu()
    message = "the GPU failed: CUDARuntimeError: cudaErrorIllegalAddress"
    with pytest.raises(DeviceLostError, match=message), device_calls(gpu):
        raise CUDARuntimeError("cudaErrorIllegalAddress")
    with pytest.raises(KeyError), device_calls(gpu):
        raise KeyError


def test_more_than_is_free_is_refused_with_both_numbers(cupy: Any) -> None:
    check_free(CudaGpu(), 3 << 30, "an hbm tier")
    message = r"an hbm tier of 8 GiB does not fit: the GPU \(NVIDIA H200\) has 3.* of 4 GiB free"
    with pytest.raises(DeviceError, match=message):
        check_free(CudaGpu(), 8 << 30, "an hbm tier")


def test_the_device_setting_chooses(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_gpu("cpu") is None
    assert isinstance(open_gpu("auto"), CudaGpu)
    assert isinstance(open_gpu("cuda"), CudaGpu)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(devices=0))
    assert open_gpu("auto") is None
    with pytest.raises(DeviceError, match=r"CuPy finds no GPU; .* or use --device cpu"):
        open_gpu("cuda")


def test_a_driver_that_answers_with_an_error_is_named(cupy: Any) -> None:
    def refuse() -> int:
        raise CUDARuntimeError("cudaErrorInsufficientDriver")

    cupy.cuda.runtime.getDeviceCount = refuse
    trouble = find_cuda_trouble()
    assert trouble == "the CUDA driver answers cudaErrorInsufficientDriver; check nvidia-smi"


def test_the_stand_in_has_the_names_of_cupy() -> None:
    real = pytest.importorskip("cupy")
    fake = fake_cupy()
    for name in (name for name in vars(fake) if not name.startswith("__") and name != "registered"):
        assert hasattr(real, name), name
    for name, part in vars(fake.cuda).items():
        assert hasattr(real.cuda, name), name
        if isinstance(part, SimpleNamespace):
            for inner in vars(part):
                assert hasattr(getattr(real.cuda, name), inner), f"{name}.{inner}"
    assert (real.cuda.runtime.hostAllocPortable, real.cuda.runtime.hostAllocMapped) == (1, 2)
    assert hasattr(real.cuda.runtime.PointerAttributes, "devicePointer")
    assert isinstance(FakeArray, type)
