"""The state machine of a circuit breaker: told of calls, it says whether more make sense.

After M. Nygard, "Release It!" (2nd ed., 2018), chapter 5. *Closed*: calls go through, and the
share of failures in a sliding window is watched. *Open*: none does. *Half open*, once it has been
open for its period: a few go through to try, and as many again each period that they do not
answer; the first failure opens it again, enough answers close it. It has no timers: time passes
when it is asked.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final

from kvtier.clock import Clock
from kvtier.settings import BreakerSettings

_SLICES: Final = 10
"""The window slides by a tenth of its length."""


class State(enum.Enum):
    """What a breaker does with calls."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


class Outcome(enum.Enum):
    """How a call ended."""

    ANSWERED = "answered"
    FAILED = "failed"
    LEFT = "left"
    """Its caller went away, or was wrong: nothing is said of the store."""


class Circuit:
    """Watches calls.

    A call that takes longer than ``slow_s`` counts as failed when that is found out, at the next
    question, whether or not it has ended: a frozen store does not answer, so it must not be
    waited for. What began before the last change of state no longer counts.

    Args:
        rules: when it opens, and for how long.
        clock: whose time passes.

    Attributes:
        opened: how often it opened.
        rejected, failures, slow: calls that did not go through, that failed, and of those the
            slow ones.
    """

    def __init__(self, rules: BreakerSettings, clock: Clock) -> None:
        self._rules = rules
        self._clock = clock
        self._slow_ns = None if rules.slow_s is None else round(rules.slow_s * 1e9)
        self._open_ns = round(rules.open_s * 1e9)
        self._slice_ns = max(1, round(rules.window_s * 1e9 / _SLICES))
        self._window: deque[list[int]] = deque()
        """Slices of the window, ascending: number, calls, failures."""
        self._running: dict[int, int] = {}
        """When each call under way began; in that order."""
        self._numbers = 0
        self._state = State.CLOSED
        self._open_until_ns = 0
        self._answered_probes = 0
        self.opened = 0
        self.rejected = 0
        self.failures = 0
        self.slow = 0

    @property
    def state(self) -> State:
        """The state now."""
        self._pass_time(self._clock.now_ns())
        return self._state

    @property
    def lets_through(self) -> bool:
        """Whether a call that began now would go through."""
        match self.state:
            case State.CLOSED:
                return True
            case State.OPEN:
                return False
            case State.HALF_OPEN:
                return self._probes_awaited() + self._answered_probes < self._rules.probes

    def begin(self) -> int | None:
        """A call begins; returns its number, or None if it must not."""
        if not self.lets_through:
            self.rejected += 1
            return None
        self._numbers += 1
        self._running[self._numbers] = self._clock.now_ns()
        return self._numbers

    def end(self, number: int, outcome: Outcome) -> None:
        """The call of that number ended."""
        now_ns = self._clock.now_ns()
        self._pass_time(now_ns)
        if self._running.pop(number, None) is not None and outcome is not Outcome.LEFT:
            self._judge(now_ns, is_failure=outcome is Outcome.FAILED)

    def _probes_awaited(self) -> int:
        """Probes that may still be answered soon: one that hangs must not keep others out."""
        latest_ns = self._clock.now_ns() - self._open_ns
        return sum(start_ns > latest_ns for start_ns in self._running.values())

    def _pass_time(self, now_ns: int) -> None:
        if self._state is State.OPEN and now_ns >= self._open_until_ns:
            self._change(State.HALF_OPEN)
        if self._slow_ns is None:
            return
        while self._running:
            number, start_ns = next(iter(self._running.items()))
            if now_ns - start_ns <= self._slow_ns:
                return
            del self._running[number]
            self.slow += 1
            self._judge(now_ns, is_failure=True)

    def _judge(self, now_ns: int, *, is_failure: bool) -> None:
        self.failures += is_failure
        if self._state is State.HALF_OPEN:
            self._answered_probes += not is_failure
            if is_failure:
                self._open(now_ns)
            elif self._answered_probes >= self._rules.probes:
                self._change(State.CLOSED)
            return
        calls, failures = self._count(now_ns, is_failure=is_failure)
        rules = self._rules
        if is_failure and calls >= rules.calls_min and failures >= rules.failure_share * calls:
            self._open(now_ns)

    def _count(self, now_ns: int, *, is_failure: bool) -> tuple[int, int]:
        """Calls and failures in the window, this one included."""
        window, slice_number = self._window, now_ns // self._slice_ns
        while window and window[0][0] <= slice_number - _SLICES:
            window.popleft()
        if not window or window[-1][0] != slice_number:
            window.append([slice_number, 0, 0])
        window[-1][1] += 1
        window[-1][2] += is_failure
        return sum(calls for _, calls, _ in window), sum(failures for *_, failures in window)

    def _open(self, now_ns: int) -> None:
        self.opened += 1
        self._open_until_ns = now_ns + self._open_ns
        self._change(State.OPEN)

    def _change(self, state: State) -> None:
        self._state = state
        self._running.clear()
        self._window.clear()
        self._answered_probes = 0
