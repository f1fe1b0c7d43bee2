"""What only the engine on io_uring can get wrong: rings, slots, loops, a kernel that forbids."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from io_engines import needs_io_uring

from kvtier.errors import LimitError
from kvtier.io import FileEngine, open_engine
from kvtier.io.file import open_file
from kvtier.io.ring import SETUPS, Ring
from kvtier.io.ring_queue import BATCHES_MAX
from kvtier.io.uring import UringEngine
from kvtier.pages import I64, U8
from kvtier.rows import aligned_rows

pytestmark = needs_io_uring()

PAGE_BYTES = 4096
PAGES = 256
SUPPORT = Path(__file__).parents[1] / "support"


def opened(path: Path, queue_depth: int = 4, *, direct: bool = True) -> FileEngine:
    return open_engine(
        "uring",
        path,
        direct=direct,
        queue_depth=queue_depth,
        size_bytes=PAGES * PAGE_BYTES,
        create=True,
    )


def random_pages(count: int = PAGES, seed: int = 1) -> U8:
    pages = aligned_rows(count, PAGE_BYTES)
    pages[:] = np.random.default_rng(seed).integers(0, 256, pages.shape, np.uint8)
    return pages


def write_all(engine: FileEngine, source: U8) -> Coroutine[object, object, I64]:
    length = np.array([source.nbytes])
    return engine.write(np.array([0]), length, source, np.array([0]))


def read_pages(engine: FileEngine, pages: I64, out: U8) -> Coroutine[object, object, I64]:
    """Page ``pages[i]`` of the file into row ``i``."""
    one = np.full(len(pages), PAGE_BYTES)
    return engine.read(pages * PAGE_BYTES, one, out, np.arange(len(pages)))


@pytest.mark.asyncio
@pytest.mark.parametrize("setup", SETUPS, ids=["deferred", "cooperative", "plain"])
async def test_every_kind_of_ring_moves_the_same_bytes(setup: int, tmp_path: Path) -> None:
    file = open_file(
        tmp_path / "f", direct=True, size_bytes=None, create=True, page_bytes=PAGE_BYTES
    )
    engine = UringEngine(file, 8, Ring(8, (setup,)))
    source, out = random_pages(), aligned_rows(PAGES, PAGE_BYTES)
    await write_all(engine, source)
    pages = np.random.default_rng(2).permutation(PAGES)
    assert (await read_pages(engine, pages, out) == PAGE_BYTES).all()
    np.testing.assert_array_equal(out, source[pages])
    await engine.close()


def test_flags_that_the_kernel_does_not_know_are_left_out() -> None:
    unknown = 1 << 30
    Ring(1, (unknown, 0)).close()
    with pytest.raises(OSError, match="Invalid argument"):
        Ring(1, (unknown,))


@pytest.mark.asyncio
@pytest.mark.parametrize("direct", [True, False])
async def test_more_batches_than_there_are_slots_all_end(tmp_path: Path, direct: bool) -> None:
    engine = opened(tmp_path / "f", direct=direct)
    source = random_pages()
    await write_all(engine, source)
    batches = [np.array([number % PAGES]) for number in range(3 * BATCHES_MAX)]
    outs = [aligned_rows(1, PAGE_BYTES) for _ in batches]
    await asyncio.gather(*map(read_pages, [engine] * len(batches), batches, outs))
    np.testing.assert_array_equal(np.concatenate(outs), source[np.concatenate(batches)])
    await engine.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("direct", [True, False])
async def test_cancelling_some_harms_no_other(tmp_path: Path, direct: bool) -> None:
    """Slots are reused at once, so a batch cancelled at its end must not wait for its successor."""
    engine = opened(tmp_path / "f", direct=direct)
    source = random_pages()
    await write_all(engine, source)
    rng = np.random.default_rng(3)
    left_alone: list[U8] = []

    async def read_or_be_cancelled() -> None:
        pages = rng.integers(0, PAGES, rng.integers(1, 16))
        out = aligned_rows(len(pages), PAGE_BYTES)
        reading = asyncio.ensure_future(read_pages(engine, pages, out))
        cancelled = rng.random() < 0.5
        if cancelled:
            for _ in range(rng.integers(0, 4)):
                await asyncio.sleep(0)
            reading.cancel()
        try:
            await reading
        except asyncio.CancelledError:
            assert cancelled
            out[:] = 0
            left_alone.append(out)
        else:
            np.testing.assert_array_equal(out, source[pages])

    for _ in range(20):
        await asyncio.gather(*(read_or_be_cancelled() for _ in range(40)))
    await engine.close()
    assert left_alone
    assert not any(out.any() for out in left_alone)


@pytest.mark.asyncio
async def test_close_gives_the_file_back_at_once(tmp_path: Path) -> None:
    """With its lock, although the kernel takes a ring down when it likes."""
    for seed in range(20):
        engine = opened(tmp_path / "f")
        engine.pin(source := random_pages(8, seed))
        assert (await write_all(engine, source)).tolist() == [source.nbytes]
        await engine.close()


@pytest.mark.asyncio
async def test_a_second_loop_is_refused_while_the_first_is_open(tmp_path: Path) -> None:
    engine = opened(tmp_path / "f")
    await write_all(engine, random_pages(1))
    with pytest.raises(LimitError, match="open in another event loop"):
        await asyncio.to_thread(asyncio.run, write_all(engine, random_pages(1)))
    assert (await write_all(engine, random_pages(1))).tolist() == [PAGE_BYTES]
    await engine.close()


def test_a_loop_that_goes_on_in_another_thread_takes_a_ring_of_that_thread(tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()
    engine = opened(tmp_path / "f")
    engine.pin(pinned := random_pages(4, seed=3))
    source, out = random_pages(), aligned_rows(PAGES, PAGE_BYTES)
    loop.run_until_complete(write_all(engine, source))
    with ThreadPoolExecutor(1) as other:
        reading = read_pages(engine, np.arange(PAGES), out)
        moved = other.submit(loop.run_until_complete, reading).result()
        np.testing.assert_array_equal(moved, PAGE_BYTES)
        np.testing.assert_array_equal(out, source)
        reading = read_pages(engine, np.arange(4), pinned)
        np.testing.assert_array_equal(
            other.submit(loop.run_until_complete, reading).result(), PAGE_BYTES
        )
    np.testing.assert_array_equal(pinned, source[:4])
    loop.run_until_complete(engine.close())
    loop.close()


def leave_behind(engine: FileEngine, out: U8) -> None:
    """Start to read all pages, more than a few turns do, and close the loop at once."""
    loop = asyncio.new_event_loop()
    reading = loop.create_task(read_pages(engine, np.arange(len(out)), out))
    loop.run_until_complete(asyncio.sleep(0))
    assert not reading.done()
    reading._log_destroy_pending = False  # type: ignore[attr-defined]  # that is what is tested
    loop.close()


def assert_each_page_whole_or_untouched(out: U8, source: U8) -> None:
    arrived = (out == source).all(axis=1)
    assert arrived[:4].all()  # as many as may be under way were begun, and so have ended
    np.testing.assert_array_equal(out[~arrived], random_pages(seed=2)[~arrived])


def test_what_a_closed_loop_left_behind_is_ended_before_another_starts(tmp_path: Path) -> None:
    engine = opened(tmp_path / "f")
    source, out, again = random_pages(), random_pages(seed=2), aligned_rows(PAGES, PAGE_BYTES)
    asyncio.run(write_all(engine, source))
    leave_behind(engine, out)
    asyncio.run(read_pages(engine, np.arange(PAGES), again))
    np.testing.assert_array_equal(again, source)
    assert_each_page_whole_or_untouched(out, source)
    asyncio.run(engine.close())


def test_an_engine_that_nobody_closed_ends_what_it_began(tmp_path: Path) -> None:
    engine = opened(tmp_path / "f")
    source, out = random_pages(), random_pages(seed=2)
    asyncio.run(write_all(engine, source))
    leave_behind(engine, out)
    assert isinstance(engine, UringEngine)
    file, ring = engine._file.fd, engine._queue.ring
    del engine
    gc.collect()
    os.close(file)
    assert_each_page_whole_or_untouched(out, source)
    assert ring.fd < 0


def test_a_forked_process_takes_a_ring_of_its_own(tmp_path: Path) -> None:
    run(
        f"""
        engine = opened({str(tmp_path / "f")!r}, "uring")
        source, out = filled(8), aligned_rows(8, 4096)
        asyncio.run(move(engine.write, source))
        child = os.fork()
        assert asyncio.run(move(engine.read, out)) == [8 * 4096]
        assert (out == source).all()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert asyncio.run(move(engine.read, out)) == [8 * 4096]
        asyncio.run(engine.close())
        """
    )


SETUP, ENTER, REGISTER = 425, 426, 427


@pytest.mark.parametrize("number", [SETUP, ENTER, REGISTER])
def test_where_io_uring_is_forbidden_threads_do_its_work(tmp_path: Path, number: int) -> None:
    run(
        f"""
        forbid({number})
        engine = opened({str(tmp_path / "f")!r}, "auto")
        assert engine.name == "threads"
        source, out = filled(8), aligned_rows(8, 4096)
        assert asyncio.run(move(engine.write, source)) == [8 * 4096]
        assert asyncio.run(move(engine.read, out)) == [8 * 4096]
        assert (out == source).all()
        asyncio.run(engine.close())

        check = doctor._check_io_uring()
        assert check.state is doctor.State.DEGRADED
        assert check.what == "Operation not permitted: nvme tiers use threads", check.what
        assert "io_uring_setup" in check.remedy
        """
    )


def test_asked_for_where_it_is_forbidden_it_is_refused_before_a_file_is_touched(
    tmp_path: Path,
) -> None:
    run(
        f"""
        forbid({SETUP})
        path = Path({str(tmp_path / "f")!r})
        try:
            tier = TierSettings("nvme", 1 << 20, path=path, engine="uring")
            asyncio.run(open_tier(tier, 4096, 1))
        except SettingsError as error:
            assert str(error) == (
                "tiers.nvme: I/O engine 'uring' is not possible here: Operation not permitted; "
                "take 'auto' or 'threads'"
            ), error
        else:
            raise AssertionError("not refused")
        assert not path.exists()
        """
    )


def test_what_the_kernel_refuses_to_take_fails(tmp_path: Path) -> None:
    """A filter that comes later; nothing hangs, and the engine can be closed."""
    run(
        f"""
        engine = opened({str(tmp_path / "f")!r}, "uring")
        async def main():
            forbid({ENTER})
            print(*await asyncio.gather(*(move(engine.write, filled(8)) for _ in range(600))))
            await engine.close()
        asyncio.run(main())
        """,
        prints=" ".join(["[-1]"] * 600),
    )


def run(program: str, prints: str = "") -> None:
    """Run a program in a process of its own, which it may cripple."""
    preamble = """
import asyncio, os
from pathlib import Path
import numpy as np
from kvtier import doctor
from kvtier.errors import SettingsError
from kvtier.io import open_engine
from kvtier.rows import aligned_rows
from kvtier.settings import TierSettings
from kvtier.tiers import open_tier
from seccomp import forbid

def opened(path, name):
    bounds = {"queue_depth": 4, "size_bytes": 1 << 20}
    return open_engine(name, Path(path), direct=True, create=True, **bounds)

def filled(pages):
    memory = aligned_rows(pages, 4096)
    memory[:] = np.arange(pages)[:, None] + 1
    return memory

async def move(function, memory):
    done = await function(np.array([0]), np.array([memory.nbytes]), memory, np.array([0]))
    return done.tolist()
"""
    body = "\n".join(line.removeprefix("        ") for line in program.splitlines())
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", preamble + body],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == prints
