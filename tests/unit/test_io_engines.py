"""What every I/O engine does with a batch, on real files: on disk and in memory (tmpfs)."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from io_engines import engine_names

from kvtier.errors import ClosedError, LimitError
from kvtier.io import FileEngine, open_engine
from kvtier.io.aio import AiofilesEngine
from kvtier.io.faults import FaultyEngine
from kvtier.io.file import OpenFile
from kvtier.io.ring import Ring
from kvtier.io.threads import ThreadEngine
from kvtier.io.uring import UringEngine
from kvtier.pages import I64, U8
from kvtier.rows import aligned_rows
from kvtier.settings import FaultSettings

pytestmark = pytest.mark.asyncio

PAGE_BYTES = 4096
PAGES = 64


@pytest.fixture(params=["disk", "tmpfs"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk" or not Path("/dev/shm").is_dir():
        yield tmp_path
    else:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
            yield Path(path)


FAULTY = "faulty "
"""Before an engine's name: it stands behind a drive that may misbehave, but does not."""


@pytest.fixture(params=[*engine_names(), *engine_names(prefix=FAULTY)])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def opened(
    name: str,
    path: Path,
    *,
    direct: bool = True,
    queue_depth: int = 4,
    create: bool = True,
    pages: int = PAGES,
) -> AsyncIterator[FileEngine]:
    engine = open_engine(
        name.removeprefix(FAULTY),
        path,
        direct=direct,
        queue_depth=queue_depth,
        size_bytes=pages * PAGE_BYTES,
        create=create,
    )
    if name.startswith(FAULTY):
        engine = FaultyEngine(engine, FaultSettings(), pages * PAGE_BYTES)
    try:
        yield engine
    finally:
        await engine.close()


def random_pages(count: int, seed: int = 1) -> U8:
    pages = aligned_rows(count, PAGE_BYTES)
    pages[:] = np.random.default_rng(seed).integers(0, 256, pages.shape, np.uint8)
    return pages


def at(*pages: int) -> I64:
    """Offsets of pages in the file."""
    return np.array(pages, np.int64) * PAGE_BYTES


def lengths(*pages: int) -> I64:
    return np.array(pages, np.int64) * PAGE_BYTES


def rows(*numbers: int) -> I64:
    return np.array(numbers, np.int64)


def threads_and_descriptors() -> tuple[int, int]:
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


def in_a_thread(move: Callable[[], Coroutine[Any, Any, I64]]) -> I64:
    """Run it in a new thread and loop; a second thread may get the number that the first had."""
    answers: list[I64] = []
    thread = threading.Thread(target=lambda: answers.append(asyncio.run(move())))
    thread.start()
    thread.join()
    return answers[0]


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("direct", [True, False])
async def test_pages_written_in_any_order_are_read_in_any_other(
    name: str, directory: Path, direct: bool
) -> None:
    source = random_pages(PAGES)
    out = aligned_rows(PAGES, PAGE_BYTES)
    rng = np.random.default_rng(2)
    one = np.full(PAGES, PAGE_BYTES)
    async with opened(name, directory / "f", direct=direct) as engine:
        to, place = rng.permutation(PAGES), rng.permutation(PAGES)
        assert (await engine.write(to * PAGE_BYTES, one, source, np.arange(PAGES)) == one).all()
        assert (await engine.read(to * PAGE_BYTES, one, out, place) == one).all()
    np.testing.assert_array_equal(out[place], source)


async def test_direct_access_is_used_only_where_asked_for(name: str, tmp_path: Path) -> None:
    async with opened(name, tmp_path / "f", direct=False) as engine:
        assert not engine.direct
        assert engine.alignment_bytes == 1


async def test_an_extent_fills_the_rows_that_follow(name: str, directory: Path) -> None:
    source = random_pages(8)
    out = aligned_rows(8, PAGE_BYTES)
    async with opened(name, directory / "f") as engine:
        await engine.write(at(0), lengths(8), source, rows(0))
        await engine.read(at(5, 1), lengths(2, 3), out, rows(0, 3))
    np.testing.assert_array_equal(out[:2], source[5:7])
    np.testing.assert_array_equal(out[3:6], source[1:4])
    assert not out[[2, 6, 7]].any()


@pytest.mark.parametrize(("count", "queue_depth"), [(1, 1), (1, 8), (3, 8), (7, 3), (40, 8)])
async def test_every_extent_is_moved_once_however_a_batch_is_shared_out(
    name: str, tmp_path: Path, count: int, queue_depth: int
) -> None:
    source = random_pages(count)
    out = aligned_rows(count, PAGE_BYTES)
    order = np.arange(count)
    one = np.full(count, PAGE_BYTES)
    async with opened(name, tmp_path / "f", queue_depth=queue_depth) as engine:
        results = await engine.write(order * PAGE_BYTES, one, source, order)
        assert results.tolist() == one.tolist()
        results = await engine.read(order * PAGE_BYTES, one, out, order)
        assert results.tolist() == one.tolist()
    np.testing.assert_array_equal(out, source)


