"""The kernels that move pages on a GPU, compiled for a CPU, move what the CPU's copy moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from index_engines import cpu_kernels

from kvtier.pages import I64, U8
from kvtier.rows import aligned_rows, copy_rows
from kvtier.tiers.cuda_rows import SOURCE, RowKernels


@pytest.fixture(scope="module")
def kernels() -> RowKernels:
    return RowKernels(cpu_kernels(SOURCE))


def random_rows(count: int, row_bytes: int) -> U8:
    rows = aligned_rows(count, row_bytes)
    rows[:] = np.random.default_rng(count).integers(0, 256, rows.shape, np.uint8)
    return rows


@pytest.mark.parametrize("row_bytes", [512, 1024, 4096, 4608, 65536])
@pytest.mark.parametrize("picks", ["neither", "source", "target", "both"])
def test_rows_arrive_where_they_belong_and_nothing_else_changes(
    kernels: RowKernels, row_bytes: int, picks: str
) -> None:
    rng = np.random.default_rng(7)
    source = random_rows(40, row_bytes)
    expected = random_rows(50, row_bytes)
    target = aligned_rows(50, row_bytes)
    target[:] = expected
    source_rows: I64 | None = rng.integers(0, 40, 33) if picks in ("source", "both") else None
    target_rows: I64 | None = rng.permutation(50)[:33] if picks in ("target", "both") else None
    copy_rows(
        expected,
        np.arange(33) if target_rows is None else target_rows,
        source,
        np.arange(33) if source_rows is None else source_rows,
    )
    kernels.copy(target, target_rows, source, source_rows, 33)
    np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize("row_bytes", [512, 4096, 4608])
def test_a_sum_takes_every_word_of_a_row(kernels: RowKernels, row_bytes: int) -> None:
    source = random_rows(20, row_bytes)
    rows = np.random.default_rng(3).integers(0, 20, 55)
    words = source.view(np.uint64)[rows]
    np.testing.assert_array_equal(kernels.sums(source, rows), words.sum(axis=1, dtype=np.uint64))


@pytest.mark.parametrize("row_bytes", [512, 4096, 4608])
@pytest.mark.parametrize("count", [0, 1, 33, 64])
def test_what_a_batch_found_is_copied_row_by_row(
    kernels: RowKernels, row_bytes: int, count: int
) -> None:
    rng = np.random.default_rng(count)
    source, target = random_rows(20, row_bytes), random_rows(64, row_bytes)
    expected = target.copy()
    slots = rng.integers(-1, 20, 64)
    found = np.flatnonzero(slots[:count] >= 0)
    expected[found] = source[slots[found]]
    batch = np.array([0, count, 0, target.ctypes.data], np.uint64)
    kernels.copy_found(64, source, slots, batch)
    np.testing.assert_array_equal(target, expected)


def test_no_rows_are_no_launch(kernels: RowKernels) -> None:
    rows = random_rows(1, 512)
    kernels.copy(rows, None, random_rows(1, 512), None, 0)
    assert len(kernels.sums(rows, np.empty(0, np.int64))) == 0


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        (aligned_rows(2, 512), aligned_rows(2, 1024), "target rows are 512 bytes"),
        (aligned_rows(2, 768), aligned_rows(2, 768), "row_bytes a multiple of 512"),
        (aligned_rows(2, 1024)[:, :512], aligned_rows(2, 512), "target is uint8"),
        (aligned_rows(2, 512).view(np.int8), aligned_rows(2, 512), "target is int8"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    kernels: RowKernels, target: Any, source: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.copy(target, None, source, None, 2)
