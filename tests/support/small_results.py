"""A small result of a replay, with reads for two purposes; what a run would write, made by hand."""

from __future__ import annotations

import copy
from typing import Any

LATENCY = {"mean": 70.0, "p50": 60.0, "p90": 90.0, "p99": 120.0, "p999": 1500.0, "max": 2000.0}
NO_LATENCY = dict.fromkeys(LATENCY)


def tier(name: str, lookups: int, hits: int, **changed: Any) -> dict[str, Any]:
    return {
        "name": name,
        "engine": "numba",
        "lookups": lookups,
        "hits": hits,
        "hit_rate": hits / lookups if lookups else None,
        "device_reads": hits,
        "device_writes": 3,
        "read_bytes": hits * 4096,
        "evictions": 5,
        "bypasses": 0,
        "failures": 0,
        "coalescing_factor": 1.25,
        "iops": 13_400_000.0,
        "latency_us": LATENCY,
        **changed,
    }


def result() -> dict[str, Any]:
    """A whole result; both sums hold, for each purpose too."""
    prefix = _part(700, 60, 20, absent=5, hits=(300, 200, 114), failures=1, origin_reads=80)
    sparse = _part(500, 40, 20, absent=5, hits=(200, 100, 134), failures=1, origin_reads=120)
    whole = _part(1200, 100, 40, absent=10, hits=(500, 300, 248), failures=2, origin_reads=200)
    return copy.deepcopy(
        {
            "schema_version": 1,
            "name": "replay",
            "mode": "replay",
            "complete": True,
            "trace": {
                "path": "traces/[sample].parquet",
                "kind": "page io",
                "requests": 2000,
                "limit": None,
                "references": 1200,
                "unique": 800,
                "scaled": False,
                "pages_per_block": None,
                "full_pages_per_block": None,
                "synthetic": [],
                "page_bytes": 4096,
            },
            "config": {
                "tiers": [{"name": "hbm", "capacity_bytes": 8 << 20}, {"name": "dram"}],
                "origin": {"backend": "tcp", "write": "through"},
                "chain": {"coalesce": True},
                "replay": {"concurrency": 64},
            },
            "environment": {"python": "3.11.7", "o_direct": {}},
            "seed": 1,
            "duration_s": 1.5,
            "warmup": None,
            **whole,
            "writes": {"objects": 0, "pages": 0, "bytes": 0},
            "by_purpose": {"prefix": prefix, "sparse": sparse},
            "models": None,
            "series": {
                "interval_s": 0.5,
                "t_s": [0.5, 1.5],
                "reads": [1000, 200],
                "lookups": {"hbm": [900, 100], "dram": [600, 0], "origin": [200, 50]},
                "hits": {"hbm": [450, 50], "dram": [300, 0], "origin": [198, 50]},
                "delivered": {"hbm": [500, 50], "dram": [390, 0], "origin": [200, 50]},
            },
            "utilisation": None,
            "bottleneck": None,
            "crossover": None,
            "verify": {"checked_pages": 70, "corrupt_pages": 0},
        }
    )


def modelled(replayed: dict[str, Any]) -> dict[str, Any]:
    """The same decisions in virtual time."""
    simulated = copy.deepcopy(replayed)
    simulated |= {"name": "simulate", "mode": "simulate", "duration_s": 0.001, "verify": None}
    simulated |= {"utilisation": {"hbm": 0.5, "dram": 0.25, "origin": 0.99}, "bottleneck": "origin"}
    simulated["models"] = [
        {
            "level": name,
            "preset": "gen5-nvme",
            "devices": 4,
            "latency_us": 60.0,
            "iops": 13.2e6,
            "bytes_per_s": 56e9,
            "source": "a data sheet",
        }
        for name in ("hbm", "dram", "origin")
    ]
    simulated["crossover"] = {
        "first_tier": "hbm",
        "pages_per_s": 518e6,
        "stations": [
            {
                "station": name,
                "pages_per_read": 1.5,
                "pages_per_s": 13.4e6,
                "hit_rate_needed": 0.974,
                "hit_rate": hit_rate,
                "binds": hit_rate < 0.974,
            }
            for name, hit_rate in (("dram", 0.98), ("origin", 0.45))
        ],
    }
    simulated["origin"]["name"] = "modelled"
    for level in (*simulated["tiers"], simulated["origin"]):
        level |= {"iops": 1e9, "latency_us": NO_LATENCY}
    return simulated


def older(replayed: dict[str, Any]) -> dict[str, Any]:
    """As the first version wrote it."""
    old = copy.deepcopy(replayed)
    for key in ("name", "by_purpose", "models", "crossover"):
        del old[key]
    del old["series"]["lookups"], old["series"]["delivered"]
    return old


def _part(
    reads: int,
    folded: int,
    joined: int,
    *,
    absent: int,
    hits: tuple[int, int, int],
    failures: int,
    origin_reads: int,
) -> dict[str, Any]:
    hbm, dram, origin = hits
    unique = reads - folded
    return {
        "demand": {
            "reads": reads,
            "delivered": reads - absent,
            "unique": unique,
            "absent": absent,
            "late": 0,
            "bytes": (reads - absent) * 4096,
            "iops": (reads - absent) / 1.5,
            "latency_us": LATENCY,
        },
        "batches": {"count": reads // 100, "latency_us": LATENCY},
        "coalescing": {"folded": folded, "joined": joined, "merged_extents": 7, "factor": 1.5},
        "tiers": [tier("hbm", unique, hbm), tier("dram", unique - hbm, dram)],
        "origin": {
            "name": "tcp",
            "lookups": origin + failures,
            "hits": origin,
            "failures": failures,
            "device_reads": origin_reads,
            "read_bytes": origin * 4096,
            "coalescing_factor": None,
            "iops": 100.0,
            "latency_us": NO_LATENCY,
        },
    }
