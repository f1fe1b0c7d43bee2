"""The laws of the page index, one test each, for every engine."""

import numpy as np
import pytest
from index_engines import ENGINES
from index_engines import open_index_by_row as open_index

from kvtier.errors import SettingsError
from kvtier.hashing import fmix64_int, seed_word
from kvtier.index import PageIndex, create_index
from kvtier.pages import I64, U64, PageState

EMPTY, PENDING, VALID = PageState.EMPTY, PageState.PENDING, PageState.VALID
WAYS = 8


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def index(engine: str) -> PageIndex:
    """One set of eight ways, so that all pages compete."""
    return open_index(WAYS, WAYS, engine=engine)


def ids(*pages: int) -> U64:
    return np.array(pages, np.uint64)


def numbers(*values: int) -> I64:
    return np.array(values, np.int64)


def insert(index: PageIndex, pages: U64, epoch: int) -> dict[int, int]:
    """Look pages up and publish them; the slot of each."""
    slots = index.lookup(pages, epoch, epoch).slots
    index.publish(slots)
    return dict(zip(pages.tolist(), slots.tolist(), strict=True))


def test_a_new_page_is_reserved_then_visible_once_published(index: PageIndex) -> None:
    first = index.lookup(ids(7), 1, 1)
    assert first.states.tolist() == [EMPTY]
    second = index.lookup(ids(7), 2, 2)
    assert second.states.tolist() == [PENDING]
    index.publish(first.slots)
    third = index.lookup(ids(7), 3, 3)
    assert third.states.tolist() == [VALID]
    assert first.slots.tolist() == second.slots.tolist() == third.slots.tolist()


def test_duplicates_fold_to_the_first_row(index: PageIndex) -> None:
    found = index.lookup(ids(5, 9, 5, 9, 5), 1, 1)
    assert found.leaders is not None
    assert found.leaders.tolist() == [0, 1, 0, 1, 0]
    assert found.slots[0] == found.slots[2] == found.slots[4] != found.slots[1] == found.slots[3]
    assert int((index.snapshot().states == PENDING).sum()) == 2


def test_duplicates_of_a_pending_page_fold_too(index: PageIndex) -> None:
    reserved = index.lookup(ids(5), 1, 1).slots[0]
    found = index.lookup(ids(5, 5), 2, 2)
    assert found.leaders is not None
    assert found.leaders.tolist() == [0, 0]
    assert found.slots.tolist() == [reserved, reserved]


def test_repeated_hits_stay_separate(index: PageIndex) -> None:
    insert(index, ids(5), 1)
    found = index.lookup(ids(5, 5, 6), 2, 2)
    assert found.leaders is not None
    assert found.leaders.tolist() == [0, 1, 2]


def test_there_are_no_leaders_when_all_rows_hit(index: PageIndex) -> None:
    insert(index, ids(5, 6), 1)
    assert index.lookup(ids(5, 6, 5), 2, 2).leaders is None
    assert index.lookup(ids(), 3, 3).leaders is None


def test_every_request_sees_the_state_at_arrival(index: PageIndex) -> None:
    old = ids(*range(WAYS))
    insert(index, old, 1)
    found = index.lookup(np.concatenate([ids(100), old]), 2, 2)
    assert found.states.tolist() == [EMPTY] + [VALID] * WAYS


def test_a_pending_slot_is_never_a_victim(index: PageIndex) -> None:
    index.lookup(ids(*range(WAYS)), 1, 1)
    found = index.lookup(ids(100), 50, 50)
    assert found.slots.tolist() == [-1]
    assert found.bypasses == 1


def test_a_slot_touched_in_an_unreleased_epoch_is_never_a_victim(index: PageIndex) -> None:
    pages = ids(*range(WAYS))
    insert(index, pages, 1)
    index.lookup(pages, 2, 2)
    assert index.lookup(ids(100), 3, 2).bypasses == 1
    assert index.lookup(ids(100), 3, 3).bypasses == 0


def test_a_hit_of_this_batch_is_never_its_victim(index: PageIndex) -> None:
    slots = insert(index, ids(*range(WAYS)), 1)
    found = index.lookup(ids(100, 0, 1, 2, 3, 4, 5, 6), 2, 2)
    assert found.slots[0] == slots[7]
    assert found.evicted.tolist() == [7]


def test_an_invalidated_slot_is_quarantined_until_its_epoch_is_released(index: PageIndex) -> None:
    slots = insert(index, ids(*range(WAYS)), 1)
    index.lookup(ids(*range(WAYS)), 2, 2)
    assert index.invalidate(ids(3)).tolist() == [slots[3]]
    assert index.lookup(ids(100), 3, 2).slots.tolist() == [-1]
    found = index.lookup(ids(100), 3, 3)
    assert found.slots.tolist() == [slots[3]]
    assert found.evicted.tolist() == []


def test_an_aborted_slot_is_free_at_once(index: PageIndex) -> None:
    slots = index.lookup(ids(*range(WAYS)), 1, 1).slots
    index.abort(slots[:1])
    again = index.lookup(ids(100), 2, 1)
    assert again.slots.tolist() == slots[:1].tolist()


