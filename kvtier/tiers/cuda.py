"""The tier in the memory of an NVIDIA GPU, by CuPy.

The straightforward form: the index is on the host, and each call waits until its bytes are in
place. Bytes cross to the host and back through a staging buffer in pinned memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from kvtier.errors import DeviceError
from kvtier.index import PageIndex
from kvtier.pages import I64, U8
from kvtier.rows import copy_rows
from kvtier.tiers.cuda_rows import RowKernels
from kvtier.tiers.memory import MemoryTier
from kvtier.units import format_bytes

STAGING_BYTES: Final = 16 << 20
"""Pinned memory for pages between host and GPU; a longer copy goes in steps of it."""


class CudaTier(MemoryTier):
    """A tier on the current CUDA device. ``gather`` and ``scatter`` take NumPy and CuPy arrays.

    Args:
        index: which page lies in which slot; on the host.
        slots: pages of the arena.
        page_bytes: bytes of a page.

    Raises:
        ImportError: CuPy is not installed.
        DeviceError: the GPU has no memory for the arena, or the host none to pin.
    """

    name = "hbm"
    engine = "cuda"

    def __init__(self, index: PageIndex, slots: int, page_bytes: int) -> None:
        import cupy  # noqa: PLC0415 -- not a base dependency

        self.index = index
        self._cupy: Any = cupy
        self._device = cupy.cuda.Device()
        self._rows = RowKernels()
        self._step = max(1, min(slots, STAGING_BYTES // page_bytes))
        try:
            self.arena = cupy.empty((slots, page_bytes), np.uint8)
            self._pinned = _pinned_rows(cupy, self._step, page_bytes)
        except (cupy.cuda.memory.OutOfMemoryError, cupy.cuda.runtime.CUDARuntimeError) as error:
            free_bytes, total_bytes = self._device.mem_info
            raise DeviceError(
                f"an hbm tier of {format_bytes(slots * page_bytes)} does not fit: the GPU has "
                f"{format_bytes(free_bytes)} of {format_bytes(total_bytes)} free; lower its "
                "capacity"
            ) from error

    def gather(self, slots: I64, out: U8, rows: I64 | None = None) -> None:
        """See :meth:`MemoryTier.gather`."""
        self._check(slots, out, rows)
        with self._device:
            if isinstance(out, self._cupy.ndarray):
                self._rows.copy(out, rows, self.arena, slots, len(slots))
                self._synchronize()
            else:
                self._download(slots, out, rows)

    def scatter(self, slots: I64, source: U8, rows: I64 | None = None) -> None:
        """See :meth:`MemoryTier.scatter`."""
        self._check(slots, source, rows)
        with self._device:
            if isinstance(source, self._cupy.ndarray):
                self._rows.copy(self.arena, slots, source, rows, len(slots))
                self._synchronize()
            else:
                self._upload(slots, source, rows)

    def transfer(self, slots: I64, source: MemoryTier, source_slots: I64) -> None:
        """See :meth:`MemoryTier.transfer`."""
        self.scatter(slots, source.arena, source_slots)

    async def close(self) -> None:
        """See :meth:`MemoryTier.close`."""
        # Copies of no bytes: the arena and the pinned rows return to CuPy's pools.
        self.arena = self.arena[:0].copy()
        self._pinned = self._pinned[:0].copy()

    def _download(self, slots: I64, out: U8, rows: I64 | None) -> None:
        for first, last in self._steps(len(slots)):
            staged = self._pinned[: last - first]
            pages = self._cupy.empty(staged.shape, np.uint8)
            self._rows.copy(pages, None, self.arena, slots[first:last], len(staged))
            pages.get(out=staged)
            self._synchronize()
            copy_rows(out, _rows_of(rows, first, last), staged, None)

    def _upload(self, slots: I64, source: U8, rows: I64 | None) -> None:
        for first, last in self._steps(len(slots)):
            staged = self._pinned[: last - first]
            copy_rows(staged, None, source, _rows_of(rows, first, last))
            pages = self._cupy.empty(staged.shape, np.uint8)
            pages.set(staged)
            self._rows.copy(self.arena, slots[first:last], pages, None, len(staged))
            # The pinned rows are free again only when the GPU has read them.
            self._synchronize()

    def _steps(self, count: int) -> Iterator[tuple[int, int]]:
        for first in range(0, count, self._step):
            yield first, min(first + self._step, count)

    def _synchronize(self) -> None:
        self._cupy.cuda.get_current_stream().synchronize()

    def _check(self, slots: I64, memory: U8, rows: I64 | None) -> None:
        """Kernels would follow a number that is out of range anywhere, so the host looks first."""
        page_bytes = self.arena.shape[1]
        if memory.ndim != 2 or memory.dtype != np.uint8 or memory.shape[1] != page_bytes:
            raise ValueError(
                f"memory is {memory.dtype}{list(memory.shape)}: it must be u8[rows, {page_bytes}]"
            )
        if rows is not None and len(rows) != len(slots):
            raise ValueError(f"{len(rows)} rows are given for {len(slots)} slots")
        _check_range("slot", slots, len(self.arena))
        _check_range("row", _rows_of(rows, 0, len(slots)), len(memory))


def _pinned_rows(cupy: Any, rows: int, page_bytes: int) -> U8:
    memory = cupy.cuda.alloc_pinned_memory(rows * page_bytes)
    return np.frombuffer(memory, np.uint8, rows * page_bytes).reshape(rows, page_bytes)


def _rows_of(rows: I64 | None, first: int, last: int) -> I64:
    return np.arange(first, last) if rows is None else rows[first:last]


def _check_range(name: str, numbers: I64, limit: int) -> None:
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < limit:
        raise ValueError(f"a {name} number is outside 0 to {limit - 1}")
