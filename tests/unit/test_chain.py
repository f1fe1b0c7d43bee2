"""The laws of the read-through chain, one test each."""

from __future__ import annotations

import numpy as np
import pytest
from chain_harness import GARBAGE, Harness, make_chain

from kvtier.errors import LimitError
from kvtier.pages import PageState, PageStatus, Purpose


def status(*values: PageStatus) -> np.ndarray:
    return np.array(values, np.uint8)


def slots_of(harness: Harness, level: int, page: int) -> int:
    snapshot = harness.indexes[level].snapshot()
    return int(np.count_nonzero((snapshot.tags == page) & (snapshot.states != PageState.EMPTY)))


def held_slots(harness: Harness) -> int:
    return sum(
        int(np.count_nonzero(index.snapshot().states == PageState.PENDING))
        for index in harness.indexes
    )


def check_sums(harness: Harness) -> None:
    total = harness.chain.counters
    hits = sum(level.hits for level in total.levels)
    assert total.reads == total.unique + total.folded
    assert total.unique == hits + total.joined + total.failed + total.absent


def test_a_miss_is_fetched_from_the_origin_and_fills_every_tier() -> None:
    harness = Harness(make_chain())
    read = harness.read([5, 6, 7])
    harness.end_all()
    assert harness.answers[read.epoch].tolist() == [5, 6, 7]
    assert [slots_of(harness, level, 6) for level in range(3)] == [1, 1, 1]
    assert harness.chain.counters.levels[3].device_reads == 1
    assert harness.chain.idle
    check_sums(harness)


def test_a_second_read_is_a_hit_of_the_first_tier() -> None:
    harness = Harness(make_chain())
    harness.read([5])
    harness.end_all()
    read = harness.read([5, 5])
    assert read.unresolved == 0
    assert harness.answers[read.epoch].tolist() == [5, 5]
    assert harness.chain.counters.levels[0].hits == 2
    check_sums(harness)


def test_a_page_in_a_lower_tier_in_memory_is_promoted_without_a_device_read() -> None:
    harness = Harness(make_chain())
    harness.read([5])
    harness.end_all()
    harness.indexes[0].invalidate(np.array([5], np.uint64))
    read = harness.read([5])
    assert harness.answers[read.epoch].tolist() == [5]
    assert not harness.fetches
    assert slots_of(harness, 0, 5) == 1
    check_sums(harness)


def test_duplicates_of_a_miss_are_folded_into_one_read() -> None:
    harness = Harness(make_chain())
    read = harness.read([9, 9, 9, 4])
    assert sum(len(fetch.flight) for fetch in harness.fetches) == 2
    harness.end_all()
    assert harness.answers[read.epoch].tolist() == [9, 9, 9, 4]
    assert harness.chain.counters.folded == 2
    check_sums(harness)


def test_duplicates_are_folded_without_any_tier_too() -> None:
    harness = Harness(make_chain(()), ())
    read = harness.read([9, 4, 9])
    harness.end_all()
    assert harness.answers[read.epoch].tolist() == [9, 4, 9]
    assert harness.chain.counters.folded == 1
    check_sums(harness)


def test_overlapping_batches_never_give_one_page_two_slots() -> None:
    harness = Harness(make_chain())
    first = harness.read([1, 2, 3])
    second = harness.read([3, 2, 8])
    assert slots_of(harness, 0, 2) == slots_of(harness, 0, 3) == 1
    harness.end_all()
    assert harness.answers[first.epoch].tolist() == [1, 2, 3]
    assert harness.answers[second.epoch].tolist() == [3, 2, 8]
    assert harness.chain.counters.joined == 2
    assert [slots_of(harness, 0, page) for page in (1, 2, 3, 8)] == [1, 1, 1, 1]
    check_sums(harness)


def test_a_page_that_has_landed_but_not_filled_is_joined_and_served_at_once() -> None:
    harness = Harness(make_chain())
    harness.manual_fills = True
    harness.read([1])
    harness.end_fetch(harness.fetches[0])
    late = harness.read([1])
    assert harness.answers[late.epoch].tolist() == [1]
    assert harness.chain.counters.joined == 1
    harness.end_all()
    assert harness.chain.idle
    check_sums(harness)