async def test_an_empty_batch_has_an_empty_answer(name: str, tmp_path: Path) -> None:
    async with opened(name, tmp_path / "f") as engine:
        assert len(await engine.read(at(), lengths(), aligned_rows(0, PAGE_BYTES), rows())) == 0


async def test_a_read_past_the_end_says_how_much_there_was(name: str, directory: Path) -> None:
    out = aligned_rows(5, PAGE_BYTES)
    async with opened(name, directory / "f") as engine:
        results = await engine.read(at(PAGES - 1, PAGES, 0), lengths(2, 2, 1), out, rows(0, 2, 4))
    assert results.tolist() == [PAGE_BYTES, 0, PAGE_BYTES]


async def test_a_file_may_end_inside_a_page(name: str, directory: Path) -> None:
    content = random_pages(2)
    (directory / "f").write_bytes(content.tobytes()[:5000])
    out = aligned_rows(2, PAGE_BYTES)
    async with opened(name, directory / "f", create=False) as engine:
        assert (await engine.read(at(0), lengths(2), out, rows(0))).tolist() == [5000]
    assert out.tobytes()[:5000] == content.tobytes()[:5000]


async def test_a_file_opened_for_reading_refuses_writes(name: str, directory: Path) -> None:
    (directory / "f").write_bytes(bytes(PAGE_BYTES))
    async with opened(name, directory / "f", create=False) as engine:
        results = await engine.write(at(0), lengths(1), random_pages(1), rows(0))
    assert results.tolist() == [-errno.EBADF]


async def test_a_failed_write_fails_only_its_own_extent(name: str, directory: Path) -> None:
    async with opened(name, directory / "f") as engine:
        with file_size_limit(8 * PAGE_BYTES):
            results = await engine.write(
                at(8, 0, 20), lengths(1, 1, 1), random_pages(3), rows(0, 1, 2)
            )
    assert results.tolist() == [-errno.EFBIG, PAGE_BYTES, -errno.EFBIG]


async def test_a_write_cut_short_fails(name: str, tmp_path: Path) -> None:
    async with opened(name, tmp_path / "f") as engine:
        with file_size_limit(2 * PAGE_BYTES):
            results = await engine.write(at(1), lengths(2), random_pages(2), rows(0))
    assert results.tolist() == [-errno.EFBIG]


def engine_over(name: str, path: str, flags: int) -> FileEngine:
    """An engine on what :func:`open_engine` refuses: a file of the kernel that fails."""
    file = OpenFile(os.open(path, flags), Path(path), flags == os.O_RDWR, False, 1)
    if name == "uring":
        return UringEngine(file, 2, Ring(2))
    return (ThreadEngine if name == "threads" else AiofilesEngine)(file, 2)


@pytest.mark.parametrize("name", engine_names())
async def test_a_read_that_the_device_fails_is_an_error_of_its_extent(name: str) -> None:
    """The kernel answers EIO for memory of this process that is not there."""
    there = random_pages(1)
    out = aligned_rows(4, PAGE_BYTES)
    engine = engine_over(name, "/proc/self/mem", os.O_RDONLY)
    try:
        results = await engine.read(
            np.array([0, there.ctypes.data, 0]), lengths(1, 1, 2), out, rows(0, 1, 2)
        )
    finally:
        await engine.close()
    assert results.tolist() == [-errno.EIO, PAGE_BYTES, -errno.EIO]
    np.testing.assert_array_equal(out[1], there[0])


@pytest.mark.parametrize("name", engine_names())
async def test_a_write_to_a_full_device_is_an_error_of_its_extent(name: str) -> None:
    engine = engine_over(name, "/dev/full", os.O_RDWR)
    try:
        results = await engine.write(at(0, 3), lengths(1, 2), random_pages(3), rows(0, 1))
    finally:
        await engine.close()
    assert results.tolist() == [-errno.ENOSPC, -errno.ENOSPC]


async def test_signals_cut_nothing_short(name: str, tmp_path: Path) -> None:
    source = random_pages(PAGES)
    one = np.full(PAGES, PAGE_BYTES)
    order = np.arange(PAGES)
    heard = []
    before = signal.signal(signal.SIGPROF, lambda *_: heard.append(1))
    try:
        async with opened(name, tmp_path / "f") as engine:
            signal.setitimer(signal.ITIMER_PROF, 0.0005, 0.0005)
            for _ in range(10_000):
                out = aligned_rows(PAGES, PAGE_BYTES)
                assert (await engine.write(order * PAGE_BYTES, one, source, order) == one).all()
                assert (await engine.read(order * PAGE_BYTES, one, out, order) == one).all()
                np.testing.assert_array_equal(out, source)
                if len(heard) >= 5:
                    break
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert len(heard) >= 5


