"""Rows of bytes on a GPU: copied and read by kernels, a warp to a row."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from kvtier.cuda import CudaKernels
from kvtier.gpu import Array, Kernels

SOURCE: Final = Path(__file__).with_name("rows.cu")

LANES: Final = 32

STEP_BYTES: Final = 512
"""What a warp moves at once; rows are multiples of it."""


class RowKernels:
    """What :func:`kvtier.rows.copy_rows` does, enqueued on the current stream.

    Row numbers are not checked here: whoever calls has done that, or has them from an index.

    Args:
        kernels: of :data:`SOURCE`; None: for the current device.
    """

    def __init__(self, kernels: Kernels | None = None) -> None:
        self._kernels = CudaKernels(SOURCE, {}) if kernels is None else kernels
        self._xp = self._kernels.xp

    def copy(
        self,
        target: Array,
        target_rows: Array | None,
        source: Array,
        source_rows: Array | None,
        count: int,
    ) -> None:
        """Copy row ``source_rows[i]`` of ``source`` to row ``target_rows[i]`` of ``target``.

        Args:
            target: u8[t, row_bytes], C-contiguous; device memory, or host memory that is mapped.
            target_rows: i64[count], distinct, or None for rows 0 to count-1.
            source: likewise; it must not overlap ``target``.
            source_rows: i64[count], or None for rows 0 to count-1.
            count: how many rows.

        Raises:
            ValueError: ``row_bytes`` differ, or are no multiple of 512, or memory is misaligned.
        """
        row_bytes = self._row_bytes(source, "source")
        if self._row_bytes(target, "target") != row_bytes:
            raise ValueError(
                f"target rows are {target.shape[1]} bytes and source rows {row_bytes}: "
                "they must be equal"
            )
        self._kernels.launch(
            "copy_rows",
            count * LANES,
            source,
            self._numbers(source_rows),
            target,
            self._numbers(target_rows),
            np.int64(count),
            np.uint32(row_bytes),
        )

    def copy_found(self, size: int, source: Array, slots: Array, batch: Array) -> None:
        """Copy what :meth:`kvtier.index.cuda.CudaIndex.probe_batch` found, row by row.

        Args:
            size: the most rows that the batch has.
            source: u8[any, row_bytes].
            slots: i64[size], a row of ``source`` each, or -1 for none.
            batch: u64: at 1 the number of rows, at 3 the address of u8[rows, row_bytes].
        """
        row_bytes = np.uint32(self._row_bytes(source, "source"))
        self._kernels.launch("copy_found", size * LANES, source, slots, batch, row_bytes)

    def sums(self, source: Array, rows: Array) -> Array:
        """Read rows (i64[n]) of ``source`` where they are.

        Returns:
            u64[n], the sum of each row's 64-bit words, modulo 2**64.
        """
        row_bytes = self._row_bytes(source, "source")
        sums = self._xp.empty(len(rows), np.uint64)
        count = np.int64(len(rows))
        numbers = self._numbers(rows)
        self._kernels.launch(
            "sum_rows", len(rows) * LANES, source, numbers, sums, count, np.uint32(row_bytes)
        )
        return sums

    def _numbers(self, rows: Array | None) -> Array | None:
        return None if rows is None else self._xp.ascontiguousarray(self._xp.asarray(rows))

    def _row_bytes(self, memory: Array, name: str) -> int:
        row_bytes = int(memory.shape[1])
        if memory.dtype != np.uint8 or not memory.flags.c_contiguous or row_bytes % STEP_BYTES:
            raise ValueError(
                f"{name} is {memory.dtype}{list(memory.shape)}: it must be u8[rows, row_bytes], "
                f"C-contiguous, row_bytes a multiple of {STEP_BYTES}"
            )
        return row_bytes
