"""The drive that misbehaves: each fault is seen by whoever reads the file behind it."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from io_engines import engine_names
from virtual_time import Stage, in_virtual_time

from kvtier.errors import ClosedError, LimitError
from kvtier.io import open_engine
from kvtier.io.faults import SECTOR_BYTES, FaultyEngine
from kvtier.pages import I64, U8
from kvtier.rows import aligned_rows
from kvtier.settings import FaultSettings, ReadFaultSettings, WriteFaultSettings

PAGE_BYTES = 4096
PAGES = 64
NONE = FaultSettings()


@pytest.fixture(params=engine_names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def opened(
    path: Path, name: str = "threads", faults: FaultSettings = NONE
) -> AsyncIterator[FaultyEngine]:
    """A file of ``before`` in every page, around which a drive misbehaves from now on."""
    size_bytes = PAGES * PAGE_BYTES
    inner = open_engine(name, path, direct=True, queue_depth=4, size_bytes=size_bytes, create=True)
    engine = FaultyEngine(inner, NONE, size_bytes)
    try:
        assert (await write(engine, BEFORE, ALL) == PAGE_BYTES).all()
        engine.faults = faults
        yield engine
    finally:
        await engine.close()


def random_pages(seed: int) -> U8:
    pages = aligned_rows(PAGES, PAGE_BYTES)
    pages[:] = np.random.default_rng(seed).integers(0, 256, pages.shape, np.uint8)
    return pages


ALL = np.arange(PAGES)
SOME = np.array([3, 60, 17, 4, 5, 40])
BEFORE, AFTER = random_pages(1), random_pages(2)


async def write(engine: FaultyEngine, pages: U8, chosen: I64) -> I64:
    """Write each page to its place, one operation for each."""
    lengths = np.full(len(chosen), PAGE_BYTES)
    return await engine.write(chosen * PAGE_BYTES, lengths, pages, chosen)


async def read(engine: FaultyEngine, chosen: I64, out: U8) -> I64:
    lengths = np.full(len(chosen), PAGE_BYTES)
    return await engine.read(chosen * PAGE_BYTES, lengths, out, chosen)


def held(path: Path) -> U8:
    """What the file holds."""
    return np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, PAGE_BYTES)


def others(chosen: I64) -> I64:
    return np.setdiff1d(ALL, chosen)


def writes(**shares: float) -> FaultSettings:
    return FaultSettings(writes=WriteFaultSettings(**shares))


def reads(**shares: float) -> FaultSettings:
    return FaultSettings(reads=ReadFaultSettings(**shares))


def bits_that_differ(one: U8, other: U8) -> I64:
    """i64[n], of each row."""
    return np.unpackbits(one ^ other, axis=1).sum(axis=1, dtype=np.int64)


@pytest.mark.asyncio
@pytest.mark.parametrize(("kind", "code"), [("fail", errno.EIO), ("full", errno.ENOSPC)])
async def test_a_write_that_fails_writes_nothing(
    tmp_path: Path, name: str, kind: str, code: int
) -> None:
    async with opened(tmp_path / "f", name, writes(**{f"{kind}_share": 1.0})) as engine:
        assert (await write(engine, AFTER, SOME) == -code).all()
        assert engine.counts()[f"write_{kind}"] == len(SOME)
    np.testing.assert_array_equal(held(tmp_path / "f"), BEFORE)


@pytest.mark.asyncio
async def test_a_lost_write_reports_success_and_writes_nothing(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path / "f", name, writes(lost_share=1.0)) as engine:
        assert (await write(engine, AFTER, SOME) == PAGE_BYTES).all()
        assert engine.counts()["write_lost"] == len(SOME)
    np.testing.assert_array_equal(held(tmp_path / "f"), BEFORE)


@pytest.mark.asyncio
async def test_a_torn_write_reports_success_and_leaves_its_last_sectors(
    tmp_path: Path, name: str
) -> None:
    async with opened(tmp_path / "f", name, writes(torn_share=1.0)) as engine:
        assert (await write(engine, AFTER, SOME) == PAGE_BYTES).all()
    sectors = held(tmp_path / "f").reshape(PAGES, -1, SECTOR_BYTES)
    is_new = (sectors == AFTER.reshape(sectors.shape)).all(axis=2)
    is_old = (sectors == BEFORE.reshape(sectors.shape)).all(axis=2)
    assert (is_new ^ is_old).all()
    assert not is_new[others(SOME)].any()
    assert is_new[SOME, 0].all()
    assert is_old[SOME, -1].all()
    assert (np.diff(is_new[SOME].astype(np.int8), axis=1) <= 0).all()
    assert len(np.unique(is_new[SOME].sum(axis=1))) > 1


@pytest.mark.asyncio
async def test_a_short_write_says_how_much_was_written(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path / "f", name, writes(short_share=1.0)) as engine:
        written = await write(engine, AFTER, SOME)
    assert (written % SECTOR_BYTES == 0).all()
    assert ((written > 0) & (written < PAGE_BYTES)).all()
    content = held(tmp_path / "f")
    for page, count in zip(SOME, written, strict=True):
        np.testing.assert_array_equal(content[page, :count], AFTER[page, :count])
        np.testing.assert_array_equal(content[page, count:], BEFORE[page, count:])


@pytest.mark.asyncio
async def test_a_misdirected_write_lies_elsewhere(tmp_path: Path, name: str) -> None:
    path = tmp_path / "f"
    async with opened(path, name, writes(misdirected_share=1.0)) as engine:
        for page in SOME:
            before = held(path).copy()
            assert await write(engine, AFTER, np.array([page])) == PAGE_BYTES
            (changed,) = np.flatnonzero((held(path) != before).any(axis=1))
            assert changed != page
            np.testing.assert_array_equal(held(path)[changed], AFTER[page])


@pytest.mark.asyncio
async def test_a_flipped_write_has_one_wrong_bit(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path / "f", name, writes(flipped_share=1.0)) as engine:
        assert (await write(engine, AFTER, SOME) == PAGE_BYTES).all()
    content = held(tmp_path / "f")
    assert (bits_that_differ(content, AFTER)[SOME] == 1).all()
    np.testing.assert_array_equal(content[others(SOME)], BEFORE[others(SOME)])


@pytest.mark.asyncio
async def test_a_read_that_fails_brings_nothing(tmp_path: Path, name: str) -> None:
    out = aligned_rows(PAGES, PAGE_BYTES)
    async with opened(tmp_path / "f", name, reads(fail_share=1.0)) as engine:
        assert (await read(engine, SOME, out) == -errno.EIO).all()
    assert not out.any()


@pytest.mark.asyncio
async def test_a_short_read_leaves_the_memory_behind_it_alone(tmp_path: Path, name: str) -> None:
    out = aligned_rows(PAGES, PAGE_BYTES)
    out[:] = AFTER
    async with opened(tmp_path / "f", name, reads(short_share=1.0)) as engine:
        done = await read(engine, SOME, out)
    assert ((done > 0) & (done < PAGE_BYTES)).all()
    for page, count in zip(SOME, done, strict=True):
        np.testing.assert_array_equal(out[page, :count], BEFORE[page, :count])
        np.testing.assert_array_equal(out[page, count:], AFTER[page, count:])
    np.testing.assert_array_equal(out[others(SOME)], AFTER[others(SOME)])


@pytest.mark.asyncio
async def test_a_misdirected_read_brings_another_place(tmp_path: Path, name: str) -> None:
    out = aligned_rows(PAGES, PAGE_BYTES)
    async with opened(tmp_path / "f", name, reads(misdirected_share=1.0)) as engine:
        assert (await read(engine, ALL, out) == PAGE_BYTES).all()
    places = {page.tobytes(): at for at, page in enumerate(BEFORE)}
    found = np.array([places[page.tobytes()] for page in out])
    assert (found != ALL).all()
    assert len(np.unique(found)) > PAGES // 4


@pytest.mark.asyncio
async def test_a_flipped_read_has_one_wrong_bit_and_the_file_none(
    tmp_path: Path, name: str
) -> None:
    out = aligned_rows(PAGES, PAGE_BYTES)
    async with opened(tmp_path / "f", name, reads(flipped_share=1.0)) as engine:
        assert (await read(engine, ALL, out) == PAGE_BYTES).all()
    assert (bits_that_differ(out, BEFORE) == 1).all()
    np.testing.assert_array_equal(held(tmp_path / "f"), BEFORE)


@pytest.mark.asyncio
async def test_extents_of_several_pages_have_one_fault_at_most(tmp_path: Path, name: str) -> None:
    out = aligned_rows(PAGES, PAGE_BYTES)
    offsets = np.arange(0, PAGES, 8) * PAGE_BYTES
    async with opened(tmp_path / "f", name, reads(flipped_share=1.0)) as engine:
        await engine.read(offsets, np.full(8, 8 * PAGE_BYTES), out, np.arange(0, PAGES, 8))
        assert (bits_that_differ(out, BEFORE).reshape(8, 8).sum(axis=1) == 1).all()
        engine.faults = writes(torn_share=1.0)
        await engine.write(offsets, np.full(8, 8 * PAGE_BYTES), AFTER, np.arange(0, PAGES, 8))
    shape = (8, -1, SECTOR_BYTES)
    is_new = (held(tmp_path / "f").reshape(shape) == AFTER.reshape(shape)).all(axis=2)
    assert is_new[:, 0].all()
    assert not is_new[:, -1].any()


MANY = FaultSettings(
    reads=ReadFaultSettings(
        fail_share=0.1, short_share=0.1, misdirected_share=0.1, flipped_share=0.1
    ),
    writes=WriteFaultSettings(
        fail_share=0.1,
        full_share=0.1,
        short_share=0.1,
        torn_share=0.1,
        lost_share=0.1,
        misdirected_share=0.1,
        flipped_share=0.1,
    ),
)


async def _life(path: Path, faults: FaultSettings, name: str) -> tuple[Any, ...]:
    out = aligned_rows(PAGES, PAGE_BYTES)
    answers = []
    async with opened(path, name, faults) as engine:
        for start in range(0, PAGES, 4):  # one place at a time, so that none is written twice
            answers.append((await write(engine, AFTER, ALL[start : start + 4])).tolist())
            answers.append((await read(engine, ALL, out)).tolist())
        return path.read_bytes(), out.tobytes(), answers, dict(engine.counts())


@pytest.mark.asyncio
async def test_the_same_seed_and_calls_have_the_same_faults(tmp_path: Path) -> None:
    lives = [await _life(tmp_path / "f", MANY, name) for name in ("threads", "aiofiles")]
    assert lives[0] == lives[1]
    counts = lives[0][-1]
    assert all(counts[key] for key in counts if key != "delayed"), counts
    assert counts["writes"] == 2 * PAGES
    assert counts["reads"] == PAGES * PAGES // 4
    assert await _life(tmp_path / "f", replace(MANY, seed=2), "threads") != lives[0]


@pytest.mark.asyncio
async def test_faults_are_as_many_as_their_shares_say(tmp_path: Path) -> None:
    out = aligned_rows(PAGES, PAGE_BYTES)
    async with opened(tmp_path / "f", "threads", reads(fail_share=0.25, flipped_share=0.5)) as one:
        for _ in range(40):
            await read(one, ALL, out)
        counts = one.counts()
    operations = 40 * PAGES
    assert abs(counts["read_fail"] / operations - 0.25) < 0.03
    assert abs(counts["read_flipped"] / operations - 0.5) < 0.03
    assert counts["read_short"] == counts["read_misdirected"] == 0


@pytest.mark.asyncio
async def test_an_empty_extent_has_no_fault(tmp_path: Path, name: str) -> None:
    nowhere = np.zeros(1, np.int64)
    async with opened(tmp_path / "f", name, writes(torn_share=1.0)) as engine:
        assert (await engine.write(nowhere, nowhere, AFTER, nowhere)).tolist() == [0]
        assert len(await engine.write(nowhere[:0], nowhere[:0], AFTER, nowhere[:0])) == 0
        assert engine.counts()["write_torn"] == 0


@pytest.mark.asyncio
async def test_what_has_no_other_place_is_not_misdirected(tmp_path: Path) -> None:
    whole = np.array([PAGES * PAGE_BYTES])
    nowhere = np.zeros(1, np.int64)
    async with opened(tmp_path / "f", "threads", writes(misdirected_share=1.0)) as engine:
        assert await engine.write(nowhere, whole, AFTER, nowhere) == whole
        assert engine.counts()["write_misdirected"] == 0
    np.testing.assert_array_equal(held(tmp_path / "f"), AFTER)


@pytest.mark.asyncio
async def test_an_extent_that_leaves_its_memory_is_refused_whatever_befalls_it(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path / "f", "threads", reads(fail_share=1.0)) as engine:
        with pytest.raises(LimitError, match="leaves its memory"):
            await engine.read(np.array([0]), np.array([2 * PAGE_BYTES]), BEFORE[:1], np.array([0]))


class Memory:
    """An engine that takes no time: what is measured is what stands around it."""

    name = "memory"
    direct = False
    alignment_bytes = 1

    def __init__(self) -> None:
        self.calls = 0
        self.closed = False

    async def read(self, offsets: I64, lengths: I64, out: U8, rows: I64) -> I64:
        if self.closed:
            raise ClosedError("closed")
        self.calls += 1
        return lengths.copy()

    async def write(self, offsets: I64, lengths: I64, source: U8, rows: I64) -> I64:
        return await self.read(offsets, lengths, source, rows)

    def pin(self, memory: U8) -> None:
        pass

    async def close(self) -> None:
        self.closed = True


SLOW = FaultSettings(delay_share=1.0, delay_s=0.5)


def test_the_slowest_operation_of_a_batch_holds_it_up() -> None:
    async def work(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        out = np.zeros((PAGES, PAGE_BYTES), np.uint8)
        one, many = (FaultyEngine(Memory(), SLOW, PAGES * PAGE_BYTES) for _ in range(2))
        start = loop.time()
        await read(many, ALL, out)
        slowest = loop.time() - start
        assert 0.4 < slowest <= 0.5
        start = loop.time()
        for _ in range(20):
            await read(one, ALL[:1], out)
        assert 2 < loop.time() - start < 8
        assert one.counts()["delayed"] == 20
        start = loop.time()
        one.faults = NONE
        await read(one, ALL, out)
        assert loop.time() == start

    in_virtual_time(work)


def test_close_waits_for_what_is_delayed_and_refuses_what_comes_then() -> None:
    async def work(stage: Stage) -> None:
        inner = Memory()
        engine = FaultyEngine(inner, SLOW, PAGES * PAGE_BYTES)
        reading = asyncio.ensure_future(read(engine, SOME, BEFORE))
        await asyncio.sleep(0)
        await engine.close()
        assert reading.done()
        assert (await reading == PAGE_BYTES).all()
        assert inner.closed
        with pytest.raises(ClosedError):
            await read(engine, SOME, BEFORE)

    in_virtual_time(work)


def test_who_is_cancelled_while_delayed_has_not_begun() -> None:
    async def work(stage: Stage) -> None:
        inner = Memory()
        engine = FaultyEngine(inner, SLOW, PAGES * PAGE_BYTES)
        reading = asyncio.ensure_future(read(engine, SOME, BEFORE))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert inner.calls == 0
        await engine.close()

    in_virtual_time(work)


def test_its_name_says_that_it_misbehaves() -> None:
    assert FaultyEngine(Memory(), NONE, 0).name == "memory with faults"
