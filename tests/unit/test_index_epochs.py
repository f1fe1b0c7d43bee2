import numpy as np
import pytest
from index_engines import open_index_by_row as create_index

from kvtier.errors import LimitError
from kvtier.index import IndexEngine, PageIndex
from kvtier.index.epochs import STAMP_HISTORY, STAMP_MAX, base_for
from kvtier.pages import PageState

WAYS = 8


@pytest.fixture(params=["reference", "numba"])
def index(request: pytest.FixtureRequest) -> PageIndex:
    engine: IndexEngine = request.param
    index = create_index(WAYS, WAYS, engine=engine)
    for page in range(WAYS):  # one epoch apart, so that their order is known
        found = index.lookup(np.array([page], np.uint64), page + 1, page + 1)
        index.publish(found.slots)
    return index


def evict(index: PageIndex, page: int, epoch: int, oldest_epoch: int) -> list[int]:
    evicted: list[int] = index.lookup(
        np.array([page], np.uint64), epoch, oldest_epoch
    ).evicted.tolist()
    return evicted


def test_the_base_stays_while_stamps_fit() -> None:
    assert base_for(0, 1, STAMP_MAX, 1) == 0
    assert base_for(5, 6, STAMP_MAX + 5, 6) == 5


def test_the_base_moves_when_a_stamp_would_not_fit() -> None:
    epoch = STAMP_MAX + 1
    assert base_for(0, 1, epoch, epoch) == epoch - STAMP_HISTORY


def test_the_base_stays_before_the_oldest_unreleased_epoch() -> None:
    assert base_for(0, 1, STAMP_MAX + 1, 2) == 1


@pytest.mark.parametrize(
    ("newest", "epoch", "oldest_epoch"),
    [(5, 4, 4), (5, 6, 7), (0, 1, 0), (0, 0, 0), (5, 6, -1)],
)
def test_epochs_out_of_order_are_refused(newest: int, epoch: int, oldest_epoch: int) -> None:
    with pytest.raises(ValueError, match="order of their epochs"):
        base_for(0, newest, epoch, oldest_epoch)


def test_an_epoch_held_too_long_is_refused(index: PageIndex) -> None:
    with pytest.raises(LimitError, match="release it"):
        index.lookup(np.array([1], np.uint64), STAMP_MAX + 9, 9)
    assert evict(index, 100, 9, 9) == [0]


def test_a_move_of_the_base_keeps_the_order_of_pages(index: PageIndex) -> None:
    jump = STAMP_MAX - 100
    index.lookup(np.array([0, 1], np.uint64), jump, jump)
    index.lookup(np.array([2], np.uint64), jump + 1, jump + 1)
    far = STAMP_MAX + 5
    evicted = [evict(index, 100 + step, far + step, far + step)[0] for step in range(WAYS)]
    assert evicted[-3:] == [0, 1, 2]
    assert sorted(evicted[:-3]) == [3, 4, 5, 6, 7]


def test_a_move_of_the_base_keeps_unreleased_stamps_exact(index: PageIndex) -> None:
    oldest_epoch = 6  # pages 5 to 7 were touched in epochs 6 to 8
    far = STAMP_MAX + 4
    dropped = [evict(index, 100 + page, far, oldest_epoch) for page in range(WAYS)]
    assert sorted(page for pages in dropped for page in pages) == [0, 1, 2, 3, 4]
    stamps = index.snapshot().stamps
    assert sorted(stamps.tolist()) == [6, 7, 8] + [far] * 5


def test_an_untouched_slot_stays_the_oldest(index: PageIndex) -> None:
    index.invalidate(np.arange(WAYS, dtype=np.uint64))
    reserved = index.lookup(np.array([50], np.uint64), 9, 9).slots
    index.abort(reserved)  # its stamp is that of a slot never used
    far = 3 << 32
    assert index.lookup(np.array([51], np.uint64), far, far).slots.tolist() == reserved.tolist()


def test_a_jump_of_many_wraps_forgets_only_the_order(index: PageIndex) -> None:
    far = 1 << 60
    found = index.lookup(np.arange(WAYS, dtype=np.uint64), far, far)
    assert found.states.tolist() == [PageState.VALID] * WAYS
    assert index.snapshot().stamps.tolist() == [far] * WAYS
