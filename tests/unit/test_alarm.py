from __future__ import annotations

import asyncio
import threading

import pytest

from kvtier.alarm import Alarm
from kvtier.clock import WallClock
from kvtier.errors import ClosedError

MS = 1_000_000

pytestmark = pytest.mark.asyncio


async def test_nobody_is_woken_before_the_time() -> None:
    clock = WallClock()
    alarm = Alarm(clock, "a test")
    start_ns = clock.now_ns()

    async def wait(after_ns: int) -> int:
        await alarm.until(start_ns + after_ns)
        return clock.now_ns() - start_ns

    delays_ns = [5 * MS, MS // 20, 0, -MS, 3 * MS, 3 * MS, MS]
    ends_ns = await asyncio.gather(*map(wait, delays_ns))
    assert all(end >= delay for end, delay in zip(ends_ns, delays_ns, strict=True))
    alarm.close()


async def test_a_later_moment_does_not_hold_up_an_earlier_one() -> None:
    clock = WallClock()
    alarm = Alarm(clock, "a test")
    late = asyncio.ensure_future(alarm.until(clock.now_ns() + 3_600_000 * MS))
    await asyncio.sleep(0)
    await alarm.until(clock.now_ns() + 2 * MS)
    assert not late.done()
    alarm.close()
    with pytest.raises(ClosedError, match="a test was closed"):
        await late


async def test_a_cancelled_wait_disturbs_no_other() -> None:
    clock = WallClock()
    alarm = Alarm(clock, "a test")
    t_ns = clock.now_ns() + 3 * MS
    moments_ns = [t_ns + 3_600_000 * MS, t_ns] * 2
    waits = [asyncio.ensure_future(alarm.until(each)) for each in moments_ns]
    await asyncio.sleep(0)
    waits[0].cancel()
    waits[2].cancel()
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert [isinstance(each, asyncio.CancelledError) for each in results] == [True, False] * 2
    assert clock.now_ns() >= t_ns
    alarm.close()


async def test_a_closed_alarm_refuses_and_leaves_no_thread() -> None:
    clock = WallClock()
    alarm = Alarm(clock, "a test")
    before = threading.active_count()
    await alarm.until(clock.now_ns() + MS)
    alarm.close()
    alarm.close()
    assert threading.active_count() == before
    with pytest.raises(ClosedError):
        await alarm.until(clock.now_ns() + MS)
