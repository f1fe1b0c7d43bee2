import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvtier.emulator.flash import NOW_NS_MAX, FlashCounts, FlashQueues
from kvtier.errors import LimitError, SettingsError
from kvtier.hashing import U64_MASK, fmix64_int, seed_word
from kvtier.jit import JIT_DISABLED
from kvtier.pages import I64, U64, Bool
from kvtier.ssd import PLANES_MAX, SsdModel
from kvtier.ssd import STORAGE_NEXT_SLC as SLC

TLC = SsdModel(
    channels=16,
    dies_per_channel=4,
    planes_per_die=4,
    nand_page_bytes=16384,
    sense_us=40,
    program_us=500,
    command_ns=200,
    channel_bytes_per_s=2.4e9,
    link_bytes_per_s=14e9,
)
# Few servers and long queues, so that a handful of operations meet everywhere.
SMALL = SsdModel(
    channels=2,
    dies_per_channel=1,
    planes_per_die=2,
    nand_page_bytes=2048,
    sense_us=3,
    program_us=11,
    command_ns=700,
    channel_bytes_per_s=1e9,
    link_bytes_per_s=1.7e9,
)
WRITE_SHARE = 0.1
ADDRESSES = 1 << 40

many_operations = pytest.mark.skipif(JIT_DISABLED, reason="minutes as plain Python")
by_drive = pytest.mark.parametrize("model", [SLC, TLC], ids=["slc", "tlc"])
by_size = pytest.mark.parametrize("io_bytes", [512, 4096])
by_mix = pytest.mark.parametrize("writes", [0.0, WRITE_SHARE], ids=["reads", "mix"])


def at(*locations: int) -> U64:
    return np.array(locations, np.uint64)


def ones(count: int) -> I64:
    return np.ones(count, np.int64)


def idle_read_ns(model: SsdModel, io_bytes: int) -> float:
    bytes_s = 1 / model.channel_bytes_per_s + 1 / model.link_bytes_per_s
    return model.sense_us * 1e3 + model.command_ns + io_bytes * bytes_s * 1e9


def for_mix(model: SsdModel, writes: float) -> SsdModel:
    return replace(model, reads_per_write=(1 - writes) / writes if writes else math.inf)


# -- the same rules in plain Python ---------------------------------------------------------------


class Visit(NamedTuple):
    """What an operation or the drive itself does at one server after the other."""

    at_ps: int
    operation: int | None
    route: tuple[tuple[object, int], ...]
    backwards: bool


