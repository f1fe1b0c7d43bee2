"""What bench/gpu.py measures: pages on a GPU, requests for them, and contenders who serve those."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvtier.gpu import Array, DeviceIds, DeviceRows, Gpu, check_free
from kvtier.index.cuda import SOURCE as INDEX_SOURCE
from kvtier.index.cuda import CudaIndex, Decisions
from kvtier.pages import I64, U64, PageState
from kvtier.pattern import fill_pattern
from kvtier.rows import aligned_rows
from kvtier.tiers.cuda_hits import SIZES, HitGraphs
from kvtier.tiers.cuda_rows import SOURCE as ROWS_SOURCE
from kvtier.tiers.cuda_rows import RowKernels
from kvtier.tiers.stream_order import StreamOrder
from kvtier.trace import PageTrace, open_trace

L2_BYTES = 60 << 20
WAYS = 16

ANSWER_BYTES = 8 + 9
"""What a lookup reads and writes of a page that is there: its id; a state and a slot."""
PLAN_BYTES = ANSWER_BYTES + 8 + 18
"""And of one that is not: the id that it drove out, and its slot in the index."""
L2_SPEEDUP = 4
"""How much faster than its memory a GPU's cache is taken to be, at most."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        page_bytes: sizes of pages.
        batches: pages asked for at once.
        arena_bytes, arena_pages: memory of the pages on the GPU, at most so much and so many.
        host_bytes: pinned memory that misses come from.
        out_bytes: the largest batch, in bytes.
        rounds: turns of each contender.
        turn_bytes: pages that a turn moves at least, in different batches: far more than the L2.
        samples: traces beside the made-up loads.
    """

    page_bytes: tuple[int, ...]
    batches: tuple[int, ...]
    arena_bytes: int
    arena_pages: int
    host_bytes: int
    out_bytes: int
    rounds: int
    turn_bytes: int
    samples: tuple[Path, ...]

    def turn_batches(self, batch: int, page_bytes: int) -> int:
        """How many different batches make a turn."""
        return max(1, -(-self.turn_bytes // (batch * page_bytes)))


@dataclass(frozen=True, slots=True)
class Case:
    """Contenders that do the same; each is called with the number of a batch.

    Attributes:
        ours: returns how many pages it served; they may be fewer than the batch.
        peer, limit: serve the whole batch.
        check: an empty string, or what is wrong with what ``ours`` left behind for a batch.
        least_bytes: of a page, that must pass the memory (the bus, if ``by_bus``) whoever does it.
    """

    name: str
    unit: str
    ours: Callable[[int], int]
    peer: Callable[[int], object]
    limit: Callable[[int], object] | None
    check: Callable[[int], str]
    least_bytes: float
    by_bus: bool = False


class Bed:
    """Pages of one size in the GPU's memory, an index over them, and pinned pages on the host.

    Attributes:
        ids: u64[n], pages that are resident, of which requests are made.
        slots: i64[n], where they are.
    """

    def __init__(self, gpu: Gpu, page_bytes: int, scale: Scale) -> None:
        self.gpu, self.page_bytes = gpu, page_bytes
        xp = self.xp = gpu.xp
        slots = min(scale.arena_bytes // page_bytes, scale.arena_pages) // WAYS * WAYS
        largest = max(scale.out_bytes, scale.turn_bytes)
        check_free(gpu, slots * page_bytes + 3 * largest, "the benchmark's memory")
        self.kernels = RowKernels(gpu.kernels(ROWS_SOURCE, {}))
        self._index_kernels = gpu.kernels(INDEX_SOURCE, {"WAYS": WAYS})
        self.index = self.new_index(slots)
        self.epoch = 0
        self.arena = xp.empty((slots, page_bytes), np.uint8)
        stream = gpu.new_stream()
        self.graphs = HitGraphs(gpu, self.index, stream, self.kernels, self.arena, StreamOrder())
        self.host = aligned_rows(max(1, scale.host_bytes // page_bytes), page_bytes)
        self.pinned = gpu.pin(self.host)
        numbers = np.arange(len(self.host), dtype=np.uint64)
        self.host_sums = self._fill_host(numbers)
        self._fill_index(slots)
        candidates = np.arange(slots + slots // 2, dtype=np.uint64)
        where = self.index.peek(xp.asarray(candidates)).get()
        self.ids, self.slots = candidates[where >= 0], where[where >= 0]
        self.sums = np.empty(len(self.ids), np.uint64)
        for first in range(0, len(self.ids), len(self.host)):
            part = slice(first, first + len(self.host))
            self.sums[part] = self._fill_host(self.ids[part])
            count = len(self.ids[part])
            self.kernels.copy(self.arena, self.slots[part], self.pinned.view, None, count)
            gpu.current_stream().synchronize()
        self._fill_host(numbers)
        self.table = dict(zip(self.ids.tolist(), self.slots.tolist(), strict=True))

    def new_index(self, slots: int) -> CudaIndex:
        return CudaIndex(slots, WAYS, 1, self._index_kernels)

    def look_up(self, ids: Array) -> Decisions:
        """All of the answer stays on the GPU."""
        self.epoch += 1
        return self.index.decide(ids, self.epoch, self.epoch)

    def take_in(self, ids: Array) -> tuple[Array, Array]:
        """Reserve slots for pages that are missing; returns those slots, and whose they are."""
        found = self.look_up(ids)
        taken = (found.slots >= 0) & (found.states == np.uint8(PageState.EMPTY))
        return found.slots[taken], ids[taken]

    def close(self) -> None:
        self.gpu.current_stream().synchronize()
        self.graphs.close()
        self.pinned.close()

    def _fill_index(self, slots: int) -> None:
        """Half as many pages again as there are slots: then all sets are full."""
        step = max(1, slots // 8)
        for first in range(0, slots + slots // 2, step):
            ids = self.xp.arange(first, min(first + step, slots + slots // 2), dtype=np.uint64)
            self.index.publish(self.take_in(ids)[0])

    def _fill_host(self, ids: U64) -> U64:
        """The pattern of pages in the first rows of the host's memory; returns their sums."""
        fill_pattern(self.host, np.zeros(len(ids), np.uint64), ids)
        words = self.host[: len(ids)].view(np.uint64)
        sums: U64 = words.sum(axis=1, dtype=np.uint64)
        return sums


