"""What a cache counts since it was opened, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from kvtier.cache import TieredCache
from kvtier.chain import LevelCounters
from kvtier.driver import AsyncDriver
from kvtier.prometheus import Kind, family
from kvtier.settings import TierSettings
from kvtier.tiers import NvmeTier
from kvtier.wear import wear

Samples = list[tuple[Mapping[str, str], float]]

_OF_LEVELS: Final[Mapping[str, tuple[str, Callable[[LevelCounters], int]]]] = {
    "kvtier_cache_lookups_total": ("Unique reads that a level was asked for.", lambda c: c.lookups),
    "kvtier_cache_hits_total": ("Of those, the ones that it had.", lambda c: c.hits),
    "kvtier_cache_failures_total": ("Pages that it should have had.", lambda c: c.failures),
    "kvtier_cache_device_reads_total": ("Operations that read.", lambda c: c.device_reads),
    "kvtier_cache_read_bytes_total": ("Bytes that they read.", lambda c: c.read_bytes),
    "kvtier_cache_evictions_total": ("Pages that made room for others.", lambda c: c.evictions),
    "kvtier_cache_bypasses_total": ("Pages that found no room.", lambda c: c.bypasses),
    "kvtier_cache_moved_pages_total": ("Pages that a log wrote again.", lambda c: c.moved_pages),
    "kvtier_cache_write_capped_pages_total": (
        "Pages that were not kept, because of the write limit.",
        lambda c: c.write_capped_pages,
    ),
}

_OF_WEAR: Final[Mapping[str, tuple[Kind, str, str]]] = {
    "kvtier_cache_written_bytes_total": (
        "counter",
        "Bytes written to the drive: pages, those that moved, and metadata.",
        "written_bytes",
    ),
    "kvtier_cache_write_amplification": (
        "gauge",
        "Bytes written by bytes of pages that were not there before.",
        "write_amplification",
    ),
    "kvtier_cache_drive_writes_per_day": (
        "gauge",
        "Capacities written per day, on average since the cache was opened.",
        "drive_writes_per_day",
    ),
}


def exposition(cache: TieredCache[AsyncDriver]) -> str:
    """Counts and wear of an open cache, for whatever answers ``/metrics`` in this process.

    Levels are told apart by ``level``: ``hbm``, ``dram``, ``nvme``, ``origin``.
    """
    settings, counters = cache.settings, cache.driver.chain.counters
    names = [tier.name for tier in settings.tiers]
    levels = dict(zip([*names, "origin"], counters.levels, strict=False))
    reads: Samples = [({}, counters.reads)]
    lines = family("kvtier_cache_reads_total", "counter", "Pages that callers asked for.", reads)
    for name, (about, count) in _OF_LEVELS.items():
        samples: Samples = [({"level": level}, count(one)) for level, one in levels.items()]
        lines += family(name, "counter", about, samples)
    for one, tier in zip(settings.tiers, cache.driver.tiers, strict=True):
        if isinstance(tier, NvmeTier):
            age_s = cache.driver.age_s
            lines += _drive_lines(one, tier, levels[one.name], settings.page_bytes, age_s)
    return "\n".join(lines) + "\n"


def _drive_lines(
    settings: TierSettings, tier: NvmeTier, level: LevelCounters, page_bytes: int, age_s: float
) -> list[str]:
    """What only a tier on a drive has."""
    worn = wear(
        settings,
        level,
        page_bytes=page_bytes,
        extra_bytes=tier.metadata_bytes,
        caches=1,
        duration_s=age_s,
    )
    label = {"level": tier.name}
    lines: list[str] = []
    for name, (kind, about, key) in _OF_WEAR.items():
        value = worn[key]
        lines += family(name, kind, about, [] if value is None else [(label, value)])
    lines += family(
        "kvtier_cache_bad_pages_total",
        "counter",
        "Pages that the drive did not bring as they were written: misses.",
        [
            (label | {"reason": "corrupt"}, tier.corrupt_pages),
            (label | {"reason": "unwritten"}, tier.lost_pages),
        ],
    )
    return lines + family(
        "kvtier_cache_io_errors_total",
        "counter",
        "Operations of the drive that failed or ended short.",
        [(label, tier.io_errors)],
    )
