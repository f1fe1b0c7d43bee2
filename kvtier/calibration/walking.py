"""Reading pages of a cache in turn, again and again, on real devices or in virtual time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from kvtier.cache import TieredCache
from kvtier.calibration.origin import KEY
from kvtier.clock import Clock
from kvtier.pages import I64, U8, U64

_READS_MIN: Final = 4


@dataclass(slots=True)
class Walk:
    """Batches of pages in a fixed order.

    Attributes:
        cache: on real devices or in virtual time.
        clock: its time.
        page_ids: u64[n], in the order of reading; the first comes after the last.
        out: memory for a batch; None where no bytes move.
        at: the next page.
    """

    cache: TieredCache[Any]
    clock: Clock
    page_ids: U64
    out: U8 | None
    at: int = 0

    async def read(self, count: int) -> int:
        """Read a batch and let its fills end; returns how long that took, in ns."""
        places = (self.at + np.arange(count)) % len(self.page_ids)
        self.at = (self.at + count) % len(self.page_ids)
        page_ids = self.page_ids[places]
        out = None if self.out is None else self.out[:count]
        start_ns = self.clock.now_ns()
        await self.cache.read_into(page_ids, out)
        await self.cache.drain()
        return self.clock.now_ns() - start_ns


async def start_walk(cache: TieredCache[Any], clock: Clock, order: I64, most: int) -> Walk:
    """A walk that was round twice already, so that every tier has what it will keep.

    Args:
        cache: its origin holds the object.
        clock: its time.
        order: i64[n], pages of the object.
        most: pages of the largest batch.
    """
    page_ids = (await cache.open([KEY])).page_ids()[order]
    walk = Walk(cache, clock, page_ids, cache.driver.rows(most))
    for _ in range(-(-2 * len(page_ids) // most)):
        await walk.read(most)
    return walk


async def time_walks(
    walks: Sequence[Walk], batches: Sequence[int], turns: int, seconds: float
) -> list[float]:
    """What a batch occupies this thread for, in s, of each walk and each size.

    The mean of a turn, and the median over ``turns``.
    """
    places = [(walk, count) for walk in walks for count in batches]
    means: list[list[float]] = [[] for _ in places]
    turn_ns = seconds / (turns * len(places)) * 1e9
    for _ in range(turns):
        for (walk, count), found in zip(places, means, strict=True):
            reads, taken_ns, busy_ns = 0, 0, -time.thread_time_ns()
            while reads < _READS_MIN or taken_ns < turn_ns:
                taken_ns += await walk.read(count)
                reads += 1
            busy_ns += time.thread_time_ns()
            found.append(busy_ns / reads / 1e9)
    return [statistics.median(found) for found in means]
