"""Reads and writes share a file's queue: neither starves the other, and no write is long."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from io_engines import engine_names
from uring_kernel import PlayedRing, played_turn

from kvtier.io import open_engine, ring_queue, threads
from kvtier.io.engine import (
    LENGTH,
    OFFSET,
    RESULT,
    ROW,
    WRITE_OPERATION_BYTES,
    cut_writes,
    join_writes,
    pack_extents,
    writes_beside_reads,
    writes_max,
)
from kvtier.io.file import OpenFile
from kvtier.io.ring_queue import RingQueue
from kvtier.io.ring_turn import WRITES_NOW
from kvtier.pages import I64
from kvtier.rows import aligned_rows

PAGE_BYTES = 4096
PATIENCE_S = 30.0


def test_writes_have_half_of_a_queue_and_little_of_it_beside_reads() -> None:
    depths = (1, 2, 4, 8, 16, 64, 128, 1024)
    assert [writes_max(depth) for depth in depths] == [1, 1, 2, 4, 8, 32, 64, 512]
    assert [writes_beside_reads(depth) for depth in depths] == [1, 1, 1, 1, 1, 2, 4, 32]


# -- long writes are cut ----------------------------------------------------------------------


@settings(deadline=None)
@given(
    row_bytes=st.sampled_from([512, 1536, 4096, 3 << 17, 1 << 20]),
    rows=st.lists(st.integers(0, 5), max_size=5),
    short_bytes=st.integers(0, 511),
)
def test_the_operations_of_a_batch_are_its_bytes_in_order(
    row_bytes: int, rows: list[int], short_bytes: int
) -> None:
    memory = np.zeros((sum(rows) + 1, row_bytes), np.uint8)
    lengths = np.array([max(0, count * row_bytes - short_bytes) for count in rows], np.int64)
    first = np.cumsum(rows, dtype=np.int64) - rows
    offsets = first * row_bytes + 7 * 4096
    table = pack_extents(offsets, lengths, memory, first, 1)
    pieces, seen = cut_writes(table, memory)
    assert seen.ctypes.data == memory.ctypes.data
    assert seen.nbytes == memory.nbytes
    assert (pieces[LENGTH] <= WRITE_OPERATION_BYTES).all()
    # In file and memory alike: where each operation begins, one after the other.
    whole, cut = (
        [
            (offset + at, place + at)
            for offset, length, place in zip(
                batch[OFFSET], batch[LENGTH], batch[ROW] * unit, strict=True
            )
            for at in range(0, int(length), 512)
        ]
        for batch, unit in ((table, row_bytes), (pieces, seen.shape[1]))
    )
    assert whole == cut
    pieces[RESULT] = pieces[LENGTH]
    assert join_writes(table, pieces).tolist() == lengths.tolist()


def test_an_extent_tells_how_far_it_is_whole_or_why_not() -> None:
    memory = np.zeros((64, 64 << 10), np.uint8)
    length = 4 * WRITE_OPERATION_BYTES
    starts = np.array([0, 1, 2, 3]) * length
    table = pack_extents(starts, np.full(4, length), memory, starts // (64 << 10), 1)
    pieces, _ = cut_writes(table, memory)
    whole = WRITE_OPERATION_BYTES
    pieces[RESULT] = [whole] * 4 + [whole, -28, whole, -5] + [whole, 512, -5, 0] + [0] * 4
    assert join_writes(table, pieces).tolist() == [length, -28, whole + 512, 0]


@pytest.mark.asyncio
@pytest.mark.parametrize("name", engine_names())
@pytest.mark.parametrize("page_bytes", [1536, 4096, 1 << 20])
async def test_long_extents_arrive_whole(name: str, page_bytes: int, tmp_path: Path) -> None:
    pages = (3 << 20) // page_bytes
    engine = open_engine(
        name,
        tmp_path / "f",
        direct=True,
        queue_depth=4,
        size_bytes=pages * page_bytes,
        create=True,
        page_bytes=page_bytes,
    )
    source, out = aligned_rows(pages, page_bytes), aligned_rows(pages, page_bytes)
    source[:] = np.random.default_rng(1).integers(0, 256, source.shape, np.uint8)
    cuts = np.array([0, pages // 3, pages])
    lengths = np.diff(cuts) * page_bytes
    done = await engine.write(cuts[:-1] * page_bytes, lengths, source, cuts[:-1])
    assert done.tolist() == lengths.tolist()
    every = np.arange(pages)
    await engine.read(every * page_bytes, np.full(pages, page_bytes), out, every)
    np.testing.assert_array_equal(out, source)
    await engine.close()


# -- the ring ---------------------------------------------------------------------------------


class Played:
    """A queue on a played ring that says which batch ended when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int, depth: int) -> None:
        rng = np.random.default_rng(seed)
        disk = np.zeros(64 * PAGE_BYTES, np.uint8)
        self.ring = Counted(1 << (depth - 1).bit_length(), disk, set(), 1 << 60, rng, 0)
        monkeypatch.setattr(ring_queue, "turn", played_turn(self.ring))
        self.queue = RingQueue(self.ring, OpenFile(3, Path("played"), True, True, 512), depth)
        self.ended: list[int] = []

    def begin(self, writing: bool, extents: int) -> int:
        memory = np.zeros((extents, PAGE_BYTES), np.uint8)
        places = np.arange(extents) % 64 * PAGE_BYTES
        table = pack_extents(places, np.full(extents, PAGE_BYTES), memory, np.arange(extents), 1)
        return self.queue.begin(writing, table, memory)

    def turn(self, *, woken: bool = False) -> None:
        self.ended += self.queue.turn(woken=woken)

    def step(self) -> None:
        woken = self.ring.readable()
        if woken or self.queue.unfinished:
            self.turn(woken=woken)
        else:
            assert self.ring.taken, "work is left that nobody will be woken for"
            self.ring.work()


