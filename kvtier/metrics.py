"""Latency histograms: fixed memory, whole arrays at a time, percentiles within 1 %.

The buckets are those of HdrHistogram (G. Tene, http://hdrhistogram.org): linear inside each power
of two, so the relative width of a bucket has a bound and every i64 has one.
"""

from __future__ import annotations

import math
from typing import Final, TypeAlias

import numpy as np

from kvtier.errors import LimitError
from kvtier.pages import I64

LatencySummary: TypeAlias = dict[str, float | None]

_LINEAR_BITS: Final = 6
_LINEAR: Final = 1 << _LINEAR_BITS
"""Buckets per power of two; values below it have a bucket each."""
_BUCKETS: Final = (63 - _LINEAR_BITS + 1) * _LINEAR

RELATIVE_ERROR: Final = 1 / (2 * _LINEAR)
"""Bound on the error of a percentile: half a bucket, for it is answered by its middle."""

_QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


class LatencyHistogram:
    """Counts of latencies in log-linear buckets, from 0 ns to 2**63 - 1 ns (29 KiB)."""

    __slots__ = ("_buckets", "_count", "_max_ns", "_min_ns", "_sum_ns")

    def __init__(self) -> None:
        self._buckets: I64 = np.zeros(_BUCKETS, np.int64)
        self._count = 0
        self._sum_ns = 0
        self._min_ns = np.iinfo(np.int64).max
        self._max_ns = 0

    @property
    def count(self) -> int:
        """Latencies recorded."""
        return self._count

    def record(self, values_ns: I64) -> None:
        """Count latencies.

        Args:
            values_ns: i64[n] in ns; their sum must fit an i64.

        Raises:
            LimitError: one is negative.
        """
        if len(values_ns) == 0:
            return
        low = int(values_ns.min())
        if low < 0:
            raise LimitError(f"a latency of {low} ns: time cannot go back; check the clock")
        counts = np.bincount(_bucket_of(values_ns))
        self._buckets[: len(counts)] += counts
        total, high = int(values_ns.sum()), int(values_ns.max())
        self._note(count=len(values_ns), sum_ns=total, min_ns=low, max_ns=high)

    def record_same(self, value_ns: int, count: int) -> None:
        """Count one latency, in ns, ``count`` times. Raises LimitError if it is negative."""
        if count == 0:
            return
        if value_ns < 0:
            raise LimitError(f"a latency of {value_ns} ns: time cannot go back; check the clock")
        shift = max(value_ns.bit_length() - 1 - _LINEAR_BITS, 0)
        self._buckets[shift * _LINEAR + (value_ns >> shift)] += count
        self._note(count=count, sum_ns=value_ns * count, min_ns=value_ns, max_ns=value_ns)

    def merge(self, other: LatencyHistogram) -> None:
        """Count everything that ``other`` counted."""
        self._buckets += other._buckets
        self._note(
            count=other._count, sum_ns=other._sum_ns, min_ns=other._min_ns, max_ns=other._max_ns
        )

    def quantile_ns(self, share: float) -> float:
        """The least latency, in ns, that ``share`` (0 to 1) of those recorded do not exceed.

        Right within :data:`RELATIVE_ERROR`. NaN when nothing was recorded.
        """
        if self._count == 0:
            return math.nan
        rank = max(1, math.ceil(share * self._count))
        bucket = int(np.searchsorted(np.cumsum(self._buckets), rank))
        return min(max(_middle_ns(bucket), float(self._min_ns)), float(self._max_ns))

    def summary_us(self) -> LatencySummary:
        """``mean``, ``p50``, ``p90``, ``p99``, ``p999`` and ``max`` in us; None when empty.

        Mean and maximum are exact.
        """
        if self._count == 0:
            return dict.fromkeys(("mean", *_QUANTILES, "max"))
        return {
            "mean": self._sum_ns / self._count / 1e3,
            **{name: self.quantile_ns(share) / 1e3 for name, share in _QUANTILES.items()},
            "max": self._max_ns / 1e3,
        }

    def _note(self, *, count: int, sum_ns: int, min_ns: int, max_ns: int) -> None:
        self._count += count
        self._sum_ns += sum_ns
        self._min_ns = min(self._min_ns, min_ns)
        self._max_ns = max(self._max_ns, max_ns)


def _bucket_of(values_ns: I64) -> I64:
    """Bucket of each latency: its power of two, then its leading bits after the first."""
    # Above 2**53 frexp may round up to the next power; the bucket that comes out is the same.
    exponents = np.frexp(values_ns.astype(np.float64))[1].astype(np.int64)
    shifts = np.maximum(exponents - 1 - _LINEAR_BITS, 0)
    buckets: I64 = shifts * _LINEAR + (values_ns >> shifts)
    return buckets


def _middle_ns(bucket: int) -> float:
    shift = max(bucket // _LINEAR - 1, 0)
    first = (bucket - shift * _LINEAR) << shift
    return first + ((1 << shift) - 1) / 2
