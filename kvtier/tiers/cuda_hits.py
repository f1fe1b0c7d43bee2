"""Small batches that hit, looked up and copied by one launch: graphs of kernels, captured once.

Of a small batch, launching kernels one by one takes longer than running them. A graph has its
kernels and their arguments fixed, so what differs from batch to batch is described in pinned memory
that the kernels read. Page ids must lie on the GPU; they have been waited for, so that the index's
stream does not wait for the caller's other work.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from kvtier.gpu import DeviceHits, DeviceIds, DeviceRows, Gpu, Graph, Stream
from kvtier.index.cuda import CudaIndex
from kvtier.rows import aligned_rows
from kvtier.tiers.cuda_rows import RowKernels
from kvtier.tiers.stream_order import StreamOrder

SIZES: Final = (64, 256, 1024)
"""Rows of the graphs; larger batches gain nothing."""

_ROWS_A_WORD: Final = 32


class HitGraphs:
    """Graphs that look up and copy.

    Args:
        gpu: where index and arena lie.
        index: looked up in.
        stream: of the index.
        rows: kernels that copy.
        arena: u8[slots, page_bytes], whose readers and writers ``order`` knows.
        order: see there.
    """

    def __init__(
        self,
        gpu: Gpu,
        index: CudaIndex,
        stream: Stream,
        rows: RowKernels,
        arena: Any,
        order: StreamOrder,
    ) -> None:
        self._index, self._stream, self._order = index, stream, order
        words = SIZES[-1] // _ROWS_A_WORD
        # What the host tells of a batch, and what it is told: one pinned row each.
        told = aligned_rows(2, max(512, 8 * words))
        self._pinned = gpu.pin(told)
        self._batch, self._missed = told.view(np.uint64)
        batch, missed = self._pinned.view.view(np.uint64)[:1], self._pinned.view.view(np.uint64)[1:]
        with gpu.on(stream):
            self._slots = gpu.xp.empty(SIZES[-1], np.int64)
            self._graphs: list[tuple[int, Graph | None]] = []
            for size in SIZES:

                def work(size: int = size) -> None:
                    index.probe_batch(size, batch, self._slots, missed)
                    rows.copy_found(size, arena, self._slots, batch)

                work()  # of no rows: kernels are loaded before they are captured
                self._graphs.append((size, gpu.capture(stream, work)))
        stream.synchronize()

    def serve(
        self, page_ids: DeviceIds, out: DeviceRows, epoch: int, oldest_epoch: int
    ) -> DeviceHits | None:
        """Copy pages to ``out``, row by row, if all of them hit; epochs are those of a lookup.

        Returns:
            None if there is no graph for the batch, or a page missed: it is to be looked up, and
            rows of ``out`` may have been written.
        """
        count = len(page_ids)
        graph = next((graph for size, graph in self._graphs if count <= size), None)
        if graph is None or not page_ids.array.flags.c_contiguous:
            return None
        stamp = self._index.begin(epoch, oldest_epoch)
        self._batch[:4] = page_ids.array.data.ptr, count, stamp, out.array.data.ptr
        self._stream.wait_event(out.stream.record())
        self._order.before_read(self._stream)
        try:
            graph.launch(self._stream)
        finally:
            self._order.after_read(self._stream)
        done = self._stream.record()
        out.stream.wait_event(done)
        done.synchronize()
        words = -(-count // _ROWS_A_WORD)
        if self._missed[:words].any():
            return None
        return DeviceHits(self._slots[:count], None, copied=True)

    def close(self) -> None:
        """Let the pinned memory go; no graph may run."""
        self._pinned.close()
