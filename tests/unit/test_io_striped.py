"""Several files that are one: whatever the stripes, it reads and writes as one file does."""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from io_engines import engine_names

from kvtier.errors import ClosedError, DeviceError, LimitError
from kvtier.io import FileEngine, open_engine, open_striped
from kvtier.io.stripe_labels import (
    LABEL_BYTES,
    Label,
    decode_label,
    encode_label,
    is_whole_set,
    new_labels,
)
from kvtier.io.striped import StripedEngine, file_sizes, stripe_bytes_for
from kvtier.pages import I64, U8
from kvtier.rows import aligned_rows
from kvtier.settings import load_settings

PAGE_BYTES = 4096
PAGES = 60


@asynccontextmanager
async def opened(
    directory: Path,
    *,
    files: int = 3,
    stripe_pages: int = 2,
    name: str = "threads",
    direct: bool = True,
) -> AsyncIterator[FileEngine]:
    engine = await open_striped(
        name,
        [directory / f"f{number}" for number in range(files)],
        stripe_bytes=stripe_pages * PAGE_BYTES,
        direct=direct,
        queue_depth=2,
        size_bytes=PAGES * PAGE_BYTES,
        page_bytes=PAGE_BYTES,
    )
    try:
        yield engine
    finally:
        await engine.close()


def random_pages(seed: int = 1) -> U8:
    pages = aligned_rows(PAGES, PAGE_BYTES)
    pages[:] = np.random.default_rng(seed).integers(0, 256, pages.shape, np.uint8)
    return pages


def numbers(*values: int) -> I64:
    return np.array(values, np.int64)