def test_a_bypassed_page_is_joined() -> None:
    harness = Harness(make_chain(("hbm",)), (8,))
    harness.read(list(range(8)))  # takes all eight slots, and they stay pending
    bypassed = harness.read([100])
    assert harness.chain.counters.levels[0].bypasses == 1
    joined = harness.read([100])
    assert sum(100 in fetch.flight.page_ids for fetch in harness.fetches) == 1
    harness.end_all()
    for read in (bypassed, joined):
        assert harness.answers[read.epoch].tolist() == [100]
    assert harness.chain.counters.joined == 1
    check_sums(harness)


def test_a_bypassed_page_that_finds_a_slot_while_joined_gives_it_back() -> None:
    harness = Harness(make_chain(("hbm",)), (8,))
    harness.read(list(range(8)))
    blockers = list(harness.fetches)
    harness.read([100])
    for fetch in blockers:
        harness.end_fetch(fetch)
    harness.read([100])  # now a slot is free for it, but the flight knows of none
    harness.end_all()
    assert held_slots(harness) == 0
    check_sums(harness)


def test_a_failed_fetch_fails_only_its_waiters() -> None:
    harness = Harness(make_chain(batch_pages=1))
    one, two = harness.read([1]), harness.read([2])
    joined = harness.read([1, 2])
    fetch = next(fetch for fetch in harness.fetches if fetch.flight.page_ids[0] == 1)
    harness.end_fetch(fetch, status(PageStatus.FAILED))
    harness.end_all()
    assert one.status.tolist() == [PageStatus.FAILED]
    assert two.status.tolist() == [PageStatus.OK]
    assert joined.status.tolist() == [PageStatus.FAILED, PageStatus.OK]
    assert held_slots(harness) == 0
    assert harness.chain.counters.levels[3].failures == 1
    check_sums(harness)


def test_a_page_that_failed_can_be_read_again() -> None:
    harness = Harness(make_chain())
    harness.read([1])
    harness.end_fetch(harness.fetches[0], status(PageStatus.FAILED))
    again = harness.read([1])
    harness.end_all()
    assert harness.answers[again.epoch].tolist() == [1]


def test_a_failed_read_of_a_tier_falls_through_to_the_next_level() -> None:
    harness = Harness(make_chain(("nvme",)), (32,))
    harness.read([1, 2])
    harness.end_all()
    read = harness.read([1, 2])
    for fetch in list(harness.fetches):
        failed = fetch.flight.page_ids == 1
        harness.end_fetch(
            fetch, np.where(failed, PageStatus.FAILED, PageStatus.OK).astype(np.uint8)
        )
    harness.end_all()
    assert harness.answers[read.epoch].tolist() == [1, 2]
    counters = harness.chain.counters
    assert (counters.levels[0].failures, counters.levels[0].hits) == (1, 1)
    assert counters.levels[1].hits == 3
    check_sums(harness)


def test_a_failing_tier_may_be_asked_behind_younger_batches() -> None:
    harness = Harness(make_chain(("nvme",), batch_pages=1), (32,))
    harness.read([1])
    harness.end_all()
    failing = harness.read([1])
    younger = harness.read([2])
    tier_fetch = next(fetch for fetch in harness.fetches if fetch.level == 0)
    harness.end_fetch(tier_fetch, status(PageStatus.FAILED))
    harness.end_all()
    assert harness.answers[failing.epoch].tolist() == [1]
    assert harness.answers[younger.epoch].tolist() == [2]


def test_without_an_origin_a_page_that_no_tier_has_is_absent() -> None:
    harness = Harness(make_chain(origin=False))
    read = harness.read([1, 1, 2])
    assert read.status.tolist() == [PageStatus.ABSENT] * 3
    assert held_slots(harness) == 0
    assert harness.chain.counters.absent == 2
    check_sums(harness)


def test_pages_that_the_origin_lacks_are_absent_and_leave_no_slot() -> None:
    harness = Harness(make_chain())
    read = harness.read([1, 2])
    harness.end_fetch(harness.fetches[0], status(PageStatus.OK, PageStatus.ABSENT))
    assert sorted(read.status.tolist()) == [PageStatus.OK, PageStatus.ABSENT]
    assert held_slots(harness) == 0
    assert harness.chain.idle
    check_sums(harness)


def test_a_cancelled_reader_leaves_the_fetch_to_finish_and_fill() -> None:
    harness = Harness(make_chain())
    read = harness.read([1])
    read.detached = True
    harness.end_all()
    assert harness.answers[read.epoch].tolist() == [GARBAGE]
    assert slots_of(harness, 0, 1) == 1
    assert harness.chain.counters.levels[3].hits == 1
    check_sums(harness)


