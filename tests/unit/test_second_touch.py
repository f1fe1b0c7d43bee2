"""Admission at the second touch, beside the same in plain Python, and in a chain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from chain_harness import Harness, make_chain
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.chain.second_touch import WAYS, SecondTouch
from kvtier.pages import U64, Misses, PageState

GOLDEN = 0x9E37_79B9_7F4A_7C15
U64_MASK = (1 << 64) - 1


class Plain:
    """The same, a page at a time: each set is a list, the latest miss first."""

    def __init__(self, slots: int, seed: int) -> None:
        self.sets: list[list[int]] = [[] for _ in range(max(1, slots // WAYS))]
        self.seed = (seed + 1) * GOLDEN & U64_MASK

    def place(self, page_id: int) -> tuple[list[int], int]:
        word = (page_id ^ self.seed) * GOLDEN & U64_MASK
        word ^= word >> 32
        word = word * GOLDEN & U64_MASK
        word ^= word >> 32
        return self.sets[(word >> 32) * len(self.sets) >> 32], word & 0xFFFF_FFFF or 1

    def remembers(self, page_id: int) -> bool:
        tags, tag = self.place(page_id)
        return tag in tags

    def note(self, page_id: int) -> None:
        tags, tag = self.place(page_id)
        if tag in tags:
            tags.remove(tag)
        tags.insert(0, tag)
        del tags[WAYS:]


def missed(page_ids: U64, states: Any = PageState.EMPTY) -> Misses:
    count = len(page_ids)
    rows = np.arange(count)
    return Misses(
        rows,
        np.ones(count, np.bool_),
        rows,
        page_ids,
        np.broadcast_to(np.asarray(states, np.uint8), count).copy(),
        np.full(count, -1),
    )


def some_ids(count: int, first: int = 0) -> U64:
    return np.arange(first, first + count, dtype=np.uint64)


@settings(deadline=None, max_examples=60)
@given(
    slots=st.sampled_from([1, 8, 24, 200]),
    seed=st.integers(0, U64_MASK),
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 99), st.booleans()), max_size=40), max_size=12
    ),
)
def test_it_remembers_what_plain_python_does(
    slots: int, seed: int, batches: list[list[tuple[int, bool]]]
) -> None:
    ours, plain = SecondTouch(slots, seed), Plain(slots, seed)
    everything = some_ids(100)
    for batch in batches:
        page_ids = np.array([page for page, _ in batch], np.uint64)
        states = [PageState.PENDING if has_slot else PageState.EMPTY for _, has_slot in batch]
        ours.note(missed(page_ids, states))
        for page, has_slot in batch:
            if not has_slot:
                plain.note(page)
        expected = [plain.remembers(page) for page in range(100)]
        assert ours.remembered(everything).tolist() == expected


def test_about_as_many_pages_are_remembered_as_the_tier_has_slots() -> None:
    slots = 1 << 14
    touched = SecondTouch(slots, 3)
    touched.note(missed(some_ids(slots)))
    assert touched.remembered(some_ids(slots)).mean() > 0.8
    touched.note(missed(some_ids(4 * slots, first=1 << 40)))
    assert touched.remembered(some_ids(slots)).mean() < 0.01


def test_pages_that_were_never_missed_are_not_known() -> None:
    touched = SecondTouch(1 << 14, 3)
    touched.note(missed(some_ids(1 << 16)))
    assert not touched.remembered(some_ids(200_000, first=1 << 32)).any()


def test_strided_ids_are_taken() -> None:
    touched = SecondTouch(64, 3)
    touched.note(missed(some_ids(8)))
    assert touched.remembered(some_ids(16)[::2]).tolist() == [True] * 4 + [False] * 4


def harness() -> Harness:
    return Harness(make_chain(("hbm",), admit=SecondTouch(64, 1)), (64,))


def valid_slots(one: Harness) -> int:
    return int(np.count_nonzero(one.indexes[0].snapshot().states))


def test_a_page_takes_a_slot_when_it_is_missed_again() -> None:
    one = harness()
    for slots in (0, 3):
        one.read([1, 2, 3])
        one.end_all()
        assert valid_slots(one) == slots
    one.read([1, 2, 3])
    assert not one.fetches
    assert one.chain.counters.levels[0].hits == 3


def test_duplicates_of_a_batch_are_one_touch() -> None:
    one = harness()
    one.read([5, 5, 5, 6])
    one.end_all()
    assert valid_slots(one) == 0
    one.read([5])
    one.end_all()
    assert valid_slots(one) == 1


def test_a_written_page_was_touched_and_takes_its_slot_at_the_first_miss() -> None:
    one = harness()
    one.write([7, 8])
    assert valid_slots(one) == 0
    one.read([7])
    one.end_all()
    assert valid_slots(one) == 1


@pytest.mark.parametrize("seed", [1, 2])
def test_an_evicted_page_is_still_remembered(seed: int) -> None:
    one = Harness(make_chain(("hbm",), admit=SecondTouch(64, seed)), (8,))
    for _ in range(2):
        one.read(list(range(8)))
        one.end_all()
    one.read(list(range(100, 108)))
    one.end_all()
    one.read(list(range(100, 108)))
    one.end_all()
    assert (one.indexes[0].peek(some_ids(8)) < 0).all()
    one.read([0])
    one.end_all()
    assert one.indexes[0].peek(some_ids(1))[0] >= 0
