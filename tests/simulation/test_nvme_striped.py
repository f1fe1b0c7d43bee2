"""A log striped over several files: it is found again as a whole, or refused."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kept_cache import kept, nvme_of
from small_cache import payload

from kvtier import TieredCache
from kvtier.driver import AsyncDriver
from kvtier.errors import DeviceError, SettingsError
from kvtier.io.stripe_labels import LABEL_BYTES
from kvtier.tiers.log_format import BLOCK_BYTES

pytestmark = pytest.mark.asyncio

PAGES = 200
STRIPE_BYTES = 64 << 10


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, ...]:
    return tuple(tmp_path / name for name in ("a", "b", "c"))


def striped(
    paths: tuple[Path, ...], **more: Any
) -> AbstractAsyncContextManager[TieredCache[AsyncDriver]]:
    return kept(None, paths=paths, **({"slots": 1024, "stripe_bytes": STRIPE_BYTES} | more))


async def write_all(paths: tuple[Path, ...]) -> None:
    async with striped(paths) as cache:
        await cache.write([b"one"], [PAGES], payload(b"one", PAGES))


async def test_what_was_written_is_found_after_a_restart(paths: tuple[Path, ...]) -> None:
    await write_all(paths)
    async with striped(paths) as cache:
        opened = await cache.open([b"one"])
        result = await cache.read(opened.page_ids())
        assert result.ok
        np.testing.assert_array_equal(result.pages, payload(b"one", PAGES))
        assert nvme_of(cache).corrupt_pages == 0
    assert all(path.stat().st_size > STRIPE_BYTES for path in paths)


async def test_one_path_is_a_plain_log(paths: tuple[Path, ...]) -> None:
    await write_all(paths[:1])
    async with striped(paths[:1]) as cache:
        assert (await cache.open([b"one"])).pages.tolist() == [PAGES]
    async with kept(paths[0], slots=1024) as cache:
        assert (await cache.open([b"one"])).pages.tolist() == [PAGES]


async def test_a_rebuilt_set_is_empty(paths: tuple[Path, ...]) -> None:
    await write_all(paths)
    async with striped(paths[::-1], rebuild=True) as cache:
        assert (await cache.open([b"one"])).pages.tolist() == [-1]


@pytest.mark.parametrize(
    ("order", "more", "refusal"),
    [
        ((0, 2, 1), {}, "c is file 3 of 3, and it would be 2 of 3 now"),
        ((0, 1), {}, "a is file 1 of 3, and it would be 1 of 2 now"),
        ((0, 1, 2, 3), {}, "a is file 1 of 3, and it would be 1 of 4 now"),
        (
            (0, 1, 2),
            {"stripe_bytes": 128 << 10},
            "a has stripes of 64 KiB, and they would be of 128 KiB now",
        ),
    ],
    ids=["order", "fewer", "more", "stripe"],
)
async def test_files_that_are_not_the_set_they_were_are_refused(
    paths: tuple[Path, ...], order: tuple[int, ...], more: dict[str, Any], refusal: str
) -> None:
    await write_all(paths)
    named = (*paths, paths[0].with_name("d"))
    before = [path.read_bytes() for path in paths]
    with pytest.raises(SettingsError, match=rf"^tiers\.nvme\.paths: .*{refusal}"):
        async with striped(tuple(named[number] for number in order), **more):
            pass
    assert [path.read_bytes() for path in paths] == before


async def test_a_file_that_is_gone_is_missed(paths: tuple[Path, ...]) -> None:
    await write_all(paths)
    paths[1].unlink()
    with pytest.raises(SettingsError, match=r"b is missing, and .*a is there"):
        async with striped(paths):
            pass


async def test_a_file_of_another_set_is_refused(paths: tuple[Path, ...], tmp_path: Path) -> None:
    others = tuple(tmp_path / name for name in ("d", "e", "f"))
    await write_all(paths)
    await write_all(others)
    with pytest.raises(SettingsError, match=r"e is not of the set of .*a"):
        async with striped((paths[0], others[1], paths[2])):
            pass


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize("number", [0, 2])
async def test_a_file_of_somebody_else_is_never_overwritten(
    paths: tuple[Path, ...], number: int, rebuild: bool
) -> None:
    paths[number].write_bytes(b"my thesis")
    with pytest.raises(SettingsError, match="is there and is no file of a striped tier"):
        async with striped(paths, rebuild=rebuild):
            pass
    assert paths[number].read_bytes() == b"my thesis"
    assert sum(path.exists() for path in paths) == 1


async def test_a_set_that_was_never_finished_is_made_again(paths: tuple[Path, ...]) -> None:
    """Its first file is made last: without that nothing was ever written to the others."""
    await write_all(paths)
    paths[0].unlink()
    async with striped(paths) as cache:
        assert (await cache.open([b"one"])).pages.tolist() == [-1]


async def test_a_second_cache_cannot_take_the_files(paths: tuple[Path, ...]) -> None:
    async with striped(paths):
        with pytest.raises(DeviceError, match="in use by another cache"):
            async with striped(paths):
                pass


async def test_a_page_on_a_file_that_lost_its_end_is_a_miss(paths: tuple[Path, ...]) -> None:
    await write_all(paths)
    with paths[2].open("r+b") as file:
        file.truncate(8192)
    async with striped(paths) as cache:
        opened = await cache.open([b"one"])
        result = await cache.read(opened.page_ids())
        there = result.status == 0
        assert 0 < there.sum() < PAGES
        np.testing.assert_array_equal(result.pages[there], payload(b"one", PAGES)[there])


async def test_a_deleted_object_does_not_come_back_if_the_first_file_is_cut_short(
    paths: tuple[Path, ...],
) -> None:
    """There is the table of what was deleted; the metadata is on others too."""
    async with striped(paths) as cache:
        await cache.write([b"one"], [PAGES], payload(b"one", PAGES))
        await cache.delete([b"one"])
    with paths[0].open("r+b") as file:
        file.truncate(LABEL_BYTES + 2 * BLOCK_BYTES)
    async with striped(paths) as cache:
        assert (await cache.open([b"one"])).pages.tolist() == [-1]
