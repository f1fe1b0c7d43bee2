"""What is asked of a whole batch of extents at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier import extents
from kvtier.backend import ExtentBatch, copy_extents
from kvtier.pages import U8, U32, PageStatus

Extent = tuple[int, int, int]
"""Key, first page, pages."""

EXTENTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=20
)


def columns(some: list[Extent]) -> tuple[U32, U32, U32]:
    key, first, count = np.array(some, np.uint32).T.copy()
    return key, first, count


def batch_of(some: list[Extent], rows: U32) -> ExtentBatch:
    key, first, count = columns(some)
    return ExtentBatch((b"a", b"b", b"c", b"d"), np.ones(4, np.uint64), key, first, count, rows)


@settings(deadline=None)  # the first call may compile
@given(EXTENTS)
def test_bounds_are_those_that_numpy_finds(some: list[Extent]) -> None:
    key, first, count = columns(some)
    expected = (key.max(), count.min(), count.max(), (first + count).max())
    assert extents.bounds(key, count, first) == expected


def test_bounds_of_the_largest_columns_do_not_wrap() -> None:
    most = np.full(1, 0xFFFF_FFFF, np.uint32)
    assert extents.bounds(most, most, most)[3] == 2 * 0xFFFF_FFFF


@settings(deadline=None)  # the first call may compile
@given(EXTENTS)
def test_extents_are_laid_out_one_after_the_other(some: list[Extent]) -> None:
    key, _, count = columns(some)
    rows = np.empty(len(some), np.uint32)
    assert extents.lay_out(key, count, rows) == (key.max(), count.sum())
    assert rows.tolist() == (np.cumsum(count) - count).tolist()
    batch = batch_of(some, rows + np.uint32(7))
    assert batch.rows() == range(7, 7 + int(count.sum()))
    assert batch.pages == count.sum()


def test_no_extent_has_no_key_and_no_rows() -> None:
    none = np.empty(0, np.uint32)
    assert extents.lay_out(none, none, none) == (-1, 0)
    batch = ExtentBatch((), np.empty(0, np.uint64), none, none, none, none)
    assert batch.rows() is None
    assert batch.pages == 0


def test_rows_with_a_gap_are_no_run() -> None:
    assert batch_of([(0, 0, 2), (0, 2, 1)], np.array([0, 3], np.uint32)).rows() is None


@settings(deadline=None)  # the first call may compile
@given(EXTENTS, st.lists(st.integers(-1, 14), min_size=4, max_size=4))
def test_extents_are_copied_out_of_objects_in_memory(some: list[Extent], pages: list[int]) -> None:
    rng = np.random.default_rng(1)
    objects: list[U8] = [rng.integers(0, 256, (max(p, 0), 16), np.uint8) for p in pages]
    _, _, count = columns(some)
    rows = (np.cumsum(count) - count).astype(np.uint32)
    out = np.zeros((int(count.sum()), 16), np.uint8)
    places = np.array([(1, len(one), one.ctypes.data) for one in objects], np.uint64)
    status = copy_extents(batch_of(some, rows), places, out)
    for (key, first, wanted), row, found in zip(some, rows.tolist(), status.tolist(), strict=True):
        taken = out[row : row + wanted]
        if first + wanted > pages[key]:
            assert found == PageStatus.ABSENT
            assert not taken.any()
        else:
            assert found == PageStatus.OK
            assert np.array_equal(taken, objects[key][first : first + wanted])
