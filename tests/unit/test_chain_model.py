"""The chain against a model: whatever happens in whatever order, never a wrong page or a leak."""

from __future__ import annotations

import numpy as np
from chain_harness import GARBAGE, Harness, make_chain
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvtier.chain import Read
from kvtier.index import LogGeometry
from kvtier.pages import PageState, PageStatus

PAGES = st.integers(0, 40)


class ChainMachine(RuleBasedStateMachine):
    """Reads, prefetches, leases, writes and invalidations, with device reads that end anyhow."""

    tiers: tuple[str, ...] = ("hbm", "dram", "nvme")
    origin = True
    log: LogGeometry | None = None

    def __init__(self) -> None:
        super().__init__()
        chain = make_chain(self.tiers, origin=self.origin, batch_pages=4, buffers=3)
        self.harness = Harness(chain, log=self.log)
        self.harness.manual_fills = True
        self.reads: list[Read] = []
        self.leases: list[Read] = []
        self.next_new = 1 << 40

    @rule(pages=st.lists(PAGES, max_size=12))
    def read(self, pages: list[int]) -> None:
        self.reads.append(self.harness.read(pages))

    @rule(pages=st.lists(PAGES, max_size=6), held=st.booleans())
    def prefetch(self, pages: list[int], held: bool) -> None:
        read = self.harness.read(pages, wants_bytes=False, held=held)
        self.reads.append(read)
        if held:
            self.leases.append(read)

    @rule()
    def release(self) -> None:
        if self.leases:
            self.harness.chain.release(self.leases.pop(0))

    @rule(count=st.integers(1, 5))
    def write(self, count: int) -> None:
        self.harness.write(list(range(self.next_new, self.next_new + count)))
        self.next_new += 1 << 20

    @rule(pages=st.lists(PAGES, max_size=4, unique=True))
    def invalidate(self, pages: list[int]) -> None:
        self.harness.invalidate(np.array(pages, np.uint64))

    @rule(data=st.data())
    def end_a_fetch(self, data: st.DataObject) -> None:
        if self.harness.fetches:
            fetch = data.draw(st.sampled_from(self.harness.fetches))
            outcomes = [PageStatus.OK, PageStatus.FAILED]
            if fetch.level == len(self.tiers):
                outcomes.append(PageStatus.ABSENT)
            size = len(fetch.flight)
            status = data.draw(
                st.lists(st.sampled_from(outcomes), min_size=size, max_size=size)
                | st.just([PageStatus.OK] * size)
            )
            self.harness.end_fetch(fetch, np.array(status, np.uint8))

    @rule(data=st.data())
    def end_a_fill(self, data: st.DataObject) -> None:
        if self.harness.fills:
            self.harness.end_fill(data.draw(st.sampled_from(self.harness.fills)))

    @rule(data=st.data())
    def end_a_move(self, data: st.DataObject) -> None:
        if self.harness.moves:
            move = data.draw(st.sampled_from(self.harness.moves))
            size = len(move.moves.page_ids)
            ok = data.draw(st.none() | st.lists(st.booleans(), min_size=size, max_size=size))
            self.harness.end_move(move, None if ok is None else np.array(ok))

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiting = [read for read in self.reads if read.unresolved]
        if waiting:
            self.harness.chain.expire(data.draw(st.sampled_from(waiting)))

    @invariant()
    def sums_hold(self) -> None:
        total = self.harness.chain.counters
        hits = sum(level.hits for level in total.levels)
        assert total.reads == total.unique + total.folded
        assert total.unique == hits + total.joined + total.failed + total.absent

    @invariant()
    def answers_are_right(self) -> None:
        for read in self.reads:
            if read.wants_bytes:
                answer = self.harness.answers[read.epoch]
                assert np.isin(answer, [*read.page_ids, GARBAGE]).all()
                if not read.detached:
                    ok = read.status == PageStatus.OK
                    np.testing.assert_array_equal(answer[ok], read.page_ids[ok])
                    assert (answer[~ok] == GARBAGE).all()

    @invariant()
    def no_page_has_two_slots(self) -> None:
        for index in self.harness.indexes:
            snapshot = index.snapshot()
            tags = snapshot.tags[snapshot.states != PageState.EMPTY]
            assert len(np.unique(tags)) == len(tags)

    @invariant()
    def visible_slots_hold_their_page(self) -> None:
        for index, arena in zip(self.harness.indexes, self.harness.arenas, strict=True):
            snapshot = index.snapshot()
            valid = snapshot.states == PageState.VALID
            np.testing.assert_array_equal(arena[valid], snapshot.tags[valid])

    def teardown(self) -> None:
        self.harness.end_all()
        chain = self.harness.chain
        assert all(read.unresolved == 0 for read in self.reads)
        assert chain.idle
        assert chain.room_pages == 1 << 10
        assert chain.free_buffers == chain.buffer_count
        for read in self.leases:
            chain.release(read)
        assert chain.unreleased_epochs == 0
        for index in self.harness.indexes:
            assert not (index.snapshot().states == PageState.PENDING).any()


class WithoutOrigin(ChainMachine):
    origin = False


class DeviceFirst(ChainMachine):
    tiers = ("nvme",)


class OverALog(ChainMachine):
    tiers = ("dram", "nvme")
    log = LogGeometry(segments=6, segment_pages=4, spare_segments=2)


class LogFirst(ChainMachine):
    tiers = ("nvme",)
    log = LogGeometry(segments=6, segment_pages=4, spare_segments=2)


class MemoryOnly(ChainMachine):
    tiers = ("dram",)


class OriginOnly(ChainMachine):
    tiers = ()


TestChain = ChainMachine.TestCase
TestWithoutOrigin = WithoutOrigin.TestCase
TestDeviceFirst = DeviceFirst.TestCase
TestOverALog = OverALog.TestCase
TestLogFirst = LogFirst.TestCase
TestMemoryOnly = MemoryOnly.TestCase
TestOriginOnly = OriginOnly.TestCase
for case in (
    TestChain, TestWithoutOrigin, TestDeviceFirst, TestOverALog, TestLogFirst, TestMemoryOnly,
    TestOriginOnly,
):  # fmt: skip
    case.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
del case  # pytest would collect it once more
