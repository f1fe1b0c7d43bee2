"""The configurations to choose from: capacities of each tier, in order of price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvtier.errors import SettingsError
from kvtier.pages import I64
from kvtier.sizing.prices import Prices
from kvtier.units import SIZE_BYTES_MAX, format_bytes, parse_bytes

SIZES: Final = 10
"""Sizes of one tier, beside none at all: the largest is at least twice what the trace touches."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How a trace was made smaller: so many pages stand for a whole block.

    Attributes:
        pages: of a block in the simulation.
        full_pages: of a block in the model's geometry; both are 1 where nothing is scaled.
    """

    pages: int = 1
    full_pages: int = 1

    @property
    def factor(self) -> float:
        return self.full_pages / self.pages

    def simulated(self, full_bytes: int) -> int:
        """The capacity that stands for ``full_bytes``."""
        return full_bytes * self.pages // self.full_pages

    def full(self, simulated_bytes: int) -> int:
        """The capacity for which ``simulated_bytes`` stand; rounded up."""
        return -(-simulated_bytes * self.full_pages // self.pages)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """All configurations, the cheapest first.

    Attributes:
        tiers: names, fastest first.
        steps: i64[n, tiers], 0 where the tier is left out, then 1 for its smallest size, and on.
        full_bytes: i64[n, tiers], capacity at the full geometry.
        dollars: f64[n], price of all tiers at the full geometry.
    """

    tiers: tuple[str, ...]
    steps: I64
    full_bytes: I64
    dollars: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.dollars)

    def capacities(self, number: int) -> dict[str, int]:
        """Full capacity by tier of one configuration, left out ones with 0."""
        return dict(zip(self.tiers, self.full_bytes[number].tolist(), strict=True))


def parse_bounds(texts: Sequence[str], tiers: Sequence[str]) -> dict[str, int]:
    """Bounds of the tiers in bytes, of texts such as ``"hbm=80GiB,dram=1TiB"``.

    Raises:
        SettingsError: a tier is unknown or bounded twice, or a size is none.
    """
    bounds: dict[str, int] = {}
    for part in (part for text in texts for part in text.split(",")):
        name, equals, size = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise SettingsError(f"--max {part}: write --max TIER=SIZE, e.g. hbm=80GiB")
        if name not in tiers:
            raise SettingsError(f"--max {part}: no tier {name} here: {', '.join(tiers)}")
        if name in bounds:
            raise SettingsError(f"--max {part}: {name} has a bound already; give one")
        plain = int(size) if size.isdecimal() and len(size) < 19 else size
        bounds[name] = parse_bytes(plain, f"--max {name}")
    return bounds


def sizes_of(
    tier: str, footprint_bytes: int, least_bytes: int, most_bytes: int | None
) -> list[int]:
    """Sizes of a tier in ascending order: powers of two, and the bound itself as the largest.

    Args:
        tier: its name, for the message.
        footprint_bytes: what the trace touches, at least 1.
        least_bytes: one set.
        most_bytes: the user's bound; None for twice the footprint, 0 leaves the tier out.

    Raises:
        SettingsError: the bound does not hold one set.
    """
    if most_bytes == 0:
        return []
    if most_bytes is not None and most_bytes < least_bytes:
        raise SettingsError(
            f"--max {tier}={format_bytes(most_bytes)}: the tier must hold one set at least, "
            f"{format_bytes(least_bytes)} at the full geometry; raise it, or give 0 to leave "
            f"{tier} out"
        )
    top = min(_power_of_two(max(2 * footprint_bytes, least_bytes)), SIZE_BYTES_MAX)
    sizes = [top >> step for step in range(SIZES) if top >> step >= least_bytes]
    if most_bytes is not None and most_bytes < top:
        fitting = [size for size in _halvings(most_bytes) if size >= least_bytes]
        sizes = list(dict.fromkeys([most_bytes, *fitting]))
    return sorted(sizes)


def build_grid(sizes: Mapping[str, Sequence[int]], prices: Prices) -> Grid:
    """Every combination of the sizes of the tiers, each of which may be left out.

    Args:
        sizes: by tier, in their order, ascending; at the full geometry.
        prices: of the tiers.
    """
    tiers = tuple(sizes)
    ladders = [np.array([0, *sizes[tier]], np.int64) for tier in tiers]
    steps = np.stack(
        [axis.ravel() for axis in np.indices([len(ladder) for ladder in ladders])], axis=1
    ).astype(np.int64)
    full_bytes = np.stack([ladder[steps[:, tier]] for tier, ladder in enumerate(ladders)], axis=1)
    per_gib = np.array([prices[tier].dollars_per_gib for tier in tiers])
    dollars = (full_bytes / (1 << 30)) @ per_gib
    # Of equal prices, the smaller capacity comes first.
    order = np.lexsort((full_bytes.sum(axis=1), dollars))
    return Grid(tiers, steps[order], full_bytes[order], dollars[order])


def describe(full_bytes: Mapping[str, int]) -> str:
    """Capacities in words: ``hbm 64 GiB, nvme 2 TiB``."""
    there = (f"{name} {format_bytes(size)}" for name, size in full_bytes.items() if size)
    return ", ".join(there) or "no tier"


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _halvings(most: int) -> list[int]:
    """The largest power of two within ``most``, and its halvings."""
    top = 1 << (most.bit_length() - 1)
    return [top >> step for step in range(SIZES) if top >> step]
