"""The page index on a GPU: its slots lie in device memory, and kernels look pages up.

It takes the decisions of the other engines, slot by slot. Everything a batch needs is enqueued on
the current stream. The host waits for how many rows missed, and if some did, for one array that
says all of those; of hits it learns nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from kvtier.cuda import CudaKernels
from kvtier.folding import number_leaders
from kvtier.gpu import Array, DeviceHits, Kernels
from kvtier.hashing import seed_word
from kvtier.index.epochs import STAMP_MAX, base_for
from kvtier.index.interface import IndexSnapshot, check_pending, sets_for
from kvtier.pages import I64, LookupResult, Misses, all_hit

SOURCE: Final = Path(__file__).with_name("index.cu")

SLOT_BYTES: Final = 18
"""Of device memory, per slot."""

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


_COLUMNS: Final = 7
"""Of what the host is told of each row that did not hit; then one number more, the bypasses."""
_EVICTED: Final = 5
_WAS_EVICTED: Final = 6


class MissesOnDevice(NamedTuple):
    """Rows that did not hit, before the host knows them.

    Attributes:
        rows: i64[m], ascending.
        missed: u32, a bit for each row of the batch, set if it did not hit.
        ends: i64, the running sum of those bits, word after word.
        leaders: i64[n], the first row that asks for the same page; its own for a hit.
        columns: i64[7 * m + 1], what the host is told, as far as the plan knows it.
    """

    rows: Array
    missed: Array
    ends: Array
    leaders: Array
    columns: Array


class Decisions(NamedTuple):
    """What was decided for a batch of ``n`` pages, all of it on the device.

    Attributes:
        page_ids: u64[n], what was asked for.
        states: u8[n], a :class:`kvtier.pages.PageState`, as it was when the batch arrived.
        slots: i64[n], each page's slot, found or reserved, or -1.
        misses: None if all rows hit.
    """

    page_ids: Array
    states: Array
    slots: Array
    misses: MissesOnDevice | None


class CudaIndex:
    """A :class:`kvtier.index.interface.PageIndex` of pages that are asked for on the GPU.

    :data:`SLOT_BYTES` of device memory per slot. Arrays lie on the device; host arrays are taken
    too, and brought there. Hits are :class:`kvtier.gpu.DeviceHits`. Calls are ordered by the
    current stream.

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
        """See :meth:`PageIndex.lookup`. Hits stay on the device; misses come to the host."""
        found = self.decide(page_ids, epoch, oldest_epoch, admit=admit, priorities=priorities)
        misses = found.misses
        if misses is None:
            hits: Any = DeviceHits(found.slots, None)
            return all_hit(hits)

        xp, launch = self._xp, self._kernels.launch
        rows, count = len(found.slots), len(misses.rows)
        hit_rows, hit_slots = (xp.empty(rows - count, np.int64) for _ in range(2))
        if rows > count:
            launch("list_hits", rows, np.int64(rows), misses.missed, misses.ends, found.slots,
                   hit_rows, hit_slots)  # fmt: skip
        launch("report", count, misses.rows, np.int64(count), misses.missed, misses.ends,
               found.page_ids, misses.leaders, found.slots, found.states,
               misses.columns)  # fmt: skip
        return _told(self._kernels.read(misses.columns), rows, DeviceHits(hit_slots, hit_rows))

    def decide(
        self,
        page_ids: Array,
        epoch: int,
        oldest_epoch: int,
        *,
        admit: Array | None = None,
        priorities: Array | None = None,
    ) -> Decisions:
        """A lookup of which nothing comes to the host but how many rows did not hit.

        Arguments, errors and what becomes of the slots are those of :meth:`PageIndex.lookup`.
        """
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
        misses = int(self._kernels.read(ends[-1:])[0]) if words else 0
        if misses == 0:
            return Decisions(page_ids, states, slots, None)

        miss_rows, hashes = xp.empty(misses, np.int64), xp.empty(misses, np.uint64)
        launch("compact", rows, page_ids, count, self._seed_word, missed, ends, miss_rows, hashes)
        order = xp.argsort(hashes, kind="stable")
        sorted_rows, hashes, count = miss_rows[order], hashes[order], np.int64(misses)
        leaders = xp.arange(rows, dtype=np.int64)
        launch("fold", misses, sorted_rows, hashes, count, leaders)
        columns = xp.zeros(_COLUMNS * misses + 1, np.int64)
        evicted, was_evicted = (
            columns[at * misses : (at + 1) * misses].view(np.uint64)
            for at in (_EVICTED, _WAS_EVICTED)
        )
        launch("plan", misses * _LANES, self._table, page_ids, sorted_rows, hashes, count, admit,
               priorities, stamp, oldest, states, leaders, slots, evicted, was_evicted,
               columns[-1:].view(np.uint64))  # fmt: skip
        launch("spread", misses, sorted_rows, count, leaders, slots)
        missing = MissesOnDevice(miss_rows, missed, ends, leaders, columns)
        return Decisions(page_ids, states, slots, missing)

    def begin(self, epoch: int, oldest_epoch: int) -> int:
        """The stamp of a batch (epochs as of :meth:`lookup`) that :meth:`probe_batch` looks up."""
        self._enter(epoch, oldest_epoch)
        return epoch - self._base

    def probe_batch(self, size: int, batch: Array, slots: Array, missed: Array) -> None:
        """Enqueue the probe of a batch that is described in memory.

        Args:
            size: the most rows that it has.
            batch: u64: the address of its page ids, how many, the stamp.
            slots: i64[size], gets the slot of each row that hits, else -1.
            missed: u64, gets how many rows did not hit, of each 32.
        """
        self._kernels.launch("probe_batch", size, self._table, batch, slots, missed)

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
        check_pending(int(self._kernels.read(wrong)[0]), len(slots), action)
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


def _told(words: I64, rows: int, hits: Any) -> LookupResult:
    """The answer for a batch of so many rows, of what the device tells: see :data:`_COLUMNS`."""
    columns = words[:-1].reshape(_COLUMNS, -1)
    miss_rows, leaders, page_ids, slots, states = columns[:_EVICTED]
    leads, page_of = number_leaders(leaders)
    has_hit = np.ones(rows, np.bool_)
    has_hit[miss_rows] = False
    misses = Misses(
        rows=miss_rows,
        leads=leads,
        page_of=page_of,
        page_ids=page_ids.view(np.uint64)[leads],
        states=states[leads].astype(np.uint8),
        slots=slots[leads],
    )
    evicted = columns[_EVICTED].view(np.uint64)[columns[_WAS_EVICTED] != 0]
    return LookupResult(hits, np.flatnonzero(has_hit), misses, evicted, int(words[-1]))
