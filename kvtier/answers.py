"""Which parts of a batch are answered: for who merges the pages of several into one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from kvtier.chain import Read
from kvtier.chain.flight import UNRESOLVED
from kvtier.pages import I64

Answered: TypeAlias = Callable[[I64], None]


class Parts:
    """Counts the unanswered rows of each part of one batch of reads.

    A driver reports which rows it has copied. What the chain answers without a copy, an absent
    page or a failed one, is found by :meth:`settle`.

    Args:
        sizes: i64[k], rows of each part, at least 1, in the order of the batch.
        answered: called with the numbers of parts (i64[m]) all of whose rows have now their
            status, each part once. It must not call the driver.
    """

    def __init__(self, sizes: I64, answered: Answered) -> None:
        self._part_of = np.repeat(np.arange(len(sizes)), sizes)
        self._rows_left = sizes
        self._left = len(self._part_of)
        self._answered = answered

    def copied(self, rows: I64 | None) -> None:
        """Rows (i64[m], None for all) have their bytes."""
        if rows is None:
            self.abandon()
            return
        self._left -= len(rows)
        gone = np.bincount(self._part_of[rows], minlength=len(self._rows_left))
        self._update(self._rows_left - gone)

    def settle(self, read: Read) -> None:
        """Look which rows of the batch have a status, if it is more than were copied."""
        if read.unresolved != self._left:
            self._left = read.unresolved
            waiting = self._part_of[read.status == UNRESOLVED]
            self._update(np.bincount(waiting, minlength=len(self._rows_left)))

    def abandon(self) -> None:
        """Nothing more will come: every part counts as answered."""
        self._left = 0
        self._update(np.zeros_like(self._rows_left))

    def _update(self, rows_left: I64) -> None:
        done = np.flatnonzero((rows_left == 0) & (self._rows_left > 0))
        self._rows_left = rows_left
        if len(done):
            self._answered(done)
