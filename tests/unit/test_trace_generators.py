from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvtier.errors import TraceError
from kvtier.pages import Purpose
from kvtier.trace import PageTrace, RandomReads, footprint, open_trace, write_random_reads

LOAD = RandomReads(threads=50, hops=4, reads=3, object_pages=1000)


def made(path: Path, load: RandomReads, seed: int = 1) -> PageTrace:
    write_random_reads(path / "made.parquet", load, seed)
    trace = open_trace(path / "made.parquet")
    assert isinstance(trace, PageTrace)
    return trace


def test_every_thread_reads_its_dependent_batches(tmp_path: Path) -> None:
    requests = list(made(tmp_path, LOAD).requests())
    assert len(requests) == 50
    assert {len(request.ends) for request in requests} == {4}
    assert {len(request.pages) for request in requests} == {12}
    assert {purpose for one in requests for purpose in one.purposes.tolist()} == {Purpose.SPARSE}


def test_bulk_reads_are_aligned_extents_inside_the_object(tmp_path: Path) -> None:
    trace = made(tmp_path, replace(LOAD, extent_pages=64))
    pages = np.concatenate([request.pages for request in trace.requests()])
    assert not (pages % 64).any()
    assert pages.max() + 64 <= 1000
    assert footprint(trace).references == 50 * 12 * 64


def test_popular_pages_are_read_more_often(tmp_path: Path) -> None:
    trace = made(tmp_path, replace(LOAD, threads=400, popular_share=0.5, popular_pages=10))
    pages = np.concatenate([request.pages for request in trace.requests()])
    assert 0.45 < np.mean(pages < 10) < 0.56


def test_a_made_up_trace_says_so(tmp_path: Path) -> None:
    assert made(tmp_path, LOAD).metadata.synthetic[0].startswith("everything")


def test_the_same_seed_makes_the_same_file(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b", "c")]
    for path, seed in zip(files, (1, 1, 2), strict=True):
        write_random_reads(path, LOAD, seed)
    one, same, other = (path.read_bytes() for path in files)
    assert one == same != other


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (replace(LOAD, threads=0), "threads is 0: it must be 1 to"),
        (replace(LOAD, reads=1 << 20), "reads is 1048576: it must be 1 to 262144"),
        (replace(LOAD, extent_pages=1001), "object_pages is 1000: it must be 1001 to"),
        (replace(LOAD, popular_share=1.5), "popular_share is 1.5: it must be 0 to 1"),
        (replace(LOAD, popular_pages=0), "popular_pages is 0"),
    ],
)
def test_a_load_that_cannot_be_is_refused(tmp_path: Path, load: RandomReads, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        write_random_reads(tmp_path / "made.parquet", load)
    assert list(tmp_path.iterdir()) == []
