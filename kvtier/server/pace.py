"""Since when a peer has been doing what, and whether that is too long."""

from __future__ import annotations

from dataclasses import dataclass

from kvtier.server.limits import ServerLimits
from kvtier.server.refusals import Reason
from kvtier.units import format_seconds


@dataclass(slots=True)
class Pace:
    """Times of one connection in ns of the server's clock; None where it is not so.

    Attributes:
        quiet_ns: nothing came since, and nothing was being worked on.
        frame_ns: a frame began to come, and has not ended.
        blocked_ns: the peer has answers to take, and takes too little.
        is_stranger: it has not been let in.
    """

    quiet_ns: int
    frame_ns: int | None = None
    blocked_ns: int | None = None
    is_stranger: bool = True

    def overdue(self, limits: ServerLimits, now_ns: int) -> tuple[Reason, str] | None:
        """What takes the peer too long, and the same for a person; or None."""
        if self.is_stranger:
            if _is_over(self.quiet_ns, limits.hello_timeout_s, now_ns):
                return Reason.SILENT, "no HELLO came in time"
            return None
        if _is_over(self.blocked_ns, limits.write_timeout_s, now_ns):
            shown = format_seconds(limits.write_timeout_s)
            return Reason.NOT_READING, f"answers were not read within {shown}"
        if _is_over(self.frame_ns, limits.frame_timeout_s, now_ns):
            shown = format_seconds(limits.frame_timeout_s)
            return Reason.SLOW_FRAME, f"a frame did not end within {shown}"
        if _is_over(self.quiet_ns, limits.idle_timeout_s, now_ns):
            return Reason.IDLE, f"nothing was asked for {format_seconds(limits.idle_timeout_s)}"
        return None


def _is_over(since_ns: int | None, patience_s: float, now_ns: int) -> bool:
    return since_ns is not None and now_ns - since_ns > patience_s * 1e9


def interval_s(limits: ServerLimits) -> float:
    """How often to look: a deadline is missed by a quarter of it at most, and by a second."""
    shortest_s = min(
        limits.hello_timeout_s,
        limits.frame_timeout_s,
        limits.write_timeout_s,
        limits.idle_timeout_s,
        limits.upload_timeout_s,
    )
    return min(1.0, max(0.001, shortest_s / 4))