def test_an_expired_read_is_late_where_nothing_is_known_and_its_fetch_still_fills() -> None:
    harness = Harness(make_chain())
    harness.read([1])
    harness.end_all()
    read = harness.read([1, 2])
    answer = harness.chain.expire(read)
    assert answer.tolist() == [PageStatus.OK, PageStatus.LATE]
    harness.end_all()
    assert slots_of(harness, 0, 2) == 1
    assert harness.chain.counters.late == 1
    check_sums(harness)


def test_a_prefetch_is_done_when_the_tiers_are_filled() -> None:
    harness = Harness(make_chain())
    harness.manual_fills = True
    read = harness.read([1], wants_bytes=False)
    harness.end_fetch(harness.fetches[0])
    assert read.unresolved == 1
    harness.end_all()
    assert read.unresolved == 0
    assert harness.answers[read.epoch].tolist() == [GARBAGE]
    assert slots_of(harness, 0, 1) == 1


def test_a_leased_slot_is_never_reused_until_released() -> None:
    harness = Harness(make_chain(("hbm",)), (8,))
    held = harness.read(list(range(8)), wants_bytes=False, held=True)
    harness.end_all()
    before = harness.indexes[0].snapshot()
    for page in range(100, 120):
        harness.read([page])
        harness.end_all()
    np.testing.assert_array_equal(before.tags, harness.indexes[0].snapshot().tags)
    harness.chain.release(held)
    harness.read([200])
    harness.end_all()
    assert slots_of(harness, 0, 200) == 1


def test_an_invalidated_slot_is_not_reused_while_leased() -> None:
    harness = Harness(make_chain(("hbm",)), (8,))
    held = harness.read(list(range(8)), wants_bytes=False, held=True)
    harness.end_all()
    harness.invalidate(np.arange(8, dtype=np.uint64))
    harness.read([100])
    harness.end_all()
    assert slots_of(harness, 0, 100) == 0
    harness.chain.release(held)
    harness.read([101])
    harness.end_all()
    assert slots_of(harness, 0, 101) == 1


def test_a_slot_that_a_device_is_reading_is_not_reused_though_its_reader_left() -> None:
    harness = Harness(make_chain(("nvme",)), (8,))
    harness.read(list(range(8)))
    harness.end_all()
    reader = harness.read(list(range(8)))
    reader.detached = True
    late = harness.read([100])
    assert harness.chain.counters.levels[0].bypasses == 1
    harness.end_all()
    assert harness.answers[late.epoch].tolist() == [100]


def test_a_full_in_flight_table_pushes_back() -> None:
    harness = Harness(make_chain(inflight=4))
    harness.read([1, 2, 3])
    assert harness.chain.room_pages == 1
    with pytest.raises(LimitError):
        harness.read([10, 11])
    harness.end_all()
    assert harness.chain.room_pages == 4


def test_flights_wait_for_a_staging_buffer_and_all_arrive() -> None:
    harness = Harness(make_chain(batch_pages=2, buffers=1, extent_pages=1))
    read = harness.read(list(range(0, 20, 2)))
    assert len(harness.fetches) == 1
    harness.end_all()
    assert harness.answers[read.epoch].tolist() == list(range(0, 20, 2))
    assert harness.chain.idle


def test_an_invalidated_page_on_its_way_is_delivered_but_not_cached() -> None:
    harness = Harness(make_chain())
    read = harness.read([1, 2])
    harness.invalidate(np.array([1], np.uint64))
    harness.end_all()
    assert harness.answers[read.epoch].tolist() == [1, 2]
    assert [slots_of(harness, level, 1) for level in range(3)] == [0, 0, 0]
    assert slots_of(harness, 0, 2) == 1
    assert held_slots(harness) == 0


def test_a_page_invalidated_while_it_is_filled_is_not_published() -> None:
    harness = Harness(make_chain())
    harness.manual_fills = True
    harness.read([1])
    harness.end_fetch(harness.fetches[0])
    harness.invalidate(np.array([1], np.uint64))
    harness.end_all()
    assert [slots_of(harness, level, 1) for level in range(3)] == [0, 0, 0]
    assert held_slots(harness) == 0


def test_a_failed_fill_leaves_no_slot_and_the_reader_has_its_bytes() -> None:
    harness = Harness(make_chain(("nvme",)), (8,))
    harness.manual_fills = True
    read = harness.read([1])
    harness.end_fetch(harness.fetches[0])
    fill = harness.fills.pop()
    harness.perform(harness.chain.filled(fill, np.zeros(1, np.bool_)))
    assert harness.answers[read.epoch].tolist() == [1]
    assert held_slots(harness) == 0
    assert harness.chain.idle


