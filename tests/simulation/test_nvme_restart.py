"""What is on the drive when a cache is opened again: it is found, or it is a miss; never wrong."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gated_backend import GatedBackend
from kept_cache import PAGE, kept, kept_settings, nvme_of
from small_cache import payload

from kvtier import PageStatus, TieredCache, open_cache
from kvtier.backend import ObjectBatch
from kvtier.driver import AsyncDriver
from kvtier.errors import DeviceError, SettingsError
from kvtier.io.faults import FaultyEngine
from kvtier.pages import U8
from kvtier.settings import FaultSettings, WriteFaultSettings
from kvtier.tiers import log_opening
from kvtier.tiers.log_format import BLOCK_BYTES, SUPERBLOCK, seal

pytestmark = pytest.mark.asyncio

Cache = TieredCache[AsyncDriver]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


async def write(cache: Cache, key: bytes, pages: int, content: U8 | None = None) -> None:
    rows = payload(key, pages) if content is None else content
    assert (await cache.write([key], [pages], rows)).tolist() == [0]


async def found(cache: Cache, key: bytes) -> U8 | None:
    """The pages of an object, None if it is not known; fails on a page that is missing."""
    opened = await cache.open([key])
    if opened.pages[0] < 0:
        return None
    result = await cache.read(opened.page_ids())
    assert result.ok, result.status
    return result.pages


async def assert_found(cache: Cache, key: bytes, pages: int) -> None:
    there = await found(cache, key)
    assert there is not None
    np.testing.assert_array_equal(there, payload(key, pages))


async def test_what_was_written_is_found_after_a_restart(path: Path) -> None:
    async with kept(path) as cache:
        await write(cache, b"a", 5)
        await write(cache, b"b", 40)
    async with kept(path) as cache:
        assert await cache.lookup([b"a", b"b", b"c"]) == 2
        await assert_found(cache, b"b", 40)
        await assert_found(cache, b"a", 5)
        assert await found(cache, b"c") is None
        assert nvme_of(cache).corrupt_pages == 0


async def test_a_log_goes_on_over_many_restarts(path: Path) -> None:
    """Each of them writes more than the last left free, so that segments are reclaimed."""
    for round_ in range(12):
        async with kept(path, slots=128) as cache:
            if round_:
                await assert_found(cache, b"%d" % (round_ - 1), 40)
            await write(cache, b"%d" % round_, 40)
            if round_ > 6:
                assert await cache.lookup([b"0"]) == 0
            assert nvme_of(cache).corrupt_pages == 0


async def test_pages_that_were_not_kept_are_absent(path: Path) -> None:
    async with kept(path) as cache:
        await write(cache, b"a", 80)
        opened = await cache.open([b"a"])
        layout = nvme_of(cache).layout
        segments = cache.driver.indexes[0].peek(opened.page_ids()) // layout.segment_pages
    segment = int(segments[3])
    with path.open("r+b") as file:
        file.seek(layout.metadata_offset(segment))
        file.write(bytes(BLOCK_BYTES))
    async with kept(path) as cache:
        opened = await cache.open([b"a"])
        assert opened.pages.tolist() == [80]
        result = await cache.read(opened.page_ids())
        lost = segments == segment
        np.testing.assert_array_equal(result.status, np.where(lost, PageStatus.ABSENT, 0))
        np.testing.assert_array_equal(result.pages[~lost], payload(b"a", 80)[~lost])
        assert not (await cache.available([b"a"])).any()


async def test_a_rewritten_object_never_comes_back(path: Path, tmp_path: Path) -> None:
    async with kept(path) as cache:
        await write(cache, b"a", 8)
        await nvme_of(cache).flush()
        await write(cache, b"a", 3, payload(b"new", 3))
        # Neither the tier nor the cache is closed: as if the process were killed here.
        shutil.copy(path, tmp_path / "copy")
    async with kept(path) as cache:
        np.testing.assert_array_equal(await found(cache, b"a"), payload(b"new", 3))
    async with kept(tmp_path / "copy") as cache:
        there = await found(cache, b"a")
        if there is not None:  # the new one was written out already
            np.testing.assert_array_equal(there, payload(b"new", 3))
        assert nvme_of(cache).corrupt_pages == 0


async def test_a_deleted_object_never_comes_back(path: Path, tmp_path: Path) -> None:
    async with kept(path) as cache:
        await write(cache, b"a", 8)
        await write(cache, b"b", 8)
        await nvme_of(cache).flush()
        await cache.delete([b"a"])
        shutil.copy(path, tmp_path / "copy")
    for one in (path, tmp_path / "copy"):
        async with kept(one) as cache:
            assert await found(cache, b"a") is None
            await assert_found(cache, b"b", 8)
            await write(cache, b"a", 2)
        async with kept(one) as cache:
            await assert_found(cache, b"a", 2)


@pytest.mark.parametrize("rewrites", [False, True])
async def test_what_a_full_directory_let_go_does_not_come_back_once_it_changed(
    path: Path, tmp_path: Path, rewrites: bool
) -> None:
    async with kept(path, objects_max=2) as cache:
        await write(cache, b"a", 4)
        await write(cache, b"b", 4)
        await nvme_of(cache).flush()
        await write(cache, b"c", 4)
        assert await found(cache, b"a") is None
        if rewrites:
            await write(cache, b"a", 4, payload(b"new", 4))
        else:
            await cache.delete([b"a"])
        shutil.copy(path, tmp_path / "copy")  # killed here
    async with kept(tmp_path / "copy", objects_max=9) as cache:
        assert await found(cache, b"a") is None


async def test_a_deletion_that_could_not_be_recorded_is_tried_again(
    path: Path, tmp_path: Path
) -> None:
    async with kept(path, faults=FaultSettings()) as cache:
        await write(cache, b"a", 4)
        await nvme_of(cache).flush()
        drive = nvme_of(cache)._file
        assert isinstance(drive, FaultyEngine)
        drive.faults = FaultSettings(writes=WriteFaultSettings(fail_share=1.0))
        with pytest.raises(DeviceError, match="could not be recorded"):
            await cache.delete([b"a"])
        with pytest.raises(DeviceError, match="could not be recorded"):
            await cache.delete([b"a"])
        drive.faults = FaultSettings()
        await cache.delete([b"a"])
        shutil.copy(path, tmp_path / "copy")
    async with kept(tmp_path / "copy") as cache:
        assert await found(cache, b"a") is None


async def test_an_object_that_nobody_opened_can_be_deleted_and_rewritten(path: Path) -> None:
    async with kept(path) as cache:
        for key in (b"a", b"b", b"c"):
            await write(cache, key, 4)
    async with kept(path) as cache:
        await cache.delete([b"a"])
        await write(cache, b"b", 2, payload(b"new", 2))
        np.testing.assert_array_equal(await found(cache, b"b"), payload(b"new", 2))
    async with kept(path) as cache:
        assert await found(cache, b"a") is None
        np.testing.assert_array_equal(await found(cache, b"b"), payload(b"new", 2))
        await assert_found(cache, b"c", 4)


async def test_more_is_retired_than_there_are_records(path: Path) -> None:
    """Then all that was written so far is given up at a restart, rather than anything stale."""
    async with kept(path) as cache:
        records = 126 * nvme_of(cache).layout.retired_blocks
        for number in range(records + 3):
            await write(cache, b"%d" % number, 1)
            if number % 50 == 0:
                await nvme_of(cache).flush()
            await cache.delete([b"%d" % number])
        await write(cache, b"last", 1)
    async with kept(path) as cache:
        for number in range(records + 3):
            assert await found(cache, b"%d" % number) is None


async def test_an_origin_says_which_version_counts(path: Path) -> None:
    backend = GatedBackend(PAGE)
    async with kept(path, backend) as cache:
        for key in (b"a", b"b", b"c"):
            await write(cache, key, 4)
    # Meanwhile, elsewhere.
    await backend.put(ObjectBatch((b"b",), np.array([3], np.uint32), payload(b"new", 3)))
    await backend.delete([b"c"])
    async with kept(path, backend) as cache:
        before = cache.driver.chain.counters.levels[1].device_reads
        await assert_found(cache, b"a", 4)
        assert cache.driver.chain.counters.levels[1].device_reads == before, "from the drive"
        np.testing.assert_array_equal(await found(cache, b"b"), payload(b"new", 3))
        assert await found(cache, b"c") is None


async def test_an_origin_that_is_written_through_has_the_truth_about_what_was_written_without_it(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with kept(path) as cache:
        for key in (b"a", b"b", b"c"):
            await write(cache, key, 4)
    backend = GatedBackend(PAGE)
    await backend.put(ObjectBatch((b"b",), np.array([3], np.uint32), payload(b"new", 3)))
    async with kept(path, backend) as cache:
        assert "3 objects that no origin had: they are not found" in caplog.text
        assert await found(cache, b"a") is None
        np.testing.assert_array_equal(await found(cache, b"b"), payload(b"new", 3))
        await cache.delete([b"c"])
    async with kept(path) as cache:
        await assert_found(cache, b"a", 4)
        assert await found(cache, b"b") is None
        assert await found(cache, b"c") is None


async def test_what_was_written_after_an_origin_was_left_out_is_found_after_a_restart(
    path: Path,
) -> None:
    backend = GatedBackend(PAGE)
    async with kept(path, backend) as cache:
        await write(cache, b"a", 4)
        await write(cache, b"b", 4)
    async with kept(path) as cache:
        await write(cache, b"a", 3, payload(b"new", 3))
        await write(cache, b"b", 3, payload(b"new", 3))
        await cache.delete([b"b"])
    async with kept(path) as cache:
        np.testing.assert_array_equal(await found(cache, b"a"), payload(b"new", 3))
        assert await found(cache, b"b") is None
    async with kept(path, backend) as cache:
        await assert_found(cache, b"a", 4)
        await assert_found(cache, b"b", 4)


async def test_beside_an_origin_that_is_not_written_through_the_log_has_what_was_written(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = GatedBackend(PAGE)
    settings = kept_settings(path, origin=True)
    assert settings.origin is not None
    settings = replace(settings, origin=replace(settings.origin, write="none"))
    for _ in range(2):
        async with open_cache(settings, origin=backend) as cache:
            if await found(cache, b"a") is None:
                await write(cache, b"a", 4)
            await assert_found(cache, b"a", 4)
            assert (await backend.stat([b"a"])).pages.tolist() == [-1]
    assert "no origin" not in caplog.text


async def test_the_directory_stays_within_its_bound(path: Path) -> None:
    async with kept(path) as cache:
        for number in range(60):
            await write(cache, b"%d" % number, 2)
    async with kept(path, objects_max=16) as cache:
        assert len(cache.catalogue.directory) == 16
        assert await cache.lookup([b"59", b"58", b"57"]) == 3
        assert await found(cache, b"0") is None
        for number in range(100, 110):
            await write(cache, b"%d" % number, 1)
            assert len(cache.catalogue.directory) == 16
        await assert_found(cache, b"58", 2)
    async with kept(path) as cache:
        assert await found(cache, b"0") is None, "let go, and so not found again"
        await assert_found(cache, b"109", 1)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"slots": 512}, "segment_pages 32, and it would be 64 now"),
        ({"slots": 264}, "segment_pages 32, and it would be 33 now"),
    ],
)
async def test_a_log_that_does_not_fit_is_refused_until_it_is_rebuilt(
    path: Path, change: dict[str, int], differs: str
) -> None:
    async with kept(path) as cache:
        await write(cache, b"a", 4)
    content = path.read_bytes()
    with pytest.raises(SettingsError, match=f"^tiers.nvme.path: .* holds a log with {differs}: .*"):
        async with kept(path, **change):
            pass
    assert path.read_bytes() == content
    async with kept(path, **change, rebuild=True) as cache:
        assert await found(cache, b"a") is None
    async with kept(path, **change):
        pass


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"page_bytes": 1024}, "page_bytes 512, and it would be 1024 now"),
        ({"seed": 5}, "seed 1, and it would be 5 now"),
    ],
)
async def test_a_log_of_other_pages_or_of_another_seed_is_refused(
    path: Path, change: dict[str, Any], differs: str
) -> None:
    async with kept(path) as cache:
        await write(cache, b"a", 4)
    with pytest.raises(SettingsError, match=f"^tiers.nvme.path: .* holds a log with {differs}: .*"):
        async with open_cache(replace(kept_settings(path), **change)):
            pass
    async with kept(path) as cache:
        await assert_found(cache, b"a", 4)


async def test_a_newer_format_is_refused(path: Path) -> None:
    async with kept(path) as cache:
        await write(cache, b"a", 4)
    content = bytearray(path.read_bytes())
    blocks = np.frombuffer(content, SUPERBLOCK, 2)
    blocks["format"] = 2
    seal(blocks, np.uint64(0))
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="holds a log with format 2, and it would be 1 now"):
        async with kept(path):
            pass


async def test_a_directory_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(SettingsError, match=r"tiers\.nvme\.path: there is no directory"):
        async with kept(path / "there" / "log"):
            pass


async def test_a_file_that_is_no_log_is_never_overwritten(path: Path) -> None:
    path.write_bytes(b"my thesis" * 1000)
    for rebuild in (False, True):
        with pytest.raises(SettingsError, match="is there and is no log of kvtier: remove it"):
            async with kept(path, rebuild=rebuild):
                pass
    assert path.read_bytes() == b"my thesis" * 1000


async def test_an_empty_file_becomes_a_log(path: Path) -> None:
    path.touch()
    async with kept(path) as cache:
        await write(cache, b"a", 4)
    async with kept(path) as cache:
        await assert_found(cache, b"a", 4)


async def test_a_second_cache_is_refused_and_harms_nothing(path: Path) -> None:
    async with kept(path) as cache:
        await write(cache, b"a", 4)
        for rebuild in (False, True):
            with pytest.raises(DeviceError, match="in use by another cache"):
                async with kept(path, rebuild=rebuild):
                    pass
    async with kept(path) as cache:
        await assert_found(cache, b"a", 4)


async def test_a_log_that_is_made_anew_while_it_is_waited_for_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(path) as cache:
        await write(cache, b"a", 4)
    open_file = log_opening._open_file

    async def wait(*arguments: Any, **more: Any) -> Any:
        monkeypatch.undo()
        async with kept(path, rebuild=True) as cache:
            await write(cache, b"b", 4)
        return await open_file(*arguments, **more)

    monkeypatch.setattr(log_opening, "_open_file", wait)
    with pytest.raises(DeviceError, match="made anew by another process meanwhile"):
        async with kept(path):
            pass
    async with kept(path) as cache:
        await assert_found(cache, b"b", 4)


async def test_a_damaged_table_of_retired_keys_starts_the_log_empty(path: Path) -> None:
    async with kept(path) as cache:
        await write(cache, b"a", 4)
        await cache.delete([b"a"])
        await write(cache, b"b", 4)
        layout = nvme_of(cache).layout
    with path.open("r+b") as file:
        file.seek(layout.retired_offset + 64)
        file.write(b"\xff" * (2 * BLOCK_BYTES - 64))
    async with kept(path) as cache:
        assert await found(cache, b"a") is None
        assert await found(cache, b"b") is None
        await write(cache, b"c", 4)
    async with kept(path) as cache:
        assert await found(cache, b"b") is None
        await assert_found(cache, b"c", 4)


async def test_a_log_cut_short_has_lost_its_end_only(path: Path) -> None:
    async with kept(path) as cache:
        await write(cache, b"a", 16)
        await write(cache, b"b", 128)
        layout = nvme_of(cache).layout
    with path.open("r+b") as file:
        file.truncate(layout.metadata_offset(1))
    async with kept(path) as cache:
        await assert_found(cache, b"a", 16)
        assert path.stat().st_size == layout.file_bytes
        opened = await cache.open([b"b"])
        status = (await cache.read(opened.page_ids())).status
        assert set(status.tolist()) <= {PageStatus.OK, PageStatus.ABSENT}


async def test_any_damage_is_a_miss(path: Path, tmp_path: Path) -> None:
    """Bytes anywhere in the file are changed while it is closed."""
    rng = np.random.default_rng(1)
    async with kept(path) as cache:
        for number in range(40):
            await write(cache, b"%d" % number, 6)
    content = path.read_bytes()
    bad = tmp_path / "bad"
    missed = 0
    for _ in range(40):
        damaged = bytearray(content)
        for offset in rng.integers(2 * BLOCK_BYTES, len(content), 20).tolist():
            damaged[offset] ^= 1 << int(rng.integers(8))
        bad.write_bytes(damaged)
        async with kept(bad) as cache:
            for number in range(40):
                opened = await cache.open([b"%d" % number])
                if opened.pages[0] < 0:
                    missed += 6
                    continue
                result = await cache.read(opened.page_ids())
                good = result.status == PageStatus.OK
                expected = payload(b"%d" % number, 6)
                np.testing.assert_array_equal(result.pages[good], expected[good])
                missed += int(np.count_nonzero(~good))
    assert missed > 0


async def test_reads_and_writes_go_on_while_segments_are_reclaimed(path: Path) -> None:
    """Hot objects are read all the time and stay; all bytes are right, also after a restart."""
    async with kept(path, slots=256, objects_max=4096) as cache:

        async def read_hot() -> None:
            for _ in range(6):
                opened = await cache.open([b"hot"])
                result = await cache.read(opened.page_ids())
                good = result.status == PageStatus.OK
                np.testing.assert_array_equal(result.pages[good], payload(b"hot", 8)[good])
                await asyncio.sleep(0)

        await write(cache, b"hot", 8)
        for number in range(120):
            await write(cache, b"%d" % number, 8)
            if number % 2 == 0:
                await asyncio.gather(read_hot(), write(cache, b"x%d" % number, 3))
        await cache.drain()
        await assert_found(cache, b"hot", 8)
        assert nvme_of(cache).corrupt_pages == 0
    async with kept(path, slots=256, objects_max=4096) as cache:
        await assert_found(cache, b"119", 8)
        # A set may have no room for all that the file still has.
        opened = await cache.open([b"hot"])
        result = await cache.read(opened.page_ids())
        good = result.status == PageStatus.OK
        np.testing.assert_array_equal(result.pages[good], payload(b"hot", 8)[good])
        assert np.count_nonzero(good) >= 6
