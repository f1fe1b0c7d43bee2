"""The drive ``serving``: a trace of requests as a model server would meet it, in virtual time."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import numpy as np

from kvtier.cache import TieredCache
from kvtier.errors import SettingsError, TraceError
from kvtier.pages import Bool, Purpose, expand_objects
from kvtier.replay.active import Writes, block_keys
from kvtier.replay.spread import shares_of
from kvtier.replay.workload import Workload
from kvtier.replay.writing import ObjectWriter
from kvtier.serving import (
    Bounds,
    Engine,
    Sequence,
    ServingMeter,
    kv_capacity_bytes,
    ttft_saved,
    weights_bytes,
)
from kvtier.settings import Settings, Spread, compute_source
from kvtier.trace import NO_PARENT, RequestTrace, geometry
from kvtier.units import format_bytes


class CachedPrompts:
    """A node's blocks in its cache.

    Args:
        cache: of the node.
        writer: writes blocks that do not exist yet.
        block_tokens, block_pages: of one block.
        loads: False finds nothing, whatever the cache has.
    """

    def __init__(
        self,
        cache: TieredCache[Any],
        writer: ObjectWriter,
        *,
        block_tokens: int,
        block_pages: int,
        loads: bool,
    ) -> None:
        self._cache = cache
        self._writer = writer
        self._block_tokens = block_tokens
        self._block_pages = block_pages
        self._loads = loads

    async def load(self, sequence: Sequence) -> int:
        """Read the leading run of blocks that can be read; returns the tokens they hold."""
        if not self._loads:
            return 0
        keys = block_keys(sequence.request)
        opened = await self._cache.open(keys[: await self._cache.lookup(keys)])
        pages = opened.pages[: _leading(opened.pages > 0)]
        page_ids = expand_objects(opened.object_ids[: len(pages)], pages)
        status = await self._cache.read_into(page_ids, None, purpose=Purpose.PREFIX)
        return _leading(status == 0) // self._block_pages * self._block_tokens

    async def write(self, sequence: Sequence) -> None:
        """Write the blocks that were computed, as far as nobody has written them."""
        keys = block_keys(sequence.request)[sequence.loaded_tokens // self._block_tokens :]
        await self._writer.write([Writes(keys, (self._block_pages,) * len(keys))])


class NoPrompts:
    """A node without any cache."""

    async def load(self, sequence: Sequence) -> int:  # noqa: ARG002  # as of every cache
        """Nothing can be found."""
        return 0

    async def write(self, sequence: Sequence) -> None:
        """Nothing is kept."""


def check_drive(settings: Settings) -> None:
    """Refuse to serve on real devices, which compute nothing: raises SettingsError."""
    if settings.replay.drive == "serving":
        raise SettingsError(
            "replay.drive is serving: a replay computes nothing; simulate it, or take another drive"
        )


def check_serving(workload: Workload, settings: Settings) -> None:
    """Refuse what cannot be served, before any of it is.

    Raises:
        SettingsError: the trace has no tokens, its blocks are scaled, the model does not fit, or
            the turns of a session are spread over several nodes.
        TraceError: a request is larger than the memory beside the model.
    """
    trace = workload.trace
    if not isinstance(trace, RequestTrace):
        raise SettingsError(
            f"{trace.path}: replay.drive is serving, and a trace of page reads has no tokens to "
            "serve: take one of requests, or another drive"
        )
    if workload.scaled:
        raise SettingsError(
            f"replay.pages_per_block is {workload.pages_per_block} of "
            f"{workload.full_pages_per_block}: loads of scaled blocks take no true time; leave it "
            "out for the drive serving, and make a large trace cheap by a larger page_bytes, e.g. "
            "'4 MiB'"
        )
    kv_tokens = bounds_of(settings).kv_tokens
    share, nodes = shares_of(trace, settings)[0], array("H")
    for number, request in enumerate(trace.requests(workload.limit)):
        needed = max(1, request.in_tokens) + request.out_tokens
        if needed > kv_tokens:
            raise TraceError(
                f"{trace.path}: request {number} has {needed:,} tokens, and the KV cache of "
                f"running sequences holds {kv_tokens:,}: raise compute.devices or "
                "compute.kv_capacity, or lower tiers.hbm.capacity"
            )
        nodes.append(share.gpu_of(number, request))
        if settings.serving.roles == "one" and request.parent != NO_PARENT:
            _check_turn(trace.path, number, request.parent, nodes, settings.replay.spread)


def _check_turn(
    path: Path, number: int, parent: int, nodes: array[int], spread: Spread | None
) -> None:
    """A turn waits for the one that it continues, which must be served by the same node."""
    if nodes[number] == nodes[parent]:
        return
    advice = "give them one session in the trace, or leave topology.gpus out"
    if spread == "round_robin":
        advice = "set replay.spread = 'session', or leave it out"
    raise SettingsError(
        f"replay.spread: request {number} of {path} continues request {parent}, and goes to "
        f"another of topology.gpus, where it would not wait for it: {advice}"
    )


def bounds_of(settings: Settings) -> Bounds:
    """What one node takes on.

    Raises:
        SettingsError: no memory is left beside the weights and the ``hbm`` tier.
    """
    model = geometry(settings.replay.model)
    hbm_bytes = sum(tier.capacity_bytes for tier in settings.tiers if tier.name == "hbm")
    kv_bytes = kv_capacity_bytes(model, settings.compute, hbm_bytes)
    if kv_bytes < model.bytes_per_token:
        compute = settings.compute
        raise SettingsError(
            f"compute: {model.name} has {format_bytes(weights_bytes(model))} of weights, the hbm "
            f"tier {format_bytes(hbm_bytes)}: nine tenths of {compute.devices} x "
            f"{format_bytes(compute.memory_bytes)} leave no room for KV caches; raise "
            "compute.devices, or lower tiers.hbm.capacity"
        )
    return Bounds(
        slots=settings.replay.concurrency,
        kv_tokens=kv_bytes // model.bytes_per_token,
        batch_tokens_max=settings.compute.batch_tokens_max,
    )


def cached_prompts(
    workload: Workload, settings: Settings, cache: TieredCache[Any], *, loads: bool = True
) -> CachedPrompts:
    """The blocks of the trace in a node's cache; without ``loads``, none is ever loaded."""
    assert isinstance(workload.trace, RequestTrace)
    writer = ObjectWriter(
        cache,
        batch_pages=settings.chain.batch_pages_max,
        objects_max=settings.chain.objects_max,
        page_bytes=settings.page_bytes,
        has_payload=False,
    )
    return CachedPrompts(
        cache,
        writer,
        block_tokens=workload.trace.metadata.block_tokens,
        block_pages=workload.pages_per_block,
        loads=loads,
    )


