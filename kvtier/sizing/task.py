"""What to size, and for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from kvtier.settings import Settings
from kvtier.sizing.prices import PRESETS, Prices
from kvtier.sizing.targets import Target


@dataclass(frozen=True, slots=True)
class SizingTask:
    """A trace, targets, and what there is to choose from.

    Attributes:
        path: the trace.
        settings: everything but the capacities; its tiers are those to choose from.
        targets: all must be met; one at least.
        prices: by level.
        most_bytes: bounds by tier at the full geometry; 0 leaves one out.
        limit: requests to take, None for all.
        budget: simulations at most, 1 or more.
        exhaustive: try every configuration that is cheaper than the answer.
    """

    path: Path
    settings: Settings
    targets: Sequence[Target]
    prices: Prices = field(default_factory=lambda: PRESETS)
    most_bytes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    limit: int | None = None
    budget: int = 60
    exhaustive: bool = False
