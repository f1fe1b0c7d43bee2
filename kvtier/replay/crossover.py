"""From which hit rate on a machine is as fast as its first tier.

Where the first tier delivers ``first`` pages per second and a station below it lets ``rate``
through, a share ``h`` of pages that do not pass the station lets ``rate / (1 - h)`` through in
all. That is ``first`` or more, and the station binds no longer, from

    h = 1 - rate / first

on. An H200 copies out 518 M pages/s of 4 KiB, and one PCIe Gen5 link carries 13.4 M: the hit rate
must be 97.4 %; for the 150 M hits/s that SCADA reports, 91.1 %.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from kvtier.emulator import ReadLoad
from kvtier.settings.rates import reads_per_s


def hit_rate_needed(station_pages_per_s: float, first_pages_per_s: float) -> float:
    """The least hit rate above a station with which it does not bind; 0 for one fast enough."""
    return max(0.0, 1 - station_pages_per_s / first_pages_per_s)


def crossover(
    loads: Mapping[str, ReadLoad], first: Collection[str], page_bytes: int, delivered: int
) -> dict[str, Any] | None:
    """The crossover of every station below the first tier, as docs/json.md has it.

    Rates are those of reads alone, of as many pages each as the station saw on average. What
    passes it is compared with all that was delivered, so folded and joined reads count as hits.

    Args:
        loads: what each station served, by its name.
        first: names of the devices of the first tier, of which there may be several alike.
        page_bytes: bytes of a page.
        delivered: demand reads whose pages were delivered.

    Returns:
        None where there is no first tier, or nothing was delivered.
    """
    if not first or not delivered:
        return None
    first_per_s = sum(_pages_per_s(loads[name], page_bytes) for name in first)
    return {
        "first_tier": " + ".join(first),
        "pages_per_s": first_per_s,
        "stations": [
            _crossing(name, load, first_per_s, page_bytes, delivered)
            for name, load in loads.items()
            if name not in first and load.reads
        ],
    }


def _crossing(
    name: str, load: ReadLoad, first_per_s: float, page_bytes: int, delivered: int
) -> dict[str, Any]:
    pages_per_s = _pages_per_s(load, page_bytes)
    needed = hit_rate_needed(pages_per_s, first_per_s)
    # Gaps that are read to join extents, and prefetches, may be more than what was delivered.
    hit_rate = max(0.0, 1 - load.pages / delivered)
    return {
        "station": name,
        "pages_per_read": load.pages / load.reads,
        "pages_per_s": pages_per_s,
        "hit_rate_needed": needed,
        "hit_rate": hit_rate,
        "binds": hit_rate < needed,
    }


def _pages_per_s(load: ReadLoad, page_bytes: int) -> float:
    pages = load.pages / load.reads if load.reads else 1.0
    return pages * reads_per_s(load.model, page_bytes, pages)
