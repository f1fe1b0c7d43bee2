"""Which configuration to simulate next, so that few are needed to find the cheapest one.

It is assumed that, with the same tiers, more capacity never misses what less meets. So one that
misses rules out every smaller one of the same tiers, and one that meets every dearer one. For a
set-associative, non-inclusive cache this is no theorem: the answer's cheaper neighbours are
simulated whatever the assumption says of them, and a search without it tries every cheaper one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvtier.pages import I64


class Search:
    """A search of a grid, told what came of each configuration that it named.

    Args:
        steps: i64[n, tiers], the configurations in order of price; 0 leaves a tier out.
        exhaustive: assume nothing: cheapest first, until one meets the target.

    Attributes:
        answer: the cheapest so far that meets the target.
        surprises: how often one met it that the assumption had ruled out.
    """

    def __init__(self, steps: I64, *, exhaustive: bool = False) -> None:
        self._steps = steps
        self._open = np.ones(len(steps), np.bool_)
        self._tried = np.zeros(len(steps), np.bool_)
        self._exhaustive = exhaustive
        self.answer: int | None = None
        self.surprises = 0

    @property
    def cheaper_untried(self) -> int:
        """How many cheaper ones than the answer were not tried."""
        return int(np.count_nonzero(~self._tried[: self.answer]))

    @property
    def largest(self) -> list[int]:
        """Of those not ruled out, the ones with every tier that they have at its largest.

        As long as nothing meets the target, all of them missing it is what ends the search.
        """
        steps = self._steps
        full = ((steps == 0) | (steps == steps.max(axis=0))).all(axis=1)
        found: list[int] = np.flatnonzero(full & self._open).tolist()
        return found

    def next(self) -> int | None:
        """The configuration to try; None when there is nothing left to find out."""
        candidates = np.flatnonzero(self._open)
        if len(candidates) == 0:
            return self._unconfirmed()
        if self._exhaustive:
            return int(candidates[0])
        # The one that rules out most, however it turns out.
        if_met = np.arange(len(candidates), 0, -1)
        if_missed = np.array(
            [self._within(number)[candidates].sum() for number in candidates.tolist()]
        )
        return int(candidates[np.argmax(np.minimum(if_met, if_missed))])

    def tell(self, number: int, *, meets: bool) -> None:
        """What came of a configuration."""
        self._tried[number] = True
        if not meets:
            self._open[number] = False
            if not self._exhaustive:
                self._open[self._within(number)] = False
            return
        self.surprises += not self._open[number]
        self._open[number:] = False
        self.answer = number if self.answer is None else min(self.answer, number)

    def _within(self, number: int) -> NDArray[np.bool_]:
        """Those with the same tiers and no more capacity in any, itself included."""
        steps = self._steps
        same = ((steps > 0) == (steps[number] > 0)).all(axis=1)
        within: NDArray[np.bool_] = same & (steps <= steps[number]).all(axis=1)
        return within

    def _unconfirmed(self) -> int | None:
        """A cheaper neighbour of the answer that was not tried: one tier a step smaller, or out."""
        if self.answer is None:
            return None
        steps, mine = self._steps, self._steps[self.answer]
        differs = steps != mine
        smaller = (steps == mine - 1) | (steps == 0)
        neighbours = (differs.sum(axis=1) == 1) & (smaller | ~differs).all(axis=1)
        left = np.flatnonzero(neighbours[: self.answer] & ~self._tried[: self.answer])
        return int(left[-1]) if len(left) else None
