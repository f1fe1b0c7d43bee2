"""The index of the tier on a GPU: the CUDA index on a stream of its own.

Lookups, publications and all else happen there in the order of the calls, so decisions never depend
on how fast the GPU is. When a lookup returns, the host has waited for its last kernel: its answer
may be used on any stream, and the page ids may be written again. The stream has no other work, so
that wait is for a few short kernels. It never waits for another stream: whoever gives DeviceIds has
seen that they are ready.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kvtier.gpu import Array, DeviceIds, Gpu, device_calls
from kvtier.index import IndexSnapshot
from kvtier.index.cuda import SOURCE, CudaIndex
from kvtier.pages import I64, U64, LookupResult


class StreamIndex:
    """A :class:`kvtier.index.PageIndex` for page ids in host memory, or DeviceIds.

    Hits are :class:`kvtier.gpu.DeviceHits`; all other answers are host memory. Every call may raise
    a DeviceLostError; the index must not be used any more then.

    Args:
        gpu: where it lies.
        slots, ways, seed: as of :func:`kvtier.index.create_index`.

    Attributes:
        on_device: the index itself, for kernels on ``stream``.
        stream: where all of its work is enqueued.

    Raises:
        SettingsError: ``slots`` or ``ways`` is not possible.
    """

    def __init__(self, gpu: Gpu, slots: int, ways: int, seed: int) -> None:
        self._gpu = gpu
        self.stream = gpu.new_stream()
        self._kernels = gpu.kernels(SOURCE, {"WAYS": ways})
        with gpu.on(self.stream):
            self.on_device = CudaIndex(slots, ways, seed, self._kernels)
        self.slots, self.sets, self.ways = self.on_device.slots, self.on_device.sets, ways

    def lookup(self, page_ids: U64 | DeviceIds, *epochs: int, **hints: Any) -> LookupResult:
        """See :meth:`PageIndex.lookup`."""
        with self._calls():
            return self.on_device.lookup(_array(page_ids), *epochs, **hints)

    def publish(self, slots: I64) -> None:
        """See :meth:`PageIndex.publish`."""
        with self._calls():
            self.on_device.publish(slots)

    def abort(self, slots: I64) -> None:
        """See :meth:`PageIndex.abort`."""
        with self._calls():
            self.on_device.abort(slots)

    def invalidate(self, page_ids: U64) -> I64:
        """See :meth:`PageIndex.invalidate`."""
        with self._calls():
            slots: I64 = self._kernels.read(self.on_device.invalidate(page_ids))
            return slots

    def peek(self, page_ids: U64 | DeviceIds) -> I64:
        """See :meth:`PageIndex.peek`."""
        with self._calls():
            slots: I64 = self._kernels.read(self.on_device.peek(_array(page_ids)))
            return slots

    def peek_there(self, page_ids: DeviceIds) -> Array:
        """What :meth:`peek` answers, left on the GPU (i64[n]) for whatever stream."""
        with self._calls():
            slots = self.on_device.peek(page_ids.array)
            self.stream.synchronize()
            return slots

    def fetch(self, page_ids: DeviceIds) -> U64:
        """The page ids in host memory."""
        with self._calls():
            whole = self._gpu.xp.ascontiguousarray(page_ids.array)
            ids: U64 = self._kernels.read(whole)
            return ids

    def apply(self, function: Callable[[Array], Array], page_ids: DeviceIds) -> Array:
        """``function`` of page ids, for :meth:`lookup`."""
        with self._calls():
            return function(page_ids.array)

    def snapshot(self) -> IndexSnapshot:
        """See :meth:`PageIndex.snapshot`."""
        with self._calls():
            return self.on_device.snapshot()

    @contextlib.contextmanager
    def _calls(self) -> Iterator[None]:
        with device_calls(self._gpu), self._gpu.on(self.stream):
            yield


def _array(page_ids: U64 | DeviceIds) -> Array:
    return page_ids.array if isinstance(page_ids, DeviceIds) else np.asarray(page_ids)
