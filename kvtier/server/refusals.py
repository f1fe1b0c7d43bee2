"""Connections that a server ends against their will: each counted, and logged in one line."""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Final

from kvtier.clock import Clock
from kvtier.server.counting import ServerCounters

_LOG: Final = logging.getLogger(__name__)

_LINES_MAX: Final = 50
_WINDOW_NS: Final = 10_000_000_000
"""So many lines at most in so long: a flood of refusals must not fill the disk."""


class Reason(StrEnum):
    TOKEN = "token"  # noqa: S105 - the name of a reason
    """Missing or wrong."""
    TLS = "tls"
    """No handshake, or no certificate that is trusted."""
    PROTOCOL = "protocol"
    """Bytes that are no frame, or a frame that makes no sense there or is over a limit."""
    FULL = "full"
    """There are all the connections that there may be."""
    SILENT = "silent"
    """No HELLO in time."""
    SLOW_FRAME = "slow_frame"
    """A frame did not end in time."""
    NOT_READING = "not_reading"
    """Answers were not taken in time."""
    IDLE = "idle"
    """Nothing was asked for long."""
    DRAIN = "drain"
    """What it asked for took longer than the server had to end."""


class Refusals:
    """Counts and logs.

    Args:
        counters: where they are counted.
        clock: bounds the lines of the log.
    """

    def __init__(self, counters: ServerCounters, clock: Clock) -> None:
        self._counters = counters
        self._clock = clock
        self._window_ns = clock.now_ns()
        self._lines = 0
        self._unsaid = 0

    def note(self, reason: Reason, peer: str, text: str) -> None:
        """A connection is refused.

        Args:
            reason: why.
            peer: its address.
            text: the same for a person; must not hold anything secret.
        """
        self._counters.refusals[reason] += 1
        now_ns = self._clock.now_ns()
        if now_ns - self._window_ns >= _WINDOW_NS:
            if self._unsaid:
                _LOG.warning("refused %d more", self._unsaid)
            self._window_ns, self._lines, self._unsaid = now_ns, 0, 0
        if self._lines == _LINES_MAX:
            self._unsaid += 1
            return
        self._lines += 1
        _LOG.warning("refused %s (%s): %s", peer, reason, text)