class PlainDrives:
    """One interval per use of a server, and every use kept."""

    def __init__(self, model: SsdModel, drives: int = 1, seed: int = 1) -> None:
        self.model, self.drives, self.seed_word = model, drives, seed_word(seed)
        self.intervals: dict[Any, list[tuple[int, int]]] = defaultdict(list)
        self.visits: list[Visit] = []
        self.operations = {False: 0, True: 0}
        self.parts_written, self.sectors_written = [0] * drives, [0] * drives
        self.garbage_reads = [0] * drives
        self.program_ends: list[list[int]] = [[] for _ in range(drives)]

    def serve(
        self, now_ns: int, operations: list[tuple[int, int]], page_bytes: int, is_write: bool
    ) -> list[int]:
        return [
            math.ceil(
                max(self._serve_parts(now_ns * 1000, *operation, page_bytes, is_write)) / 1000
            )
            for operation in operations
        ]

    def _serve_parts(
        self, now_ps: int, location: int, pages: int, page_bytes: int, is_write: bool
    ) -> Iterator[int]:
        number = sum(self.operations.values())
        self.operations[is_write] += 1
        nand_sectors = self.model.nand_page_bytes // 512
        sector = location * page_bytes // 512 & U64_MASK
        left = pages * page_bytes // 512
        while left:
            part = min(left, nand_sectors - sector % nand_sectors)
            hashed = fmix64_int(sector // nand_sectors ^ self.seed_word) * self.drives
            drive, place = hashed >> 64, hashed & U64_MASK
            link = (("link", drive), part * round(512e12 / self.model.link_bytes_per_s))
            if is_write:
                yield self._write(drive, self._visit(now_ps, number, (link,)), part)
            else:
                yield self._visit(now_ps, number, (link, *self._flash(drive, place, part)), True)
            sector, left = sector + part & U64_MASK, left - part

    def _write(self, drive: int, now_ps: int, part: int) -> int:
        model, ends = self.model, self.program_ends[drive]
        room_ps = ends[-model.planes] if len(ends) >= model.planes else 0
        self.parts_written[drive] += 1
        self.sectors_written[drive] += part
        owed = int(self.parts_written[drive] * (model.write_amplification - 1))
        for number in range(self.garbage_reads[drive], owed):
            place = fmix64_int(number ^ 1 << 63 ^ self.seed_word)
            self._visit(now_ps, None, self._flash(drive, place, part), True)
        self.garbage_reads[drive] = owed
        sectors = self.sectors_written[drive] * model.write_amplification
        for number in range(len(ends), int(sectors * 512 / model.nand_page_bytes)):
            place = fmix64_int(number ^ 3 << 62 ^ self.seed_word)
            ends.append(self._visit(now_ps, None, self._flash(drive, place, None)))
        return max(now_ps, room_ps)

    def _flash(
        self, drive: int, place: int, read_sectors: int | None
    ) -> tuple[tuple[object, int], ...]:
        model = self.model
        sectors = model.nand_page_bytes // 512 if read_sectors is None else read_sectors
        plane_us = model.program_us if read_sectors is None else model.sense_us
        plane = place * model.planes >> 64
        channel = plane // (model.dies_per_channel * model.planes_per_die)
        channel_ps = round(model.command_ns * 1e3) + sectors * round(
            512e12 / model.channel_bytes_per_s
        )
        return (
            (("channel", drive, channel), channel_ps),
            (("plane", drive, plane), round(plane_us * 1e6)),
        )

    def _visit(
        self,
        now_ps: int,
        operation: int | None,
        route: tuple[tuple[object, int], ...],
        backwards: bool = False,
    ) -> int:
        self.visits.append(Visit(now_ps, operation, route, backwards))
        for server, service_ps in route:
            used = self.intervals[server]
            now_ps = max(now_ps, used[-1][1] if used else 0) + service_ps
            used.append((now_ps - service_ps, now_ps))
        return now_ps

    def ends_in_true_order(self) -> dict[int, int]:
        """When reads and crossings of the link end, if reads go from plane to channel to link."""
        ends: dict[int, int] = {}
        free: dict[object, int] = defaultdict(int)
        events = [(visit.at_ps, number, 0) for number, visit in enumerate(self.visits)]
        heapq.heapify(events)
        while events:
            now_ps, number, stop = heapq.heappop(events)
            visit = self.visits[number]
            if stop == len(visit.route):
                if visit.operation is not None:
                    ends[visit.operation] = now_ps
                continue
            server, service_ps = visit.route[-1 - stop if visit.backwards else stop]
            free[server] = max(free[server], now_ps) + service_ps
            heapq.heappush(events, (free[server], number, stop + 1))
        return ends


calls = st.lists(
    st.tuples(
        st.integers(0, 30_000),
        st.lists(
            st.tuples(st.integers(0, 12) | st.integers(0, 2**64 - 1), st.integers(1, 9)), max_size=9
        ),
        st.booleans(),
    ),
    max_size=12,
)


@settings(deadline=None)  # the first example may wait for the compiler
@given(
    calls,
    st.sampled_from([512, 1536, 4096]),
    st.integers(1, 3),
    st.integers(0, 5),
    st.sampled_from([1, 1.25, 2.5, 3]),
)
def test_completions_are_those_of_servers_used_by_one_operation_at_a_time(
    calls: list[tuple[int, list[tuple[int, int]], bool]],
    page_bytes: int,
    drives: int,
    seed: int,
    write_amplification: float,
) -> None:
    model = replace(SMALL, write_amplification=write_amplification)
    queues, plain = FlashQueues(model, drives, seed), PlainDrives(model, drives, seed)
    now_ns = 0
    for gap_ns, operations, is_write in calls:
        now_ns += gap_ns
        locations = at(*(location for location, _ in operations))
        pages = np.array([count for _, count in operations], np.int64)
        done_ns = queues.serve(now_ns, locations, pages, page_bytes, is_write)
        assert done_ns.tolist() == plain.serve(now_ns, operations, page_bytes, is_write)

    busy_ps: dict[str, int] = defaultdict(int)
    for (stage, *_), intervals in plain.intervals.items():
        assert all(before[1] <= after[0] for before, after in pairwise(intervals))
        busy_ps[stage] += sum(end - start for start, end in intervals)
    assert queues.busy_ns == tuple(busy_ps[s] // 1000 for s in ("plane", "channel", "link"))
    assert queues.counts == FlashCounts(
        plain.operations[False],
        plain.operations[True],
        sum(plain.garbage_reads),
        sum(len(ends) for ends in plain.program_ends),
    )


# -- one operation --------------------------------------------------------------------------------


@by_drive
@by_size
def test_an_idle_drive_reads_in_sense_command_transfer_and_link(
    model: SsdModel, io_bytes: int
) -> None:
    queues = FlashQueues(model)
    for now_ns in (0, 10**6, 10**15):
        done_ns = queues.serve(now_ns, at(7), ones(1), io_bytes, False)
        assert done_ns[0] - now_ns == math.ceil(idle_read_ns(model, io_bytes))


def test_a_write_is_done_when_it_has_crossed_the_link_until_the_buffer_is_full() -> None:
    queues = FlashQueues(replace(SMALL, write_amplification=1))
    done_ns = queues.serve(0, np.arange(12, dtype=np.uint64), ones(12), 2048, True)
    crossed_ns = np.ceil(np.arange(1, 13) * 2048 / 1.7).astype(np.int64)
    assert done_ns[:4].tolist() == crossed_ns[:4].tolist()
    # A program takes longer than four crossings, so the fifth page waits for the first program.
    assert done_ns[4] >= crossed_ns[0] + SMALL.program_us * 1000
    assert queues.counts.programs == 12


def test_pages_of_one_nand_page_wait_for_one_plane() -> None:
    done_ns = FlashQueues(SLC).serve(0, np.arange(8, dtype=np.uint64), ones(8), 512, False)
    assert np.diff(done_ns).tolist() == [5000] * 7


def test_an_extent_is_read_by_many_planes_at_once() -> None:
    done_ns = FlashQueues(SLC).serve(0, at(0), np.array([64]), 4096, False)
    whole_link_ns = 64 * 4096 / 64
    assert done_ns[0] >= whole_link_ns + idle_read_ns(SLC, 4096) - 64
    assert done_ns[0] < 64 * 5000 / 4


def test_a_read_waits_for_the_program_that_it_meets() -> None:
    model = replace(SLC, channels=1, dies_per_channel=1, planes_per_die=1, write_amplification=1)
    queues = FlashQueues(model)
    queues.serve(0, at(0), ones(1), 4096, True)
    done_ns = queues.serve(0, at(0), ones(1), 4096, False)
    assert done_ns[0] > 55_000


def test_garbage_collection_adds_what_write_amplification_says() -> None:
    queues = FlashQueues(replace(TLC, write_amplification=2.5), drives=2)
    queues.serve(0, np.arange(10_000, dtype=np.uint64), ones(10_000), 4096, True)
    counts = queues.counts
    assert (counts.reads, counts.writes) == (0, 10_000)
    assert counts.garbage_reads in (14_999, 15_000)  # a drive may owe half a read
    assert counts.programs in (6_249, 6_250)


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=30), st.integers(0, 40), st.integers(0, 50_000))
def test_more_load_never_makes_a_read_faster(others: list[int], location: int, gap_ns: int) -> None:
    loaded, idle = FlashQueues(SMALL), FlashQueues(SMALL)
    loaded.serve(0, at(*others), ones(len(others)), 2048, False)
    done_ns = loaded.serve(gap_ns, at(location), ones(1), 2048, False)[0]
    least_ns = math.ceil(idle_read_ns(SMALL, 2048))
    assert idle.serve(gap_ns, at(location), ones(1), 2048, False)[0] == gap_ns + least_ns
    assert done_ns >= gap_ns + least_ns


