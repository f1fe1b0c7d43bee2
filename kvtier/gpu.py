"""What kvtier needs of a GPU; :mod:`kvtier.cuda` is CuPy's answer to it.

Whoever uses a GPU is written against :class:`Gpu`, so that the tests can run all of it on a CPU:
the very same ``.cu`` files, and streams that run as late, and as mixed, as a device's may.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from kvtier.errors import DeviceError, DeviceLostError, LimitError
from kvtier.pages import U8, U64
from kvtier.units import format_bytes

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

    def read(self, values: Array) -> Any:
        """Bring an array to host memory (a NumPy array); waits for the current stream."""
        ...


class Event(Protocol):
    """A mark in a stream.

    Attributes:
        done: the stream has come there.
    """

    @property
    def done(self) -> bool: ...

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


class Graph(Protocol):
    """Kernels that were captured with their arguments. CuPy's graphs are such."""

    def launch(self, stream: Any) -> None:
        """Enqueue all of them on a stream, in one call."""
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

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph | None:
        """The launches that ``work`` makes on ``stream``, which run only when the graph does.

        Args:
            stream: not the default one.
            work: enqueues kernels that have run before, and nothing else.

        Returns:
            None if the device or its driver cannot capture.
        """
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


@dataclass(frozen=True, slots=True, eq=False)
class DeviceIds:
    """Page ids that lie on a GPU, and are taken from there.

    Attributes:
        array: u64[n].
        ready: an :class:`Event` after whatever writes them.
        stream: on which their owner uses what is answered.
    """

    array: Array
    ready: Any
    stream: Stream

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, part: slice) -> DeviceIds:
        return DeviceIds(self.array[part], self.ready, self.stream)


@dataclass(frozen=True, slots=True, eq=False)
class DeviceHits:
    """Slots of pages that were found, on the GPU that found them; no writes to them are pending.

    Attributes:
        slots: i64[h].
        rows: i64[h], the rows of the batch that asked for them, ascending; None: all, in order.
        copied: their pages are enqueued already for whoever asked.
    """

    slots: Array
    rows: Array | None
    copied: bool = False

    def __len__(self) -> int:
        return len(self.slots)


Rows: TypeAlias = U8 | DeviceRows
"""Where pages are brought to: host memory, or a GPU's."""

PageIds: TypeAlias = U64 | DeviceIds
"""What pages are asked for by: host memory, or a GPU's."""


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
    return DeviceRows(array, stream_of(gpu, stream))


def stream_of(gpu: Gpu, handle: int | None) -> Stream:
    """The stream of a ``cudaStream_t``; None: the current one."""
    return gpu.current_stream() if handle is None else gpu.stream_at(handle)


@contextlib.contextmanager
def device_calls(gpu: Gpu) -> Iterator[None]:
    """Within, a failure of the device is a DeviceLostError: CUDA goes on after none."""
    try:
        yield
    except gpu.errors as error:
        raise DeviceLostError(f"the GPU failed: {type(error).__name__}: {error}") from error


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