def hit_cases(bed: Bed, picks: list[I64]) -> Iterator[Case]:
    """Cases of pages that are there; ``picks`` are positions in ``bed.ids``, per batch."""
    xp, kernels, size = bed.xp, bed.kernels, len(picks[0])
    ids = [xp.asarray(bed.ids[pick]) for pick in picks]
    keys = [bed.ids[pick].tolist() for pick in picks]
    # As long as a turn: a small one written again and again would stay in the L2.
    out = xp.empty((size * len(picks), bed.page_bytes), np.uint8)
    outs = [out[at : at + size] for at in range(0, len(out), size)]
    held: dict[str, Any] = {}

    def copied_out(number: int) -> int:
        kernels.copy(outs[number], None, bed.arena, bed.look_up(ids[number]).slots, size)
        return size

    def by_graph(number: int) -> int:
        bed.epoch += 1
        stream = bed.gpu.current_stream()
        asked, rows = DeviceIds(ids[number], None, stream), DeviceRows(outs[number], stream)
        served = bed.graphs.serve(asked, rows, bed.epoch, bed.epoch)
        return 0 if served is None else len(served)

    def in_place(number: int) -> int:
        held["sums"] = kernels.sums(bed.arena, bed.look_up(ids[number]).slots)
        return size

    def probed(number: int) -> int:
        held["slots"] = bed.look_up(ids[number]).slots
        return size

    def by_dictionary(number: int) -> Array:
        return xp.asarray(np.fromiter(map(bed.table.__getitem__, keys[number]), np.int64, size))

    def taken(number: int) -> None:
        xp.take(bed.arena, by_dictionary(number), axis=0, out=outs[number])

    def taken_and_summed(number: int) -> Array:
        taken(number)
        return outs[number].view(np.uint64).sum(axis=1)

    def copied(number: int) -> None:
        start = number * size % max(1, len(bed.arena) - size + 1)
        count = min(size, len(bed.arena))
        xp.copyto(outs[number][:count], bed.arena[start : start + count])

    unique = len(np.unique(np.concatenate(picks)))
    beyond_l2 = max(0, unique * bed.page_bytes - L2_BYTES) / (size * len(picks))
    read_bytes = max(beyond_l2, bed.page_bytes / L2_SPEEDUP)

    def check_copies(number: int) -> str:
        expected = bed.sums[picks[number]]
        return _differs(
            kernels.sums(outs[number], xp.arange(size)).get(), expected
        ) or _check_sample(bed, outs[number], np.arange(size), bed.ids[picks[number]])

    def check_sums(number: int) -> str:
        return _differs(held["sums"].get(), bed.sums[picks[number]])

    def check_slots(number: int) -> str:
        return _differs(held["slots"].get(), bed.slots[picks[number]])

    written = read_bytes + bed.page_bytes
    yield Case("hits copied out", "pages/s", copied_out, taken, copied, check_copies, written)
    if size <= SIZES[-1]:
        yield Case("hits by graph", "pages/s", by_graph, taken, copied, check_copies, written)
    yield Case(
        "hits in place", "pages/s", in_place, taken_and_summed, copied, check_sums, read_bytes
    )
    yield Case("probe", "keys/s", probed, by_dictionary, None, check_slots, ANSWER_BYTES)