def test_the_seed_says_where_pages_lie() -> None:
    def done(seed: int) -> list[int]:
        locations = np.arange(200, dtype=np.uint64)
        queues = FlashQueues(SLC, 2, seed)
        return list(queues.serve(0, locations, ones(200), 4096, False))

    assert done(1) == done(1)
    assert done(1) != done(2)


# -- at saturation --------------------------------------------------------------------------------


class Load:
    """Random single pages, a fixed share of them written."""

    def __init__(self, model: SsdModel, io_bytes: int, writes: float, drives: int = 1) -> None:
        self.queues = FlashQueues(for_mix(model, writes), drives)
        self._io_bytes, self._writes = io_bytes, writes
        self._generator = np.random.default_rng(3)

    @property
    def capacity(self) -> float:
        return self.queues.servers.links * self.queues.model.capacity_iops(self._io_bytes)

    def submit(self, now_ns: int, operations: int) -> I64:
        """Completions in ns, in an order of no meaning."""
        locations = self._generator.integers(0, ADDRESSES, operations).astype(np.uint64)
        written, read = np.split(locations, [round(operations * self._writes)])
        return np.concatenate(
            [
                self.queues.serve(now_ns, where, ones(where.size), self._io_bytes, is_write)
                for where, is_write in ((written, True), (read, False))
            ]
        )


