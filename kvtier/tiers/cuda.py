"""The tier in the memory of a GPU: its index and its pages lie there, kernels look up and move.

**Order.** Reads and writes of the arena happen in the order in which they were enqueued, whatever
their streams (:class:`kvtier.tiers.stream_order.StreamOrder`). That is why a batch may release its
epoch when its copies are enqueued: the slots can be given to other pages at once, for what is then
written there waits, on the GPU, for the copies. Which page lies where never depends on how fast the
GPU is.

**Callers.** Memory of the GPU is read and written on its owner's stream, and the host does not
wait. Host memory is read and written before a call returns.

**Failure.** CUDA goes on after no error: each becomes a DeviceLostError, and the tier must not be
used any more. Pages that were enqueued and not yet copied never arrive; their owner learns that
from its own stream, as from any work on a lost device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from kvtier.errors import DeviceError, DeviceLostError
from kvtier.gpu import (
    Array,
    DeviceHits,
    DeviceIds,
    DeviceRows,
    Gpu,
    Stream,
    check_free,
    device_calls,
    device_rows,
)
from kvtier.index.cuda import SLOT_BYTES
from kvtier.pages import I64, U8
from kvtier.rows import as_column
from kvtier.tiers.crossing import Crossing
from kvtier.tiers.cuda_hits import HitGraphs
from kvtier.tiers.cuda_index import StreamIndex
from kvtier.tiers.cuda_rows import SOURCE, RowKernels
from kvtier.tiers.memory import HostTier, MemoryTier
from kvtier.tiers.stream_order import StreamOrder
from kvtier.units import format_bytes


class CudaTier(MemoryTier):
    """A tier on a GPU. Memory of callers is NumPy's, the GPU's, or DeviceRows.

    Args:
        gpu: where index and arena lie.
        slots: pages of the arena, in whole sets.
        ways: slots of a set.
        seed: of the index's hash.
        page_bytes: bytes of a page.

    Raises:
        DeviceError: the GPU has no memory for the arena, or the host none to pin.
    """

    name = "hbm"
    engine = "cuda"

    index: StreamIndex

    def __init__(self, gpu: Gpu, slots: int, ways: int, seed: int, page_bytes: int) -> None:
        self.gpu = gpu
        self._page_bytes = page_bytes
        self._order = StreamOrder()
        self._hits: list[tuple[Any, DeviceHits]] = []
        size = slots * (page_bytes + SLOT_BYTES)
        try:
            check_free(gpu, size, "an hbm tier")
            self._rows = RowKernels(gpu.kernels(SOURCE, {}))
            self._stream = gpu.new_stream()
            self.index = StreamIndex(gpu, slots, ways, seed)
            self.arena = gpu.xp.empty((slots, page_bytes), np.uint8)
            self._crossing = Crossing(gpu, self._rows, slots, page_bytes)
            index, order = self.index, self._order
            self._graphs = HitGraphs(
                gpu, index.on_device, index.stream, self._rows, self.arena, order
            )
        except gpu.errors as error:
            raise DeviceError(
                f"an hbm tier of {format_bytes(size)} cannot be opened on the GPU: {error}; "
                "lower its capacity, or look at nvidia-smi"
            ) from error

    def gather(
        self, slots: I64 | DeviceHits, out: U8 | DeviceRows, rows: I64 | None = None
    ) -> None:
        """See :meth:`MemoryTier.gather`. Of hits that are on the GPU, ``rows`` are known there."""
        if isinstance(slots, DeviceHits) and slots.copied:
            return
        with device_calls(self.gpu):
            to = device_rows(self.gpu, out)
            self._check(slots, out if to is None else to.array, rows)
            if to is None:
                assert isinstance(out, np.ndarray)
                self._download(slots.slots if isinstance(slots, DeviceHits) else slots, out, rows)
                return
            with self.reading(to.stream):
                if isinstance(slots, DeviceHits):
                    where = slots.slots
                    self._rows.copy(to.array, slots.rows, self.arena, where, len(slots))
                    self._keep(slots, to.stream)
                else:
                    self._rows.copy(to.array, rows, self.arena, slots, len(slots))

    def serve(
        self, page_ids: DeviceIds, out: DeviceRows, epoch: int, oldest_epoch: int
    ) -> DeviceHits | None:
        """Look a small batch up and copy its pages by one launch, if all of them hit.

        Arguments and result are those of :meth:`kvtier.tiers.cuda_hits.HitGraphs.serve`.

        Raises:
            DeviceLostError: the GPU failed.
        """
        with device_calls(self.gpu):
            return self._graphs.serve(page_ids, out, epoch, oldest_epoch)

    def slots(self, page_ids: DeviceIds) -> Array:
        """The slot of each page, or -1 (i64[n]), for work on the stream of its owner.

        Raises:
            DeviceLostError: the GPU failed.
        """
        with device_calls(self.gpu):
            found = self.index.peek_there(page_ids)
            # Memory of that stream: when it is let go, it stays until the work on it is done.
            with self.gpu.on(page_ids.stream):
                slots = found.copy()
            self._keep(DeviceHits(found, None), page_ids.stream)
            return slots

    def scatter(self, slots: I64, source: U8 | DeviceRows, rows: I64 | None = None) -> None:
        """See :meth:`MemoryTier.scatter`. Host memory goes through pinned buffers."""
        with device_calls(self.gpu):
            origin = device_rows(self.gpu, source)
            self._check(slots, source if origin is None else origin.array, rows)
            if origin is None:
                assert isinstance(source, np.ndarray)
                streams = self._crossing.streams
                self._order.before_write(streams)
                try:
                    self._crossing.upload(self.arena, slots, source, rows, len(slots))
                finally:
                    self._order.after_write(streams)
            else:
                with self._writing(origin.array, rows, slots):
                    self._stream.wait_event(origin.stream.record())
                origin.stream.wait_event(self._stream.record())

    def transfer(self, slots: I64, source: MemoryTier, source_slots: I64) -> None:
        """See :meth:`MemoryTier.transfer`. Pinned memory is read by one launch, where it is."""
        mapped = source.mapped if isinstance(source, HostTier) else None
        if mapped is None:
            self.scatter(slots, source.arena, source_slots)
            return
        with device_calls(self.gpu):
            self._check(slots, mapped.view, source_slots)
            with self._writing(mapped.view, source_slots, slots):
                pass
            mapped.was_read(self._stream)

    @contextlib.contextmanager
    def reading(self, stream: Stream) -> Iterator[None]:
        """Within, what is enqueued on ``stream`` may read the arena.

        For pages that are used in place: it sees what was written before, and what is written
        later waits for it. So a lease may be released when its last reader is enqueued.

        Raises:
            DeviceLostError: the GPU failed.
        """
        with device_calls(self.gpu), self.gpu.on(stream):
            self._order.before_read(stream)
            try:
                yield
            finally:
                self._order.after_read(stream)

    def bring(self, out: DeviceRows, rows: I64 | None, source: U8, source_rows: I64) -> None:
        """Copy rows of host memory to memory of the GPU that is a caller's, not the tier's.

        Args:
            out: u8[any, page_bytes].
            rows: i64[n], distinct, or None for rows 0 to n-1.
            source: u8[any, page_bytes]; it has been read when this returns.
            source_rows: i64[n].

        Raises:
            DeviceLostError: the GPU failed.
        """
        with device_calls(self.gpu):
            ready = out.stream.record()
            for stream in self._crossing.streams:
                stream.wait_event(ready)
            self._crossing.upload(out.array, rows, source, source_rows, len(source_rows))
            for stream in self._crossing.streams:
                out.stream.wait_event(stream.record())

    async def close(self) -> None:
        """See :meth:`MemoryTier.close`. Waits for the copies that are enqueued."""
        # A GPU that has failed takes its memory with it.
        with contextlib.suppress(*self.gpu.errors, DeviceLostError):
            self._order.wait_for_reads()
            self._stream.synchronize()
            self._crossing.close()
            self._graphs.close()
            self._hits.clear()
            self.arena = self.gpu.xp.empty((0, self._page_bytes), np.uint8)

    def _keep(self, hits: DeviceHits, stream: Stream) -> None:
        """Keep hits until ``stream`` has come so far: their memory would be the index's again."""
        self._hits = [(read, kept) for read, kept in self._hits if not read.done]
        self._hits.append((stream.record(), hits))

    def _download(self, slots: Array, out: U8, rows: I64 | None) -> None:
        for stream in self._crossing.streams:
            self._order.before_read(stream)
        try:
            self._crossing.download(out, rows, self.arena, slots)
        except BaseException:
            for stream in self._crossing.streams:
                self._order.after_read(stream)
            raise

    @contextlib.contextmanager
    def _writing(self, source: Array, rows: I64 | None, slots: I64) -> Iterator[None]:
        """Copy to the arena on the tier's own stream, after what the block makes it wait for."""
        self._order.before_write([self._stream])
        yield
        with self.gpu.on(self._stream):
            self._rows.copy(self.arena, slots, source, rows, len(slots))
        self._order.after_write([self._stream])

    def _check(self, slots: I64 | DeviceHits, memory: Array, rows: I64 | None) -> None:
        """Kernels would follow a number that is out of range anywhere, so the host looks first."""
        if (
            memory.ndim != 2
            or memory.dtype != np.uint8
            or memory.shape[1] != self._page_bytes
            or not memory.flags.c_contiguous
        ):
            raise ValueError(
                f"memory is {memory.dtype}{list(memory.shape)}: "
                f"it must be u8[rows, {self._page_bytes}], C-contiguous"
            )
        if rows is None and len(slots) > len(memory):
            raise ValueError(f"memory has {len(memory)} rows, but {len(slots)} are needed")
        if rows is not None and len(rows) != len(slots):
            raise ValueError(f"{len(rows)} rows are given for {len(slots)} slots")
        if not isinstance(slots, DeviceHits):
            _check_range("slot", slots, len(self.arena))
        if rows is not None:
            _check_range("row", rows, len(memory))


def _check_range(name: str, numbers: I64, limit: int) -> None:
    as_column(numbers, np.int64, f"the {name} numbers")
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < limit:
        raise ValueError(f"a {name} number is outside 0 to {limit - 1}")
