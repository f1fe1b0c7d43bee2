"""Counts over time: one point per interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvtier.chain import Chain
from kvtier.clock import Clock

POINTS_MAX = 512
"""When there are more, every second one before the last is dropped, and the interval doubles."""


class Series:
    """Demand reads, and per level lookups, hits and deliveries, counted per interval.

    Args:
        clock: whose time the intervals are of.
        interval_s: length of the first intervals.
        levels: names of the levels.
    """

    def __init__(self, clock: Clock, interval_s: float, levels: Sequence[str]) -> None:
        self._clock = clock
        self._start_ns = clock.now_ns()
        self._interval_ns = max(1, round(interval_s * 1e9))
        self._levels = tuple(levels)
        self._points: list[tuple[int, ...]] = []
        """Per point: ns since the start, reads, and three counts of each level, since the start."""

    def observe(self, chains: Sequence[Chain], *, last: bool = False) -> None:
        """Note the counts of all chains, if an interval has passed or the run has ended."""
        elapsed_ns = self._clock.now_ns() - self._start_ns
        previous_ns = self._points[-1][0] if self._points else 0
        if elapsed_ns - previous_ns < self._interval_ns and not (last and elapsed_ns > previous_ns):
            return
        # Only what is shown is added up: this is done often, beside what is measured.
        parts = [part for chain in chains for part in chain.by_purpose.values()]
        levels = list(zip(*(part.levels for part in parts), strict=True))
        lookups = [sum(one.lookups for one in level) for level in levels]
        hits = [sum(one.hits for one in level) for level in levels]
        delivered = [sum(one.rows_delivered for one in level) for level in levels]
        reads = sum(part.reads for part in parts)
        self._points.append((elapsed_ns, reads, *lookups, *hits, *delivered))
        if len(self._points) > POINTS_MAX:
            del self._points[-2::-2]
            self._interval_ns *= 2

    def to_dict(self) -> dict[str, Any]:
        """Arrays of equal length: the end of each interval, and what was counted in it."""
        count = len(self._levels)
        columns = list(zip(*self._points, strict=True)) or [()] * (2 + 3 * count)
        t_ns, reads = columns[:2]
        by_level = [_differences(column) for column in columns[2:]]
        return {
            "interval_s": self._interval_ns / 1e9,
            "t_s": [t / 1e9 for t in t_ns],
            "reads": _differences(reads),
            "lookups": dict(zip(self._levels, by_level[:count], strict=True)),
            "hits": dict(zip(self._levels, by_level[count : 2 * count], strict=True)),
            "delivered": dict(zip(self._levels, by_level[2 * count :], strict=True)),
        }


def _differences(column: Sequence[int]) -> list[int]:
    return [now - before for before, now in zip((0, *column), column, strict=False)]
