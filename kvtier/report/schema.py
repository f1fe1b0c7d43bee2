"""The JSON result of a run, schema version 1.

Later versions only add keys. Latencies are in us; ``None`` where nothing was measured.
"""

from __future__ import annotations

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


class Events(TypedDict):
    """An event log; results with the ``id`` of one decided alike."""

    path: str
    id: str


class Drive(TypedDict):
    """How requests were driven: in waves by ``concurrency`` alone, which each GPU has.

    ``compute_s`` is None where the trace or a model says it, too; ``speed`` is of an open loop and
    of ``serving``. ``gpus`` is how many were modelled, None in a replay; ``spread`` how requests
    went to several; ``events`` is the log that a replay wrote, or a simulation repeated.
    """

    kind: Literal["waves", "closed", "open", "serving"]
    concurrency: int
    compute_s: float | None
    tick_s: float | None
    speed: float | None
    gpus: int | None
    spread: str | None
    events: Events | None


class Requests(TypedDict):
    """Requests that ended, and their latency from arrival to the last answer.

    ``queue_us`` is the part of it before there was room for them, ``in_flight_mean`` the mean over
    time of those under way, ``stall_share`` the share of their time that they waited for reads and
    writes and did not compute.
    """

    count: int
    per_s: float | None
    latency_us: Latency
    queue_us: Latency
    in_flight_mean: float | None
    stall_share: float | None


class ServedModel(TypedDict):
    name: str
    parameters: int
    active_parameters: int
    weights_bytes: int
    kv_token_bytes: int


class Compute(TypedDict):
    """The GPUs of one node, all of its ``devices`` together."""

    preset: str
    devices: int
    flops: float
    bytes_per_s: float
    efficiency: float
    kv_capacity_bytes: int
    source: str


class Node(TypedDict):
    """A node's steps, and where its time went.

    ``busy_s`` in steps, ``stalled_s`` with requests that all waited for storage, ``idle_s`` without
    any. ``batch_mean`` counts the sequences of a step, ``batch_tokens_peak`` its tokens.
    """

    name: str
    steps: int
    step_us: Latency
    batch_mean: float | None
    batch_tokens_peak: int
    busy_s: float
    stalled_s: float
    idle_s: float
    stall_share: float | None
    stall_per_step_us: float | None
    loaded_tokens: int
    computed_tokens: int
    output_tokens: int
    queue_us: Latency
    load_us: Latency
    kv_peak_bytes: int


class Uncached(TypedDict):
    """The same requests without a cache."""

    duration_s: float
    output_tokens: int
    output_tokens_per_s: float | None
    ttft_us: Latency
    tpot_us: Latency


class TtftSaved(TypedDict):
    """By how much first tokens came sooner with the cache; negative where they came later."""

    mean_us: float
    p10_us: float
    p50_us: float
    p90_us: float
    share: float
    slower_share: float


class Serving(TypedDict):
    """What a model server did.

    ``prompt_tokens`` are ``loaded_tokens`` and ``computed_tokens``; ``recompute_s`` is how long the
    operations for the loaded ones would have taken.
    """

    roles: Literal["one", "split"]
    model: ServedModel
    compute: Compute
    output_tokens: int
    output_tokens_per_s: float | None
    prompt_tokens: int
    loaded_tokens: int
    loaded_tokens_per_s: float | None
    computed_tokens: int
    computed_tokens_per_s: float | None
    ttft_us: Latency
    tpot_us: Latency
    recompute_s: float
    nodes: list[Node]
    uncached: Uncached | None
    ttft_saved: TtftSaved | None


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
    """A tier.

    ``written_bytes`` is all that its device was written, ``write_amplification`` that by the pages
    which callers and fills gave it, ``drive_writes_per_day`` by its capacity.
    ``write_capped_pages`` missed while the write limit was reached, and were not kept.
    """

    name: str
    engine: str
    lookups: int
    hits: int
    hit_rate: float | None
    device_reads: int
    device_writes: int
    moved_pages: int
    read_bytes: int
    evictions: int
    bypasses: int
    failures: int
    coalescing_factor: float | None
    iops: float | None
    latency_us: Latency
    written_bytes: int
    write_amplification: float | None
    drive_writes_per_day: float | None
    write_capped_pages: int


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


class WrappedOrigin(Origin):
    """``wrappers`` is what those around it did; of a whole replay, not of its parts."""

    wrappers: dict[str, dict[str, int]] | None


class Series(TypedDict):
    """Counts per interval, which ends at ``t_s``; all but ``reads`` by level.

    ``delivered`` counts demand reads, folded and joined ones included; the others unique reads.
    """

    interval_s: float
    t_s: list[float]
    reads: list[int]
    lookups: dict[str, list[int]]
    hits: dict[str, list[int]]
    delivered: dict[str, list[int]]


class Model(TypedDict):
    """The devices that stood for a level in virtual time, for all GPUs, all of them together."""

    level: str
    preset: str
    devices: int
    latency_us: float
    iops: float
    bytes_per_s: float
    source: str


class Crossing(TypedDict):
    """A station below the first tier: the hit rate above it that it takes, and that there was."""

    station: str
    pages_per_read: float
    pages_per_s: float
    hit_rate_needed: float
    hit_rate: float
    binds: bool


class Crossover(TypedDict):
    """From which hit rate on each station lets through as much as the first tier delivers."""

    first_tier: str
    pages_per_s: float
    stations: list[Crossing]


class Verify(TypedDict):
    checked_pages: int
    corrupt_pages: int


class Part(TypedDict):
    """The reads of one purpose. Rates are per second of the whole run, so they add up to its."""

    demand: Demand
    batches: Batches
    coalescing: Coalescing
    tiers: list[Tier]
    origin: Origin | None


class Gpu(TypedDict):
    """What was done for one of several GPUs; rates are per second of the whole run."""

    name: str
    requests: Requests
    writes: Writes
    demand: Demand
    batches: Batches
    coalescing: Coalescing
    tiers: list[Tier]
    origin: Origin | None


class Result(TypedDict):
    """One run. ``complete`` is false when it was interrupted; the sums hold all the same.

    ``by_purpose`` has ``prefix``, ``sparse`` and ``unstated``, as far as there were such reads.
    ``gpus`` are those of which everything is the sum, None where there is one.
    """

    schema_version: Literal[1]
    name: str
    mode: Literal["replay", "simulate"]
    complete: bool
    trace: Trace
    config: dict[str, Any]
    environment: dict[str, Any]
    seed: int
    duration_s: float
    warmup: dict[str, Any] | None
    drive: Drive
    requests: Requests
    serving: Serving | None
    demand: Demand
    batches: Batches
    writes: Writes
    coalescing: Coalescing
    tiers: list[Tier]
    origin: WrappedOrigin | None
    by_purpose: dict[str, Part]
    gpus: list[Gpu] | None
    models: list[Model] | None
    series: Series
    utilisation: dict[str, float] | None
    bottleneck: str | None
    crossover: Crossover | None
    verify: Verify | None
