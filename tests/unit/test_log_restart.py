"""Reading a log's metadata: which of several claims counts, and what does not count at all."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pytest
from log_files import FILE_ID, log_file

from kvtier.errors import DeviceError
from kvtier.identities import KEY, Identities, fingerprint_of
from kvtier.io import FileEngine
from kvtier.io.faults import FaultyEngine
from kvtier.pages import I64, U8, U64
from kvtier.settings import FaultSettings, ReadFaultSettings, WriteFaultSettings
from kvtier.tiers import log_restart, log_scan
from kvtier.tiers.log_format import BLOCK_BYTES, LogLayout
from kvtier.tiers.log_mirror import LogMirror, metadata_memory
from kvtier.tiers.log_reading import NAMED, STORED
from kvtier.tiers.log_restart import LogContent, read_log
from kvtier.tiers.log_retired import RetiredKeys

pytestmark = pytest.mark.asyncio

LAYOUT = LogLayout(segments=20, segment_pages=100, page_bytes=512)


class Claim(NamedTuple):
    """That pages of an object lie from a location on."""

    key: bytes
    object_id: int
    version: int
    location: int
    count: int = 4
    local: bool = True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def write(path: Path, segment: int, generation: int, claims: Iterable[Claim]) -> None:
    """Write the metadata of a segment."""
    identities = Identities(1 << 10)
    mirror = LogMirror(LAYOUT, identities, FILE_ID)
    mirror.begin(segment, generation)
    for claim in claims:
        fingerprint = fingerprint_of(claim.key)
        identities.put(claim.object_id, fingerprint, claim.version, 10, local=claim.local)
        pages = np.arange(claim.count)
        mirror.page_ids[claim.location + pages] = claim.object_id << 32 | pages
        mirror.states[claim.location + pages] = STORED | NAMED
    memory = metadata_memory(LAYOUT.metadata_blocks)
    mirror.compose(segment, np.arange(LAYOUT.metadata_blocks), memory)
    with path.open("r+b") as file:
        file.seek(LAYOUT.metadata_offset(segment))
        file.write(memory.data)


async def read(path: Path, objects_max: int = 100) -> tuple[LogContent, Identities]:
    async with log_file(path, LAYOUT) as file:
        identities = Identities(objects_max)
        retired = RetiredKeys(file, [path], LAYOUT, FILE_ID)
        await retired.load()
        return await read_log(file, LAYOUT, LogMirror(LAYOUT, identities, FILE_ID), retired), (
            identities
        )


async def make(path: Path) -> None:
    async with log_file(path, LAYOUT) as file:
        await RetiredKeys(file, [path], LAYOUT, FILE_ID).make()


def located(content: LogContent) -> dict[int, list[int]]:
    """The locations of each object's pages."""
    found: dict[int, list[int]] = {}
    for page_id, location in zip(
        content.page_ids.tolist(), content.locations.tolist(), strict=True
    ):
        found.setdefault(page_id >> 32, []).append(location)
    return found


def ids(objects: U64) -> list[int]:
    keys: I64 = np.sort(objects[:, KEY].astype(np.int64))
    return [key - 1 for key in keys.tolist()]


async def test_an_empty_log_holds_nothing(path: Path) -> None:
    await make(path)
    content, identities = await read(path)
    assert (len(content.page_ids), len(identities)) == (0, 0)
    assert not content.generations.any()
    assert content.restored[1:] == (0, 1)


@pytest.mark.parametrize("group_bytes", [1, 5 * BLOCK_BYTES, 1 << 20])
async def test_objects_and_pages_of_all_segments_are_found(
    path: Path, monkeypatch: pytest.MonkeyPatch, group_bytes: int
) -> None:
    monkeypatch.setattr(log_scan, "GROUP_BYTES", group_bytes)
    await make(path)
    for segment in range(LAYOUT.segments):
        claims = [
            Claim(b"%d/%d" % (segment, at), 50 * segment + at, at, 100 * segment + 10 * at, 9)
            for at in range(10)
        ]
        write(path, segment, 1 + segment, claims)
    content, identities = await read(path, objects_max=1000)
    assert located(content) == {
        50 * segment + at: [*range(100 * segment + 10 * at, 100 * segment + 10 * at + 9)]
        for segment in range(LAYOUT.segments)
        for at in range(10)
    }
    assert content.generations.tolist() == [*range(1, 1 + LAYOUT.segments)]
    assert len(identities) == 200
    assert content.restored[1:] == (50 * 19 + 9 + 1, 9 + 1)


async def test_only_the_newest_generation_of_a_segment_counts(path: Path) -> None:
    await make(path)
    write(path, 3, 5, [Claim(b"old", 1, 1, 300), Claim(b"older", 2, 1, 390)])
    with path.open("r+b") as file:
        file.seek(LAYOUT.metadata_offset(3) + BLOCK_BYTES)
        second = file.read(BLOCK_BYTES)
        write(path, 3, 25, [Claim(b"new", 3, 1, 305)])
        file.seek(LAYOUT.metadata_offset(3) + BLOCK_BYTES)
        file.write(second)  # as if the second block was not written anew yet
    content, _ = await read(path)
    assert located(content) == {3: [305, 306, 307, 308]}
    assert content.generations[3] == 25


async def test_of_two_objects_with_one_id_the_one_written_last_counts(path: Path) -> None:
    await make(path)
    write(path, 4, 9, [Claim(b"second", 7, 2, 400)])
    write(path, 5, 8, [Claim(b"first", 7, 1, 500), Claim(b"second", 8, 3, 510)])
    content, _ = await read(path)
    # Of the two with one key, the later version; and object 7 is no other's for all that.
    assert located(content) == {8: [510, 511, 512, 513]}


