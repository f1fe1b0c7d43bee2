"""Which rows a report shows together, with their keys from the top of a result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from kvtier.report.rows import (
    BYTES_DELIVERED,
    BYTES_READ,
    COALESCING_ROWS,
    DEVICE_READS,
    ENGINE,
    FACTOR,
    HIT_RATE,
    LATENCY_ROWS,
    NODE_ROWS,
    P50,
    P99,
    P999,
    QUOTIENT,
    READS,
    READS_PER_ORIGIN_READ,
    REQUEST_ROWS,
    SERVING_ROWS,
    UNCACHED_ROWS,
    VERIFY_ROWS,
    Row,
    Values,
    demand_rows,
    exact,
    factor,
    find,
    gpus_of,
    iops_row,
    level_keys,
    level_rows,
    parts_of,
    percent,
)
from kvtier.units import format_bytes, format_count, format_seconds

_GPUS_COMPARED: Final = 8
"""GPUs that have lines of their own among the headline numbers."""

_GPUS_LISTED: Final = 64
"""GPUs of which a table has every number; a result has those of all."""

_STATIONS_COMPARED: Final = 24
"""Devices and links whose utilisation is among the headline numbers, the first ones of a result."""


class Section(NamedTuple):
    """Rows that belong together, their keys from the top of the result."""

    title: str
    rows: tuple[Row, ...]


def headline(result: Values) -> Iterator[Section]:
    """What an engineer compares first."""
    page_bytes = result["trace"]["page_bytes"]
    mode = Row("mode", "mode", str)
    yield Section("run", (mode, Row("duration", "duration_s", format_seconds)))
    demand = (READS, BYTES_DELIVERED, iops_row(page_bytes), P50, P99, P999)
    yield _section("demand", "demand", demand)
    if find(result, "drive.kind") not in (None, "waves"):
        yield _section("requests", "requests", REQUEST_ROWS)
    yield from _serving(result)
    yield _section("coalescing", "coalescing", COALESCING_ROWS[:2])
    for name, key in level_keys(result).items():
        device = (DEVICE_READS, BYTES_READ, FACTOR) if find(result, f"{key}.device_reads") else ()
        section = _section(name, key, (ENGINE, HIT_RATE, *device))
        whole = (READS_PER_ORIGIN_READ,) if name == "origin" else ()
        yield Section(name, (*section.rows, *whole))
    for purpose, part in parts_of(result).items():
        yield _section(purpose, f"by_purpose.{purpose}", part_headline(part, page_bytes))
    yield Section(
        "busy", (Row("bottleneck", "bottleneck", str), *_busy_rows(result)[:_STATIONS_COMPARED])
    )
    yield from _gpu_headline(result)
    yield _section("verify", "verify", VERIFY_ROWS)


def _gpu_headline(result: Values) -> Iterator[Section]:
    """Rate and tail of each GPU, as far as there is room for them."""
    gpus = gpus_of(result)
    if not gpus:
        return
    rows: list[Row] = []
    for number, gpu in enumerate(gpus[:_GPUS_COMPARED]):
        for row in (iops_row(result["trace"]["page_bytes"]), P99):
            named = row._replace(label=f"{gpu['name']} {row.label}")
            rows.append(named.under(f"gpus.{number}.demand"))
    yield Section("GPUs", tuple(rows))


def part_headline(part: Values, page_bytes: int) -> tuple[Row, ...]:
    """What is compared first of the reads for one purpose; keys from the top of the part."""
    rows = [row.under("demand") for row in (READS, iops_row(page_bytes), P50, P99)]
    for name, key in level_keys(part).items():
        row = DEVICE_READS if name == "origin" else HIT_RATE
        rows.append(row._replace(label=f"{name} {row.label}").under(key))
    return (*rows, READS_PER_ORIGIN_READ)


def every_number(result: Values) -> Iterator[Section]:
    """All counts, rates and latencies of a result, then of each purpose and each GPU."""
    yield Section("run", (Row("duration", "duration_s", format_seconds),))
    yield _section("requests", "requests", REQUEST_ROWS)
    yield from _serving(result)
    for number, node in enumerate(find(result, "serving.nodes") or ()):
        yield _section(f"node {node['name']}", f"serving.nodes.{number}", NODE_ROWS)
    yield from _part_sections(result, "", "")
    for purpose in parts_of(result):
        yield from _part_sections(result, f"by_purpose.{purpose}", f"{purpose}: ")
    for number, gpu in enumerate(gpus_of(result)[:_GPUS_LISTED]):
        yield _section(f"{gpu['name']}: requests", f"gpus.{number}.requests", REQUEST_ROWS)
        yield from _part_sections(result, f"gpus.{number}", f"{gpu['name']}: ")
    writes = (
        Row("objects", "objects", exact, is_decision=True),
        Row("pages", "pages", exact, is_decision=True),
        Row("bytes", "bytes", format_bytes, is_decision=True),
    )
    yield _section("writes", "writes", writes)
    used = (row._replace(label=f"{row.label} busy") for row in _busy_rows(result))
    yield Section("utilisation", tuple(used))
    yield from _crossings(result)
    yield _section("verify", "verify", VERIFY_ROWS)


def setup(result: Values) -> Iterator[Section]:
    """What was run, and on what."""
    capacities = (
        Row(f"{tier['name']} capacity", f"config.tiers.{number}.capacity_bytes", format_bytes)
        for number, tier in enumerate(result["tiers"])
    )
    yield Section(
        "run",
        (
            Row("mode", "mode", str),
            Row("duration", "duration_s", format_seconds),
            Row("seed", "seed", str),
            *capacities,
            Row("origin", "config.origin.backend", str),
            Row("coalescing", "config.chain.coalesce", _on),
            Row("drive", "drive.kind", str),
            Row("requests at once", "config.replay.concurrency", exact),
            Row("GPUs", "drive.gpus", exact),
            Row("spread", "drive.spread", str),
            Row("compute", "drive.compute_s", format_seconds),
            Row("tick", "drive.tick_s", format_seconds),
            Row("speed", "drive.speed", factor),
            *_served(result),
            Row("event log", "drive.events.path", str),
            Row("pages per block", "trace.pages_per_block", exact),
        ),
    )
    engines = (
        ENGINE._replace(label=f"{name} engine").under(key)
        for name, key in level_keys(result).items()
        if name != "origin"
    )
    direct = (
        Row(f"{name} reads", f"environment.o_direct.{name}", _access)
        for name in result["environment"].get("o_direct") or {}
    )
    yield Section("engines", (*engines, *direct))
    machine = (
        Row("processor", "cpu", str),
        Row("cores", "cores", exact),
        Row("memory", "memory_bytes", format_bytes),
        Row("GPU", "gpu", str),
        Row("kernel", "kernel", str),
        Row("event loop", "loop", str),
    )
    yield _section("machine", "environment", machine)
    names = ("kvtier", "python", "numpy", "numba", "pyarrow", "uvloop", "aiofiles")
    yield _section("versions", "environment", tuple(Row(name, name, str) for name in names))


def _serving(result: Values) -> Iterator[Section]:
    """What a model server did, if there was one."""
    if find(result, "serving") is not None:
        yield _section("serving", "serving", (*SERVING_ROWS, *UNCACHED_ROWS))


def shares(part: Values, path: str = "") -> tuple[Row, ...]:
    """Where the demand reads of a result were served: shares that add up to all of them.

    Args:
        part: the result, or its part for one purpose.
        path: where that part stands in the result.
    """
    keys = {"folded": "coalescing.folded", "joined": "coalescing.joined"}
    keys |= {name: f"{key}.hits" for name, key in level_keys(part).items()}
    if part["origin"] is not None:
        keys["failed"] = "origin.failures"
    keys["absent"] = "demand.absent"
    rows = (Row(name, f"{key}{QUOTIENT}demand.reads", percent) for name, key in keys.items())
    return tuple(row.under(path) for row in rows)


def _part_sections(result: Values, path: str, title: str) -> Iterator[Section]:
    """All numbers of a result or, at ``path``, of its part for one purpose or one GPU."""
    page_bytes = result["trace"]["page_bytes"]
    part = find(result, path) if path else result
    sections = [
        _section("demand", "demand", (*demand_rows(page_bytes), *LATENCY_ROWS)),
        _section("batches", "batches", (Row("count", "count", exact), *LATENCY_ROWS)),
        _section("coalescing", "coalescing", COALESCING_ROWS),
        Section("served by", shares(part)),
    ]
    for name, key in level_keys(part).items():
        sections.append(_section(name, key, level_rows(page_bytes)))
    for name, rows in sections:
        yield Section(title + name, tuple(row.under(path) for row in rows))


def _busy_rows(result: Values) -> tuple[Row, ...]:
    """How much of the time each device and link was busy."""
    names = result["utilisation"] or ()
    return tuple(Row(name, f"utilisation.{name}", percent) for name in names)


def _crossings(result: Values) -> Iterator[Section]:
    """Of each station below the first tier, the hit rate above it that it takes and that there was.

    An older version did not say.
    """
    stations = find(result, "crossover.stations") or ()
    for number, one in enumerate(stations):
        rows = (
            Row("pages/s", "pages_per_s", format_count),
            Row("hit rate needed", "hit_rate_needed", percent),
            Row("hit rate above", "hit_rate", percent),
            Row("binds", "binds", _yes),
        )
        yield _section(f"crossover: {one['station']}", f"crossover.stations.{number}", rows)


def _section(title: str, path: str, rows: tuple[Row, ...]) -> Section:
    return Section(title, tuple(row.under(path) for row in rows))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _served(result: Values) -> tuple[Row, ...]:
    """What served, where the drive was ``serving``."""
    if find(result, "serving") is None:
        return ()
    rows = (
        Row("model", "model.name", str),
        Row("roles", "roles", str),
        Row("GPU", "compute.preset", str),
        Row("GPUs of a node", "compute.devices", exact),
        Row("efficiency", "compute.efficiency", percent),
        Row("room for KV caches", "compute.kv_capacity_bytes", format_bytes),
        Row("GPU figures", "compute.source", str),
    )
    return tuple(row.under("serving") for row in rows)


def _on(value: bool) -> str:
    return "on" if value else "off"


def _access(direct: bool) -> str:
    return "O_DIRECT" if direct else "page cache"