@many_operations
@by_drive
@by_size
@by_mix
def test_a_closed_loop_reaches_the_capacity_and_obeys_littles_law(
    model: SsdModel, io_bytes: int, writes: float
) -> None:
    in_flight, at_once, rounds = 1 << 16, 2000, 240
    load = Load(model, io_bytes, writes)
    start_ns = np.zeros(in_flight, np.int64)
    done_ns = load.submit(0, in_flight)
    measured_from_ns, times_ns = 0, []
    for number in range(rounds):
        first = np.argpartition(done_ns, at_once)[:at_once]
        now_ns = int(done_ns[first].max())
        if number == rounds // 2:
            measured_from_ns = now_ns
        elif number > rounds // 2:
            # From submission until another operation takes its place.
            times_ns.append(now_ns - start_ns[first].mean())
        done_ns[first], start_ns[first] = load.submit(now_ns, at_once), now_ns

    rate = at_once * len(times_ns) / (now_ns - measured_from_ns) * 1e9
    assert 0.98 < rate / load.capacity < 1.002
    assert rate * np.mean(times_ns) * 1e-9 == pytest.approx(in_flight, rel=0.01)


@many_operations
@by_drive
@by_size
@by_mix
def test_a_giant_batch_is_served_at_the_capacity(
    model: SsdModel, io_bytes: int, writes: float
) -> None:
    load = Load(model, io_bytes, writes)
    done_ns = np.sort(np.concatenate([load.submit(0, 10_000) for _ in range(100)]))
    # Until then no server has run out of work.
    early = done_ns[: round(0.7 * done_ns.size)]
    assert 0.98 < early.size / early[-1] * 1e9 / load.capacity < 1.02
    assert done_ns.size / done_ns[-1] * 1e9 < load.capacity


@many_operations
def test_drives_carry_together_what_each_carries() -> None:
    load = Load(SLC, 4096, 0.0, drives=4)
    done_ns = load.submit(0, 1_000_000)
    assert 0.96 < done_ns.size / done_ns.max() * 1e9 / load.capacity <= 1
    assert load.capacity == pytest.approx(4 * for_mix(SLC, 0.0).capacity_iops(4096))


@many_operations
@pytest.mark.parametrize(("model", "io_bytes", "stage"), [(SLC, 4096, 1), (TLC, 512, 0)])
def test_the_bottleneck_is_busy_all_the_time(model: SsdModel, io_bytes: int, stage: int) -> None:
    load = Load(model, io_bytes, writes=0.0)
    last_ns = load.submit(0, 1_000_000).max()
    busy = np.array(load.queues.busy_ns) / load.queues.servers / last_ns
    assert busy.argmax() == stage
    assert 0.9 < busy[stage] <= 1


# -- under Poisson arrivals -----------------------------------------------------------------------


