"""Every engine answers like the plain-Python reference, slot by slot."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvtier.index import create_index, kernels
from kvtier.index.interface import PageIndex
from kvtier.pages import U64, PageState

PAGES_MAX = 120
page_lists = st.lists(st.integers(0, PAGES_MAX - 1), max_size=40)
masks = st.integers(0, 2**40 - 1)


def as_bits(mask: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.array([mask >> at & 1 for at in range(count)], bool)


def as_pages(pages: list[int]) -> U64:
    return np.array(pages, np.uint64) * np.uint64(0x1_0000_0001)


class EnginesAgree(RuleBasedStateMachine):
    """Random batches against tiny tables, on both engines at once."""

    index: PageIndex
    reference: PageIndex

    @initialize(sets=st.integers(1, 5), ways=st.sampled_from([8, 16, 32]), seed=st.integers(0, 3))
    def create(self, sets: int, ways: int, seed: int) -> None:
        self.index = create_index(sets * ways, ways, seed, "numba")
        self.reference = create_index(sets * ways, ways, seed, "reference")
        self.epoch = 1
        self.oldest_epoch = 1

    @rule(
        pages=page_lists,
        step=st.sampled_from([0, 1, 1, 1, 2, 2**31, 2**32, 2**40]),
        lag=st.sampled_from([0, 0, 1, 2, 3, 2**31, 2**32 - 2]),
        admitted=st.none() | masks,
        ranked=st.none() | masks,
    )
    def lookup(
        self, pages: list[int], step: int, lag: int, admitted: int | None, ranked: int | None
    ) -> None:
        self.epoch += step
        self.oldest_epoch = max(self.oldest_epoch, self.epoch - lag)
        admit = None if admitted is None else as_bits(admitted, len(pages))
        priorities = None if ranked is None else as_bits(ranked, len(pages)).astype(np.uint32) * 7
        ours, theirs = (
            index.lookup(
                as_pages(pages),
                self.epoch,
                self.oldest_epoch,
                admit=admit,
                priorities=priorities,
            )
            for index in (self.index, self.reference)
        )
        assert (ours.leaders is None) == (theirs.leaders is None)
        assert ours.bypasses == theirs.bypasses
        for name in ("states", "slots", "leaders", "evicted"):
            mine, expected = getattr(ours, name), getattr(theirs, name)
            if expected is not None:
                assert mine.dtype == expected.dtype
                np.testing.assert_array_equal(mine, expected, name)

    @precondition(lambda self: (self.reference.snapshot().states == PageState.PENDING).any())
    @rule(chosen=masks, publish=st.booleans())
    def settle(self, chosen: int, publish: bool) -> None:
        pending = np.flatnonzero(self.reference.snapshot().states == PageState.PENDING)
        slots = pending[as_bits(chosen, len(pending))].astype(np.int64)
        for index in (self.index, self.reference):
            (index.publish if publish else index.abort)(slots)

    @rule(pages=page_lists)
    def invalidate(self, pages: list[int]) -> None:
        np.testing.assert_array_equal(
            self.index.invalidate(as_pages(pages)), self.reference.invalidate(as_pages(pages))
        )

    @rule(pages=page_lists)
    def peek(self, pages: list[int]) -> None:
        np.testing.assert_array_equal(
            self.index.peek(as_pages(pages)), self.reference.peek(as_pages(pages))
        )

    @invariant()
    def slots_are_identical(self) -> None:
        ours, theirs = self.index.snapshot(), self.reference.snapshot()
        for name in ours._fields:
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)

    @invariant()
    def no_page_has_two_slots(self) -> None:
        now = self.index.snapshot()
        held = now.tags[now.states != PageState.EMPTY]
        assert len(np.unique(held)) == len(held)


EnginesAgree.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=25)
TestEnginesAgree = EnginesAgree.TestCase


@pytest.mark.skipif(not hasattr(kernels.probe, "signatures"), reason="the JIT is disabled")
def test_no_request_waits_for_the_compiler() -> None:
    index = create_index(64)
    pages = np.arange(20, dtype=np.uint64)
    read_only = pages.copy()
    read_only.flags.writeable = False
    compiled = len(kernels.probe.signatures), len(kernels.fold_and_plan.signatures)
    index.lookup(pages, 1, 1)
    index.lookup(pages[::2], 2, 2, admit=np.ones(20, bool)[::2])
    index.lookup(read_only, 3, 3, priorities=np.ones(20, np.uint32))
    assert (
        compiled == (len(kernels.probe.signatures), len(kernels.fold_and_plan.signatures)) == (1, 1)
    )