@pytest.mark.parametrize(
    ("offset", "length", "row"),
    [(-1, 1, 0), (0, -1, 0), (0, 1, -1), (0, 1, 4), (0, 2, 3), (0, 5, 0), (0, 1, 1 << 60)],
)
async def test_an_extent_that_leaves_its_memory_is_refused(
    name: str, tmp_path: Path, offset: int, length: int, row: int
) -> None:
    memory = aligned_rows(4, PAGE_BYTES)
    async with opened(name, tmp_path / "f") as engine:
        for move in (engine.read, engine.write):
            with pytest.raises(LimitError, match="leaves its memory"):
                await move(at(0, offset), lengths(1, length), memory, rows(0, row))


@pytest.mark.parametrize(
    "memory",
    [
        aligned_rows(8, PAGE_BYTES)[::2],
        aligned_rows(8, PAGE_BYTES).reshape(-1),
        aligned_rows(8, PAGE_BYTES).view(np.int8),
    ],
    ids=["strided", "one dimension", "another dtype"],
)
async def test_memory_that_is_no_array_of_pages_is_refused(
    name: str, tmp_path: Path, memory: U8
) -> None:
    async with opened(name, tmp_path / "f") as engine:
        with pytest.raises(LimitError, match="it must be u8"):
            await engine.read(at(0), lengths(1), memory, rows(0))