class Arrivals(NamedTuple):
    """Single operations, in the order of their arrival."""

    at_ns: I64
    locations: U64
    is_write: Bool


def poisson(model: SsdModel, io_bytes: int, writes: float, utilisation: float) -> Arrivals:
    generator = np.random.default_rng(5)
    operations = 6000
    gap_ns = 1e9 / (utilisation * model.capacity_iops(io_bytes))
    return Arrivals(
        generator.exponential(gap_ns, operations).cumsum().astype(np.int64),
        generator.integers(0, ADDRESSES, operations).astype(np.uint64),
        generator.random(operations) < writes,
    )


def latencies_ns(model: SsdModel, io_bytes: int, arrivals: Arrivals) -> NDArray[np.float64]:
    queues, one = FlashQueues(model), ones(1)
    done_ns = [
        queues.serve(int(at_ns), arrivals.locations[row : row + 1], one, io_bytes, bool(is_write))
        for row, (at_ns, is_write) in enumerate(zip(arrivals.at_ns, arrivals.is_write, strict=True))
    ]
    taken_ns: NDArray[np.int64] = np.concatenate(done_ns) - arrivals.at_ns
    return taken_ns.astype(np.float64)


def true_latencies_ns(model: SsdModel, io_bytes: int, arrivals: Arrivals) -> NDArray[np.float64]:
    drive = PlainDrives(model)
    for at_ns, location, is_write in zip(*arrivals, strict=True):
        drive.serve(int(at_ns), [(int(location), 1)], io_bytes, bool(is_write))
    ends_ps = drive.ends_in_true_order()
    done_ns = [ends_ps[row] / 1000 for row in range(len(ends_ps))]
    return np.array(done_ns) - arrivals.at_ns


@many_operations
@by_drive
@by_size
@by_mix
def test_latencies_are_those_of_servers_visited_in_the_true_order(
    model: SsdModel, io_bytes: int, writes: float
) -> None:
    model = for_mix(model, writes)
    arrivals = poisson(model, io_bytes, writes, utilisation=0.8)
    reads = ~arrivals.is_write
    ours = latencies_ns(model, io_bytes, arrivals)[reads]
    true = true_latencies_ns(model, io_bytes, arrivals)[reads]
    assert ours.mean() == pytest.approx(true.mean(), rel=0.05)
    assert np.quantile(ours, 0.99) == pytest.approx(np.quantile(true, 0.99), rel=0.08)


@many_operations
@pytest.mark.parametrize("utilisation", [0.3, 0.6, 0.8])
def test_with_planes_to_spare_the_p99_wait_is_near_the_papers_estimate(
    utilisation: float,
) -> None:
    model = for_mix(replace(SLC, dies_per_channel=128, link_bytes_per_s=1e12), 0.0)
    moved_ns = idle_read_ns(model, 4096) - model.sense_us * 1e3
    waits_ns = latencies_ns(model, 4096, poisson(model, 4096, 0.0, utilisation)) - moved_ns
    ratio = np.quantile(waits_ns, 0.99) * 1e-9 / model.wait_p99_s(4096, utilisation)
    assert 0.85 < ratio < 1.3


@many_operations
def test_latency_rises_with_the_load_from_the_papers_estimate_to_that_of_programs() -> None:
    def p99_s(writes: float, utilisation: float) -> float:
        model = for_mix(SLC, writes)
        arrivals = poisson(model, 4096, writes, utilisation)
        reads_ns = latencies_ns(model, 4096, arrivals)[~arrivals.is_write]
        return float(np.quantile(reads_ns, 0.99)) * 1e-9

    loads = (0.3, 0.6, 0.8)
    estimates = [for_mix(SLC, 0.0).wait_p99_s(4096, load) for load in loads]
    reading = [p99_s(0.0, load) for load in loads]
    mixed = [p99_s(WRITE_SHARE, load) for load in loads]
    assert reading == sorted(reading)
    assert mixed == sorted(mixed)
    # Planes are waited for too, which the estimate leaves out: the more, the less loaded channels.
    for measured_s, estimate_s, ratio_max in zip(reading, estimates, (2, 1.7, 1.5), strict=True):
        assert estimate_s < measured_s < ratio_max * estimate_s
    # And a read that meets a program waits for ten times as long as a sense takes.
    assert mixed[0] > 3 * reading[0]


