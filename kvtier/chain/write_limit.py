"""How much a device may be written: flash wears out by it."""

from __future__ import annotations

from kvtier.bucket import TokenBucket


class WriteLimit:
    """Bytes per second, and those of one second at once after a pause.

    A write may begin as long as what was written before is paid for; it is never cut. So over any
    time of ``t`` seconds, ``(t + 1) * bytes_per_s`` and one write are the most.

    Args:
        bytes_per_s: that may be written.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._bucket = TokenBucket(bytes_per_s, most=bytes_per_s, now_ns=0)

    def take(self, size_bytes: int, now_ns: int) -> bool:
        """Whether so much may be written at ``now_ns``; then it counts as written."""
        if self._bucket.ready_ns(0, now_ns) > now_ns:
            return False
        self._bucket.take(size_bytes, now_ns)
        return True