def test_an_aborted_page_is_unknown(index: PageIndex) -> None:
    index.abort(index.lookup(ids(0), 1, 1).slots)
    assert index.lookup(ids(0), 2, 2).states.tolist() == [EMPTY]


def test_a_full_set_bypasses_each_further_page_once(index: PageIndex) -> None:
    found = index.lookup(ids(*range(WAYS + 3), *range(WAYS + 3)), 1, 1)
    assert found.bypasses == 3
    assert int((found.slots == -1).sum()) == 6


def test_an_empty_slot_goes_before_the_oldest_page(index: PageIndex) -> None:
    slots = insert(index, ids(*range(WAYS)), 1)
    index.lookup(ids(6), 2, 2)
    index.invalidate(ids(6))
    found = index.lookup(ids(100), 3, 3)
    assert found.slots.tolist() == [slots[6]]


def test_the_oldest_page_goes_first(index: PageIndex) -> None:
    pages = ids(*range(WAYS))
    insert(index, pages, 1)
    index.lookup(pages[pages != 4], 2, 2)
    assert index.lookup(ids(100), 3, 3).evicted.tolist() == [4]


def test_the_lowest_way_goes_first_among_equals(index: PageIndex) -> None:
    insert(index, ids(*range(WAYS)), 1)
    assert index.lookup(ids(100), 2, 2).slots.tolist() == [0]


def test_priorities_keep_pages(index: PageIndex) -> None:
    pages = ids(*range(WAYS))
    ranks = np.full(WAYS, 9, np.uint32)
    ranks[5] = 8
    index.publish(index.lookup(pages, 1, 1, priorities=ranks).slots)
    index.lookup(ids(5), 2, 2)
    assert index.lookup(ids(100), 3, 3).evicted.tolist() == [5]


def test_the_greatest_priority_does_not_overflow(index: PageIndex) -> None:
    ranks = np.full(WAYS, 2**32 - 1, np.uint32)
    index.publish(index.lookup(ids(*range(WAYS)), 1, 1, priorities=ranks).slots)
    assert index.lookup(ids(100), 2, 2).slots.tolist() == [0]


def test_a_page_not_admitted_reserves_nothing(index: PageIndex) -> None:
    found = index.lookup(ids(1, 2), 1, 1, admit=np.array([False, True]))
    assert found.slots[0] == -1
    assert found.slots[1] >= 0
    assert found.bypasses == 0
    assert int((index.snapshot().states == PENDING).sum()) == 1


def test_the_leader_decides_admission_and_priority(index: PageIndex) -> None:
    found = index.lookup(
        ids(1, 1, 2, 2),
        1,
        1,
        admit=np.array([False, True, True, False]),
        priorities=np.array([0, 1, 2, 3], np.uint32),
    )
    assert found.slots[:2].tolist() == [-1, -1]
    assert found.slots[2] == found.slots[3] >= 0
    assert index.snapshot().priorities.max() == 2


