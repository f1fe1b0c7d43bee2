"""The bound on work in flight, and the wait that cancellation cannot cut short."""

from __future__ import annotations

import asyncio

import pytest

from kvtier.errors import ClosedError
from kvtier.io.gate import Gate, outlast

pytestmark = pytest.mark.asyncio


async def run_until_blocked() -> None:
    """Let every task go as far as it can without outside help."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_work_within_the_capacity_enters_at_once() -> None:
    gate = Gate(4, "gate")
    await gate.enter(1)
    await gate.enter(3)


async def test_work_beyond_the_capacity_waits_until_enough_has_left() -> None:
    gate = Gate(4, "gate")
    await gate.enter(3)
    waiting = asyncio.ensure_future(gate.enter(3))
    await run_until_blocked()
    gate.leave(1)
    await run_until_blocked()
    assert not waiting.done()
    gate.leave(1)
    await waiting


async def test_a_large_request_is_not_overtaken_by_small_ones() -> None:
    gate = Gate(4, "gate")
    await gate.enter(1)
    large = asyncio.ensure_future(gate.enter(4))
    await run_until_blocked()
    small = asyncio.ensure_future(gate.enter(1))
    await run_until_blocked()
    assert not small.done()
    gate.leave(1)
    await large
    assert not small.done()
    gate.leave(4)
    await small


async def test_who_stands_behind_a_cancelled_request_moves_up() -> None:
    gate = Gate(4, "gate")
    await gate.enter(1)
    large = asyncio.ensure_future(gate.enter(4))
    await run_until_blocked()
    small = asyncio.ensure_future(gate.enter(3))
    await run_until_blocked()
    large.cancel()
    await small
    assert large.cancelled()


async def test_a_request_cancelled_when_it_is_let_in_gives_its_place_back() -> None:
    gate = Gate(1, "gate")
    await gate.enter(1)
    waiting = asyncio.ensure_future(gate.enter(1))
    await run_until_blocked()
    gate.leave(1)
    waiting.cancel()
    await asyncio.wait([waiting])
    await gate.enter(1)


async def test_close_refuses_the_new_and_waits_for_the_old() -> None:
    gate = Gate(2, "the file")
    await gate.enter(2)
    queued = asyncio.ensure_future(gate.enter(1))
    await run_until_blocked()
    closing = asyncio.ensure_future(gate.close())
    await run_until_blocked()
    with pytest.raises(ClosedError, match="the file is closed"):
        await gate.enter(1)
    gate.leave(2)
    await queued
    await run_until_blocked()
    assert not closing.done()
    gate.leave(1)
    await closing


async def test_two_closes_both_end() -> None:
    gate = Gate(2, "gate")
    await gate.enter(1)
    closes = asyncio.gather(gate.close(), gate.close())
    await run_until_blocked()
    gate.leave(1)
    await closes


async def test_outlast_gives_the_result() -> None:
    work = asyncio.get_running_loop().create_future()
    work.set_result(7)
    assert await outlast(work) == 7


async def test_outlast_raises_a_cancellation_only_when_the_work_has_ended() -> None:
    work: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(outlast(work))
    for _ in range(2):
        await run_until_blocked()
        waiting.cancel()
        await run_until_blocked()
        assert not waiting.done()
        assert not work.cancelled()
    work.set_result(None)
    await asyncio.wait([waiting])
    assert waiting.cancelled()


async def test_outlast_raises_what_the_work_raised() -> None:
    work: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    work.set_exception(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await outlast(work)
