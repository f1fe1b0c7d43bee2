"""What the host's software takes: real caches, and how long they occupy the thread that runs them.

Small caches of several shapes read batches, one after the other and each with its fills: pages in
the first memory, in the second, on the drive, at the origin. The same reads in virtual time say how
often the host did what. The processor time of the loop's thread is then explained by the terms of
:class:`kvtier.settings.HostSettings`. What trace drives take beside it, and what is waited for, is
found by :mod:`kvtier.calibration.driving`.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from kvtier.cache import TieredCache
from kvtier.calibration.driving import measure_drives
from kvtier.calibration.explaining import Floats, explain
from kvtier.calibration.origin import KEY, measure_origin, store
from kvtier.calibration.walking import start_walk, time_walks
from kvtier.clock import VirtualClock, WallClock
from kvtier.directory import ObjectDirectory
from kvtier.emulator import VirtualLoop, open_emulator
from kvtier.environment import event_loop_factory
from kvtier.opening import open_cache
from kvtier.pages import I64
from kvtier.registry import open_backend
from kvtier.settings import (
    ChainSettings,
    DeviceModel,
    HostSettings,
    OriginSettings,
    Settings,
    TierSettings,
)

PAGES: Final = 4096
"""Of the object that is read, unless it would be larger than :data:`_OBJECT_BYTES`."""

_OBJECT_BYTES: Final = 64 << 20
_PAGES_MIN: Final = 64
_BATCHES: Final = (4, 16, 64)
"""Pages of a batch: what a wave of small dependent reads asks of one level."""

_BATCH_BYTES: Final = 16 << 20
_TURNS: Final = 5
_ORIGIN_SHARE: Final = 0.2
_DRIVES_SHARE: Final = 0.5
_EMULATED: Final = 40
"""Batches that are emulated for each that is measured."""


@dataclass(frozen=True, slots=True)
class HostCost:
    """What surrounds the device.

    Attributes:
        host: what the software takes.
        origin: a model of the origin of files that it was measured with.
        error: of what occupied the host beside what explains it, as a share; root mean square.
        rounds: the host of each round, where the others are medians of several; else empty.
    """

    host: HostSettings
    origin: DeviceModel
    error: float
    rounds: tuple[HostSettings, ...] = ()


class Shape(NamedTuple):
    """A cache, and the pages of the object that are read through it in turn.

    Attributes:
        tiers: of the cache.
        order: i64[n].
    """

    tiers: tuple[TierSettings, ...]
    order: I64


def measure_host(
    directory: Path,
    model: DeviceModel,
    page_bytes: int,
    seconds: float,
    rng: np.random.Generator,
) -> HostCost:
    """Measure caches with a drive and an origin in ``directory``, both removed at the end.

    Args:
        directory: on the device that ``model`` describes.
        model: with figures of writes, if fills of the drive are to be measured too.
        page_bytes: of a page.
        seconds: for how long; what is made before comes on top.
        rng: chooses the pages.

    Raises:
        SettingsError: the machine lacks the memory.
        DeviceError, BackendError: the directory cannot be used.
    """
    pages = max(min(PAGES, _OBJECT_BYTES // page_bytes), _PAGES_MIN)
    with tempfile.TemporaryDirectory(prefix=".kvtier-calibrate-", dir=directory) as name:
        shapes = _shapes(pages, page_bytes, Path(name), model, rng)
        options = {"root": str(Path(name) / "origin"), "sync": False}
        settings = [_settings(shape, options, page_bytes) for shape in shapes]
        walks_s = (1 - _DRIVES_SHARE) * seconds
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            origin, busy_s = runner.run(_measure(shapes, settings, pages, walks_s, rng))
        counts = np.stack(
            [
                done
                for shape, each in zip(shapes, settings, strict=True)
                for done in _emulate(_with_origin(each, origin), shape.order, pages)
            ]
        )
        host, error = _explained(counts, np.array(busy_s))
        mixed = replace(_with_origin(settings[-1], origin), host=host, chain=ChainSettings())
        host = measure_drives(mixed, pages, Path(name), _DRIVES_SHARE * seconds)
    rounded = {each.name: _rounded(getattr(host, each.name)) for each in fields(host)}
    return HostCost(HostSettings(**rounded), origin, error)


def median_of(costs: Sequence[HostCost]) -> HostCost:
    """What several rounds found, each term by its median; of a single one as it is."""
    if len(costs) == 1:
        return costs[0]
    origin = costs[0].origin
    origins = {
        name: statistics.median(getattr(cost.origin, name) for cost in costs)
        for name in ("latency_s", "iops", "bytes_per_s")
    }
    hosts = {
        term.name: statistics.median(getattr(cost.host, term.name) for cost in costs)
        for term in fields(HostSettings)
    }
    return HostCost(
        HostSettings(**hosts),
        replace(origin, **origins),
        statistics.median(cost.error for cost in costs),
        tuple(cost.host for cost in costs),
    )


async def _measure(
    shapes: Sequence[Shape],
    settings: Sequence[Settings],
    pages: int,
    seconds: float,
    rng: np.random.Generator,
) -> tuple[DeviceModel, list[float]]:
    """A model of the origin, and what a batch occupies: of each shape, and of each size."""
    named, page_bytes = settings[0].origin, settings[0].page_bytes
    assert named is not None
    batches = _batches(page_bytes)
    backend = await open_backend(named.backend, named.options, page_bytes)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(backend.close)
        await store(backend, pages, page_bytes, rng)
        origin_s = _ORIGIN_SHARE * seconds
        origin = await measure_origin(backend, pages, page_bytes, origin_s, rng)
        walks = []
        for shape, each in zip(shapes, settings, strict=True):
            cache = await stack.enter_async_context(open_cache(each, origin=backend))
            walks.append(await start_walk(cache, WallClock(), shape.order, max(batches)))
        return origin, await time_walks(walks, batches, _TURNS, seconds - origin_s)


def _shapes(
    pages: int, page_bytes: int, directory: Path, model: DeviceModel, rng: np.random.Generator
) -> list[Shape]:
    """Caches in which one level has everything that is read, and one in which each has a part."""

    def tier(name: str, share: int, **changes: Any) -> TierSettings:
        capacity = max(pages // share, 16) * page_bytes
        return TierSettings(name, capacity, extent_pages_max=1, **changes)  # type: ignore[arg-type]

    def drive(share: int, file: str) -> TierSettings:
        return tier("nvme", share, path=directory / file, model=model)

    first, order = tier("hbm", 16), rng.permutation(pages)
    shapes = [
        Shape((tier("hbm", 2),), order[: pages // 8]),
        Shape((first, tier("dram", 2)), order[: pages // 4]),
        Shape((first, drive(2, "read")), order[: pages // 4]),
        Shape((first,), order),
    ]
    if model.write_iops is not None:
        mixed = rng.integers(0, pages, pages)
        shapes.append(Shape((first, drive(8, "written")), order))
        shapes.append(Shape((first, tier("dram", 4), drive(2, "mixed")), mixed))
    return shapes


def _settings(shape: Shape, options: Mapping[str, Any], page_bytes: int) -> Settings:
    most = max(_batches(page_bytes))
    return Settings(
        page_bytes=page_bytes,
        device="cpu",
        tiers=shape.tiers,
        origin=OriginSettings("file", options, extent_pages_max=1),
        chain=ChainSettings(device_batch_pages=most, staging_bytes=4 * most * page_bytes),
        host=HostSettings(),
    )


def _with_origin(settings: Settings, model: DeviceModel) -> Settings:
    assert settings.origin is not None
    return replace(settings, origin=replace(settings.origin, model=model))


def _batches(page_bytes: int) -> list[int]:
    """Pages of each kind of batch."""
    return [n for n in _BATCHES if n * page_bytes <= _BATCH_BYTES or n == _BATCHES[0]]


def _emulate(settings: Settings, order: I64, pages: int) -> list[Floats]:
    """How often the host does what for a batch of the same reads, of each size of batches.

    f64[5] each, in the order of its settings.
    """
    clock = VirtualClock()
    directory = ObjectDirectory(settings.chain.objects_max)
    driver, origin = open_emulator(settings, directory, clock, {KEY: pages})
    host = driver.hardware.host
    assert host is not None

    async def walk_through() -> list[Floats]:
        cache = TieredCache(driver, directory, origin, settings)
        walk = await start_walk(cache, clock, order, max(_batches(settings.page_bytes)))
        found = []
        for count in _batches(settings.page_bytes):
            before = np.array(host.counts())
            for _ in range(_EMULATED):
                await walk.read(count)
            found.append((np.array(host.counts()) - before) / _EMULATED)
        return found

    with asyncio.Runner(loop_factory=lambda: VirtualLoop(driver.timeline)) as runner:
        return runner.run(walk_through())


def _explained(counts: Floats, busy_s: Floats) -> tuple[HostSettings, float]:
    """The host that is occupied so long by what it does so often, and how far that is off."""
    terms = explain(counts, busy_s, 1 / busy_s)
    error = counts @ np.array(terms) / busy_s - 1
    return HostSettings(*terms), float(np.sqrt(np.mean(error**2)))


def _rounded(term_s: float) -> float:
    """As it is written: more digits than anyone measures."""
    return float(f"{term_s:.3e}")
