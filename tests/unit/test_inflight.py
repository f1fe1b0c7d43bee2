import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvtier.errors import LimitError
from kvtier.inflight import CARRIER_MAX, POSITION_MAX, InflightTable
from kvtier.pages import I64, U64

CAPACITY = 24
# Few distinct ids, some far apart: their searches collide and wrap around the table's end.
page_ids = st.integers(0, 40) | st.sampled_from([2**64 - 1, 2**63, 2**32, 2**32 + 1])
distinct = st.lists(page_ids, max_size=30, unique=True)


def ids(*pages: int) -> U64:
    return np.array(pages, np.uint64)


def numbers(*values: int) -> I64:
    return np.array(values, np.int64)


class TableIsADict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = InflightTable(CAPACITY)
        self.model: dict[int, tuple[int, int]] = {}

    @rule(
        pages=distinct, carrier=st.integers(0, CARRIER_MAX), first=st.integers(0, POSITION_MAX - 30)
    )
    def assign(self, pages: list[int], carrier: int, first: int) -> None:
        positions = [first + at for at in range(len(pages))]
        after = self.model | {
            page: (carrier, position) for page, position in zip(pages, positions, strict=True)
        }
        if len(after) > CAPACITY:
            with pytest.raises(LimitError, match="room for"):
                self.table.assign(ids(*pages), carrier, numbers(*positions))
        else:
            self.table.assign(ids(*pages), carrier, numbers(*positions))
            self.model = after

    @rule(pages=st.lists(page_ids, max_size=30))
    def remove(self, pages: list[int]) -> None:
        self.table.remove(ids(*pages))
        for page in pages:
            self.model.pop(page, None)

    @rule(pages=st.lists(page_ids, max_size=30))
    def find(self, pages: list[int]) -> None:
        carriers, positions = self.table.find(ids(*pages))
        expected = [self.model.get(page, (-1, -1)) for page in pages]
        assert list(zip(carriers.tolist(), positions.tolist(), strict=True)) == expected

    @rule()
    def clear(self) -> None:
        self.table.clear()
        self.model.clear()

    @invariant()
    def holds_the_same_pages(self) -> None:
        assert sorted(self.table.page_ids().tolist()) == sorted(self.model)
        assert len(self.table) == len(self.model)
        assert self.table.free == CAPACITY - len(self.model)
        carriers, positions = self.table.find(ids(*self.model))
        assert list(zip(carriers.tolist(), positions.tolist(), strict=True)) == list(
            self.model.values()
        )


TableIsADict.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
TestTableIsADict = TableIsADict.TestCase


@pytest.mark.parametrize("capacity", [1, 2, 3, 1000, 1024])
def test_a_table_fills_to_its_capacity(capacity: int) -> None:
    table = InflightTable(capacity)
    pages = np.arange(capacity, dtype=np.uint64) << np.uint64(32)
    table.assign(pages, 3, np.arange(capacity))
    assert (len(table), table.capacity, table.free) == (capacity, capacity, 0)
    assert table.find(pages)[1].tolist() == list(range(capacity))
    table.remove(pages)
    assert (len(table), table.free) == (0, capacity)


def test_beyond_the_capacity_nothing_changes() -> None:
    table = InflightTable(2)
    table.assign(ids(1), 0, numbers(10))
    with pytest.raises(
        LimitError, match="2 more pages in flight, but the table of 2 has room for 1"
    ):
        table.assign(ids(1, 2, 3), 1, numbers(20, 21, 22))
    carriers, positions = table.find(ids(1, 2, 3))
    assert carriers.tolist() == [0, -1, -1]
    assert positions.tolist() == [10, -1, -1]


def test_a_full_table_still_moves_pages_to_another_carrier() -> None:
    table = InflightTable(2)
    table.assign(ids(1, 2), 0, numbers(0, 1))
    table.assign(ids(2), 7, numbers(5))
    assert table.find(ids(1, 2))[0].tolist() == [0, 7]


@pytest.mark.parametrize("position", [-1, POSITION_MAX + 1])
def test_a_position_out_of_range_is_refused(position: int) -> None:
    table = InflightTable(4)
    with pytest.raises(ValueError, match="positions must be 0 to 4294967295"):
        table.assign(ids(1, 2), 0, numbers(0, position))
    assert len(table) == 0


def test_a_carrier_too_high_is_refused() -> None:
    with pytest.raises(ValueError, match="carrier 2147483648"):
        InflightTable(4).assign(ids(1), CARRIER_MAX + 1, numbers(0))


def test_a_negative_carrier_is_refused() -> None:
    with pytest.raises(ValueError, match="carrier -1"):
        InflightTable(2).assign(ids(1), -1, numbers(0))


def test_each_page_needs_a_position() -> None:
    with pytest.raises(ValueError, match="1 page_ids and 2 positions"):
        InflightTable(2).assign(ids(1), 0, numbers(0, 1))


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_table_without_room_is_refused(capacity: int) -> None:
    with pytest.raises(LimitError, match="at least 1"):
        InflightTable(capacity)
