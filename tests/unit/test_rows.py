import mmap
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier import rows as rows_module
from kvtier.errors import DeviceError
from kvtier.pages import I64, U8
from kvtier.rows import HUGE_PAGE_BYTES, aligned_rows, as_column, call_spans, copy_rows


def filled(rows: int, row_bytes: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (rows, row_bytes), np.uint8)


def numbers(*values: int) -> I64:
    return np.array(values, np.int64)


@settings(deadline=None, max_examples=60)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), unique_by=lambda pair: pair[0]),
    row_bytes=st.sampled_from([1, 7, 64, 512]),
)
def test_copy_is_that_of_fancy_indexing(pairs: list[tuple[int, int]], row_bytes: int) -> None:
    source, target = filled(7, row_bytes), filled(10, row_bytes, 1)
    to = numbers(*(pair[0] for pair in pairs))
    origin = numbers(*(pair[1] for pair in pairs))
    expected = target.copy()
    expected[to] = source[origin]
    copy_rows(target, to, source, origin)
    np.testing.assert_array_equal(target, expected)


def test_no_row_numbers_mean_the_first_rows() -> None:
    source, target = filled(3, 64), np.zeros((5, 64), np.uint8)
    copy_rows(target, None, source, None)
    np.testing.assert_array_equal(target[:3], source)
    copy_rows(target, None, source, numbers(2, 0))
    np.testing.assert_array_equal(target[:2], source[[2, 0]])
    copy_rows(target, numbers(4, 3), source, None)
    np.testing.assert_array_equal(target[[4, 3]], source[:2])


def test_an_empty_selection_copies_nothing() -> None:
    target = np.zeros((2, 64), np.uint8)
    copy_rows(target, numbers(), filled(2, 64), numbers())
    copy_rows(target, None, np.empty((0, 64), np.uint8), None)
    assert not target.any()


def test_a_copy_larger_than_one_compiled_call_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "CALL_BYTES_MAX", 1000)
    source, target = filled(50, 512), np.zeros((50, 512), np.uint8)
    copy_rows(target, None, source, np.arange(50)[::-1])
    np.testing.assert_array_equal(target, source[::-1])


def test_a_read_only_source_is_read() -> None:
    source, target = filled(2, 64), np.zeros((2, 64), np.uint8)
    source.flags.writeable = False
    copy_rows(target, None, source, None)
    np.testing.assert_array_equal(target, source)


@pytest.mark.parametrize("outside", [-1, 3, 2**62])
def test_a_row_number_outside_is_refused_before_anything_is_copied(outside: int) -> None:
    source, target = filled(3, 64), np.zeros((3, 64), np.uint8)
    with pytest.raises(ValueError, match=f"row number {outside} .at 1. is outside source"):
        copy_rows(target, None, source, numbers(0, outside))
    with pytest.raises(ValueError, match=f"row number {outside} .at 1. is outside target"):
        copy_rows(target, numbers(0, outside), source, None)
    assert not target.any()


@pytest.mark.parametrize(
    ("target", "source", "complaint"),
    [
        (np.zeros((2, 64), np.uint8), np.zeros((2, 32), np.uint8), "must be equal"),
        (np.zeros((1, 64), np.uint8), np.zeros((2, 64), np.uint8), "target has 1 rows"),
        (np.zeros((2, 64), np.int8), np.zeros((2, 64), np.uint8), "target is int8"),
        (np.zeros((2, 64), np.uint8), np.zeros(128, np.uint8), "source is uint8"),
        (np.zeros((2, 64), np.uint8), np.zeros((2, 128), np.uint8)[:, ::2], "C-contiguous"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(target: U8, source: U8, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        copy_rows(target, None, source, None)


def test_row_numbers_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="source has 2 row numbers, but 1 are needed"):
        copy_rows(filled(3, 64), numbers(0), filled(3, 64), numbers(0, 1))


def test_row_numbers_of_another_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match="row numbers of source is uint32"):
        copy_rows(filled(3, 64), None, filled(3, 64), np.zeros(1, np.uint32))  # type: ignore[arg-type]


def test_a_read_only_target_is_refused() -> None:
    target = np.zeros((1, 64), np.uint8)
    target.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        copy_rows(target, None, filled(1, 64), None)


@pytest.mark.parametrize(("rows", "row_bytes"), [(0, 512), (3, 0), (1, 1), (3, 512), (1024, 4096)])
def test_aligned_rows_are_zeroed_and_start_on_a_memory_page(rows: int, row_bytes: int) -> None:
    made = aligned_rows(rows, row_bytes)
    assert made.shape == (rows, row_bytes)
    assert made.flags.c_contiguous
    assert made.flags.writeable
    assert made.ctypes.data % mmap.PAGESIZE == 0
    assert not made.any()


@pytest.mark.parametrize("size_bytes", [2 << 20, (2 << 20) + 4096, 33 << 20])
def test_large_memory_starts_on_a_huge_page_and_asks_for_such(size_bytes: int) -> None:
    made = aligned_rows(size_bytes // 4096, 4096)
    assert made.ctypes.data % HUGE_PAGE_BYTES == 0
    assert not made[:: len(made) - 1].any()
    if not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        pytest.skip("this kernel has no transparent huge pages")
    assert "hg" in mapping_flags(made.ctypes.data)  # proc_pid_smaps(5): MADV_HUGEPAGE is set


def mapping_flags(address: int) -> list[str]:
    """``VmFlags`` of the mapping that an address lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        head, *fields = line.split()
        if "-" in head:
            first, last = (int(part, 16) for part in head.split("-"))
            inside = first <= address < last
        elif inside and head == "VmFlags:":
            return fields
    raise AssertionError(f"no mapping holds {address:#x}")


def test_aligned_rows_outlive_the_name_they_were_made_under() -> None:
    part = aligned_rows(600, 4096)[500:]
    part[:] = 7
    assert int(part.sum()) == 7 * part.size


def test_memory_that_cannot_be_mapped_is_an_error() -> None:
    with pytest.raises(DeviceError, match="cannot map"):
        aligned_rows(1 << 40, 1 << 20)
    with pytest.raises(DeviceError, match="cannot map"):
        aligned_rows(1 << 60, 1 << 20)


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        aligned_rows(-1, 512)


@pytest.mark.parametrize("row_bytes", [1, 512, 4096, 1 << 30])
def test_call_spans_cover_all_rows_once(row_bytes: int) -> None:
    spans = list(call_spans(100_000, row_bytes))
    assert spans[0][0] == 0
    assert spans[-1][1] == 100_000
    assert all(before[1] == after[0] for before, after in pairwise(spans))
    assert max(last - first for first, last in spans) * row_bytes <= max(64 << 20, row_bytes)


def test_a_column_fit_for_compiled_code_is_passed_through() -> None:
    column = np.arange(4)
    assert as_column(column, np.int64, "x") is column


def test_a_strided_or_read_only_column_is_copied() -> None:
    strided = np.arange(8)[::2]
    read_only = np.arange(4)
    read_only.flags.writeable = False
    for column in (strided, read_only):
        copied = as_column(column, np.int64, "x")
        assert copied.flags.c_contiguous
        assert copied.flags.writeable
        np.testing.assert_array_equal(copied, column)


def test_a_column_has_one_dimension() -> None:
    with pytest.raises(ValueError, match="x is int64"):
        as_column(np.zeros((2, 2), np.int64), np.int64, "x")
