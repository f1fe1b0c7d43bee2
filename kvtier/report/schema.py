"""The JSON result of a run, schema version 1, and the two sums that always hold.

Later versions only add keys. Latencies are in us; ``None`` where nothing was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypedDict

SCHEMA_VERSION: Final = 1


class Latency(TypedDict):
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    p999: float | None
    max: float | None


class Trace(TypedDict):
    """What was run.

    ``references`` counts block references or page reads, ``unique`` the distinct ones; ``scaled``
    says that ``pages_per_block`` is less than the model's; ``synthetic`` lists what was generated,
    not recorded.
    """

    path: str
    kind: str
    requests: int
    limit: int | None
    references: int
    unique: int
    scaled: bool
    pages_per_block: int | None
    full_pages_per_block: int | None
    synthetic: list[str]
    page_bytes: int


class Demand(TypedDict):
    """Pages asked for. ``delivered`` are those that were OK; ``bytes`` and ``iops`` count them."""

    reads: int
    delivered: int
    unique: int
    absent: int
    late: int
    bytes: int
    iops: float | None
    latency_us: Latency


class Batches(TypedDict):
    count: int
    latency_us: Latency


class Writes(TypedDict):
    objects: int
    pages: int
    bytes: int


class Coalescing(TypedDict):
    folded: int
    joined: int
    merged_extents: int
    factor: float | None


class Tier(TypedDict):
    name: str
    engine: str
    lookups: int
    hits: int
    hit_rate: float | None
    device_reads: int
    device_writes: int
    read_bytes: int
    evictions: int
    bypasses: int
    failures: int
    coalescing_factor: float | None
    iops: float | None
    latency_us: Latency


class Origin(TypedDict):
    name: str
    lookups: int
    hits: int
    failures: int
    device_reads: int
    read_bytes: int
    coalescing_factor: float | None
    iops: float | None
    latency_us: Latency


class Series(TypedDict):
    """Counts per interval, which ends at ``t_s``; ``hits`` by level."""

    interval_s: float
    t_s: list[float]
    reads: list[int]
    hits: dict[str, list[int]]


class Verify(TypedDict):
    checked_pages: int
    corrupt_pages: int


class Result(TypedDict):
    """One run. ``complete`` is false when it was interrupted; the sums hold all the same."""

    schema_version: Literal[1]
    mode: Literal["replay", "simulate"]
    complete: bool
    trace: Trace
    config: dict[str, Any]
    environment: dict[str, Any]
    seed: int
    duration_s: float
    warmup: dict[str, Any] | None
    demand: Demand
    batches: Batches
    writes: Writes
    coalescing: Coalescing
    tiers: list[Tier]
    origin: Origin | None
    series: Series
    utilisation: dict[str, float] | None
    bottleneck: str | None
    verify: Verify | None


def sum_rules(result: Mapping[str, Any]) -> tuple[tuple[str, bool], ...]:
    """The two sums of a result: each as a sentence with its numbers, and whether it holds."""
    demand, coalescing = result["demand"], result["coalescing"]
    origin = result["origin"] or {"hits": 0, "failures": 0}
    hits = sum(tier["hits"] for tier in result["tiers"])
    reads, unique, absent = demand["reads"], demand["unique"], demand["absent"]
    folded, joined = coalescing["folded"], coalescing["joined"]
    parts = (hits, joined, origin["hits"], origin["failures"], absent)
    return (
        (f"{reads:,} reads = {unique:,} unique + {folded:,} folded", reads == unique + folded),
        (
            "{:,} unique = {:,} tier hits + {:,} joined + {:,} origin hits + {:,} failed + "
            "{:,} absent".format(unique, *parts),
            unique == sum(parts),
        ),
    )


def check_sums(result: Mapping[str, Any]) -> list[str]:
    """The rules that a result breaks, each as a sentence with its numbers; empty for a sound one.

    ``demand.reads = demand.unique + coalescing.folded``, and ``demand.unique`` = all tier hits +
    ``coalescing.joined`` + origin hits + origin failures + ``demand.absent``.
    """
    return [f"not so: {sentence}" for sentence, holds in sum_rules(result) if not holds]