async def test_of_two_versions_the_later_counts_wherever_it_lies(path: Path) -> None:
    await make(path)
    write(path, 1, 30, [Claim(b"a", 1, 4, 100), Claim(b"b", 5, 40, 110, local=False)])
    write(path, 2, 29, [Claim(b"a", 2, 5, 200), Claim(b"b", 6, 50, 210, local=False)])
    content, _ = await read(path)
    assert located(content) == {
        2: [200, 201, 202, 203],
        5: [110, 111, 112, 113],  # of an origin's, the one that was written last
    }


async def test_the_oldest_objects_make_room_and_do_not_come_back(path: Path) -> None:
    await make(path)
    for segment in range(10):
        write(
            path,
            segment,
            1 + segment,
            [Claim(b"%d" % segment, segment, segment + 1, segment * 100)],
        )
    content, identities = await read(path, objects_max=4)
    assert ids(content.restored.objects) == [6, 7, 8, 9]
    assert sorted(located(content)) == [6, 7, 8, 9]
    assert len(identities) == 4
    content, _ = await read(path)
    assert ids(content.restored.objects) == [6, 7, 8, 9]


async def test_many_that_make_room_are_given_up_by_their_age(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_restart, "DROPPED_MAX", 2)
    await test_the_oldest_objects_make_room_and_do_not_come_back(path)


@pytest.mark.parametrize("damage", [(0, 0), (24, 0), (32, 0), (36, 0), (200, 0), (200, 1)])
async def test_a_block_that_is_not_whole_is_as_if_it_was_not_there(
    path: Path, damage: tuple[int, int]
) -> None:
    await make(path)
    write(path, 3, 5, [Claim(b"a", 1, 1, 300), Claim(b"b", 2, 1, 390)])
    offset, block = damage
    with path.open("r+b") as file:
        file.seek(LAYOUT.metadata_offset(3) + block * BLOCK_BYTES + offset)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))
    content, _ = await read(path)
    assert sorted(located(content)) == [2 - block]


async def test_metadata_of_another_place_or_file_is_not_believed(path: Path) -> None:
    await make(path)
    write(path, 3, 5, [Claim(b"a", 1, 1, 300)])
    with path.open("r+b") as file:
        file.seek(LAYOUT.metadata_offset(3))
        block = file.read(BLOCK_BYTES)
        file.seek(LAYOUT.metadata_offset(6))
        file.write(block)
    content, _ = await read(path)
    assert located(content) == {1: [300, 301, 302, 303]}
    async with log_file(path, LAYOUT) as file:
        other = FILE_ID + np.uint64(1)
        retired = RetiredKeys(file, [path], LAYOUT, other)
        mirror = LogMirror(LAYOUT, Identities(10), other)
        content = await read_log(file, LAYOUT, mirror, retired)
    assert len(content.page_ids) == 0


class _Blind:
    """An engine that cannot read one segment's metadata."""

    def __init__(self, inner: FileEngine, segment: int) -> None:
        self._inner = inner
        self._offset = LAYOUT.metadata_offset(segment)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def read(self, offsets_bytes: I64, lengths_bytes: I64, out: U8, rows: I64) -> I64:
        done = await self._inner.read(offsets_bytes, lengths_bytes, out, rows)
        return np.where(offsets_bytes == self._offset, -errno.EIO, done)


async def test_what_could_not_be_read_once_does_not_come_back(path: Path) -> None:
    """Its object may have been deleted or rewritten meanwhile, unknown as it was."""
    await make(path)
    write(path, 3, 5, [Claim(b"a", 1, 1, 300)])
    write(path, 4, 6, [Claim(b"b", 2, 2, 400)])
    async with log_file(path, LAYOUT) as file:
        retired = RetiredKeys(file, [path], LAYOUT, FILE_ID)
        await retired.load()
        mirror = LogMirror(LAYOUT, Identities(100), FILE_ID)
        blind = cast("FileEngine", _Blind(file, 3))
        assert sorted(located(await read_log(blind, LAYOUT, mirror, retired))) == [2]
    content, _ = await read(path)
    assert sorted(located(content)) == [2]


async def test_what_is_hidden_behind_a_newer_block_does_not_come_back(path: Path) -> None:
    await make(path)
    write(path, 3, 5, [Claim(b"old", 1, 1, 390)])
    with path.open("r+b") as file:
        file.seek(LAYOUT.metadata_offset(3) + BLOCK_BYTES)
        second = file.read(BLOCK_BYTES)
        write(path, 3, 25, [Claim(b"new", 3, 1, 305)])
        file.seek(LAYOUT.metadata_offset(3) + BLOCK_BYTES)
        file.write(second)
    content, _ = await read(path)
    assert sorted(located(content)) == [3]
    with path.open("r+b") as file:
        file.seek(LAYOUT.metadata_offset(3))
        file.write(bytes(BLOCK_BYTES))  # the newer one is gone
    content, _ = await read(path)
    assert located(content) == {}


async def test_what_can_neither_be_read_nor_overwritten_is_an_error(path: Path) -> None:
    await make(path)
    write(path, 3, 5, [Claim(b"a", 1, 1, 300)])
    async with log_file(path, LAYOUT) as inner:
        faults = FaultSettings(
            reads=ReadFaultSettings(fail_share=1.0), writes=WriteFaultSettings(fail_share=1.0)
        )
        retired = RetiredKeys(inner, [path], LAYOUT, FILE_ID)
        await retired.load()
        mirror = LogMirror(LAYOUT, Identities(100), FILE_ID)
        file = FaultyEngine(inner, faults, LAYOUT.file_bytes)
        with pytest.raises(DeviceError, match="neither be read nor overwritten"):
            await read_log(file, LAYOUT, mirror, retired)
