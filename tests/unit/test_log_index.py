"""The index of a log: the same decisions as its plain twin, and its laws one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from log_twin import Answer, LogTwin, answer_of

from kvtier.index import LogGeometry, LogIndex
from kvtier.pages import I64, U64, LookupResult, PageState

GEOMETRY = LogGeometry(segments=7, segment_pages=4, spare_segments=2)
WAYS = 8
"""Few enough that sets overflow."""
ROOMY_WAYS = 32
"""So many that none does."""
PAGES = st.integers(0, 60)


def ids(*pages: int) -> U64:
    return np.array(pages, np.uint64)


class Log(RuleBasedStateMachine):
    """Calls in any order; both indexes answer alike, and no location is given while in use."""

    def __init__(self) -> None:
        super().__init__()
        self.index = LogIndex(GEOMETRY, WAYS, seed=3)
        self.twin = LogTwin(GEOMETRY, WAYS, seed=3)
        self.epoch = 0
        self.held: list[int] = []
        """Epochs that are not released."""
        self.readers: dict[int, set[tuple[int, int]]] = {}
        """By epoch: locations that it may read, each with the generation of its segment."""
        self.pending: set[int] = set()
        self.moves: list[tuple[int, int, int]] = []

    @rule(pages=st.lists(PAGES, min_size=1, max_size=14), holds=st.booleans())
    def lookup(self, pages: list[int], holds: bool) -> None:
        self.epoch += 1
        self.held.append(self.epoch)
        before = self.index.generations.copy()
        found = self.index.lookup(ids(*pages), self.epoch, self.held[0])
        answer = answer_of(found, len(pages))
        assert answer == self.twin.lookup(pages, self.epoch, self.held[0])
        self._note(answer, before)
        if not holds:
            self.held.remove(self.epoch)
            del self.readers[self.epoch]

    def _note(self, answer: Answer, before: U64) -> None:
        rows = zip(answer.states, answer.locations, strict=True)
        given = {at for state, at in rows if state == PageState.EMPTY and at >= 0}
        given |= {target for _, _, target in answer.moves}
        assert not given & self.pending
        for location in given:
            segment = location // GEOMETRY.segment_pages
            if self.index.generations[segment] != before[segment]:
                self._assert_unused(segment)
        self.pending |= given
        self.moves += answer.moves
        rows = zip(answer.states, answer.locations, strict=True)
        self.readers[self.epoch] = {
            (at, int(self.index.generations[at // GEOMETRY.segment_pages]))
            for state, at in rows
            if state == PageState.VALID
        }

    def _assert_unused(self, segment: int) -> None:
        """Nobody reads, writes or moves there, as its next life begins."""
        span = range(segment * GEOMETRY.segment_pages, (segment + 1) * GEOMETRY.segment_pages)
        assert not self.pending & set(span)
        assert not {source for _, source, _ in self.moves} & set(span)
        assert not any(at in span for places in self.readers.values() for at, _ in places)

    @rule(data=st.data(), publish=st.booleans())
    def end_fills(self, data: st.DataObject, publish: bool) -> None:
        targets = {target for _, _, target in self.moves}
        waiting = sorted(self.pending - targets)
        if waiting:
            chosen = data.draw(st.lists(st.sampled_from(waiting), unique=True))
            name = "publish" if publish else "abort"
            getattr(self.index, name)(np.array(chosen, np.int64))
            getattr(self.twin, name)(chosen)
            self.pending -= set(chosen)

    @rule(data=st.data())
    def end_moves(self, data: st.DataObject) -> None:
        if self.moves:
            chosen = data.draw(st.lists(st.sampled_from(self.moves), unique=True, min_size=1))
            ok = data.draw(st.lists(st.booleans(), min_size=len(chosen), max_size=len(chosen)))
            sources, targets = [move[1] for move in chosen], [move[2] for move in chosen]
            lost = self.index.moved(np.array(sources), np.array(targets), np.array(ok))
            assert lost == self.twin.moved(sources, targets, ok)
            self.moves = [move for move in self.moves if move not in chosen]
            self.pending -= set(targets)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.held:
            epoch = data.draw(st.sampled_from(self.held))
            self.held.remove(epoch)
            del self.readers[epoch]

    @rule(pages=st.lists(PAGES, max_size=5))
    def invalidate(self, pages: list[int]) -> None:
        dropped = self.index.invalidate(ids(*pages)).tolist()
        assert dropped == self.twin.invalidate(pages)

    @invariant()
    def both_hold_the_same_pages_at_the_same_places(self) -> None:
        snapshot = self.index.snapshot()
        held = np.flatnonzero(snapshot.states)
        pages = {int(at): (int(snapshot.tags[at]), int(snapshot.states[at])) for at in held}
        assert pages == self.twin.pages()
        assert self.index.generations.tolist() == self.twin.generations

    @invariant()
    def every_page_has_one_location(self) -> None:
        snapshot = self.index.snapshot()
        tags = snapshot.tags[snapshot.states != PageState.EMPTY]
        assert len(np.unique(tags)) == len(tags)
        valid = np.flatnonzero(snapshot.states == PageState.VALID)
        np.testing.assert_array_equal(self.index.peek(snapshot.tags[valid]), valid)

    @invariant()
    def readers_find_what_they_were_told(self) -> None:
        for places in self.readers.values():
            for location, generation in places:
                assert self.index.generations[location // GEOMETRY.segment_pages] == generation


TestLog = Log.TestCase
TestLog.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


# -- law by law -----------------------------------------------------------------------------------


class Tier:
    """An index, and a clock of epochs that are released at once; what it admits is published."""

    def __init__(self, geometry: LogGeometry = GEOMETRY) -> None:
        self.index = LogIndex(geometry, ROOMY_WAYS, seed=1)
        self.epoch = 0

    def ask(self, *pages: int, end: bool = True) -> LookupResult:
        self.epoch += 1
        found = self.index.lookup(ids(*pages), self.epoch, self.epoch)
        if end:
            reserved = found.misses.reserved
            self.index.publish(reserved[reserved >= 0])
            self.end_moves(found)
        return found

    def end_moves(self, found: LookupResult, ok: bool = True) -> int:
        if found.moves is None:
            return 0
        _, sources, targets = found.moves
        return self.index.moved(sources, targets, np.full(len(sources), ok))

    def where(self, *pages: int) -> list[int]:
        return self.index.peek(ids(*pages)).tolist()


def test_pages_that_come_together_lie_together() -> None:
    tier = Tier()
    tier.ask(9, 4, 7)
    tier.ask(1, 2)
    assert tier.where(9, 4, 7, 1, 2) == [0, 1, 2, 3, 4]


def test_the_oldest_segment_makes_room_before_it_is_needed() -> None:
    tier = Tier()
    for first in range(0, 20, 4):
        assert len(tier.ask(*range(first, first + 4)).evicted) == 0
    # Five segments of four are full, two are spare.
    assert tier.ask(100).evicted.tolist() == [0, 1, 2, 3]
    assert tier.where(100) == [20]
    assert tier.where(4) == [4]


def test_a_page_that_was_asked_for_again_is_moved_to_the_head() -> None:
    tier = Tier()
    for first in range(0, 20, 4):
        tier.ask(*range(first, first + 4))
    tier.ask(2)
    found = tier.ask(100, end=False)
    assert found.evicted.tolist() == [0, 1, 3]
    assert found.moves is not None
    assert [column.tolist() for column in found.moves] == [[2], [2], [20]]
    assert tier.where(2) == [2]  # it is served from there until it has moved
    tier.end_moves(found)
    assert tier.where(2) == [20]


def test_half_of_a_segment_is_moved_at_most_and_the_youngest_are() -> None:
    tier = Tier()
    for first in range(0, 20, 4):
        tier.ask(*range(first, first + 4))
    for page in (3, 0, 1):
        tier.ask(page)
    found = tier.ask(100, end=False)
    assert found.moves is not None
    assert found.moves.page_ids.tolist() == [0, 1]
    assert found.evicted.tolist() == [2, 3]


def test_a_page_that_could_not_be_moved_is_forgotten() -> None:
    tier = Tier()
    for first in range(0, 20, 4):
        tier.ask(*range(first, first + 4))
    tier.ask(2)
    found = tier.ask(100, end=False)
    assert tier.end_moves(found, ok=False) == 1
    assert tier.where(2) == [-1]


def test_a_page_that_was_dropped_on_its_move_stays_dropped() -> None:
    tier = Tier()
    for first in range(0, 20, 4):
        tier.ask(*range(first, first + 4))
    tier.ask(2)
    found = tier.ask(100, end=False)
    assert tier.index.invalidate(ids(2)).tolist() == [2]
    assert tier.end_moves(found) == 0
    assert tier.where(2) == [-1]


def test_a_segment_under_a_reader_is_not_written_and_pages_pass_by() -> None:
    tier = Tier()
    for first in range(0, 20, 4):
        tier.ask(*range(first, first + 4))
    index = tier.index
    index.lookup(ids(0), 6, 6)  # somebody reads there, and stays
    given: list[int] = []
    bypasses = 0
    for epoch in range(7, 20):
        found = index.lookup(ids(*range(epoch * 4, epoch * 4 + 4)), epoch, 6)
        reserved = found.misses.reserved
        given += reserved[reserved >= 0].tolist()
        index.publish(reserved[reserved >= 0])
        bypasses += found.bypasses
        if found.moves is not None:
            tier.end_moves(found)
    assert 0 not in given
    assert bypasses > 0
    found = index.lookup(ids(1000), 21, 21)
    assert found.bypasses == 0


def test_pages_that_never_came_do_not_push_others_out() -> None:
    tier = Tier()
    for first in range(0, 20, 4):
        tier.ask(*range(first, first + 4))
    kept = tier.where(*range(8, 20))
    for turn in range(100):
        found = tier.ask(*range(1000 + turn * 6, 1006 + turn * 6), end=False)
        tier.index.abort(found.misses.reserved)
        tier.end_moves(found)
    assert tier.where(*range(8, 20)) == kept


def test_a_slot_is_published_or_aborted_once_and_only_where_it_is() -> None:
    tier = Tier()
    found = tier.ask(5, end=False)
    tier.index.publish(found.misses.reserved)
    for wrong in (0, 1, -1, GEOMETRY.locations):
        with pytest.raises(ValueError, match="are not PENDING"):
            tier.index.publish(np.array([wrong]))
        with pytest.raises(ValueError, match="are not PENDING"):
            tier.index.abort(np.array([wrong]))
    assert tier.where(5) == [0]


def test_generations_only_grow() -> None:
    tier = Tier()
    before = tier.index.generations.copy()
    for page in range(0, 400, 3):
        tier.ask(page, page + 1, page + 2)
        now = tier.index.generations.copy()
        changed = now != before
        assert (now[changed] > before.max()).all()
        before = now


# -- restart --------------------------------------------------------------------------------------


def restored(
    page_ids: list[int], locations: list[int], generations: list[int]
) -> tuple[LogIndex, I64]:
    index = LogIndex(GEOMETRY, ROOMY_WAYS, seed=1)
    where = np.array(locations, np.int64)
    index.restore(ids(*page_ids), where, np.array(generations, np.uint64))
    return index, index.peek(ids(*page_ids))


def test_a_restored_index_finds_every_page_where_it_lies() -> None:
    _, where = restored([9, 8, 7], [0, 1, 5], [1, 2, 0, 0, 0, 0, 0])
    assert where.tolist() == [0, 1, 5]


def test_of_a_page_that_is_there_twice_the_newest_is_taken() -> None:
    _, where = restored([9, 9, 9], [1, 8, 4], [3, 1, 2, 0, 0, 0, 0])
    assert where.tolist() == [1, 1, 1]


def test_a_location_with_two_pages_keeps_one() -> None:
    index, where = restored([9, 8], [4, 4], [1, 2, 0, 0, 0, 0, 0])
    assert sorted(where.tolist()) == [-1, 4]
    assert int((index.snapshot().states == PageState.VALID).sum()) == 1


def test_a_restored_log_goes_on_after_its_newest_segment() -> None:
    index, _ = restored([9, 8], [21, 2], [11, 5, 6, 7, 8, 9, 10])
    found = index.lookup(ids(1, 2, 3, 4, 5), 1, 1)
    # Segment 0 is the newest, and the oldest ones give way.
    assert found.misses.slots.tolist() == [4, 5, 6, 7, 8]
    assert index.generations.tolist()[:3] == [11, 11 + 7 + 1, 11 + 7 + 2]


def test_a_restored_log_that_never_went_round_begins_its_unused_segments() -> None:
    index, _ = restored([9], [4], [1, 2, 0, 0, 0, 0, 0])
    found = index.lookup(ids(1), 1, 1)
    assert found.misses.slots.tolist() == [8]
    assert len(found.evicted) == 0


def test_nothing_to_restore_is_an_empty_log() -> None:
    index, _ = restored([], [], [0] * 7)
    assert index.lookup(ids(5), 1, 1).misses.slots.tolist() == [0]


def test_a_restored_log_drops_its_oldest_pages_first() -> None:
    index, _ = restored([100 + at for at in range(28)], list(range(28)), [1, 2, 3, 4, 5, 6, 7])
    found = index.lookup(ids(1), 1, 1)
    assert found.evicted.tolist() == list(range(100, 112))
