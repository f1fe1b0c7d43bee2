"""Latencies that a driver measures, real or modelled; counts are the chain's."""

from __future__ import annotations

from kvtier.metrics import LatencyHistogram


class Measurements:
    """Latency histograms of one run.

    Attributes:
        demand: of pages, from the submission of a page until its bytes are usable.
        batches: of whole batches.
        levels: of pages, by the level that served them.
    """

    def __init__(self, levels: int) -> None:
        self.demand = LatencyHistogram()
        self.batches = LatencyHistogram()
        self.levels = [LatencyHistogram() for _ in range(levels)]

    def served(self, level: int, elapsed_ns: int, pages: int) -> None:
        """``pages`` became usable together, ``elapsed_ns`` after they were asked for."""
        self.demand.record_same(elapsed_ns, pages)
        self.levels[level].record_same(elapsed_ns, pages)

    def batch(self, elapsed_ns: int) -> None:
        """A batch was answered, ``elapsed_ns`` after it was submitted."""
        self.batches.record_same(elapsed_ns, 1)
