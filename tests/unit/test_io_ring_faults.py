"""A ring whose kernel ends operations in pieces, in any order, interrupted, and with errors."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from uring_kernel import PlayedRing, played_turn

from kvtier.io import ring_queue
from kvtier.io.engine import RESULT, pack_extents
from kvtier.io.file import OpenFile
from kvtier.io.ring_queue import RingQueue
from kvtier.pages import I64, U8

PAGE_BYTES = 4096
PAGES = 64
FULL_FROM = 48
BAD_PAGES = {7, 20}
WRAP = (1 << 32) - 5


class Played:
    """A queue on a played ring; a turn is taken only when there is a reason, as an engine does."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, seed: int, depth: int = 8, **faults: object
    ) -> None:
        rng = np.random.default_rng(seed)
        self.disk = rng.integers(0, 256, PAGES * PAGE_BYTES, np.uint8)
        defaults = {"bad_pages": set(), "full_from": 1 << 60, "start": WRAP}
        self.ring = PlayedRing(8, self.disk, rng=rng, **(defaults | faults))  # type: ignore[arg-type]
        monkeypatch.setattr(ring_queue, "turn", played_turn(self.ring))
        file = OpenFile(3, Path("played"), True, True, 512)
        self.queue = RingQueue(self.ring, file, depth)

    def begin(self, writing: bool, pages: I64, counts: I64, memory: U8) -> I64:
        rows = np.cumsum(counts) - counts
        table = pack_extents(pages * PAGE_BYTES, counts * PAGE_BYTES, memory, rows, 1)
        self.queue.begin(writing, table, memory)
        self.queue.turn()
        return table

    def run(self) -> None:
        for _ in range(100_000):
            woken = self.ring.readable()
            if woken or self.queue.unfinished:
                self.queue.turn(woken=woken)
            elif not self.queue.busy:
                return
            else:
                assert self.ring.taken, "work is left that nobody will be woken for"
                self.ring.work()
        raise AssertionError("it does not end")


def memory_for(counts: I64) -> U8:
    return np.zeros((int(counts.sum()), PAGE_BYTES), np.uint8)


def extents(rng: np.random.Generator) -> tuple[I64, I64]:
    pages = rng.choice(PAGES - 4, rng.integers(1, 30), replace=False)
    return pages, rng.integers(0, 4, len(pages))


@pytest.mark.parametrize("seed", range(12))
def test_every_read_is_whole_however_the_kernel_cuts_it(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    played = Played(monkeypatch, seed, depth=(1, 3, 8)[seed % 3])
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(6):
        pages, counts = extents(rng)
        memory = memory_for(counts)
        batches.append((pages, counts, memory, played.begin(False, pages, counts, memory)))
    played.run()
    disk = played.disk.reshape(PAGES, PAGE_BYTES)
    for pages, counts, memory, table in batches:
        assert table[RESULT].tolist() == (counts * PAGE_BYTES).tolist()
        wanted = [
            page + at for page, count in zip(pages, counts, strict=True) for at in range(count)
        ]
        np.testing.assert_array_equal(memory, disk[wanted])
    assert played.ring.most_under_way <= (1, 3, 8)[seed % 3]
    played.queue.close()


@pytest.mark.parametrize("seed", range(6))
def test_a_broken_page_fails_the_extents_over_it(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    played = Played(monkeypatch, seed, bad_pages=BAD_PAGES)
    pages, counts = np.arange(0, PAGES, 2), np.full(PAGES // 2, 2)
    memory = memory_for(counts)
    table = played.begin(False, pages, counts, memory)
    played.run()
    whole = 2 * PAGE_BYTES
    broken = {page // 2 for page in BAD_PAGES}
    assert table[RESULT].tolist() == [
        -errno.EIO if extent in broken else whole for extent in range(PAGES // 2)
    ]
    good = np.repeat([extent not in broken for extent in range(PAGES // 2)], 2)
    np.testing.assert_array_equal(memory[good], played.disk.reshape(PAGES, PAGE_BYTES)[good])
    played.queue.close()


@pytest.mark.parametrize("seed", range(6))
def test_writes_beyond_what_the_disk_holds_fail_and_the_others_arrive(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    played = Played(monkeypatch, seed, full_from=FULL_FROM * PAGE_BYTES)
    pages, counts = np.arange(1, PAGES - 2, 3), np.full(PAGES // 3, 3)
    memory = memory_for(counts)
    memory[:] = np.random.default_rng(seed).integers(0, 256, memory.shape, np.uint8)
    table = played.begin(True, pages, counts, memory)
    played.run()
    fits = pages + 3 <= FULL_FROM
    assert table[RESULT].tolist() == np.where(fits, 3 * PAGE_BYTES, -errno.ENOSPC).tolist()
    written = played.disk.reshape(PAGES, PAGE_BYTES)[1 : 1 + 3 * int(fits.sum())]
    np.testing.assert_array_equal(written, memory[: len(written)])
    played.queue.close()


def test_a_read_past_the_end_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, 1)
    counts = np.array([3, 2])
    table = played.begin(False, np.array([PAGES - 1, PAGES]), counts, memory_for(counts))
    played.run()
    assert table[RESULT].tolist() == [PAGE_BYTES, 0]
    played.queue.close()


@pytest.mark.parametrize("seed", range(6))
def test_close_ends_what_was_begun_and_begins_no_more(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    played = Played(monkeypatch, seed, depth=4)
    pages, counts = np.arange(0, PAGES, 2), np.full(PAGES // 2, 2)
    memory = memory_for(counts)
    played.begin(False, pages, counts, memory)
    played.queue.close()
    assert not played.ring.taken
    moved = memory.any(axis=1).reshape(-1, 2)
    assert 4 <= moved.all(axis=1).sum() == moved.any(axis=1).sum() < len(pages)