def miss_cases(bed: Bed, size: int) -> Iterator[Case]:
    """Cases of pages that were never seen before."""
    xp, kernels, rows = bed.xp, bed.kernels, len(bed.host)
    newest = 1 << 32
    planned: dict[str, Any] = {}
    recent = OrderedDict.fromkeys(bed.table)

    def new_ids() -> Array:
        nonlocal newest
        newest += size
        return xp.arange(newest - size, newest, dtype=np.uint64)

    def plan(_: int) -> int:
        slots, planned["ids"] = bed.take_in(new_ids())
        planned["slots"] = slots
        bed.index.publish(slots)
        return len(slots)

    def plan_and_tell(_: int) -> int:
        planned["ids"] = ids = new_ids()
        bed.epoch += 1
        found = bed.index.lookup(ids, bed.epoch, bed.epoch)
        reserved = found.misses.reserved
        planned["slots"] = xp.asarray(reserved)
        bed.index.publish(reserved[reserved >= 0])
        return size

    def plan_and_bring(_: int) -> int:
        slots, ids = planned["slots"], planned["ids"] = bed.take_in(new_ids())
        kernels.copy(bed.arena, slots, bed.pinned.view, host_rows(ids), len(slots))
        bed.index.publish(slots)
        return len(slots)

    def host_rows(ids: Array) -> Array:
        return (ids % np.uint64(rows)).astype(np.int64)

    def assigned() -> I64:
        nonlocal newest
        for key in range(newest, newest + size):
            recent.popitem(last=False)
            recent[key] = None
        newest += size
        return np.arange(newest - size, newest) % rows

    def in_dictionary(_: int) -> Array:
        return xp.asarray(assigned())

    staging = aligned_rows(size, bed.page_bytes)
    staged = xp.empty((size, bed.page_bytes), np.uint8)
    first_slots = xp.arange(size) % np.int64(len(bed.arena))

    def in_dictionary_and_staged(_: int) -> None:
        np.take(bed.host, assigned(), axis=0, out=staging, mode="clip")
        staged.set(staging)
        bed.arena[first_slots] = staged

    def sent(_: int) -> None:
        for first in range(0, size, rows):
            part = bed.host[: min(rows, size - first)]
            staged[first : first + len(part)].set(part)

    def check_plan(_: int) -> str:
        return _differs(bed.index.peek(planned["ids"]).get(), planned["slots"].get())

    def check_pages(number: int) -> str:
        slots, ids = planned["slots"], planned["ids"]
        expected = bed.host_sums[host_rows(ids).get()]
        got = kernels.sums(bed.arena, slots).get()
        sources = ids.get() % np.uint64(rows)
        return (
            check_plan(number)
            or _differs(got, expected)
            or _check_sample(bed, bed.arena, slots.get(), sources)
        )

    yield Case("misses planned", "pages/s", plan, in_dictionary, None, check_plan, PLAN_BYTES)
    yield Case("misses told", "pages/s", plan_and_tell, in_dictionary, None, check_plan, PLAN_BYTES)
    yield Case(
        "misses with payload",
        "pages/s",
        plan_and_bring,
        in_dictionary_and_staged,
        sent,
        check_pages,
        bed.page_bytes,
        by_bus=True,
    )


def _differs(got: Any, expected: Any) -> str:
    wrong = int(np.count_nonzero(got != expected))
    return f"{wrong} of {len(expected)} pages are wrong" if wrong else ""


def _check_sample(bed: Bed, memory: Array, rows: I64, ids: U64) -> str:
    """Compare some rows of ``memory`` with the pattern of their pages, byte by byte."""
    chosen = np.linspace(0, len(rows) - 1, min(64, len(rows))).astype(np.int64)
    expected = np.empty((len(chosen), bed.page_bytes), np.uint8)
    fill_pattern(expected, np.zeros(len(chosen), np.uint64), ids[chosen])
    got = memory[bed.xp.asarray(rows[chosen])].get()
    return _differs((got != expected).any(axis=1), np.zeros(len(chosen), np.bool_))


def loads(
    scale: Scale, pages: int, batch: int, page_bytes: int, seed: int
) -> Iterator[tuple[str, list[I64]]]:
    """Requests of each kind, as the batches of a turn: positions below ``pages``."""
    rng = np.random.default_rng(seed)
    shape = (scale.turn_batches(batch, page_bytes), batch)
    yield "uniform", list(rng.integers(0, pages, shape))
    weights = np.cumsum(np.arange(1, pages + 1, dtype=np.float64) ** -0.99)
    ranks = np.searchsorted(weights, rng.random(shape) * weights[-1])
    yield "zipf 0.99", list(rng.permutation(pages)[np.minimum(ranks, pages - 1)])
    for sample in scale.samples:
        reads = sample_pages(sample) % pages
        yield sample.stem, list(np.resize(reads, shape))


def sample_pages(path: Path) -> I64:
    """Which page each read of a trace asks for, its pages numbered from 0."""
    trace = open_trace(path)
    assert isinstance(trace, PageTrace)
    ids = [
        np.repeat((r.objects.astype(np.int64) << 32) + r.pages, r.counts) + _places(r.counts)
        for r in trace.requests()
    ]
    _, places = np.unique(np.concatenate(ids), return_inverse=True)
    return np.asarray(places, np.int64).reshape(-1)


def _places(counts: Any) -> I64:
    """0, 1, … within each run."""
    ends = np.cumsum(counts, dtype=np.int64)
    places: I64 = np.arange(int(ends[-1])) - np.repeat(ends - counts, counts)
    return places