class Counted(PlayedRing):
    """Counts the writes among what the kernel has taken and not ended."""

    most_writes = 0
    least_reads = 1 << 30

    def work(self) -> None:
        writes = sum(entry[0] & 255 in (5, 23) for entry in self.taken)
        self.most_writes = max(self.most_writes, writes)
        super().work()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("depth", [2, 8, 16])
def test_a_read_behind_many_writes_ends_long_before_them(
    monkeypatch: pytest.MonkeyPatch, seed: int, depth: int
) -> None:
    played = Played(monkeypatch, seed, depth)
    write = played.begin(True, 40 * depth)
    for _ in range(4):
        played.turn()
        played.ring.work()
    read = played.begin(False, 2)
    played.turn()
    while len(played.ended) < 2:
        played.step()
    assert played.ended == [read, write]
    assert played.ring.most_writes == writes_max(depth)
    played.queue.close()


def test_in_a_queue_of_one_operation_reads_and_writes_take_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played = Played(monkeypatch, 1, 1)
    writes = [played.begin(True, 40) for _ in range(3)]
    played.turn()
    read, other = played.begin(False, 10), played.begin(False, 40)
    while len(played.ended) < 5:
        played.step()
    assert played.ended == [read, writes[0], other, *writes[1:]]
    played.queue.close()


@pytest.mark.parametrize("seed", range(8))
def test_writes_get_on_among_reads_without_end(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    depth, batch = 8, 16
    played = Played(monkeypatch, seed, depth)
    reads = {played.begin(False, batch) for _ in range(3)}
    played.turn()
    write = played.begin(True, batch)
    ended_reads = 0
    while write not in played.ended:
        played.step()
        for slot in [slot for slot in played.ended if slot in reads]:
            played.ended.remove(slot)
            reads.remove(slot)
            ended_reads += 1
            reads.add(played.begin(False, batch))
            played.turn()
    # A write has an eighth of this small queue: seven operations of reads end with each of its own.
    assert 4 <= ended_reads <= 10
    assert played.ring.most_writes == writes_beside_reads(depth) == 1
    played.queue.close()


@pytest.mark.parametrize("seed", range(8))
def test_writes_get_the_queue_back_bit_by_bit_after_a_read(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    depth = 64
    played = Played(monkeypatch, seed, depth)
    read, write = played.begin(False, 1), played.begin(True, 40 * depth)
    played.turn()
    while read not in played.ended:
        assert played.ring.most_writes <= writes_beside_reads(depth)
        played.step()
    seen = {played.ring.most_writes}
    while write not in played.ended:
        played.step()
        seen.add(played.ring.most_writes)
    assert len(seen) > 2
    assert played.queue._state[WRITES_NOW] == writes_max(depth)
    played.queue.close()


def test_alone_reads_have_the_whole_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, 1, 16)
    read = played.begin(False, 200)
    played.turn()
    while read not in played.ended:
        played.step()
    assert played.ring.most_under_way == 16
    assert played.ring.most_writes == 0
    played.queue.close()


# -- threads ----------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_threads_read_while_every_write_is_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, lock = threading.Event(), threading.Lock()
    writers = most_writers = 0
    move_extents = threads.move_extents

    def slow_writes(writing: bool, fd: int, address: int, *rest: Any) -> None:
        nonlocal writers, most_writers
        if writing:
            with lock:
                writers += 1
                most_writers = max(most_writers, writers)
            released.wait(PATIENCE_S)
            with lock:
                writers -= 1
        move_extents(writing, fd, address, *rest)

    engine = open_engine(
        "threads", tmp_path / "f", direct=False, queue_depth=8, size_bytes=1 << 20, create=True
    )
    source, out = aligned_rows(64, PAGE_BYTES), aligned_rows(64, PAGE_BYTES)
    source[:] = 7
    places, lengths = np.arange(64) * PAGE_BYTES, np.full(64, PAGE_BYTES)
    rows: I64 = np.arange(64)
    monkeypatch.setattr(threads, "move_extents", slow_writes)
    writes = [asyncio.ensure_future(engine.write(places, lengths, source, rows)) for _ in range(6)]
    try:
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(10):
                assert (await engine.read(places, lengths, out, rows) == PAGE_BYTES).all()
        assert not any(write.done() for write in writes)
    finally:
        released.set()
    for done in await asyncio.gather(*writes):
        assert (done == PAGE_BYTES).all()
    assert most_writers == writes_max(8)
    await engine.read(places, lengths, out, rows)
    np.testing.assert_array_equal(out, source)
    await engine.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("name", engine_names("uring", "threads"))
async def test_more_writes_than_there_is_room_for_all_end_before_a_close(
    name: str, tmp_path: Path
) -> None:
    engine = open_engine(
        name, tmp_path / "f", direct=False, queue_depth=4, size_bytes=1 << 20, create=True
    )
    sources = [np.full((4, PAGE_BYTES), number, np.uint8) for number in range(60)]
    places, rows = np.arange(4) * PAGE_BYTES, np.arange(4)
    lengths = np.full(4, PAGE_BYTES)
    writes = [
        asyncio.ensure_future(engine.write(places + 4 * number * PAGE_BYTES, lengths, source, rows))
        for number, source in enumerate(sources)
    ]
    await asyncio.sleep(0)
    await engine.close()
    for done in await asyncio.gather(*writes):
        assert (done == PAGE_BYTES).all()
    content = np.fromfile(tmp_path / "f", np.uint8)[: 240 * PAGE_BYTES].reshape(60, -1)
    assert (content == np.arange(60, dtype=np.uint8)[:, None]).all()
