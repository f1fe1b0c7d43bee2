"""The tier on a drive: what is read is what was written, or it is FAILED. On real files."""

from __future__ import annotations

import asyncio
import resource
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from io_engines import engine_names

from kvtier.errors import ClosedError, DeviceError
from kvtier.index import LogIndex
from kvtier.pages import I64, U8, U64, PageStatus
from kvtier.rows import aligned_rows
from kvtier.settings import TierSettings
from kvtier.tiers import NvmeTier, log_writer, open_tier
from kvtier.tiers.nvme import MOVES_MAX

PAGE_BYTES = 4096
SLOTS = 64
OK, FAILED = PageStatus.OK, PageStatus.FAILED


@pytest.fixture(params=engine_names())
def engine(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pages"


@asynccontextmanager
async def opened(
    path: Path | None, engine: Any = "threads", page_bytes: int = PAGE_BYTES, **more: Any
) -> AsyncIterator[NvmeTier]:
    wanted = TierSettings(
        "nvme", SLOTS * page_bytes, path=path, engine=engine, queue_depth=4, **more
    )
    tier = await open_tier(wanted, page_bytes, seed=1)
    assert isinstance(tier, NvmeTier)
    try:
        yield tier
    finally:
        await tier.close()


def random_pages(count: int, page_bytes: int = PAGE_BYTES) -> U8:
    pages = aligned_rows(count, page_bytes)
    pages[:] = np.random.default_rng(1).integers(0, 256, pages.shape, np.uint8)
    return pages


def ids(slots: I64) -> U64:
    return (slots + (7 << 32)).astype(np.uint64)


async def fill(tier: NvmeTier) -> U8:
    """Write every slot; the page in slot s is row s."""
    slots = np.arange(SLOTS)
    pages = random_pages(SLOTS)
    assert not (await tier.write(slots, ids(slots), pages, slots)).any()
    await tier.flush()
    return pages


async def read(tier: NvmeTier, slots: I64, page_ids: U64 | None = None) -> tuple[U8, U8]:
    """Read slots one by one; their status and pages."""
    out = aligned_rows(len(slots), PAGE_BYTES)
    rows = np.arange(len(slots))
    wanted = ids(slots) if page_ids is None else page_ids
    status = await tier.read(slots, np.ones_like(slots), rows, out, wanted, slots, rows)
    return status, out


def edit(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def offset_of(tier: NvmeTier, slot: int) -> int:
    return int(tier.layout.page_offsets(np.array([slot]))[0])


def page_at(tier: NvmeTier, path: Path, slot: int) -> bytes:
    first = offset_of(tier, slot)
    return path.read_bytes()[first : first + tier.layout.page_bytes]


@pytest.mark.asyncio
async def test_written_pages_are_read_back(path: Path, engine: Any) -> None:
    async with opened(path, engine) as tier:
        pages = await fill(tier)
        slots = np.random.default_rng(3).permutation(SLOTS)
        status, out = await read(tier, slots)
    assert not status.any()
    np.testing.assert_array_equal(out, pages[slots])
    assert (tier.io_errors, tier.corrupt_pages) == (0, 0)


@pytest.mark.asyncio
async def test_an_extent_brings_several_pages_and_only_those_wanted_are_verified(
    path: Path, engine: Any
) -> None:
    async with opened(path, engine) as tier:
        source = random_pages(3)
        written = np.array([10, 11, 13])
        assert not (await tier.write(written, ids(written), source, np.arange(3))).any()
        await tier.flush()
        out = aligned_rows(8, PAGE_BYTES)
        status = await tier.read(
            np.array([10]), np.array([4]), np.array([2]), out,
            ids(written), written, np.array([2, 3, 5]),
        )  # fmt: skip
    assert status.tolist() == [OK, OK, OK]
    np.testing.assert_array_equal(out[[2, 3, 5]], source)


@pytest.mark.asyncio
async def test_rows_and_slots_need_not_be_in_order(path: Path) -> None:
    source = random_pages(8)
    slots, rows = np.array([3, 4, 9, 8, 20]), np.array([5, 6, 7, 0, 2])
    async with opened(path) as tier:
        assert not (await tier.write(slots, ids(slots), source, rows)).any()
        status, out = await read(tier, slots)
    assert not status.any()
    np.testing.assert_array_equal(out, source[rows])


@pytest.mark.asyncio
async def test_a_source_that_is_not_aligned_is_written_all_the_same(
    path: Path, engine: Any
) -> None:
    source = np.empty(SLOTS * PAGE_BYTES + 1, np.uint8)[1:].reshape(SLOTS, PAGE_BYTES)
    source[:] = random_pages(SLOTS)
    slots = np.random.default_rng(4).permutation(SLOTS)
    async with opened(path, engine) as tier:
        assert not (await tier.write(slots, ids(slots), source, slots)).any()
        status, out = await read(tier, slots)
    assert not status.any()
    np.testing.assert_array_equal(out, source[slots])


@pytest.mark.asyncio
async def test_more_may_be_written_than_the_buffers_hold(path: Path) -> None:
    page_bytes = 64 << 10
    source = np.empty(SLOTS * page_bytes + 1, np.uint8)[1:].reshape(SLOTS, page_bytes)
    source[:] = np.arange(SLOTS, dtype=np.uint8)[:, None]
    slots = np.arange(SLOTS)
    async with opened(path, page_bytes=page_bytes, write_buffer_bytes=1) as tier:
        for _ in range(2):
            assert not (await tier.write(slots, ids(slots), source, slots)).any()
    for slot in slots.tolist():
        assert page_at(tier, path, slot) == source[slot].tobytes()


@pytest.mark.asyncio
async def test_large_pages_are_verified_too(path: Path) -> None:
    """Their checksums are made in a thread."""
    page_bytes = 2 << 20
    source = random_pages(4, page_bytes)
    out = aligned_rows(4, page_bytes)
    slots = np.arange(4)
    async with opened(path, page_bytes=page_bytes) as tier:
        assert not (await tier.write(slots, ids(slots), source, slots)).any()
        await tier.flush()
        edit(path, offset_of(tier, 2) + page_bytes - 1, bytes([~source[2, -1] & 0xFF]))
        status = await tier.read(
            np.array([0]), np.array([4]), np.array([0]), out, ids(slots), slots, slots
        )
    assert status.tolist() == [OK, OK, FAILED, OK]


@pytest.mark.asyncio
async def test_a_flipped_bit_fails_its_page_alone(path: Path, engine: Any) -> None:
    async with opened(path, engine) as tier:
        pages = await fill(tier)
        edit(path, offset_of(tier, 5) + 99, bytes([pages[5, 99] ^ 1]))
        status, _ = await read(tier, np.array([4, 5, 6]))
        assert status.tolist() == [OK, FAILED, OK]
        assert (tier.io_errors, tier.corrupt_pages) == (0, 1)


@pytest.mark.asyncio
async def test_pages_that_changed_places_fail(path: Path, engine: Any) -> None:
    async with opened(path, engine) as tier:
        await fill(tier)
        here, there = page_at(tier, path, 2), page_at(tier, path, 3)
        edit(path, offset_of(tier, 2), there + here)
        status, _ = await read(tier, np.array([1, 2, 3]))
        assert status.tolist() == [OK, FAILED, FAILED]
        # Nor is a page in the wrong place taken for itself by asking for it there.
        status, _ = await read(tier, np.array([2, 3]), ids(np.array([3, 2])))
        assert status.tolist() == [FAILED, FAILED]


@pytest.mark.asyncio
async def test_a_truncated_file_fails_the_pages_that_are_gone(path: Path, engine: Any) -> None:
    async with opened(path, engine) as tier:
        await fill(tier)
        with path.open("r+b") as file:
            file.truncate(offset_of(tier, 10) + 512)
        out = aligned_rows(5, PAGE_BYTES)
        slots = np.arange(8, 13)
        rows = np.arange(5)
        status = await tier.read(
            np.array([8]), np.array([5]), np.array([0]), out, ids(slots), slots, rows
        )
        assert status.tolist() == [OK, OK, FAILED, FAILED, FAILED]
        assert (tier.io_errors, tier.corrupt_pages) == (1, 0)


@pytest.mark.asyncio
async def test_a_lost_page_is_not_taken_from_what_the_memory_held_before(path: Path) -> None:
    async with opened(path) as tier:
        pages = await fill(tier)
        with path.open("r+b") as file:
            file.truncate(0)
        slots = np.array([1])
        status = await tier.read(slots, np.array([1]), slots, pages, ids(slots), slots, slots)
        assert status.tolist() == [FAILED]


@pytest.mark.asyncio
async def test_a_slot_never_written_fails(path: Path, engine: Any) -> None:
    async with opened(path, engine) as tier:
        status, _ = await read(tier, np.array([0, 63]))
        assert status.tolist() == [FAILED, FAILED]


@pytest.mark.asyncio
async def test_a_slot_answers_only_for_the_page_last_written_to_it(path: Path) -> None:
    slot = np.array([17])
    first, second = np.array([1], np.uint64), np.array([2], np.uint64)
    pages = random_pages(2)
    async with opened(path) as tier:
        await tier.write(slot, first, pages, np.array([0]))
        await tier.write(slot, second, pages, np.array([1]))
        assert (await read(tier, slot, first))[0].tolist() == [FAILED]
        status, out = await read(tier, slot, second)
        assert status.tolist() == [OK]
        np.testing.assert_array_equal(out[0], pages[1])


@pytest.mark.asyncio
async def test_pages_that_cannot_be_written_are_read_as_failed(
    path: Path, engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    slots = np.array([2, 8, 3, 50])
    async with opened(path, engine) as tier:
        # Segment 0 can be written; of segments 1 and 6, neither the page nor its metadata.
        resource.setrlimit(resource.RLIMIT_FSIZE, (offset_of(tier, 8), before[1]))
        try:
            status = await tier.write(slots, ids(slots), random_pages(4), np.arange(4))
            await tier.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert status.tolist() == [OK] * 4, "they could be read while they were in memory"
        assert (await read(tier, slots))[0].tolist() == [OK, FAILED, OK, FAILED]
        assert (tier.io_errors, tier.lost_pages, tier.corrupt_pages) == (4, 2, 0)
        assert {record.levelname for record in caplog.records} == {"WARNING"}
        again = slots[[1, 3]]
        assert not (await tier.write(again, ids(again), random_pages(2), np.arange(2))).any()
        await tier.flush()
        assert (await read(tier, slots))[0].tolist() == [OK] * 4


@pytest.mark.asyncio
async def test_pages_are_read_from_memory_until_they_are_written(path: Path, engine: Any) -> None:
    async with opened(path, engine) as tier:
        pages = await fill(tier)
        late, changed = np.array([64, 65, 67]), random_pages(3)[::-1].copy()
        assert not (await tier.write(late, ids(late), changed, np.arange(3))).any()
        assert page_at(tier, path, 65) == bytes(PAGE_BYTES)
        slots = np.random.default_rng(5).permutation([*range(SLOTS), *late.tolist()])
        for _ in range(2):
            status, out = await read(tier, slots)
            assert not status.any()
            old = slots < SLOTS
            np.testing.assert_array_equal(out[old], pages[slots[old]])
            for row, slot in zip(changed, late.tolist(), strict=True):
                np.testing.assert_array_equal(out[slots == slot], row[None])
            await tier.flush()
        assert page_at(tier, path, 65) == changed[1].tobytes()
        assert (tier.io_errors, tier.corrupt_pages) == (0, 0)


@pytest.mark.asyncio
async def test_a_page_that_is_overwritten_is_not_written_out_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A location whose page was given up is given again while its buffer still has that page."""
    slots = np.arange(2)
    entered, go_on = threading.Event(), threading.Event()
    written, held = asyncio.Event(), asyncio.Event()
    async with opened(path) as tier:
        writer = tier._writer
        write_pages, copy = writer._write_pages, log_writer.copy_and_sum

        async def slow_write(segment: int, pages: I64) -> Any:
            done = await write_pages(segment, pages)
            written.set()
            await held.wait()
            return done

        def slow_copy(*arguments: Any) -> U64:
            entered.set()
            go_on.wait(60)
            return copy(*arguments)

        await tier.write(slots, ids(slots), random_pages(2), slots)
        monkeypatch.setattr(writer, "_write_pages", slow_write)
        monkeypatch.setattr(log_writer, "copy_and_sum", slow_copy)
        monkeypatch.setattr(log_writer, "INLINE_BYTES", 0)
        pages = random_pages(4)[2:]
        again = asyncio.create_task(tier.write(slots, ids(slots), pages, slots))
        await asyncio.to_thread(entered.wait, 60)
        flushing = asyncio.create_task(tier.flush())
        on_its_way = asyncio.create_task(written.wait())
        await asyncio.wait((flushing, on_its_way), return_when=asyncio.FIRST_COMPLETED)
        on_its_way.cancel()
        go_on.set()
        await again
        held.set()
        await flushing
        await tier.flush()
        status, out = await read(tier, slots)
        assert (status.tolist(), tier.corrupt_pages) == ([OK, OK], 0)
        np.testing.assert_array_equal(out, pages)


@pytest.mark.asyncio
async def test_a_page_that_nothing_follows_is_written_all_the_same(path: Path) -> None:
    slot = np.array([7])
    page = random_pages(1)
    async with opened(path) as tier:
        await tier.write(slot, ids(slot), page, np.array([0]))
        async with asyncio.timeout(60):
            while page_at(tier, path, 7) != page[0].tobytes():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_neighbours_leave_together(path: Path, engine: Any) -> None:
    """However they came, a segment is one write, and its pages lie together."""
    async with opened(path, engine) as tier:
        pages = random_pages(8)
        for slot in (3, 0, 7, 1, 2, 6, 5, 4):
            one = np.array([slot])
            assert not (await tier.write(one, ids(one), pages, one)).any()
        await tier.flush()
        first = offset_of(tier, 0)
        assert path.read_bytes()[first : first + pages.nbytes] == pages.tobytes()
        assert tier.payload_bytes == pages.nbytes


@pytest.mark.asyncio
async def test_moved_pages_are_where_they_went_and_where_they_were(path: Path, engine: Any) -> None:
    sources, targets = np.array([3, 4, 9, 20]), np.array([66, 67, 68, 80])
    async with opened(path, engine) as tier:
        pages = await fill(tier)
        edit(path, offset_of(tier, 9), bytes([~pages[9, 0] & 0xFF]))
        assert (await tier.move(sources, targets, ids(sources))).tolist() == [OK, OK, FAILED, OK]
        await tier.flush()
        status, out = await read(tier, targets, ids(sources))
        assert status.tolist() == [OK, OK, FAILED, OK]
        kept = [0, 1, 3]
        np.testing.assert_array_equal(out[kept], pages[sources[kept]])
        assert (await read(tier, sources))[0].tolist() == [OK, OK, FAILED, OK]


@pytest.mark.asyncio
async def test_moves_that_a_slow_drive_holds_up_take_bounded_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path) as tier:
        await fill(tier)
        under_way = most_under_way = 0
        read_file = tier._file.read

        async def slowly(*extents: Any) -> I64:
            nonlocal under_way, most_under_way
            under_way += 1
            most_under_way = max(most_under_way, under_way)
            for _ in range(10):
                await asyncio.sleep(0)
            under_way -= 1
            return await read_file(*extents)

        monkeypatch.setattr(tier._file, "read", slowly)
        sources = np.arange(3 * MOVES_MAX)
        statuses = await asyncio.gather(
            *(tier.move(one, 64 + one, ids(one)) for one in sources[:, None])
        )
        assert not np.concatenate(statuses).any()
        assert most_under_way == MOVES_MAX


@pytest.mark.asyncio
async def test_a_restart_leaves_the_loop_free(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path) as tier:
        await fill(tier)
    restored_in: list[int] = []
    restore = LogIndex.restore

    def noted(self: LogIndex, page_ids: U64, locations: I64, generations: U64) -> None:
        restored_in.append(threading.get_ident())
        restore(self, page_ids, locations, generations)

    monkeypatch.setattr(LogIndex, "restore", noted)
    async with opened(path):
        assert restored_in
        assert threading.get_ident() not in restored_in


@pytest.mark.asyncio
async def test_extents_may_pass_from_one_segment_to_others(path: Path, engine: Any) -> None:
    async with opened(path, engine) as tier:
        pages = await fill(tier)
        wanted = np.arange(5, 29)
        out = aligned_rows(32, PAGE_BYTES)
        status = await tier.read(
            np.array([5, 30]), np.array([24, 1]), np.array([2, 0]), out,
            ids(wanted), wanted, wanted - 3,
        )  # fmt: skip
        assert not status.any()
        np.testing.assert_array_equal(out[2:26], pages[5:29])
        np.testing.assert_array_equal(out[0], pages[30])


@pytest.mark.asyncio
async def test_empty_batches_are_allowed(path: Path, engine: Any) -> None:
    none = np.empty(0, np.int64)
    async with opened(path, engine) as tier:
        assert len(await tier.write(none, ids(none), random_pages(1), none)) == 0
        assert len((await read(tier, none))[0]) == 0


@pytest.mark.asyncio
async def test_reads_and_writes_of_different_slots_may_overlap(path: Path, engine: Any) -> None:
    async with opened(path, engine) as tier:
        pages = await fill(tier)
        low, high = np.arange(32), np.arange(32, 64)
        answers = await asyncio.gather(
            read(tier, low),
            tier.write(high, ids(high), pages, low),
            read(tier, low[::-1].copy()),
        )
        status, out = await read(tier, high)
    assert not answers[0][0].any()
    assert not answers[1].any()
    assert not answers[2][0].any()
    np.testing.assert_array_equal(answers[0][1], pages[:32])
    np.testing.assert_array_equal(answers[2][1], pages[31::-1])
    assert not status.any()
    np.testing.assert_array_equal(out, pages[:32])


@pytest.mark.asyncio
async def test_a_cancelled_read_leaves_memory_alone_once_it_has_raised(path: Path) -> None:
    out = aligned_rows(SLOTS, PAGE_BYTES)
    slots = np.arange(SLOTS)
    async with opened(path) as tier:
        await fill(tier)
        reading = asyncio.ensure_future(
            tier.read(slots, np.ones_like(slots), slots, out, ids(slots), slots, slots)
        )
        await asyncio.sleep(0)  # the batch is under way
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        out[:] = 0
    assert not out.any()


@pytest.mark.asyncio
async def test_a_closed_tier_refuses(path: Path) -> None:
    async with opened(path) as tier:
        await tier.close()
        with pytest.raises(ClosedError):
            await read(tier, np.array([0]))


@pytest.mark.asyncio
async def test_a_second_cache_cannot_take_the_file(path: Path) -> None:
    async with opened(path) as tier:
        pages = await fill(tier)
        with pytest.raises(DeviceError, match="in use by another cache"):
            async with opened(path):
                pass
        status, out = await read(tier, np.array([0]))
        assert status.tolist() == [OK]
        np.testing.assert_array_equal(out[0], pages[0])


@pytest.mark.asyncio
async def test_nothing_of_an_earlier_file_is_believed(path: Path) -> None:
    async with opened(path) as tier:
        await fill(tier)
    content = path.read_bytes()
    async with opened(path, rebuild=True) as tier:
        edit(path, 0, content)
        status, _ = await read(tier, np.arange(SLOTS))
        assert (status == FAILED).all()


@pytest.mark.asyncio
async def test_a_temporary_file_leaves_no_name_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Any
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with opened(None, engine) as tier:
        pages = await fill(tier)
        assert not list(tmp_path.iterdir())
        status, out = await read(tier, np.arange(SLOTS))
    assert not status.any()
    np.testing.assert_array_equal(out, pages)


@pytest.mark.asyncio
async def test_no_place_for_a_temporary_file_is_a_device_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(DeviceError, match="set TMPDIR, or give the tier a path"):
        async with opened(None):
            pass


@pytest.mark.asyncio
async def test_a_path_in_a_missing_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "pages"
    with pytest.raises(DeviceError, match=f"cannot create {path}.*make its directory first"):
        async with opened(path):
            pass


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example makes a new file
)
@given(
    damage=st.lists(
        st.tuples(st.integers(0, SLOTS * PAGE_BYTES - 1), st.binary(min_size=1, max_size=3000)),
        max_size=6,
    )
)
def test_whatever_happens_to_the_file_a_page_is_right_or_failed(
    path: Path, damage: list[tuple[int, bytes]]
) -> None:
    async def damage_and_read() -> None:
        async with opened(path, rebuild=True) as tier:
            pages = await fill(tier)
            first = offset_of(tier, 0)
            for offset, content in damage:
                edit(path, first + offset, content)
            held = np.empty_like(pages)
            for slot in range(SLOTS):
                held[slot] = np.frombuffer(page_at(tier, path, slot), np.uint8)
            status, out = await read(tier, np.arange(SLOTS))
        intact = (held == pages).all(axis=1)
        np.testing.assert_array_equal(status, np.where(intact, OK, FAILED))
        np.testing.assert_array_equal(out[intact], pages[intact])

    asyncio.run(damage_and_read())


@pytest.mark.asyncio
async def test_who_waits_for_an_opening_that_is_given_up_makes_the_file(path: Path) -> None:
    wanted = TierSettings("nvme", 32 << 20, path=path, engine="threads", queue_depth=4)
    first = asyncio.create_task(open_tier(wanted, PAGE_BYTES, seed=1))
    while not path.exists() or not path.stat().st_size:  # noqa: ASYNC110 - nothing else tells
        await asyncio.sleep(0)
    second = asyncio.create_task(open_tier(wanted, PAGE_BYTES, seed=1))
    for _ in range(3):  # it finds the log that is being made, and the lock
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await (await second).close()
    await (await open_tier(wanted, PAGE_BYTES, seed=1)).close()
