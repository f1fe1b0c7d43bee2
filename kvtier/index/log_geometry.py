"""How the file of a log is divided: into segments, and those into pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SEGMENTS_MIN: Final = 8
"""Segments that hold the capacity, at least; a small tier takes smaller ones."""

_SPARE_MIN: Final = 4
_SPARE_SHARE: Final = 16


@dataclass(frozen=True, slots=True)
class LogGeometry:
    """Location ``l`` is page ``l % segment_pages`` of segment ``l // segment_pages``.

    Attributes:
        segments: of the file, spare ones included.
        segment_pages: pages of each; two at least, for half of a segment may be written again.
        spare_segments: beyond the capacity: free, or becoming free while others are read.
    """

    segments: int
    segment_pages: int
    spare_segments: int

    @property
    def locations(self) -> int:
        """Pages that the file has room for."""
        return self.segments * self.segment_pages


def log_geometry(slots: int, page_bytes: int, segment_bytes: int) -> LogGeometry:
    """The geometry of a log that holds ``slots`` pages in segments of some ``segment_bytes``.

    The last segment may reach beyond the capacity. A sixteenth of the segments is added as spare
    ones, four at least.
    """
    segment_pages = max(2, min(segment_bytes // page_bytes, slots // SEGMENTS_MIN))
    segments = -(-slots // segment_pages)
    spare = max(_SPARE_MIN, -(-segments // _SPARE_SHARE))
    return LogGeometry(segments + spare, segment_pages, spare)
