"""The ring of a log's segments: which is written now, which come next, which are let go first.

Positions count pages from the first one ever given: position ``p`` is location ``p % locations``.
So segments follow each other in a ring, and a segment's *turn* is ``p // segment_pages``. In the
order of turns there are: segments that drain (their pages have left the index, but somebody may
still read there), full ones, and the one that is written. The others are free.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.index.log_geometry import LogGeometry
from kvtier.pages import I64, U64

_NO_POSITIONS: Final = np.empty(0, np.int64)


class LogRing:
    """Gives locations in order, and says when segments must be let go.

    Args:
        geometry: of the log.

    Attributes:
        generations: u64[segments], a number that grows with every opening of a segment for writing,
            over the life of the file; 0: never opened.
    """

    def __init__(self, geometry: LogGeometry) -> None:
        self._geometry = geometry
        self.generations: U64 = np.zeros(geometry.segments, np.uint64)
        self._newest_generation = 0
        self._next = 0
        """Position that is given next."""
        self._first_full = 0
        """Turn of the oldest full segment, or of the one that is written."""
        self._first_draining = 0
        """Turn of the oldest segment that drains, or of the oldest full one."""
        self._holes = _NO_POSITIONS
        """Ascending positions that were given in vain, in segments that have not been let go."""

    # -- places -------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Pages for which there is a place, without those given back."""
        end = (self._first_draining + self._geometry.segments) * self._geometry.segment_pages
        return end - self._next

    def take(self, count: int) -> I64:
        """Up to ``count`` locations: first those given back, the latest of them, then new ones."""
        again = min(count, len(self._holes))
        kept = len(self._holes) - again
        self._holes, holes = self._holes[:kept], self._holes[kept:]
        new = self.take_new(min(count - again, self.room))
        return np.concatenate((holes % self._geometry.locations, new))

    def take_new(self, count: int) -> I64:
        """``count`` locations that follow those given last; at most ``room``."""
        pages = self._geometry.segment_pages
        first, self._next = self._next, self._next + count
        for turn in range(-(-first // pages), -(-self._next // pages)):
            self._newest_generation += 1
            self.generations[turn % self._geometry.segments] = self._newest_generation
        return np.arange(first, self._next) % self._geometry.locations

    def give_back(self, locations: I64) -> None:
        """Locations (i64[n]) at which no page became readable may be given again."""
        pages, segments = self._geometry.segment_pages, self._geometry.segments
        newest = (self._next - 1) // pages
        turns = newest - (newest - locations // pages) % segments
        given = np.sort(turns * pages + locations % pages)
        is_latest = not (len(given) and len(self._holes)) or given[0] > self._holes[-1]
        holes = np.concatenate((self._holes, given))
        # The latest are taken first, so they mostly come back to the end of what may be many.
        self._holes = holes if is_latest else np.sort(holes)

    # -- segments -----------------------------------------------------------------------------

    @property
    def full_segments(self) -> int:
        """Segments of which every location was given, and that are not let go."""
        return self._next // self._geometry.segment_pages - self._first_full

    @property
    def oldest(self) -> int:
        """The segment that is let go next."""
        return self._first_full % self._geometry.segments

    @property
    def draining_segments(self) -> int:
        """Segments that were let go, and are not free."""
        return self._first_full - self._first_draining

    @property
    def first_draining(self) -> int:
        """The segment that must be free before those after it."""
        return self._first_draining % self._geometry.segments

    def is_short_of(self, pages: int) -> bool:
        """Whether too few segments would be free or draining after so many pages were given."""
        new = max(0, pages - len(self._holes))
        opened = -(-(self._next + new) // self._geometry.segment_pages)
        spare = self._geometry.segments - (opened - self._first_full)
        return spare < self._geometry.spare_segments

    def let_go(self) -> None:
        """The oldest full segment drains from now on."""
        self._first_full += 1
        first = self._first_full * self._geometry.segment_pages
        self._holes = self._holes[np.searchsorted(self._holes, first) :]

    def free(self) -> None:
        """The first segment that drains is free."""
        self._first_draining += 1

    def restore(self, generations: U64) -> None:
        """Go on, with an empty ring, after the newest generation (u64[segments]) of a file.

        A round of generations is left out: some that the file does not know of may have been
        opened, and none may be opened twice.
        """
        segments, pages = self._geometry.segments, self._geometry.segment_pages
        if not generations.any():
            return
        self.generations[:] = generations
        self._newest_generation = int(generations.max()) + segments
        newest = int(generations.argmax()) + segments
        never = np.roll(generations, -(newest + 1)) == 0
        unused = int(np.argmin(never))
        self._next = (newest + 1) * pages
        self._first_full = self._first_draining = newest + 1 + unused - segments
