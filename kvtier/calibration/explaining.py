"""Times as sums of non-negative terms."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def explain(counts: Floats, taken_s: Floats, weights: Floats) -> list[float]:
    """What each thing takes, in s, so that their sums come nearest to what was measured.

    Least squares, no term below 0: of all choices of terms that may be above, the best one whose
    solution has none below.

    Args:
        counts: f64[n, k], how often each of k things was done in each of n measurements.
        taken_s: f64[n].
        weights: f64[n], by which an error is multiplied before it is squared.
    """
    terms, target = counts * weights[:, None], taken_s * weights
    width = terms.shape[1]
    best, least = np.zeros(width), float(target @ target)
    for size in range(1, width + 1):
        for chosen in itertools.combinations(range(width), size):
            columns = list(chosen)
            solution, *_ = np.linalg.lstsq(terms[:, columns], target, rcond=None)
            rest = target - terms[:, columns] @ solution
            if (solution >= 0).all() and float(rest @ rest) < least:
                best, least = np.zeros(width), float(rest @ rest)
                best[columns] = solution
    return [float(each) for each in best]