def describe(
    settings: Settings, meter: ServingMeter, engines: list[Engine], duration_s: float
) -> dict[str, Any]:
    """The ``serving`` of a result (docs/json.md), without the comparison."""
    model, compute = geometry(settings.replay.model), settings.compute
    return {
        "roles": settings.serving.roles,
        "model": {
            "name": model.name,
            "parameters": model.parameters,
            "active_parameters": model.active_parameters,
            "weights_bytes": weights_bytes(model),
            "kv_token_bytes": model.bytes_per_token,
        },
        "compute": {
            "preset": compute.preset,
            "devices": compute.devices,
            "flops": compute.flops * compute.devices,
            "bytes_per_s": compute.bytes_per_s * compute.devices,
            "efficiency": compute.efficiency,
            "kv_capacity_bytes": bounds_of(settings).kv_tokens * model.bytes_per_token,
            "source": compute_source(compute),
        },
        **meter.to_dict(duration_s),
        "nodes": [
            engine.meter.to_dict(engine.role.name, duration_s, model.bytes_per_token)
            for engine in engines
        ],
        "uncached": None,
        "ttft_saved": None,
    }


def describe_uncached(
    cached: ServingMeter, uncached: ServingMeter, duration_s: float
) -> dict[str, Any]:
    """The comparison with the same run without a cache, which took ``duration_s``."""
    kept = ("output_tokens", "output_tokens_per_s", "ttft_us", "tpot_us")
    meter = uncached.to_dict(duration_s)
    return {
        "uncached": {"duration_s": duration_s, **{key: meter[key] for key in kept}},
        "ttft_saved": ttft_saved(cached, uncached),
    }


def _leading(found: Bool) -> int:
    """How many of the first are true, without a gap."""
    return len(found) if found.all() else int(np.argmin(found))
