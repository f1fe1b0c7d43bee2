"""A token bucket: so much per second, and a burst. It is told the time."""

from __future__ import annotations


class TokenBucket:
    """Tokens that come at a rate, up to a number; who takes more than there are goes into debt.

    Args:
        per_s: tokens that come per second.
        most: tokens that are kept.
        now_ns: the time; the bucket is full.
    """

    def __init__(self, per_s: float, most: float, now_ns: int) -> None:
        self._per_ns = per_s / 1e9
        self._most = most
        self._tokens = most
        self._then_ns = now_ns

    def ready_ns(self, cost: float, now_ns: int) -> int:
        """When there will be ``cost`` tokens, or all that the bucket can keep."""
        self._refill(now_ns)
        lacking = min(cost, self._most) - self._tokens
        return now_ns if lacking <= 0 else now_ns + round(lacking / self._per_ns)

    def take(self, cost: float, now_ns: int) -> None:
        """Take ``cost`` tokens."""
        self._refill(now_ns)
        self._tokens -= cost

    def _refill(self, now_ns: int) -> None:
        came = (now_ns - self._then_ns) * self._per_ns
        self._tokens = min(self._most, self._tokens + came)
        self._then_ns = now_ns
