"""The way between host memory that is not pinned and the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

from kvtier.gpu import Array, Gpu, Stream
from kvtier.pages import I64, U8
from kvtier.rows import aligned_rows, copy_rows
from kvtier.tiers.cuda_rows import RowKernels

CHUNK_BYTES: Final = 2 << 20
"""What crosses at once: long enough that launching it costs little, short enough that the host's
copy of one chunk overlaps with the bus's of another."""


class _Buffer:
    """Pinned rows, and the stream on which kernels are at them.

    Attributes:
        rows: as the host sees them.
        view: as kernels do.
        stream: everything that touches them is enqueued there.
        busy: an event after which the host may touch them again.
    """

    def __init__(self, gpu: Gpu, rows: int, row_bytes: int) -> None:
        self.rows = aligned_rows(rows, row_bytes)
        self.stream = gpu.new_stream()
        self._pinned = gpu.pin(self.rows)
        self.view = self._pinned.view
        self.busy: Any = None

    def wait(self) -> None:
        """Wait until no kernel is at the rows."""
        if self.busy is not None:
            self.busy.synchronize()
            self.busy = None

    def close(self) -> None:
        self._pinned.close()


class Crossing:
    """Two pinned buffers in turn: the host is at one of them while a kernel is at the other.

    Whoever calls orders :attr:`streams` before and after. If the device fails in the middle, its
    error is raised; host memory is then written in part, as after any failed copy.

    Args:
        gpu: on the other side.
        kernels: copy rows there.
        rows: the longest copy that is expected; memory is not taken for more.
        row_bytes: bytes of a row.
    """

    def __init__(self, gpu: Gpu, kernels: RowKernels, rows: int, row_bytes: int) -> None:
        self._gpu = gpu
        self._kernels = kernels
        self._step = max(1, min(rows, CHUNK_BYTES // row_bytes))
        with ExitStack() as stack:
            self._buffers: list[_Buffer] = []
            for _ in range(2):
                self._buffers.append(_Buffer(gpu, self._step, row_bytes))
                stack.callback(self._buffers[-1].close)
            self._closing = stack.pop_all()

    @property
    def streams(self) -> list[Stream]:
        """On which memory of the GPU is read and written."""
        return [buffer.stream for buffer in self._buffers]

    def upload(
        self,
        target: Array,
        target_rows: I64 | None,
        source: U8,
        source_rows: I64 | None,
        count: int,
    ) -> None:
        """Copy rows of host memory to the GPU.

        ``source`` has been read when this returns; ``target`` is written when the streams are done.

        Args:
            target: u8[any, row_bytes] on the GPU.
            target_rows: i64[count], distinct, or None for rows 0 to count-1.
            source: u8[any, row_bytes].
            source_rows: i64[count], or None likewise.
            count: how many rows.
        """
        for buffer, part in self._turns(count):
            rows = part.stop - part.start
            buffer.wait()
            staged = buffer.rows[:rows]
            if source_rows is None:
                copy_rows(staged, None, source[part], None)
            else:
                copy_rows(staged, None, source, source_rows[part])
            with self._gpu.on(buffer.stream):
                if target_rows is None:
                    self._kernels.copy(target[part], None, buffer.view, None, rows)
                else:
                    self._kernels.copy(target, target_rows[part], buffer.view, None, rows)
                buffer.busy = buffer.stream.record()

    def download(
        self, target: U8, target_rows: I64 | None, source: Array, source_rows: I64
    ) -> None:
        """Copy rows of the GPU to host memory; they are there when this returns.

        Args:
            target: u8[any, row_bytes].
            target_rows: i64[n], distinct, or None for rows 0 to n-1.
            source: u8[any, row_bytes] on the GPU.
            source_rows: i64[n].
        """
        staged: tuple[_Buffer, slice] | None = None
        for buffer, part in self._turns(len(source_rows)):
            buffer.wait()
            rows = part.stop - part.start
            with self._gpu.on(buffer.stream):
                self._kernels.copy(buffer.view, None, source, source_rows[part], rows)
                buffer.busy = buffer.stream.record()
            if staged is not None:
                _take(target, target_rows, *staged)
            staged = buffer, part
        if staged is not None:
            _take(target, target_rows, *staged)

    def close(self) -> None:
        """Let the buffers go, when no kernel is at them; a second call does nothing."""
        for buffer in self._buffers:
            buffer.wait()
        self._closing.close()

    def _turns(self, count: int) -> Iterator[tuple[_Buffer, slice]]:
        for number, first in enumerate(range(0, count, self._step)):
            yield self._buffers[number % 2], slice(first, min(first + self._step, count))


def _take(target: U8, target_rows: I64 | None, buffer: _Buffer, part: slice) -> None:
    """Bring what a kernel put into ``buffer`` to its rows."""
    buffer.wait()
    staged = buffer.rows[: part.stop - part.start]
    if target_rows is None:
        copy_rows(target[part], None, staged, None)
    else:
        copy_rows(target, target_rows[part], staged, None)
