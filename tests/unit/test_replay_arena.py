"""Memory to read into: runs of rows, taken and given back."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvtier.replay.arena import Arena

ROWS = 12


def test_a_run_is_writable_rows_of_a_page_each() -> None:
    arena = Arena(ROWS, 512)
    run = arena.take(5)
    assert run is not None
    arena[run][:] = 7
    assert arena[run].shape == (5, 512)
    assert arena[run].flags.c_contiguous


@given(st.lists(st.tuples(st.integers(1, ROWS), st.integers(0, 9)), max_size=40))
def test_runs_never_overlap_and_the_first_gap_that_fits_is_taken(
    calls: list[tuple[int, int]],
) -> None:
    arena = Arena(ROWS, 512)
    used = np.zeros(ROWS, np.bool_)
    taken: list[slice] = []
    for pages, number in calls:
        gaps = [start for start in range(ROWS - pages + 1) if not used[start : start + pages].any()]
        run = arena.take(pages)
        if run is None:
            assert not gaps
            arena.give_back(run := taken.pop(number % len(taken)))
            used[run] = False
        else:
            assert (run.start, run.stop - run.start) == (gaps[0], pages)
            used[run] = True
            taken.append(run)
