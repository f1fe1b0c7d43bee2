"""What must hold between settings, before anything is opened."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import fields
from typing import Final, get_args

from kvtier.errors import SettingsError
from kvtier.pages import SETS_MAX, check_page_bytes
from kvtier.settings.compute import COMPUTE_PRESETS, ComputeSettings
from kvtier.settings.faults import fault_problems
from kvtier.settings.gpus import gpu_problems, gpus_of
from kvtier.settings.keys import toml_key
from kvtier.settings.models import model_problems
from kvtier.settings.problems import COUNT_MAX, Problem, given_outside, outside
from kvtier.settings.resilience import resilience_problems
from kvtier.settings.serve import serve_problems
from kvtier.settings.values import (
    ChainSettings,
    HostSettings,
    OriginSettings,
    ReplaySettings,
    Settings,
    TierName,
    TierSettings,
)
from kvtier.settings.ways import way_problems
from kvtier.units import format_bytes, format_rate, format_seconds

TIER_ORDER: Final[tuple[TierName, ...]] = get_args(TierName)
WAYS: Final = (8, 16, 32)

SEGMENT_MIN: Final = 1 << 20
SEGMENT_MAX: Final = 1 << 30
"""Bytes of a segment: below, its writes are no longer sequential; above, it is held in memory for
long, and pages are let go in lumps."""

STRIPE_MIN: Final = 64 << 10
"""Bytes of a stripe: the head of the whole, two blocks, lies in the first one."""

WRITE_BUFFER_MAX: Final = 1 << 40

_OF_FILES: Final = (
    *("path", "paths", "stripe_bytes", "rebuild", "engine", "queue_depth", "direct"),
    *("write_buffer_bytes", "segment_bytes", "faults"),
)


def validate(settings: Settings) -> None:
    """Check every range and what must hold between settings.

    Raises:
        SettingsError: the first problem, by its dotted key.
    """
    for problem in find_problems(settings):
        raise SettingsError(problem.sentence)


def find_problems(settings: Settings) -> Iterator[Problem]:
    """Every problem, the simplest first."""
    try:
        check_page_bytes(settings.page_bytes)
    except SettingsError as error:
        yield Problem("page_bytes", str(error))
    yield from outside("seed", settings.seed, 0, (1 << 64) - 1)
    yield from _level_problems(settings)
    for tier in settings.tiers:
        yield from _tier_problems(tier, settings.page_bytes)
    if settings.origin is not None:
        yield from _extent_problems("origin", settings.origin)
        if settings.origin.latency is not None:
            yield from model_problems("origin.latency", settings.origin.latency)
        yield from resilience_problems("origin.resilience", settings.origin.resilience)
    yield from _replay_problems(settings.replay)
    yield from _chain_problems(settings.chain)
    yield from _buffer_problems(settings)
    if settings.topology is not None:
        yield from _topology_problems(settings)
    yield from _compute_problems(settings.compute)
    if settings.replay.drive == "serving":
        yield from _serving_problems(settings)
    if settings.host is not None:
        yield from _host_problems(settings.host)
    yield from serve_problems(settings.serve, settings.page_bytes)


def _level_problems(settings: Settings) -> Iterator[Problem]:
    names = [tier.name for tier in settings.tiers]
    if not names and settings.origin is None:
        yield Problem(
            "tiers",
            "tiers is empty and there is no origin: give one level at least, "
            "e.g. [tiers.dram] with capacity = '1 GiB'",
        )
    if names and not settings.chain.coalesce:
        yield Problem(
            "chain.coalesce",
            "chain.coalesce is false: a tier folds what it misses, so leave the tiers out "
            f"(capacity 0), now {_listed(names)}",
        )
    for name in names:
        if name not in TIER_ORDER:
            yield Problem(f"tiers.{name}", f"tiers.{name} is no tier: {_listed(TIER_ORDER)}")
            return
    if sorted(set(names), key=TIER_ORDER.index) != names:
        yield Problem(
            "tiers",
            f"tiers are {_listed(names)}: each may be there once, "
            f"in the order {_listed(TIER_ORDER)}",
        )
    if settings.origin is None and names and settings.tiers[-1].admit == "second touch":
        key = f"tiers.{names[-1]}.admit"
        yield Problem(
            key,
            f"{key} is 'second touch': without an origin the last tier has its pages from writes "
            "alone, each for the first time, and would stay empty; take 'all', or give an [origin]",
        )


def _tier_problems(tier: TierSettings, page_bytes: int) -> Iterator[Problem]:
    prefix = f"tiers.{tier.name}"
    if tier.ways not in WAYS:
        yield Problem(f"{prefix}.ways", f"{prefix}.ways is {tier.ways}: it must be 8, 16 or 32")
    elif tier.capacity_bytes // page_bytes > SETS_MAX * tier.ways:
        yield Problem(
            f"{prefix}.capacity",
            f"{prefix}.capacity is {format_bytes(tier.capacity_bytes)}: it must be "
            f"{format_bytes(SETS_MAX * tier.ways * page_bytes)} at most, for an index has up to "
            f"2**32 sets of {tier.ways} pages",
        )
    elif tier.capacity_bytes < tier.ways * page_bytes:
        yield Problem(
            f"{prefix}.capacity",
            f"{prefix}.capacity is {format_bytes(tier.capacity_bytes)}: it must hold one set "
            f"at least, {tier.ways} pages of {format_bytes(page_bytes)}",
        )
    if not isinstance(tier.admit, str):
        yield from outside(f"{prefix}.admit", tier.admit, 0, 1)
    if tier.write_limit_bytes_per_s is not None:
        key = f"{prefix}.write_limit"
        if tier.name != "nvme":
            yield Problem(key, f"{key}: only the nvme tier has a device that wears out")
        yield from outside(key, tier.write_limit_bytes_per_s, 1, 1e18, format_rate)
    yield from outside(f"{prefix}.queue_depth", tier.queue_depth, 1, 1024)
    yield from outside(
        f"{prefix}.write_buffer", tier.write_buffer_bytes, 0, WRITE_BUFFER_MAX, format_bytes
    )
    yield from outside(
        f"{prefix}.segment", tier.segment_bytes, SEGMENT_MIN, SEGMENT_MAX, format_bytes
    )
    yield from outside(f"{prefix}.stripe", tier.stripe_bytes, STRIPE_MIN, 1 << 30, format_bytes)
    yield from _file_problems(prefix, tier)
    yield from _extent_problems(prefix, tier)


def _file_problems(prefix: str, tier: TierSettings) -> Iterator[Problem]:
    """Of what only the ``nvme`` tier has."""
    plain = TierSettings("nvme", tier.capacity_bytes)
    for name in _OF_FILES:
        if tier.name != "nvme" and getattr(tier, name) != getattr(plain, name):
            key = f"{prefix}.{toml_key(name)}"
            yield Problem(key, f"{key}: only the nvme tier has a file")
    if tier.paths and tier.path is not None:
        yield Problem(
            f"{prefix}.paths", f"{prefix}.paths is given beside {prefix}.path: give one of the two"
        )
    if tier.name == "nvme" and not tier.paths and tier.stripe_bytes != plain.stripe_bytes:
        key = f"{prefix}.stripe"
        yield Problem(key, f"{key} is of several files: give {prefix}.paths, or leave it out")
    if tier.name == "nvme" and tier.rebuild and not tier.files:
        key = f"{prefix}.rebuild"
        yield Problem(
            key,
            f"{key}: without {prefix}.path the file is a temporary one, which is always new; give "
            "a path, or leave it out",
        )
    places = [path.absolute() for path in tier.paths]
    for path in places:
        if places.count(path) > 1:
            yield Problem(
                f"{prefix}.paths", f"{prefix}.paths names {path} twice: name each file once"
            )
    if tier.faults is not None:
        yield from fault_problems(f"{prefix}.faults", tier.faults)


def _extent_problems(prefix: str, level: TierSettings | OriginSettings) -> Iterator[Problem]:
    yield from outside(f"{prefix}.merge_gap_pages", level.merge_gap_pages, 0, COUNT_MAX)
    yield from outside(f"{prefix}.extent_pages_max", level.extent_pages_max, 1, COUNT_MAX)
    if level.model is not None:
        yield from model_problems(f"{prefix}.model", level.model)


def _replay_problems(replay: ReplaySettings) -> Iterator[Problem]:
    yield from outside("replay.concurrency", replay.concurrency, 1, COUNT_MAX)
    yield from outside("replay.pages_per_block", replay.pages_per_block, 0, COUNT_MAX)
    yield from outside("replay.verify_share", replay.verify_share, 0, 1)
    yield from outside(
        "replay.series_interval", replay.series_interval_s, 1e-6, 86_400, format_seconds
    )
    yield from given_outside("replay.compute", replay.compute_s, 0, 3600, format_seconds)
    yield from outside("replay.tick", replay.tick_s, 0, 3600, format_seconds)
    yield from outside("replay.speed", replay.speed, 1e-6, 1e9)


def _compute_problems(compute: ComputeSettings) -> Iterator[Problem]:
    if compute.preset not in COMPUTE_PRESETS:
        known = ", ".join(COMPUTE_PRESETS)
        yield Problem("compute.preset", f"compute.preset is {compute.preset!r}: one of {known}")
    yield from outside("compute.flops", compute.flops, 1e12, 1e21)
    yield from outside("compute.bandwidth", compute.bytes_per_s, 1e9, 1e18, format_rate)
    yield from outside("compute.memory", compute.memory_bytes, 1, 1 << 50, format_bytes)
    yield from outside("compute.devices", compute.devices, 1, 1_000_000)
    yield from outside("compute.efficiency", compute.efficiency, 0.01, 1)
    yield from outside("compute.batch_tokens_max", compute.batch_tokens_max, 1, 1 << 24)
    yield from given_outside(
        "compute.kv_capacity", compute.kv_capacity_bytes, 1, 1 << 60, format_bytes
    )


def _serving_problems(settings: Settings) -> Iterator[Problem]:
    replay, tokens = settings.replay, settings.compute.batch_tokens_max
    if tokens < replay.concurrency:
        yield Problem(
            "compute.batch_tokens_max",
            f"compute.batch_tokens_max is {tokens}: a step must have a token for each of "
            f"replay.concurrency = {replay.concurrency} sequences; raise it or lower that",
        )
    if replay.compute_s is not None:
        yield Problem(
            "replay.compute",
            "replay.compute: in the drive serving the model says how long a request computes "
            "([compute]); leave it out",
        )
    gpus = () if settings.topology is None else gpus_of(settings.topology)
    if settings.serving.roles == "split" and gpus and len(gpus) != 2:
        yield Problem(
            "serving.roles",
            f"serving.roles is split: topology.gpus are {len(gpus)}, and it needs two, of the "
            "prefill node and of the decode node",
        )
    if settings.serving.roles == "split" and (
        settings.origin is None or settings.origin.write != "through"
    ):
        yield Problem(
            "serving.roles",
            "serving.roles is split: the decode node reads what the prefill node wrote at the "
            "origin: give an [origin] with write = 'through'",
        )


def _chain_problems(chain: ChainSettings) -> Iterator[Problem]:
    yield from outside("chain.batch_pages_max", chain.batch_pages_max, 1, COUNT_MAX)
    yield from outside("chain.inflight_pages_max", chain.inflight_pages_max, 1, COUNT_MAX)
    yield from outside("chain.device_batch_pages", chain.device_batch_pages, 1, COUNT_MAX)
    yield from outside("chain.objects_max", chain.objects_max, 1, (1 << 32) - 1)
    if chain.inflight_pages_max < chain.batch_pages_max:
        yield Problem(
            "chain.inflight_pages_max",
            f"chain.inflight_pages_max is {chain.inflight_pages_max}: it must hold one whole "
            f"batch, chain.batch_pages_max = {chain.batch_pages_max}",
        )


def _topology_problems(settings: Settings) -> Iterator[Problem]:
    """Ways between parts are looked for when the emulator is opened."""
    topology = settings.topology
    assert topology is not None
    for link in topology.links:
        yield from model_problems(f"topology.links.{link.name}.model", link.model)
    if topology.issue is not None:
        yield from model_problems("topology.issue", topology.issue)
    yield from gpu_problems(topology)
    known = (*TIER_ORDER, "origin")
    for name in topology.places:
        if name not in known:
            near = "".join(difflib.get_close_matches(name, known, n=1))
            advice = f"did you mean {near}?" if near else f"levels are {', '.join(known)}"
            yield Problem(
                f"topology.places.{name}", f"topology.places.{name} is no level; {advice}"
            )
    levels = [tier.name for tier in settings.tiers]
    there = levels if settings.origin is None else [*levels, "origin"]
    yield from way_problems(topology, there)


def _host_problems(host: HostSettings) -> Iterator[Problem]:
    for field in fields(host):
        key = f"host.{field.name.removesuffix('_s')}"
        yield from outside(key, getattr(host, field.name), 0, 3600, format_seconds)


def _buffer_problems(settings: Settings) -> Iterator[Problem]:
    """A device batch takes the longest extent of every level; staging takes two such batches."""
    chain = settings.chain
    levels: list[tuple[str, TierSettings | OriginSettings]] = [
        (f"tiers.{tier.name}", tier) for tier in settings.tiers
    ]
    if settings.origin is not None:
        levels.append(("origin", settings.origin))
    for prefix, level in levels:
        if level.extent_pages_max > chain.device_batch_pages:
            yield Problem(
                f"{prefix}.extent_pages_max",
                f"{prefix}.extent_pages_max is {level.extent_pages_max}: it must fit into one "
                f"device batch, chain.device_batch_pages = {chain.device_batch_pages}",
            )
    needed_bytes = 2 * chain.device_batch_pages * settings.page_bytes
    if chain.staging_bytes < needed_bytes:
        yield Problem(
            "chain.staging",
            f"chain.staging is {format_bytes(chain.staging_bytes)}: it must hold two buffers of "
            f"{chain.device_batch_pages} pages, {format_bytes(needed_bytes)}; raise it or lower "
            "chain.device_batch_pages",
        )


def _listed(names: list[TierName] | tuple[TierName, ...]) -> str:
    return ", ".join(names)