def test_evicted_pages_are_told_in_the_order_of_the_plan(engine: str) -> None:
    index = open_index(4 * WAYS, WAYS, engine=engine)
    for epoch in range(1, 9):
        found = index.lookup(np.arange(epoch * 20, epoch * 20 + 20, dtype=np.uint64), epoch, epoch)
        before = index.snapshot()
        index.publish(np.unique(found.slots[found.slots >= 0]))
    probe = index.lookup(np.arange(900, 908, dtype=np.uint64), 9, 9)
    assert len(probe.evicted) > 0
    sets = [int(np.flatnonzero(before.tags == page)[0]) // WAYS for page in probe.evicted]
    assert sets == sorted(sets)


def test_one_page_never_has_two_slots(engine: str) -> None:
    index = open_index(3 * WAYS, WAYS, engine=engine)
    rng = np.random.default_rng(3)
    for epoch in range(1, 60):
        found = index.lookup(rng.integers(0, 40, 25).astype(np.uint64), epoch, max(1, epoch - 2))
        reserved = np.unique(found.slots[(found.states == EMPTY) & (found.slots >= 0)])
        index.publish(reserved[::2].copy())
        index.abort(reserved[1::2].copy())
        index.invalidate(rng.integers(0, 40, 3).astype(np.uint64))
        now = index.snapshot()
        held = now.tags[now.states != EMPTY]
        assert len(np.unique(held)) == len(held)


def test_pages_of_one_digest_do_not_hide_each_other(engine: str) -> None:
    index = open_index(32, 32, engine=engine)
    digests = {page: fmix64_int(page ^ seed_word(1)) & 0xFF for page in range(4000)}
    # Digest 0 beside 1: comparing eight bytes by subtraction borrows from a match to the next byte.
    alike = [page for page, digest in digests.items() if digest <= 1][:24]
    slots = insert(index, ids(*alike), 1)
    assert len(set(slots.values())) == len(alike)
    for page in alike:
        assert index.peek(ids(page)).tolist() == [slots[page]]
    index.invalidate(ids(*alike[::2]))
    assert (index.peek(ids(*alike)) >= 0).tolist() == [False, True] * 12


def test_no_page_id_is_reserved(index: PageIndex) -> None:
    extremes = ids(0, 2**64 - 1)
    assert index.peek(extremes).tolist() == [-1, -1]
    insert(index, extremes, 1)
    assert index.lookup(extremes, 2, 2).states.tolist() == [VALID, VALID]
    assert len(index.invalidate(extremes)) == 2
    assert index.lookup(extremes, 3, 3).states.tolist() == [EMPTY, EMPTY]


def test_page_0_of_digest_0_is_not_found_in_empty_slots(engine: str) -> None:
    seed = next(seed for seed in range(5000) if fmix64_int(seed_word(seed)) & 0xFF == 0)
    index = open_index(WAYS, WAYS, seed, engine)
    found = index.lookup(ids(0), 1, 1, admit=np.array([False]))
    assert (found.states.tolist(), found.slots.tolist()) == ([EMPTY], [-1])


def test_peek_sees_valid_pages_and_touches_nothing(index: PageIndex) -> None:
    slots = insert(index, ids(1), 1)
    index.lookup(ids(2), 2, 2)
    before = index.snapshot()
    assert index.peek(ids(1, 2, 3)).tolist() == [slots[1], -1, -1]
    for now, then in zip(index.snapshot(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_invalidate_answers_in_the_order_of_the_request(index: PageIndex) -> None:
    slots = insert(index, ids(1, 2, 3), 1)
    index.lookup(ids(4), 2, 2)
    assert index.invalidate(ids(3, 4, 99, 1, 3)).tolist() == [slots[3], slots[1]]
    assert index.lookup(ids(4), 3, 3).states.tolist() == [PENDING]


@pytest.mark.parametrize("action", ["publish", "abort"])
@pytest.mark.parametrize("stranger", [-1, 0, WAYS, 2**40])
def test_only_pending_slots_are_settled(index: PageIndex, action: str, stranger: int) -> None:
    insert(index, ids(1), 1)  # lies in slot 0
    reserved = index.lookup(ids(2), 2, 2).slots
    with pytest.raises(ValueError, match=r"1 of 2 slots .* not PENDING"):
        getattr(index, action)(np.append(reserved, stranger))
    assert index.lookup(ids(2), 3, 3).states.tolist() == [PENDING]


def test_slots_are_whole_sets_and_at_least_one(engine: str) -> None:
    assert (open_index(47, 16, engine=engine).sets, 16) == (2, 16)
    smallest = open_index(1, 32, engine=engine)
    assert (smallest.slots, smallest.sets, smallest.ways) == (32, 1, 32)


def test_pages_spread_over_a_number_of_sets_that_is_no_power_of_two(engine: str) -> None:
    index = open_index(7 * WAYS, WAYS, engine=engine)
    counts = np.zeros(7, np.int64)
    for epoch in range(1, 201):
        slots = index.lookup(np.arange(epoch * 10, epoch * 10 + 10, dtype=np.uint64), epoch, epoch)
        reserved = slots.slots[slots.slots >= 0]
        np.add.at(counts, reserved // WAYS, 1)
        index.publish(reserved)
    assert counts.min() > 0.8 * 2000 / 7
    assert counts.max() < 1.2 * 2000 / 7


def test_seeds_choose_other_sets(engine: str) -> None:
    pages = np.arange(20, dtype=np.uint64)
    one, other = (open_index(64 * WAYS, WAYS, seed, engine).lookup(pages, 1, 1) for seed in (1, 2))
    assert set((one.slots // WAYS).tolist()) != set((other.slots // WAYS).tolist())


@pytest.mark.parametrize("ways", [0, 4, 12, 64])
def test_other_ways_are_refused(engine: str, ways: int) -> None:
    with pytest.raises(SettingsError, match="ways"):
        open_index(1024, ways, engine=engine)


@pytest.mark.parametrize("slots", [0, -16, 2**40])
def test_impossible_sizes_are_refused(engine: str, slots: int) -> None:
    with pytest.raises(SettingsError, match="slots"):
        open_index(slots, engine=engine)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(SettingsError, match="'fpga'"):
        create_index(16, engine="fpga")  # type: ignore[arg-type]


def test_pages_of_another_dtype_are_refused(index: PageIndex) -> None:
    with pytest.raises(ValueError, match="page_ids is int64"):
        index.lookup(numbers(1), 1, 1)  # type: ignore[arg-type]


def test_hints_need_one_value_per_row(index: PageIndex) -> None:
    with pytest.raises(ValueError, match="admit has 1 values for 2 page_ids"):
        index.lookup(ids(1, 2), 1, 1, admit=np.array([True]))
    with pytest.raises(ValueError, match="priorities has 0 values for 2 page_ids"):
        index.lookup(ids(1, 2), 1, 1, priorities=np.empty(0, np.uint32))
    assert index.lookup(ids(1, 2), 1, 1).states.tolist() == [EMPTY, EMPTY]