@pytest.mark.asyncio
@pytest.mark.parametrize("name", engine_names())
async def test_stripes_lie_in_one_file_after_the_other(tmp_path: Path, name: str) -> None:
    source, out = random_pages(), aligned_rows(PAGES, PAGE_BYTES)
    whole = numbers(PAGES * PAGE_BYTES)
    async with opened(tmp_path, name=name) as engine:
        assert engine.name == name
        assert (await engine.write(numbers(0), whole, source, numbers(0))).tolist() == [*whole]
        assert (await engine.read(numbers(0), whole, out, numbers(0))).tolist() == [*whole]
    np.testing.assert_array_equal(out, source)
    stripes = source.reshape(-1, 3, 2 * PAGE_BYTES)
    for number in range(3):
        held = (tmp_path / f"f{number}").read_bytes()
        assert held[LABEL_BYTES:] == stripes[:, number].tobytes()


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example makes new files
)
@given(
    files=st.integers(1, 5),
    stripe_pages=st.integers(1, 9),
    extents=st.lists(
        st.tuples(st.integers(0, PAGES * PAGE_BYTES), st.integers(0, 12 * PAGE_BYTES)), max_size=8
    ),
)
def test_extents_of_any_bytes_are_those_of_one_file(
    tmp_path: Path, files: int, stripe_pages: int, extents: list[tuple[int, int]]
) -> None:
    source = random_pages()
    content = source.tobytes()
    offsets, lengths = np.array(extents, np.int64).reshape(-1, 2).T
    counts = -(-lengths // PAGE_BYTES)
    rows = np.cumsum(counts) - counts
    out = np.zeros((int(counts.sum()), PAGE_BYTES), np.uint8)

    async def move() -> I64:
        async with opened(tmp_path, files=files, stripe_pages=stripe_pages, direct=False) as engine:
            await engine.write(numbers(0), numbers(len(content)), source, numbers(0))
            return await engine.read(offsets, lengths, out, rows)

    done = asyncio.run(move())
    held = stripe_pages * PAGE_BYTES * -(-PAGES // stripe_pages)
    for (offset, length), row, count in zip(extents, rows, done, strict=True):
        wanted = content[offset : offset + length]
        got = out[row:].tobytes()[: len(wanted)]
        assert got == wanted
        # Behind the last page the last stripe goes on, and is empty.
        end = held if files > 1 else len(content)
        assert count == max(0, min(offset + length, end) - offset)


@pytest.mark.asyncio
async def test_a_file_that_ends_early_cuts_an_extent_there(tmp_path: Path) -> None:
    out = aligned_rows(PAGES, PAGE_BYTES)
    async with opened(tmp_path) as engine:
        await engine.write(numbers(0), numbers(PAGES * PAGE_BYTES), random_pages(), numbers(0))
        with (tmp_path / "f1").open("r+b") as file:
            file.truncate(LABEL_BYTES + 3 * PAGE_BYTES)  # its stripes hold pages 2, 3, 8, 9, 14, …
        done = await engine.read(
            numbers(0, 10, 9) * PAGE_BYTES,
            numbers(12, 3, 1) * PAGE_BYTES,
            out,
            numbers(0, 12, 15),
        )
    assert done.tolist() == [9 * PAGE_BYTES, 3 * PAGE_BYTES, 0]
    np.testing.assert_array_equal(out[:9], random_pages()[:9])


@pytest.mark.asyncio
async def test_a_file_that_fails_fails_the_extents_over_it(tmp_path: Path) -> None:
    async with opened(tmp_path, files=2) as engine:
        assert isinstance(engine, StripedEngine)
        (tmp_path / "g").write_bytes(bytes(64 * PAGE_BYTES))
        read_only = open_engine(
            "threads", tmp_path / "g", direct=True, queue_depth=1, size_bytes=None, create=False
        )
        pair = StripedEngine([engine, read_only], 2 * PAGE_BYTES)
        done = await pair.write(
            numbers(0, 4, 2) * PAGE_BYTES,
            numbers(2, 4, 1) * PAGE_BYTES,
            random_pages(),
            numbers(0, 2, 6),
        )
        assert done.tolist() == [2 * PAGE_BYTES, -errno.EBADF, -errno.EBADF]
        await pair.close()


@pytest.mark.asyncio
async def test_a_cancelled_read_leaves_memory_alone_once_it_has_raised(tmp_path: Path) -> None:
    out = aligned_rows(PAGES, PAGE_BYTES)
    order = np.arange(PAGES)
    async with opened(tmp_path) as engine:
        await engine.write(numbers(0), numbers(PAGES * PAGE_BYTES), random_pages(), numbers(0))
        reading = asyncio.ensure_future(
            engine.read(order * PAGE_BYTES, np.full(PAGES, PAGE_BYTES), out, order)
        )
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        out[:] = 0
    assert not out.any()


@pytest.mark.asyncio
async def test_a_closed_engine_refuses_empty_batches_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        await engine.close()
        for count in (0, 1):
            extents = np.zeros(count, np.int64)
            with pytest.raises(ClosedError):
                await engine.read(extents, extents, aligned_rows(1, PAGE_BYTES), extents)


@pytest.mark.asyncio
async def test_an_extent_that_leaves_its_memory_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        with pytest.raises(LimitError, match="leaves its memory of 1 rows of 4096 bytes"):
            await engine.read(numbers(0), numbers(8192), aligned_rows(1, PAGE_BYTES), numbers(0))


@pytest.mark.asyncio
async def test_a_file_that_cannot_be_opened_takes_the_new_ones_with_it(tmp_path: Path) -> None:
    (tmp_path / "f1").mkdir()
    with pytest.raises(DeviceError, match="f1 is no regular file"):
        async with opened(tmp_path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["f1"]


@pytest.mark.asyncio
async def test_one_path_is_one_plain_file(tmp_path: Path) -> None:
    async with opened(tmp_path, files=1) as engine:
        assert not isinstance(engine, StripedEngine)
    assert (tmp_path / "f0").stat().st_size == PAGES * PAGE_BYTES


@pytest.mark.parametrize("page_bytes", [512, 1536, 4096, 12288, 640 << 10, 4 << 20])
def test_stripes_cut_neither_pages_nor_blocks(page_bytes: int) -> None:
    stripe_bytes = stripe_bytes_for(512 << 10, page_bytes)
    assert stripe_bytes >= 512 << 10
    assert stripe_bytes % page_bytes == stripe_bytes % 4096 == 0


@given(size_bytes=st.integers(0, 1 << 20), files=st.integers(1, 9), stripe_pages=st.integers(1, 8))
def test_files_hold_what_is_striped_over_them(
    size_bytes: int, files: int, stripe_pages: int
) -> None:
    stripe_bytes = stripe_pages * PAGE_BYTES
    sizes = file_sizes(size_bytes, files, stripe_bytes)
    stripes = -(-size_bytes // stripe_bytes)
    held = [len(range(number, stripes, files)) * stripe_bytes for number in range(files)]
    assert sizes == held


def test_a_label_is_read_back_and_a_damaged_one_is_none() -> None:
    label = Label(2, 3, 512 << 10, bytes(range(16)))
    block = encode_label(label)
    assert len(block) == LABEL_BYTES
    assert block[:8] == b"KVTSTRIP"
    assert block[8:48] == struct.pack("<IIIIQ16s", 1, 2, 3, 0, 512 << 10, bytes(range(16)))
    assert decode_label(block) == label
    for at in range(64):
        damaged = bytearray(block)
        damaged[at] ^= 1
        assert decode_label(bytes(damaged)) is None
    assert decode_label(block[:63]) is None
    assert decode_label(b"") is None


def test_two_sets_are_told_apart() -> None:
    labels = [decode_label(block) for block in new_labels(2, 65536) + new_labels(2, 65536)]
    assert len({label.set_id for label in labels if label is not None}) == 2


def test_a_set_that_cannot_be_read_is_a_device_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DeviceError, match=r"cannot open .*a: Is a directory"):
        is_whole_set([tmp_path / "a", tmp_path / "b"], 65536, rebuild=False)


def test_paths_are_read_from_settings(tmp_path: Path) -> None:
    listed = f"['{tmp_path}/a', '{tmp_path}/b']"
    loaded = load_settings(None, [f"tiers.nvme.paths={listed}", "tiers.nvme.stripe=1MiB"])
    tier = loaded.tiers[-1]
    assert tier.files == (tmp_path / "a", tmp_path / "b")
    assert tier.stripe_bytes == 1 << 20
