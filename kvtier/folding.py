"""Folding: of all rows of a batch that ask for one page, the first leads, and the others follow."""

from __future__ import annotations

import numpy as np

from kvtier.jit import jit
from kvtier.pages import I64, U64, Bool


def leaders_of(page_ids: U64) -> I64:
    """For each row, the first row that asks for the same page (i64[m])."""
    _, first, inverse = np.unique(page_ids, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def number_leaders(leaders: I64) -> tuple[Bool, I64]:
    """Number the distinct pages of some rows, in the order of the first row of each.

    Args:
        leaders: i64[m], for each row the first one that asks for the same page.

    Returns:
        bool[m], which rows lead; i64[m], the number of the page that each row asks for.
    """
    leads = np.empty(len(leaders), np.bool_)
    page_of = np.empty(len(leaders), np.int64)
    _number_leaders(leaders, leads, page_of)
    return leads, page_of


@jit
def _number_leaders(leaders: I64, leads: Bool, page_of: I64) -> None:
    count = 0
    for at in range(leaders.size):
        leads[at] = leaders[at] == at
        if leads[at]:
            page_of[at] = count
            count += 1
        else:
            page_of[at] = page_of[leaders[at]]
