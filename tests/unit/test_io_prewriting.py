"""A new file is written once from end to end, and the loop goes on meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from io_engines import engine_names

from kvtier.errors import DeviceError
from kvtier.io import FileEngine, open_engine, open_striped
from kvtier.io.faults import FaultyEngine
from kvtier.io.prewriting import PIECE_BYTES, write_zeros
from kvtier.settings import FaultSettings, WriteFaultSettings

PIECES = 5

pytestmark = pytest.mark.asyncio


async def open_new(path: Path, name: str = "threads") -> FileEngine:
    return await open_striped(
        name,
        [path],
        stripe_bytes=1 << 20,
        direct=True,
        queue_depth=4,
        size_bytes=PIECES * PIECE_BYTES,
    )


@pytest.mark.parametrize("name", engine_names())
async def test_other_tasks_have_their_turn_while_a_new_file_is_written(
    name: str, tmp_path: Path
) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    engine = await open_new(tmp_path / "f", name)
    counting.cancel()
    await engine.close()
    assert turns >= PIECES
    assert (tmp_path / "f").stat().st_size == PIECES * PIECE_BYTES


async def test_an_opening_that_is_cancelled_leaves_no_file(tmp_path: Path) -> None:
    opening = asyncio.create_task(open_new(tmp_path / "f"))
    while not (tmp_path / "f").exists():  # noqa: ASYNC110 - nothing else tells
        await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "faults", [WriteFaultSettings(full_share=1), WriteFaultSettings(short_share=1)]
)
async def test_a_drive_that_does_not_take_the_zeros_is_refused_with_advice(
    faults: WriteFaultSettings, tmp_path: Path
) -> None:
    file = open_engine(
        "threads", tmp_path / "f", direct=False, queue_depth=1, size_bytes=1 << 20, create=True
    )
    faulty = FaultyEngine(file, FaultSettings(writes=faults), 1 << 20)
    with pytest.raises(DeviceError, match=r"cannot create .*f: No space left.*free disk space"):
        await write_zeros(faulty, tmp_path / "f", 0, 1 << 20)
    await faulty.close()
