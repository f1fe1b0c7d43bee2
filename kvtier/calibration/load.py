"""A load on a device, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from kvtier.pages import I64

NS_PER_S: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a device, all the time.

    Attributes:
        depth: operations under way.
        io_bytes: bytes of each, at random multiples of it.
        write_share: share of writes, 0 to 1.
    """

    depth: int
    io_bytes: int
    write_share: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Operations:
    """Operations that were done, in the order of their ends; times in ns from the load's start.

    Attributes:
        starts_ns: i64[n].
        ends_ns: i64[n].
        until_ns: when operations were no longer followed by others; None: with the last end.
    """

    starts_ns: I64
    ends_ns: I64
    until_ns: int | None = None

    def after(self, start_ns: int) -> Operations:
        """Those that started then or later."""
        kept = self.starts_ns >= start_ns
        return Operations(self.starts_ns[kept], self.ends_ns[kept], self.until_ns)

    @property
    def iops(self) -> float:
        """Operations per second from the first end on, as long as the load was whole.

        The last ones of a load end at a depth that falls, so they say nothing about it. 0 of fewer
        than two operations.
        """
        if not len(self.ends_ns):
            return 0.0
        until_ns = int(self.ends_ns[-1]) if self.until_ns is None else self.until_ns
        whole = int(np.searchsorted(self.ends_ns, until_ns, side="right"))
        if whole < 2 or until_ns == self.ends_ns[0]:
            return 0.0
        return (whole - 1) * NS_PER_S / float(until_ns - self.ends_ns[0])

    def latency_s(self, share: float) -> float:
        """The quantile of the latencies, in s."""
        return float(np.quantile(self.ends_ns - self.starts_ns, share)) / NS_PER_S
