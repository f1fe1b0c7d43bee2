"""How much a device may be written: flash wears out by it."""

from __future__ import annotations

from kvtier.bucket import TokenBucket


class WriteLimit:
    """Bytes per second, and those of one second at once after a pause.

    Whether more may be written is asked before each batch; a batch is never cut, and what it goes
    beyond the limit is paid for before the next one. So in any ``t`` seconds ``(t + 1)`` times the
    limit and one batch are the most.

    Args:
        bytes_per_s: that may be written.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._bucket = TokenBucket(bytes_per_s, most=bytes_per_s, now_ns=0)
        self._now_ns = 0

    def is_reached(self, now_ns: int) -> bool:
        """Whether what was written is not yet paid for at ``now_ns``."""
        self._now_ns = now_ns
        return self._bucket.ready_ns(0, now_ns) > now_ns

    def charge(self, size_bytes: int) -> None:
        """So much is to be written, from when it was asked; or will not be (negative)."""
        self._bucket.take(size_bytes, self._now_ns)
