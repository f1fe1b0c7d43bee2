"""Every engine answers like the plain-Python reference, slot by slot."""

import os

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from index_engines import (
    CUDA_ON_CPU,
    ENGINES,
    assert_same_answer,
    assert_same_slots,
    index_kernels,
    open_index,
)

from kvtier.index import create_index, kernels
from kvtier.index.cuda import CudaIndex
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
    """Random batches against tiny tables, on an engine and on the reference at once."""

    engine = "numba"
    index: PageIndex
    reference: PageIndex

    @initialize(sets=st.integers(1, 5), ways=st.sampled_from([8, 16, 32]), seed=st.integers(0, 3))
    def create(self, sets: int, ways: int, seed: int) -> None:
        self.index = open_index(sets * ways, ways, seed, self.engine)
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
        assert_same_answer(ours, theirs)

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
        assert_same_slots(self.index, self.reference)

    @invariant()
    def no_page_has_two_slots(self) -> None:
        now = self.index.snapshot()
        held = now.tags[now.states != PageState.EMPTY]
        assert len(np.unique(held)) == len(held)


class CudaAgrees(EnginesAgree):
    """The same for the kernels of the GPU, compiled for a CPU."""

    engine = CUDA_ON_CPU


EnginesAgree.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=25)
CudaAgrees.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=25)
TestEnginesAgree = EnginesAgree.TestCase
TestCudaAgrees = CudaAgrees.TestCase


@pytest.mark.parametrize("engine", ENGINES[2:])
@pytest.mark.parametrize("ways", [8, 16, 32])
def test_kernels_decide_as_the_cpu_does(engine: str, ways: int) -> None:
    """Random sequences of batches, larger than a warp; `make soak` runs ten thousand and more."""
    for seed in range(int(os.environ.get("KVTIER_PARITY_SEQUENCES", "60"))):
        rng = np.random.default_rng([seed, ways])
        slots = int(rng.integers(1, 6)) * ways
        ours, theirs = (open_index(slots, ways, seed, one) for one in (engine, "numba"))
        pending = np.empty(0, np.int64)
        epoch = 1
        for _ in range(6):
            pages = rng.integers(0, rng.integers(1, 3 * slots), rng.integers(0, 150))
            rows = len(pages)
            admit = rng.random(rows) < 0.7 if rng.random() < 0.5 else None
            ranks = rng.integers(0, 3, rows).astype(np.uint32) if rng.random() < 0.5 else None
            epoch += int(rng.integers(0, 3))
            oldest = max(1, epoch - int(rng.integers(0, 3)))
            found, expected = (
                index.lookup(pages.astype(np.uint64), epoch, oldest, admit=admit, priorities=ranks)
                for index in (ours, theirs)
            )
            assert_same_answer(found, expected)
            reserved = expected.misses.reserved
            reserved = reserved[reserved >= 0]
            pending = rng.permutation(np.concatenate([pending, reserved]))
            published, aborted, pending = np.split(pending, [rows // 4, rows // 3])
            gone = rng.integers(0, 3 * slots, 5).astype(np.uint64)
            for index in (ours, theirs):
                index.publish(published)
                index.abort(aborted)
            np.testing.assert_array_equal(ours.invalidate(gone), theirs.invalidate(gone))
            assert_same_slots(ours, theirs)


@pytest.mark.parametrize("ways", [8, 16, 32])
def test_kernels_decide_alike_of_a_batch_described_in_memory(ways: int) -> None:
    """Hits, misses and stamps of the probe in a graph are those of a lookup."""
    rng = np.random.default_rng(ways)
    ours = CudaIndex(4 * ways, ways, 1, index_kernels(ways))
    theirs = create_index(4 * ways, ways, 1)
    for epoch in range(1, 12):
        new = rng.integers(0, 8 * ways, 20).astype(np.uint64)
        for index in (ours, theirs):
            reserved = index.lookup(new, epoch, epoch).misses.reserved
            index.publish(reserved[reserved >= 0][::2].copy())  # some stay PENDING
        pages = rng.integers(0, 8 * ways, rng.integers(0, 65)).astype(np.uint64)
        slots, missed = np.full(64, -7), np.zeros(2, np.uint64)
        stamp = ours.begin(epoch, epoch)
        batch = np.array([pages.ctypes.data, len(pages), stamp, 0], np.uint64)
        ours.probe_batch(64, batch, slots, missed)
        expected = theirs.peek(pages)
        theirs.lookup(pages, epoch, epoch, admit=np.zeros(len(pages), np.bool_))
        np.testing.assert_array_equal(slots[: len(pages)], expected)
        assert (slots[len(pages) :] == -7).all()
        assert missed.tolist() == [
            np.count_nonzero(expected[:32] < 0), np.count_nonzero(expected[32:] < 0)
        ]  # fmt: skip
        assert_same_slots(ours, theirs)


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
