"""Several GPUs at once: their drives run together, and what they counted is added up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvtier.cache import TieredCache
from kvtier.chain import Counters, total
from kvtier.clock import Clock, VirtualClock
from kvtier.emulator import RepeatingDriver, VirtualDriver, open_emulators
from kvtier.measure import Measurements, measurements_by_purpose
from kvtier.pages import Purpose
from kvtier.replay.meter import RequestMeter
from kvtier.settings import Settings, gpus_of

ByPurpose = tuple[Mapping[Purpose, Counters], Mapping[Purpose, Measurements]]


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of a run.

    Attributes:
        name: the part of the topology; that of the only one plays no part.
        cache: its own.
        meter: of its requests.
    """

    name: str
    cache: TieredCache[Any]
    meter: RequestMeter

    @property
    def measured(self) -> ByPurpose:
        """What was counted and measured of its reads, for each purpose."""
        return self.cache.driver.chain.by_purpose, self.cache.driver.measurements


def open_emulated_caches(
    settings: Settings, clock: VirtualClock, objects: Mapping[bytes, int]
) -> list[TieredCache[VirtualDriver]]:
    """A cache in virtual time for each GPU, in the order of the settings.

    They share the timeline, the modelled hardware and the origin's objects. They run on one
    :class:`kvtier.emulator.VirtualLoop` of ``caches[0].driver.timeline``, and need no closing.
    Arguments and errors as of :func:`kvtier.emulator.open_emulators`.
    """
    return [
        TieredCache(one.driver, one.directory, one.origin, settings)
        for one in open_emulators(settings, clock, objects)
    ]


async def drive_together(drives: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Let drives run to their ends; the first that fails ends all, and its error is raised."""
    if len(drives) == 1:
        await drives[0]
        return
    try:
        async with asyncio.TaskGroup() as group:
            for drive in drives:
                group.create_task(drive)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def merged_measured(parts: Sequence[ByPurpose]) -> ByPurpose:
    """The sums over GPUs, whose levels are the same."""
    levels = len(parts[0][0][Purpose.UNSTATED].levels)
    measurements = measurements_by_purpose(levels)
    for _, of_gpu in parts:
        for purpose, one in of_gpu.items():
            measurements[purpose].merge(one)
    counters = {
        purpose: total((of_gpu[purpose] for of_gpu, _ in parts), levels) for purpose in Purpose
    }
    return counters, measurements


def merged_meter(gpus: Sequence[Gpu], clock: Clock) -> RequestMeter:
    """The requests of all GPUs, until now."""
    whole = RequestMeter(clock)
    for gpu in gpus:
        whole.merge(gpu.meter)
    return whole


def busy_seconds(
    drivers: Sequence[VirtualDriver | RepeatingDriver], settings: Settings
) -> dict[str, float]:
    """How long every device and link was occupied, and the host's software of each GPU."""
    busy_s = {name: station.busy_ns / 1e9 for name, station in drivers[0].hardware.stations.items()}
    for gpu, driver in zip(gpus_of(settings.topology), drivers, strict=True):
        if driver.hardware.host is not None:
            name = "host" if len(drivers) == 1 else f"host ({gpu})"
            busy_s[name] = driver.hardware.host.busy_ns / 1e9
    return busy_s
