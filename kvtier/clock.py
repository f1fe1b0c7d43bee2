"""Clocks. Nothing else in the package asks for the time."""

from __future__ import annotations

import time
from typing import Protocol

from kvtier.errors import LimitError


class Clock(Protocol):
    """Where time comes from; nanoseconds from an arbitrary start, never going back."""

    def now_ns(self) -> int:
        """The present time in ns."""
        ...


class WallClock:
    """The machine's monotonic clock."""

    def now_ns(self) -> int:
        return time.perf_counter_ns()


class VirtualClock:
    """Time that passes only when it is told to."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def advance_to(self, t_ns: int) -> None:
        """Move to ``t_ns``; raises :class:`LimitError` if that lies in the past."""
        if t_ns < self._now_ns:
            raise LimitError(f"virtual time cannot go back from {self._now_ns} to {t_ns} ns")
        self._now_ns = t_ns
