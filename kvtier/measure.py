"""Latencies that a driver measures, real or modelled; counts are the chain's."""

from __future__ import annotations

from collections.abc import Mapping

from kvtier.metrics import LatencyHistogram
from kvtier.pages import Purpose


class Measurements:
    """Latency histograms of the reads for one purpose.

    Attributes:
        demand: of pages, from the submission of a page until its bytes are usable.
        batches: of whole batches.
        levels: of pages, by the level that served them.
    """

    def __init__(self, levels: int) -> None:
        self.demand = LatencyHistogram()
        self.batches = LatencyHistogram()
        self.levels = [LatencyHistogram() for _ in range(levels)]

    def merge(self, other: Measurements) -> None:
        """Count everything that ``other``, of as many levels, counted."""
        self.demand.merge(other.demand)
        self.batches.merge(other.batches)
        for mine, theirs in zip(self.levels, other.levels, strict=True):
            mine.merge(theirs)

    def served(self, level: int, elapsed_ns: int, pages: int) -> None:
        """``pages`` became usable together, ``elapsed_ns`` after they were asked for."""
        self.demand.record_same(elapsed_ns, pages)
        self.levels[level].record_same(elapsed_ns, pages)

    def batch(self, elapsed_ns: int) -> None:
        """A batch was answered, ``elapsed_ns`` after it was submitted."""
        self.batches.record_same(elapsed_ns, 1)


def measurements_by_purpose(levels: int) -> Mapping[Purpose, Measurements]:
    """Empty measurements for every purpose."""
    return {purpose: Measurements(levels) for purpose in Purpose}
