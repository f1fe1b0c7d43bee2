"""What must be sought of a batch, where no index has said it page by page."""

from __future__ import annotations

import numpy as np

from kvtier.folding import leaders_of, number_leaders
from kvtier.pages import I64, U64, LookupResult, Misses, PageState


def fold(page_ids: U64, rows: I64) -> Misses:
    """Rows (i64[m], ascending) that ask for pages (u64[m]) that no tier has."""
    leads, page_of = number_leaders(leaders_of(page_ids))
    missing = page_ids[leads]
    states, slots = np.zeros(len(missing), np.uint8), np.full(len(missing), -1, np.int64)
    return Misses(rows, leads, page_of, missing, states, slots)


def with_hits(page_ids: U64, result: LookupResult) -> Misses:
    """A lookup's answer with its hits folded like misses: their state is VALID."""
    hit_rows, misses = result.rows, result.misses
    states = np.full(len(page_ids), PageState.VALID, np.uint8)
    slots = np.empty(len(page_ids), np.int64)
    slots[slice(None) if hit_rows is None else hit_rows] = result.hits
    states[misses.rows] = misses.states[misses.page_of]
    slots[misses.rows] = misses.slots[misses.page_of]
    leads, page_of = number_leaders(leaders_of(page_ids))
    return Misses(
        np.arange(len(page_ids)), leads, page_of, page_ids[leads], states[leads], slots[leads]
    )
