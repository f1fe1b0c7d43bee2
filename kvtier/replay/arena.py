"""Bounded memory that batches of a replay are read into."""

from __future__ import annotations

import numpy as np

from kvtier.pages import U8


class Arena:
    """Rows of pages, taken in runs and given back in any order.

    Args:
        pages: all of its rows.
        page_bytes: bytes of a row.
    """

    def __init__(self, pages: int, page_bytes: int) -> None:
        self._rows = np.empty((pages, page_bytes), np.uint8)
        self._taken: list[slice] = []
        """In the order of their rows."""

    def __getitem__(self, run: slice) -> U8:
        return self._rows[run]

    def take(self, pages: int) -> slice | None:
        """The first run of so many free rows, None while there is none."""
        start = 0
        end_of_all = slice(len(self._rows), None)
        for place, taken in enumerate([*self._taken, end_of_all]):
            if taken.start - start >= pages:
                run = slice(start, start + pages)
                self._taken.insert(place, run)
                return run
            start = taken.stop
        return None

    def give_back(self, run: slice) -> None:
        """Let the rows be taken again."""
        self._taken.remove(run)
