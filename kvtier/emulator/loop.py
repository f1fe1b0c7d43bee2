"""An asyncio loop in virtual time."""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable
from contextvars import Context
from typing import TypeVarTuple, Unpack

from kvtier.emulator.timeline import Timeline

Ts = TypeVarTuple("Ts")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Lets the next event of a timeline happen whenever no task can go on.

    Tasks, sleeps and timeouts pass virtual time only. Everything runs in the same order each time,
    and every task that can go on does so before time passes.

    Args:
        timeline: its events, and its time.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._woken = False
        super().__init__(_PassingTime(self._pass_time))

    def time(self) -> float:
        """Virtual time in seconds."""
        return self._timeline.now_ns / 1e9

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """As every loop's; and time stands still until it was called."""
        self._woken = True
        return super().call_soon(callback, *args, context=context)

    def _pass_time(self, timeout_s: float | None) -> None:
        """Let events happen until a task can go on, or a timer of the loop is due."""
        end_ns = None
        if timeout_s is not None:
            end_ns = self._timeline.now_ns + math.ceil(timeout_s * 1e9)
        self._woken = False
        while not self._woken and (end_ns is None or self._timeline.now_ns < end_ns):
            if not self._timeline.step(end_ns):
                raise RuntimeError("virtual time stands still: every task waits, for no event")


class _PassingTime(selectors.DefaultSelector):
    """Never waits for files; where others would, ``pass_time`` is called with the timeout."""

    def __init__(self, pass_time: Callable[[float | None], None]) -> None:
        super().__init__()
        self._pass_time = pass_time

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:
            self._pass_time(timeout)
        return super().select(0)
