"""The table of retired keys: what is in it is there again, and it never forgets too early."""

from __future__ import annotations

from pathlib import Path

import pytest
from log_files import FILE_ID, log_file

from kvtier.identities import fingerprint_of
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
    async with log_file(path, LAYOUT) as file:
        retired = RetiredKeys(file, [path], LAYOUT, FILE_ID)
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


@pytest.mark.parametrize("copy", [0, 1])
async def test_a_torn_block_leaves_its_other_copy(path: Path, copy: int) -> None:
    await change(path, (keys(0, 4), 5, 1), (keys(4, 6), 5, 1))
    with path.open("r+b") as file:
        # The last writing, the second one, went to copy 0 of the last block.
        block = 2 * LAYOUT.retired_blocks - 2 + copy
        file.seek(LAYOUT.retired_offset + block * BLOCK_BYTES + 512)
        file.write(b"x" * 512)
    retired = await change(path)
    assert retired.floor == 0
    assert known(retired) == expected(keys(0, 4) if copy == 0 else keys(0, 6))


async def test_if_no_copy_is_whole_nothing_is_believed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await change(path, (keys(0, 4), 5, 1))
    with path.open("r+b") as file:
        file.seek(LAYOUT.retired_offset + (2 * LAYOUT.retired_blocks - 1) * BLOCK_BYTES + 90)
        file.write(b"x")
    retired = await change(path)
    assert retired.floor == NOTHING
    assert "the table of retired keys is damaged" in caplog.text
    retired.settle(40)
    assert retired.floor == 40