def test_a_write_fills_the_tiers_and_is_then_a_hit() -> None:
    harness = Harness(make_chain())
    write = harness.write([1, 2, 3])
    assert write in harness.done
    read = harness.read([3, 1])
    assert harness.answers[read.epoch].tolist() == [3, 1]
    assert harness.chain.counters.written_pages == 3
    check_sums(harness)


def test_neighbouring_pages_are_one_device_read_and_objects_never_merge() -> None:
    harness = Harness(make_chain())
    other = 1 << 32
    harness.read([3, 1, 2, other - 1, other])
    counts = sorted(count for fetch in harness.fetches for count in fetch.extents.count.tolist())
    assert counts == [1, 1, 3]


def test_reads_of_a_drive_find_a_buffer_while_fills_are_stuck() -> None:
    harness = Harness(make_chain(("nvme",), buffers=4), slots=(256,))
    harness.read(list(range(8)))
    harness.end_all()
    harness.manual_fills = True
    harness.read(list(range(100, 140)))
    while harness.fetches:
        harness.end_fetch(harness.fetches[0])
    assert len(harness.fills) == 3
    read = harness.read(list(range(8)))
    (fetch,) = harness.fetches
    assert fetch.level == 0
    harness.end_fetch(fetch)
    assert read in harness.done
    harness.end_all()
    assert harness.chain.idle


@pytest.mark.parametrize(("tiers", "asked"), [((), 4), (("dram",), 4), (("dram", "nvme"), 3)])
def test_without_a_drive_the_origin_has_every_buffer(tiers: tuple[str, ...], asked: int) -> None:
    harness = Harness(make_chain(tiers, buffers=4), slots=(256, 256))
    harness.read(list(range(100, 140)))
    assert len(harness.fetches) == asked
    harness.end_all()
    assert harness.chain.idle


def test_an_empty_batch_is_complete_at_once() -> None:
    harness = Harness(make_chain())
    read = harness.read([])
    assert read in harness.done
    assert harness.chain.counters.batches == 1


def test_a_tier_that_admits_nothing_stays_empty_and_a_half_takes_about_half() -> None:
    nothing = Harness(make_chain(("hbm",), admit=0.0, batch_pages=8), (1 << 12,))
    nothing.read(list(range(1000)))
    nothing.end_all()
    assert not nothing.indexes[0].snapshot().states.any()
    half = Harness(make_chain(("hbm",), admit=0.5), (1 << 12,))
    half.read(list(range(1000)))
    half.end_all()
    assert 400 < np.count_nonzero(half.indexes[0].snapshot().states) < 600


def test_without_coalescing_every_demand_read_is_a_device_read_of_its_own() -> None:
    harness = Harness(make_chain((), coalesce=False))
    first = harness.read([5, 6, 5, 7])
    second = harness.read([6])
    assert harness.chain.room_pages == (1 << 10) - 5
    harness.end_all()
    assert harness.answers[first.epoch].tolist() == [5, 6, 5, 7]
    assert harness.answers[second.epoch].tolist() == [6]
    total = harness.chain.counters
    assert total.levels[0].device_reads == 5
    assert (total.folded, total.joined, total.levels[0].merged_extents) == (0, 0, 0)
    assert harness.chain.idle
    assert harness.chain.room_pages == 1 << 10
    check_sums(harness)


def test_reads_are_counted_by_their_purpose() -> None:
    harness = Harness(make_chain())
    harness.read([0, 1, 2, 3], purpose=Purpose.PREFIX)
    joined = harness.read([2, 9], purpose=Purpose.SPARSE)
    harness.end_all()
    harness.read([9, 9], purpose=Purpose.SPARSE)
    prefix = harness.chain.by_purpose[Purpose.PREFIX]
    sparse = harness.chain.by_purpose[Purpose.SPARSE]
    assert (prefix.reads, prefix.joined, prefix.levels[3].device_reads) == (4, 0, 1)
    assert (sparse.reads, sparse.joined, sparse.levels[3].device_reads) == (4, 1, 1)
    assert (prefix.levels[0].hits, sparse.levels[0].hits) == (0, 2)
    assert (prefix.levels[3].rows_asked, sparse.levels[3].rows_asked) == (4, 2)
    assert harness.answers[joined.epoch].tolist() == [2, 9]
    assert harness.chain.by_purpose[Purpose.UNSTATED].reads == 0
    assert harness.chain.counters.reads == 8
    check_sums(harness)
