"""What is told to an event log is read from it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from kvtier.chain.counters import no_counts
from kvtier.errors import TraceError
from kvtier.events import (
    Event,
    EventKind,
    EventLog,
    Flag,
    LogHeader,
    Owners,
    open_event_log,
    owned_by,
    read_event_log,
    read_summary,
)
from kvtier.pages import U64, Purpose

HEADER = LogHeader("abc", {"requests": 3}, {"seed": 1}, 7, 8)


def written(path: Path) -> list[Event]:
    return list(read_event_log(path).events())


def end(log: EventLog) -> None:
    log.last(no_counts(2), complete=True)


def ids(*numbers: int) -> U64:
    return np.array(numbers, np.uint64)


def test_every_event_is_read_as_it_was_told(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    with open_event_log(path, HEADER) as log:
        log.begin(0, 99)
        log.compute(0, 5)
        log.compute(0, 0)  # that is nothing
        log.read(1, ids(5, 6, 7, 7, 1 << 63), Purpose.SPARSE, Flag.GOES_ON, [4, 0], [2, 3])
        with owned_by(Owners((3,))):
            log.put(np.array([2, 9], np.int64))
        log.write(2, ids(3, 2, 1), 1, Flag.WRITES_SHUT, [3])
        log.fetched(17, np.array([0, 1, 3], np.uint8), np.array([4, 0], np.int64))
        log.fetched(18, None, None)
        log.filled(EventKind.FILLED, 17, 2, np.array([3, 0], np.uint8))
        log.filled(EventKind.STORED, 2, 2, None)
        log.invalidate(ids(8, 9))
        log.batch(EventKind.LEAVE, 1)
        log.turn_away(12, Purpose.PREFIX)
        log.end(0)
        end(log)
        log.end(1)  # after the end, nobody listens
    assert read_event_log(path).header == HEADER
    events = written(path)
    assert [event.number for event in events] == list(range(14))
    kinds = "BEGIN COMPUTE READ PUT WRITE FETCHED FETCHED FILLED STORED INVALIDATE LEAVE TURN_AWAY"
    assert [event.kind.name for event in events] == [*kinds.split(), "END", "LAST"]
    begin, compute, read, put, write, fetched, whole, filled, stored, forgotten = events[:10]
    assert (begin.name, begin.ns, compute.ns) == (0, 99, 5)
    assert read.page_ids().tolist() == [5, 6, 7, 7, 1 << 63]
    assert (read.name, read.purpose, read.flags) == (1, Purpose.SPARSE, Flag.GOES_ON)
    assert (read.owners.tolist(), read.owner_pages.tolist()) == ([4, 0], [2, 3])
    assert (put.name, put.counts.tolist()) == (3, [2, 9])
    assert (write.count, write.page_ids().tolist(), write.owners.tolist()) == (1, [3, 2, 1], [3])
    assert write.flags == Flag.WRITES_SHUT
    assert (fetched.name, fetched.status.tolist(), fetched.counts.tolist()) == (
        17,
        [0, 1, 3],
        [4, 0],
    )
    assert (whole.name, len(whole.status), len(whole.counts)) == (18, 0, 0)
    assert (filled.name, filled.level, filled.status.tolist()) == (17, 2, [3, 0])
    assert (stored.name, stored.level, len(stored.status)) == (2, 2, 0)
    assert forgotten.page_ids().tolist() == [8, 9]
    assert (events[10].name, events[11].count, events[11].purpose) == (1, 12, Purpose.PREFIX)
    complete, counters = read_summary(events[-1])
    assert complete
    assert counters["reads"] == 0


def test_a_log_of_many_row_groups_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    with open_event_log(path, HEADER) as log:
        for number in range(10_000):
            log.read(number, ids(*range(number % 20)), Purpose.PREFIX, Flag(0), [], [])
        end(log)
    events = written(path)[:-1]
    assert [event.name for event in events] == list(range(10_000))
    assert [event.pages for event in events] == [number % 20 for number in range(10_000)]


@given(batches=st.lists(st.lists(st.integers(0, 8) | st.integers(2**64 - 4, 2**64 - 1))))
@examples(max_examples=50, deadline=None)
def test_any_page_ids_survive_as_runs(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]]
) -> None:
    path = tmp_path_factory.mktemp("logs") / "log.parquet"
    with open_event_log(path, HEADER) as log:
        for batch in batches:
            log.invalidate(ids(*batch))
        end(log)
    assert [event.page_ids().tolist() for event in written(path)[:-1]] == batches


def test_what_is_told_is_what_is_logged_whatever_becomes_of_the_array(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    page_ids = ids(1, 2, 3)
    with open_event_log(path, HEADER) as log:
        log.invalidate(page_ids)
        page_ids[:] = 0
        end(log)
    assert written(path)[0].page_ids().tolist() == [1, 2, 3]


def test_a_log_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    with pytest.raises(TraceError, match="broken"), open_event_log(path, HEADER):
        raise TraceError("the run is broken")
    assert list(tmp_path.iterdir()) == []
    with open_event_log(path, HEADER) as log:
        end(log)
        assert not path.exists()
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for place, message in (
        (tmp_path, "a log needs a file of its own"),
        (Path("/dev/null"), "a log needs a file of its own"),
        (tmp_path / "nowhere" / "log", "cannot be written"),
    ):
        with pytest.raises(TraceError, match=message), open_event_log(place, HEADER):
            pass