# -- late times -----------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [12.9, 13.03, 60, 400, 50_000])
def test_a_drive_is_as_fast_after_years(days: float) -> None:
    """Backlogs, half-full buffers and free servers carry over when times are counted anew."""
    start_ns = round(days * 86_400e9)
    # Gaps shorter and longer than a backlog, and one after which all is free.
    times_ns = [0, 10, 40_000, 60_000, 5_000_000, 5_000_001, 3 * 86_400 * 10**9]
    ends = []
    for offset_ns in (0, start_ns):
        queues = FlashQueues(SMALL, 2)
        for now_ns, is_write in itertools.product(times_ns, (True, False)):
            done = queues.serve(now_ns + offset_ns, at(*range(40)), ones(40), 512, is_write)
            ends.append((done - offset_ns).tolist())
        ends.append(list(queues.busy_ns))
    assert ends[: len(ends) // 2] == ends[len(ends) // 2 :]


def test_a_backlog_is_kept_when_times_are_counted_anew() -> None:
    span_ns = 1 << 50
    at_once, late = FlashQueues(SMALL), FlashQueues(SMALL)
    late.serve(span_ns, at(*range(500)), ones(500), 512, False)
    at_once.serve(0, at(*range(500)), ones(500), 512, False)
    ends = late.serve(span_ns + 1000, at(*range(9)), ones(9), 512, False)
    assert (ends - span_ns).tolist() == at_once.serve(
        1000, at(*range(9)), ones(9), 512, False
    ).tolist()
    assert ends.min() > span_ns + 100_000


@many_operations
def test_busy_time_may_be_more_than_fits_into_64_bits_of_ps() -> None:
    reads = 10_000_000
    queues = FlashQueues(replace(SMALL, sense_us=1e6))
    queues.serve(0, np.arange(reads, dtype=np.uint64), ones(reads), 2048, False)
    assert queues.busy_ns.planes == reads * 10**9


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("now_ns", [999, NOW_NS_MAX + 1])
def test_time_runs_forward_and_not_for_ever(now_ns: int) -> None:
    queues = FlashQueues(SMALL)
    queues.serve(1000, at(1), ones(1), 512, False)
    with pytest.raises(LimitError, match=rf"at {now_ns} ns: it must be 1000, .* to {NOW_NS_MAX}$"):
        queues.serve(now_ns, at(1), ones(1), 512, False)


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        (np.array([1]), "pages has 1 rows and locations 2"),
        (np.array([1, 0]), "operations have 0 to 1 pages"),
        (np.array([5, (1 << 18) + 1]), "each must have 1 to 262144"),
        (np.array([1, 1], np.uint8), r"pages is uint8\[2\]"),
    ],
)
def test_a_column_that_does_not_fit_is_refused_as_a_whole(
    pages: NDArray[Any], message: str
) -> None:
    queues = FlashQueues(SMALL)
    with pytest.raises(ValueError, match=message):
        queues.serve(5, at(1, 2), pages, 4096, False)
    assert queues.counts == FlashCounts(0, 0, 0, 0)
    assert queues.serve(0, at(1, 2), ones(2), 4096, False).size == 2


def test_page_sizes_are_those_of_the_cache() -> None:
    with pytest.raises(SettingsError, match="page_bytes is 656"):
        FlashQueues(SMALL).serve(0, at(1), ones(1), 656, False)


@pytest.mark.parametrize("drives", [0, -1, PLANES_MAX // SMALL.planes + 1])
def test_a_number_of_drives_that_cannot_be_is_refused(drives: int) -> None:
    with pytest.raises(SettingsError, match=rf"^drives is {drives}: it must be 1 to 4194304"):
        FlashQueues(SMALL, drives)


def test_no_operations_take_no_time() -> None:
    queues = FlashQueues(SMALL)
    assert queues.serve(0, at(), ones(0), 4096, False).size == 0
    assert queues.busy_ns == (0, 0, 0)
