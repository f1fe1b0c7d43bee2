"""The page index on a GPU: its slots lie in device memory, and kernels look pages up.

It takes the decisions of the other engines, slot by slot. Everything a batch needs is enqueued on
the current stream; the host waits only for numbers that it needs itself: how many rows missed, and
how many pages were evicted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from kvtier.cuda import CudaKernels
from kvtier.gpu import Array, Kernels
from kvtier.index.epochs import STAMP_MAX, base_for
from kvtier.index.hashing import seed_word
from kvtier.index.interface import IndexSnapshot, check_pending, sets_for
from kvtier.pages import LookupResult

SOURCE: Final = Path(__file__).with_name("index.cu")

_LANES: Final = 32

_SLOT_TABLE: Final = np.dtype(
    [
        ("tags", np.uint64),
        ("digests", np.uint64),
        ("states", np.uint64),
        ("stamps", np.uint64),
        ("priorities", np.uint64),
        ("sets", np.uint64),
        ("seed_word", np.uint64),
    ]
)
"""``SlotTable`` of slots.cuh: addresses, then values."""


class CudaIndex:
    """A :class:`kvtier.index.interface.PageIndex` whose arrays, in and out, lie on the GPU.

    18 bytes of device memory per slot. Host arrays are taken too, and brought to the device. Calls
    are ordered by the current stream.

    Args:
        slots, ways, seed: as of :func:`kvtier.index.create_index`.
        kernels: of :data:`SOURCE`, compiled with ``WAYS``; None: for the current device.
    """

    def __init__(
        self, slots: int, ways: int = 16, seed: int = 1, kernels: Kernels | None = None
    ) -> None:
        self.sets = sets_for(slots, ways)
        self.ways = ways
        self.slots = self.sets * ways
        self._kernels = CudaKernels(SOURCE, {"WAYS": ways}) if kernels is None else kernels
        xp = self._xp = self._kernels.xp
        self._seed_word = np.uint64(seed_word(seed))
        self._tags = xp.zeros(self.slots, np.uint64)
        self._digests = xp.zeros(self.slots, np.uint8)
        self._states = xp.zeros(self.slots, np.uint8)
        self._stamps = xp.zeros(self.slots, np.uint32)
        self._priorities = xp.zeros(self.slots, np.uint32)
        columns = (self._tags, self._digests, self._states, self._stamps, self._priorities)
        addresses = [_address(column) for column in columns]
        self._table = np.array([(*addresses, self.sets, self._seed_word)], _SLOT_TABLE)[0]
        self._base = 0
        self._newest = 0

    def lookup(
        self,
        page_ids: Array,
        epoch: int,
        oldest_epoch: int,
        *,
        admit: Array | None = None,
        priorities: Array | None = None,
    ) -> LookupResult:
        xp, launch = self._xp, self._kernels.launch
        page_ids = self._column(page_ids, np.uint64, "page_ids")
        rows = len(page_ids)
        admit = self._hints(admit, np.bool_, "admit", rows)
        priorities = self._hints(priorities, np.uint32, "priorities", rows)
        self._enter(epoch, oldest_epoch)
        stamp, oldest = np.uint32(epoch - self._base), np.uint32(oldest_epoch - self._base)
        count = np.int64(rows)

        states, slots = xp.empty(rows, np.uint8), xp.empty(rows, np.int64)
        words = -(-rows // _LANES)
        missed, missed_counts = xp.empty(words, np.uint32), xp.empty(words, np.int64)
        launch("probe", rows, self._table, page_ids, count, stamp, states, slots, missed,
               missed_counts)  # fmt: skip
        ends = xp.cumsum(missed_counts)
        misses = int(ends[-1]) if words else 0
        if misses == 0:
            return LookupResult(states, slots, None, xp.empty(0, np.uint64), 0)

        miss_rows, hashes = xp.empty(misses, np.int64), xp.empty(misses, np.uint64)
        launch("compact", rows, page_ids, count, self._seed_word, missed, ends, miss_rows, hashes)
        order = xp.argsort(hashes, kind="stable")
        miss_rows, hashes, count = miss_rows[order], hashes[order], np.int64(misses)
        leaders = xp.arange(rows, dtype=np.int64)
        launch("fold", misses, miss_rows, hashes, count, leaders)
        evicted = xp.empty(misses, np.uint64)
        was_evicted = xp.zeros(misses, np.uint8)
        bypasses = xp.zeros(1, np.uint64)
        launch("plan", misses * _LANES, self._table, page_ids, miss_rows, hashes, count, admit,
               priorities, stamp, oldest, states, leaders, slots, evicted, was_evicted,
               bypasses)  # fmt: skip
        launch("spread", misses, miss_rows, count, leaders, slots)
        evicted = evicted[was_evicted.view(np.bool_)]
        return LookupResult(states, slots, leaders, evicted, int(bypasses[0]))

    def publish(self, slots: Array) -> None:
        self._change("publish", self._column(slots, np.int64, "slots"), "publish")

    def abort(self, slots: Array) -> None:
        self._change("abort_slots", self._column(slots, np.int64, "slots"), "abort")

    def invalidate(self, page_ids: Array) -> Array:
        slots = self.peek(page_ids)
        slots = slots[slots >= 0]
        if len(slots):
            # A page that is named twice is forgotten once, where it is named first.
            _, first = self._xp.unique(slots, return_index=True)
            slots = slots[self._xp.sort(first)]
        self._kernels.launch("invalidate", len(slots), self._table, slots, np.int64(len(slots)))
        return slots

    def peek(self, page_ids: Array) -> Array:
        page_ids = self._column(page_ids, np.uint64, "page_ids")
        slots = self._xp.empty(len(page_ids), np.int64)
        rows = np.int64(len(page_ids))
        self._kernels.launch("peek", len(page_ids), self._table, page_ids, rows, slots)
        return slots

    def snapshot(self) -> IndexSnapshot:
        epochs = _on_host(self._stamps).astype(np.uint64)
        epochs[epochs > 0] += np.uint64(self._base)
        return IndexSnapshot(
            tags=_on_host(self._tags),
            digests=_on_host(self._digests),
            states=_on_host(self._states),
            stamps=epochs,
            priorities=_on_host(self._priorities),
        )

    def _enter(self, epoch: int, oldest_epoch: int) -> None:
        base = base_for(self._base, self._newest, epoch, oldest_epoch)
        if base != self._base:
            shift = np.uint32(min(base - self._base, STAMP_MAX))
            slots = np.int64(self.slots)
            self._kernels.launch("rebase", self.slots, self._table, slots, shift)
        self._base = base
        self._newest = epoch

    def _change(self, kernel: str, slots: Array, action: str) -> None:
        count = np.int64(len(slots))
        wrong = self._xp.zeros(1, np.uint64)
        self._kernels.launch("count_wrong", len(slots), self._table, slots, count, wrong)
        check_pending(int(wrong[0]), len(slots), action)
        self._kernels.launch(kernel, len(slots), self._table, slots, count)

    def _hints(self, values: Array | None, dtype: type, name: str, count: int) -> Array | None:
        if values is None:
            return None
        column = self._column(values, dtype, name)
        if len(column) != count:
            raise ValueError(
                f"{name} has {len(column)} values for {count} page_ids: give one per row"
            )
        return column

    def _column(self, values: Array, dtype: type, name: str) -> Array:
        """``values`` as a kernel takes them: on the device, one dimension, contiguous."""
        if values.ndim != 1 or values.dtype != dtype:
            raise ValueError(
                f"{name} is {values.dtype}{list(values.shape)}: it must be {np.dtype(dtype)}[n]"
            )
        return self._xp.ascontiguousarray(self._xp.asarray(values))


def _address(column: Array) -> int:
    """Where an array begins, in the memory of its kind."""
    return int(column.ctypes.data if isinstance(column, np.ndarray) else column.data.ptr)


def _on_host(column: Array) -> Any:
    return column.copy() if isinstance(column, np.ndarray) else column.get()
