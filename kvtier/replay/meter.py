"""What a drive measures of its requests: how long they took, stalled, and how many at once."""

from __future__ import annotations

from typing import Any

from kvtier.clock import Clock
from kvtier.metrics import LatencyHistogram


class RequestMeter:
    """Latencies of whole requests, and the integral of their number over time.

    Args:
        clock: the time of the run, which begins now.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latency = LatencyHistogram()
        self._queue = LatencyHistogram()
        self._waited_ns = 0
        self._computed_ns = 0
        self._in_flight = 0
        self._changed_ns = clock.now_ns()
        self._request_ns = 0

    @property
    def now_ns(self) -> int:
        """The present, in ns."""
        return self._clock.now_ns()

    @property
    def finished(self) -> int:
        """Requests that have ended."""
        return self._latency.count

    @property
    def in_flight(self) -> int:
        """Requests that have begun, and not ended."""
        return self._in_flight

    def begin(self, arrival_ns: int | None = None) -> int:
        """A request begins that came at ``arrival_ns``, now if not given; returns the present."""
        now_ns = self._change(1)
        self._queue.record_same(0 if arrival_ns is None else now_ns - arrival_ns, 1)
        return now_ns

    def end(self, arrival_ns: int, answered_ns: int | None = None) -> None:
        """A request ends; its last answer came at ``answered_ns``, now if that is not given."""
        now_ns = self._change(-1)
        end_ns = now_ns if answered_ns is None else answered_ns
        # Its place was taken until now, and it was under way until then: the law of Little holds.
        self._request_ns -= now_ns - end_ns
        self._latency.record_same(end_ns - arrival_ns, 1)

    def waited(self, request_ns: int) -> None:
        """Requests waited for what they read or wrote, so long taken together."""
        self._waited_ns += request_ns

    def computed(self, request_ns: int) -> None:
        """Requests computed, so long taken together."""
        self._computed_ns += request_ns

    def merge(self, other: RequestMeter) -> None:
        """Count what ``other``, whose time began with this one's, has counted until now."""
        other._change(0)
        self._latency.merge(other._latency)
        self._queue.merge(other._queue)
        self._waited_ns += other._waited_ns
        self._computed_ns += other._computed_ns
        self._request_ns += other._request_ns

    def to_dict(self, duration_s: float) -> dict[str, Any]:
        """The ``requests`` of a result, of a run that took ``duration_s`` until now."""
        self._change(0)
        busy_ns = self._waited_ns + self._computed_ns
        return {
            "count": self.finished,
            "per_s": self.finished / duration_s if duration_s > 0 else None,
            "latency_us": self._latency.summary_us(),
            "queue_us": self._queue.summary_us(),
            "in_flight_mean": self._request_ns / 1e9 / duration_s if duration_s > 0 else None,
            "stall_share": self._waited_ns / busy_ns if busy_ns else None,
        }

    def _change(self, by: int) -> int:
        now_ns = self._clock.now_ns()
        self._request_ns += self._in_flight * (now_ns - self._changed_ns)
        self._changed_ns = now_ns
        self._in_flight += by
        return now_ns