async def test_memory_that_a_direct_read_cannot_fill_is_refused(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    engine = ThreadEngine(OpenFile(fd, tmp_path / "f", True, True, 4096), 1)
    memory = aligned_rows(2, PAGE_BYTES).reshape(-1)[16 : 16 + PAGE_BYTES].reshape(1, PAGE_BYTES)
    with pytest.raises(LimitError, match="multiple of 4096"):
        await engine.read(at(0), lengths(1), memory, rows(0))
    await engine.close()


async def test_batches_may_overlap(name: str, directory: Path) -> None:
    source = random_pages(PAGES)
    outs = [aligned_rows(PAGES, PAGE_BYTES) for _ in range(8)]
    order = np.arange(PAGES)
    one = np.full(PAGES, PAGE_BYTES)
    async with opened(name, directory / "f") as engine:
        await engine.write(at(0), lengths(PAGES), source, rows(0))
        await asyncio.gather(
            *(
                engine.read(np.roll(order, shift) * PAGE_BYTES, one, out, np.roll(order, shift))
                for shift, out in enumerate(outs)
            )
        )
    for out in outs:
        np.testing.assert_array_equal(out, source)


async def test_a_cancelled_read_leaves_memory_alone_once_it_has_raised(
    name: str, directory: Path
) -> None:
    pages = 1024
    out = aligned_rows(pages, PAGE_BYTES)
    order = np.arange(pages)
    async with opened(name, directory / "f", queue_depth=2, pages=pages) as engine:
        await engine.write(at(0), lengths(pages), random_pages(pages), rows(0))
        reading = asyncio.ensure_future(
            engine.read(order * PAGE_BYTES, np.full(pages, PAGE_BYTES), out, order)
        )
        await asyncio.sleep(0)  # the batch is under way
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        out[:] = 0
    assert not out.any()


async def test_a_read_cancelled_in_the_queue_touches_nothing(name: str, tmp_path: Path) -> None:
    out = aligned_rows(PAGES, PAGE_BYTES)
    order = np.arange(PAGES)
    one = np.full(PAGES, PAGE_BYTES)
    async with opened(name, tmp_path / "f", queue_depth=1) as engine:
        await engine.write(at(0), lengths(PAGES), random_pages(PAGES), rows(0))
        others = [
            asyncio.ensure_future(
                engine.read(order * PAGE_BYTES, one, aligned_rows(PAGES, PAGE_BYTES), order)
            )
            for _ in range(4)
        ]
        queued = asyncio.ensure_future(engine.read(order * PAGE_BYTES, one, out, order))
        await asyncio.sleep(0)
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        for results in await asyncio.gather(*others):
            assert (results == one).all()


async def test_close_waits_for_what_is_under_way(name: str, directory: Path) -> None:
    source = random_pages(PAGES)
    out = aligned_rows(PAGES, PAGE_BYTES)
    order = np.arange(PAGES)
    async with opened(name, directory / "f", queue_depth=2) as engine:
        await engine.write(at(0), lengths(PAGES), source, rows(0))
        reading = asyncio.ensure_future(
            engine.read(order * PAGE_BYTES, np.full(PAGES, PAGE_BYTES), out, order)
        )
        await asyncio.sleep(0)
        await engine.close()
        assert reading.done()
    np.testing.assert_array_equal(out, source)


async def test_a_closed_engine_refuses_and_may_be_closed_again(name: str, tmp_path: Path) -> None:
    async with opened(name, tmp_path / "f") as engine:
        await engine.close()
        with pytest.raises(ClosedError):
            await engine.read(at(0), lengths(1), aligned_rows(1, PAGE_BYTES), rows(0))
        with pytest.raises(ClosedError):
            await engine.write(at(0), lengths(1), aligned_rows(1, PAGE_BYTES), rows(0))


async def test_close_leaves_neither_threads_nor_descriptors(name: str, tmp_path: Path) -> None:
    before = threads_and_descriptors()
    async with opened(name, tmp_path / "f") as engine:
        await engine.read(at(0, 1), lengths(1, 1), aligned_rows(2, PAGE_BYTES), rows(0, 1))
    assert threads_and_descriptors() == before


async def test_a_file_may_be_removed_while_it_is_open(name: str, tmp_path: Path) -> None:
    source = random_pages(2)
    out = aligned_rows(2, PAGE_BYTES)
    async with opened(name, tmp_path / "f") as engine:
        (tmp_path / "f").unlink()
        await engine.write(at(0, 1), lengths(1, 1), source, rows(0, 1))
        await engine.read(at(0, 1), lengths(1, 1), out, rows(0, 1))
    np.testing.assert_array_equal(out, source)


async def test_a_read_only_source_can_be_written(name: str, tmp_path: Path) -> None:
    source = random_pages(1)
    source.flags.writeable = False
    async with opened(name, tmp_path / "f") as engine:
        await engine.write(at(3), lengths(1), source, rows(0))
    content = (tmp_path / "f").read_bytes()
    assert content[3 * PAGE_BYTES : 4 * PAGE_BYTES] == source.tobytes()


async def test_memory_said_to_be_used_most_is_moved_like_any_other(
    name: str, directory: Path
) -> None:
    memory, other = aligned_rows(PAGES, PAGE_BYTES), aligned_rows(PAGES, PAGE_BYTES)
    order = np.arange(PAGES // 2)
    one = np.full(len(order), PAGE_BYTES)
    async with opened(name, directory / "f") as engine:
        for pinned in (other, memory, memory[PAGES // 4 :]):
            memory[:] = random_pages(PAGES)
            engine.pin(pinned)
            await engine.write(order * PAGE_BYTES, one, memory, order)
            half = memory[PAGES // 2 :]  # inside the last one, the others are half in or outside
            await engine.read(order * PAGE_BYTES, one, half, order)
            await engine.read(order * PAGE_BYTES, one, other, order)
            np.testing.assert_array_equal(half, memory[: PAGES // 2])
            np.testing.assert_array_equal(half, other[: PAGES // 2])


@pytest.mark.parametrize("name", engine_names("uring", "threads"))
async def test_an_engine_serves_one_loop_after_the_other(name: str, tmp_path: Path) -> None:
    source, out = random_pages(2), aligned_rows(2, PAGE_BYTES)
    async with opened(name, tmp_path / "f") as engine:

        async def write() -> I64:
            return await engine.write(at(0), lengths(2), source, rows(0))

        async def read() -> I64:
            return await engine.read(at(0), lengths(2), out, rows(0))

        for move in (write, read):
            assert in_a_thread(move).tolist() == [2 * PAGE_BYTES]
    np.testing.assert_array_equal(out, source)


@pytest.mark.parametrize("name", engine_names("uring", "threads"))
async def test_the_compiled_loop_works_without_the_jit(name: str, tmp_path: Path) -> None:
    """As a debugger or a coverage tool needs it."""
    program = f"""
import asyncio, numpy as np
from pathlib import Path
from kvtier.io import open_engine
from kvtier.rows import aligned_rows
async def main():
    engine = open_engine({name!r}, Path({str(tmp_path / "f")!r}), direct=True, queue_depth=2,
                         size_bytes=8192, create=True)
    source, out = aligned_rows(2, 4096), aligned_rows(2, 4096)
    source[:] = 7
    extents = np.array([0, 4096]), np.array([4096, 4096])
    print(*await engine.write(*extents, source, np.array([0, 1])))
    print(*await engine.read(extents[0] + 4096, extents[1], out, np.array([0, 1])))
    await engine.close()
    assert (out[0] == 7).all()
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    assert printed.split() == [b"4096", b"4096", b"4096", b"0"]
