"""Opening the file behind an engine: what is refused, what is left behind, what is locked."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kvtier.errors import DeviceError, SettingsError
from kvtier.io import QUEUE_DEPTH_MAX, FileEngine, open_engine
from kvtier.rows import aligned_rows


def open_threads(
    path: Path, *, create: bool = True, size_bytes: int | None = 1 << 16, page_bytes: int = 4096
) -> FileEngine:
    return open_engine(
        "threads",
        path,
        direct=True,
        queue_depth=1,
        size_bytes=size_bytes,
        create=create,
        page_bytes=page_bytes,
    )


def close(engine: FileEngine) -> None:
    asyncio.run(engine.close())


def one_line(error: pytest.ExceptionInfo[DeviceError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("name", "nearest"), [("thread", "threads"), ("aiofile", "aiofiles")])
def test_an_unknown_engine_is_answered_with_the_nearest_name(
    tmp_path: Path, name: str, nearest: str
) -> None:
    with pytest.raises(SettingsError, match=f"did you mean '{nearest}'"):
        open_engine(name, tmp_path / "f", direct=False, queue_depth=1, size_bytes=None, create=True)


@pytest.mark.parametrize("queue_depth", [-1, 0, QUEUE_DEPTH_MAX + 1])
def test_a_queue_depth_out_of_range_is_refused(tmp_path: Path, queue_depth: int) -> None:
    with pytest.raises(SettingsError, match="queue_depth"):
        open_engine(
            "threads",
            tmp_path / "f",
            direct=False,
            queue_depth=queue_depth,
            size_bytes=None,
            create=True,
        )
    assert not (tmp_path / "f").exists()


def test_a_created_file_has_its_size_from_the_start(tmp_path: Path) -> None:
    engine = open_threads(tmp_path / "f", size_bytes=1 << 20)
    status = (tmp_path / "f").stat()
    close(engine)
    assert status.st_size == 1 << 20
    assert status.st_blocks * 512 >= 1 << 20


def test_an_existing_file_is_emptied(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 8192)
    close(open_threads(tmp_path / "f", size_bytes=4096))
    assert (tmp_path / "f").read_bytes() == bytes(4096)


def test_a_file_that_only_this_user_may_read_is_made(tmp_path: Path) -> None:
    close(open_threads(tmp_path / "f"))
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "f"
    with pytest.raises(DeviceError) as error:
        open_threads(path)
    assert str(path) in one_line(error)
    assert "make its directory first" in one_line(error)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError) as error:
        open_threads(tmp_path / "f", create=False)
    assert str(tmp_path / "f") in one_line(error)


@pytest.mark.parametrize("create", [True, False])
def test_a_directory_is_refused(tmp_path: Path, create: bool) -> None:
    with pytest.raises(DeviceError, match="no regular file"):
        open_threads(tmp_path, create=create)


@pytest.mark.parametrize("create", [True, False])
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path, create: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DeviceError, match="no regular file"):
        open_threads(tmp_path / "pipe", create=create)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Files are opened with the rights of nobody in particular, also when root runs the tests."""
    setfsuid = ctypes.CDLL(None).setfsuid
    setfsuid(65534)
    try:
        yield
    finally:
        setfsuid(os.getuid())


def test_a_directory_that_one_may_not_write_is_named(tmp_path: Path) -> None:
    place = tmp_path / "read-only"
    place.mkdir(mode=0o500)
    with as_nobody(), pytest.raises(DeviceError) as error:
        open_threads(place / "f")
    assert str(place / "f") in one_line(error)
    assert one_line(error).endswith("give this user the right to, or choose another path")
    assert not list(place.iterdir())


def test_a_file_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(DeviceError, match="Not a directory"):
        open_threads(tmp_path / "f" / "g")


def test_a_file_system_that_takes_no_files_is_named() -> None:
    with pytest.raises(DeviceError, match=r"cannot create /proc/kvtier"):
        open_threads(Path("/proc/kvtier"))


def test_more_than_the_disk_holds_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DeviceError) as error:
        open_threads(tmp_path / "f", size_bytes=1 << 60)
    assert "1024 PiB" in one_line(error)
    assert not (tmp_path / "f").exists()


def test_a_refusal_leaves_a_file_that_was_there_in_place(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(DeviceError):
        open_threads(tmp_path / "f", size_bytes=1 << 60)
    assert (tmp_path / "f").exists()


def test_a_refusal_closes_the_file(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(8):
        with pytest.raises(DeviceError):
            open_threads(tmp_path / "f", size_bytes=1 << 60)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_second_opener_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    first = open_threads(tmp_path / "f", size_bytes=8192)
    with pytest.raises(DeviceError, match="in use by another cache"):
        open_threads(tmp_path / "f", size_bytes=4096)
    assert (tmp_path / "f").stat().st_size == 8192
    close(first)
    close(open_threads(tmp_path / "f", size_bytes=4096))


def test_a_file_system_without_direct_access_is_read_through_the_page_cache() -> None:
    """The kernel's own pseudo files cannot be read with O_DIRECT."""
    engine = open_threads(Path("/proc/version"), create=False)
    assert not engine.direct
    assert engine.alignment_bytes == 1
    close(engine)


@pytest.mark.asyncio
async def test_pages_smaller_than_a_device_block_still_move(tmp_path: Path) -> None:
    """O_DIRECT is dropped where the device cannot move so little at once."""
    engine = open_threads(tmp_path / "f", page_bytes=64)
    source = aligned_rows(2, 64)
    source[:] = np.arange(128, dtype=np.uint8).reshape(2, 64)
    out = aligned_rows(2, 64)
    offsets, lengths, rows = np.array([64, 192]), np.array([64, 64]), np.array([0, 1])
    assert (await engine.write(offsets, lengths, source, rows)).tolist() == [64, 64]
    assert (await engine.read(offsets, lengths, out, rows)).tolist() == [64, 64]
    await engine.close()
    np.testing.assert_array_equal(out, source)
