"""The cheapest capacities of the tiers with which a trace meets a target."""

from kvtier.sizing.grid import parse_bounds
from kvtier.sizing.prices import Prices, load_prices
from kvtier.sizing.run import size_trace
from kvtier.sizing.targets import Target, parse_target
from kvtier.sizing.task import SizingTask

__all__ = [
    "Prices",
    "SizingTask",
    "Target",
    "load_prices",
    "parse_bounds",
    "parse_target",
    "size_trace",
]
