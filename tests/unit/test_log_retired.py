"""The table of retired keys: what is in it is there again, and it never forgets too early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from log_files import FILE_ID, log_file

from kvtier.errors import DeviceError
from kvtier.identities import fingerprint_of
from kvtier.io.faults import FaultyEngine
from kvtier.settings import FaultSettings, WriteFaultSettings
from kvtier.tiers.log_format import BLOCK_BYTES, RECORDS, LogLayout
from kvtier.tiers.log_retired import NOTHING, RetiredKeys

pytestmark = pytest.mark.asyncio

LAYOUT = LogLayout(segments=12, segment_pages=8, page_bytes=512)
ROOM = LAYOUT.retired_blocks * RECORDS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def keys(first: int, last: int, version: int = 1) -> list[tuple[bytes, int]]:
    return [(fingerprint_of(b"%d" % number), version) for number in range(first, last)]


def known(retired: RetiredKeys) -> dict[int, int]:
    words, versions = retired.versions()
    return dict(zip(words.tolist(), versions.tolist(), strict=True))


def expected(of: list[tuple[bytes, int]]) -> dict[int, int]:
    return {int.from_bytes(key[:8], "little"): version for key, version in of}


async def change(path: Path, *changes: tuple[list[tuple[bytes, int]], int, int]) -> RetiredKeys:
    """The table as it is after each change (keys, newest, oldest generation) was saved."""
    is_new = not path.exists()
    async with log_file(path, LAYOUT) as file:
        retired = RetiredKeys(file, [path], LAYOUT, FILE_ID)
        if is_new:
            await retired.make()
        await retired.load()
        for of, newest, oldest in changes:
            retired.add(of, newest, oldest)
            await retired.save()
        return retired


async def test_what_was_saved_is_there_again(path: Path) -> None:
    assert known(await change(path)) == {}
    await change(path, (keys(0, 10), 5, 1), (keys(200, 300), 6, 1))
    assert known(await change(path)) == expected(keys(0, 10) + keys(200, 300))


async def test_a_key_has_one_record_with_its_latest_version(path: Path) -> None:
    changes = [(keys(0, 4, version), version, 1) for version in (3, 9, 7)]
    assert known(await change(path, *changes)) == expected(keys(0, 4, 9))
    assert known(await change(path)) == expected(keys(0, 4, 9))


async def test_records_are_replaced_once_the_log_has_gone_round(path: Path) -> None:
    full = await change(path, (keys(0, ROOM), 5, 1))
    assert (len(known(full)), full.floor) == (ROOM, 0)
    later = await change(path, (keys(ROOM, ROOM + 20), 9, 6))
    assert later.floor == 0
    assert expected(keys(ROOM, ROOM + 20)).items() <= known(await change(path)).items()


async def test_a_full_table_gives_up_what_was_written_rather_than_forget(path: Path) -> None:
    await change(path, (keys(0, ROOM), 5, 1))
    overfull = await change(path, (keys(ROOM, ROOM + 1), 8, 5))
    assert overfull.floor == 8
    assert (await change(path, (keys(0, 3), 9, 5))).floor == 8
    assert expected(keys(0, 3)).items() <= known(await change(path)).items()


async def test_a_key_that_is_retired_again_keeps_its_record(path: Path) -> None:
    """Its old one might have been replaced, and would have been next."""
    again = keys(1, 2, 2)
    table = await change(
        path,
        (keys(0, ROOM), 5, 1),
        (keys(ROOM, ROOM + 1), 9, 6),
        (again, 10, 6),
        (keys(ROOM + 1, ROOM + 3), 10, 6),
    )
    assert table.floor == 0
    assert expected(again).items() <= known(await change(path)).items()


async def test_before_a_record_is_replaced_what_made_it_needless_is_on_the_drive(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await change(path, (keys(0, ROOM), 5, 1))
    steps: list[str] = []
    async with log_file(path, LAYOUT) as file:
        retired = RetiredKeys(file, [path], LAYOUT, FILE_ID)
        await retired.load()
        sync, put = retired.sync, retired._put

        async def noted_sync() -> None:
            steps.append("sync")
            await sync()

        async def noted_put(*extents: Any) -> None:
            steps.append("write")
            await put(*extents)

        monkeypatch.setattr(retired, "sync", noted_sync)
        monkeypatch.setattr(retired, "_put", noted_put)
        retired.add(keys(ROOM, ROOM + 1), 9, 6)
        await retired.save()
        retired.add(keys(ROOM, ROOM + 1, 2), 9, 6)
        await retired.save()
    assert steps == ["sync", "write", "sync", "write", "sync"]


@pytest.mark.parametrize("damage", [b"x" * 512, bytes(BLOCK_BYTES)], ids=["flipped", "gone"])
@pytest.mark.parametrize("copy", [0, 1])
async def test_if_a_copy_is_not_whole_nothing_is_believed(
    path: Path, caplog: pytest.LogCaptureFixture, copy: int, damage: bytes
) -> None:
    """It may be the newer one, and the key that it alone has would come back."""
    await change(path, (keys(0, 4), 5, 1), (keys(4, 6), 5, 1))
    with path.open("r+b") as file:
        block = 2 * LAYOUT.retired_blocks - 2 + copy
        file.seek(LAYOUT.retired_offset + block * BLOCK_BYTES)
        file.write(damage)
    retired = await change(path)
    assert retired.floor == NOTHING
    assert "the table of retired keys is damaged" in caplog.text
    retired.settle(40)
    assert retired.floor == 40


async def test_a_damaged_table_is_whole_again_at_once(path: Path) -> None:
    await change(path, (keys(0, 4), 5, 1))
    with path.open("r+b") as file:
        file.seek(LAYOUT.retired_offset)
        file.write(b"x" * (2 * LAYOUT.retired_blocks * BLOCK_BYTES))
    async with log_file(path, LAYOUT) as file:
        retired = RetiredKeys(file, [path], LAYOUT, FILE_ID)
        await retired.load()
        retired.settle(40)
        await retired.save()
    later = await change(path, (keys(0, 3), 50, 41))
    assert (later.floor, known(later)) == (40, expected(keys(0, 3)))


@pytest.mark.parametrize("kind", ["lost", "flipped", "torn"])
async def test_a_record_that_the_drive_does_not_keep_is_written_again_or_refused(
    path: Path, kind: str
) -> None:
    await change(path)
    writes = WriteFaultSettings(**{f"{kind}_share": 0.5})
    saved = refused = 0
    async with log_file(path, LAYOUT) as inner:
        file = FaultyEngine(inner, FaultSettings(writes=writes), LAYOUT.file_bytes)
        retired = RetiredKeys(file, [path], LAYOUT, FILE_ID)
        await retired.load()
        for number in range(40):
            retired.add(keys(number, number + 1), 5, 1)
            try:
                await retired.save()
            except DeviceError:
                refused += 1
                continue
            saved += 1
            found = RetiredKeys(inner, [path], LAYOUT, FILE_ID)
            await found.load()
            assert (found.floor, known(found)) == (0, expected(keys(0, number + 1)))
    assert saved > refused > 0
