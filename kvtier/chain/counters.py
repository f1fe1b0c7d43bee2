"""What a chain counts. Reads count at completion, so that the sum rules hold at any moment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields


@dataclass(slots=True)
class LevelCounters:
    """Counts of one level, a tier or the origin.

    Attributes:
        lookups, hits: per unique read; a failed read of a tier is one of its misses.
        rows_asked: demand reads that the level had to answer, folded and joined ones included.
        rows_delivered: demand reads whose bytes it brought to a caller.
        device_reads: operations (extents) issued to the device, and their bytes in
            ``read_bytes``, gap pages included; 0 for tiers in memory.
        merged_extents: device reads that brought more than one page.
        device_writes: pages written to the device, moved ones included; 0 for tiers in memory.
        moved_pages: pages that a log read and wrote again, so that they stay; no device reads of
            the chain, for no demand read asked for them.
        write_capped_pages: pages that missed while the write limit of the device was reached.
        failures: pages that the level should have had but could not read.
    """

    lookups: int = 0
    hits: int = 0
    rows_asked: int = 0
    rows_delivered: int = 0
    device_reads: int = 0
    read_bytes: int = 0
    merged_extents: int = 0
    device_writes: int = 0
    moved_pages: int = 0
    write_capped_pages: int = 0
    evictions: int = 0
    bypasses: int = 0
    failures: int = 0

    def merge(self, other: LevelCounters) -> None:
        """Count what ``other`` counted."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


@dataclass(slots=True)
class Counters:
    """Counts of a whole chain, or of its reads for one purpose.

    Always: ``reads = unique + folded`` and
    ``unique = sum(level.hits) + joined + failed + absent``.

    Attributes:
        delivered: demand reads whose bytes reached the caller.
        late: demand reads answered LATE; what became of them later counts as usual. A batch that
            found no room before its deadline is counted here alone.
        failed: unique reads that the last level failed.
    """

    levels: list[LevelCounters] = field(default_factory=list)
    batches: int = 0
    reads: int = 0
    delivered: int = 0
    unique: int = 0
    folded: int = 0
    joined: int = 0
    absent: int = 0
    failed: int = 0
    late: int = 0
    written_objects: int = 0
    written_pages: int = 0

    def merge(self, other: Counters) -> None:
        """Count what ``other``, of as many levels, counted."""
        for one in fields(self):
            if one.name != "levels":
                setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        for mine, theirs in zip(self.levels, other.levels, strict=True):
            mine.merge(theirs)


def no_counts(levels: int) -> Counters:
    """Counters of a chain of so many levels, at zero."""
    return Counters(levels=[LevelCounters() for _ in range(levels)])


def total(parts: Iterable[Counters], levels: int) -> Counters:
    """The sum of counters of a chain of so many levels."""
    whole = no_counts(levels)
    for part in parts:
        whole.merge(part)
    return whole
