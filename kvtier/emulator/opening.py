"""From settings to an emulator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kvtier.chain import build_chain
from kvtier.clock import VirtualClock
from kvtier.directory import ObjectDirectory
from kvtier.emulator.device import ModelledDevice
from kvtier.emulator.driver import VirtualDriver
from kvtier.emulator.origin import ModelledOrigin
from kvtier.emulator.repeating import RepeatingDriver
from kvtier.emulator.station import Route, Station
from kvtier.emulator.timeline import Timeline
from kvtier.emulator.topology import Topology
from kvtier.index import PageIndex, create_index
from kvtier.settings import DeviceModel, Settings, default_model, validate

_ISSUED: Final = ("nvme", "origin")
"""Levels whose operations somebody must issue; the others are memory."""


def open_emulator(
    settings: Settings,
    directory: ObjectDirectory,
    clock: VirtualClock,
    objects: Mapping[bytes, int],
) -> tuple[VirtualDriver, ModelledOrigin | None]:
    """Levels as ``settings`` describe them, in virtual time.

    Args:
        settings: checked first; a level without a model takes its preset.
        directory: of the cache that will use the driver.
        clock: the virtual time.
        objects: pages of each object that the origin has from the start.

    Raises:
        SettingsError: a setting is wrong, or the topology has no way to a level.
    """
    validate(settings)
    routes, stations = _machine(settings)
    driver = VirtualDriver(
        build_chain(settings),
        _indexes(settings),
        routes,
        directory,
        settings.page_bytes,
        Timeline(clock),
        stations,
    )
    if settings.origin is None:
        return driver, None
    return driver, ModelledOrigin(objects, driver)


def open_repetition(
    settings: Settings,
    clock: VirtualClock,
    *,
    origin_extent_pages_max: int,
    origin_batch_extents_max: int,
) -> RepeatingDriver:
    """Levels as ``settings`` describe them, in virtual time, that are told what a log says.

    Args:
        settings: checked first; a level without a model takes its preset.
        clock: the virtual time.
        origin_extent_pages_max: most pages that the logged origin took as one extent.
        origin_batch_extents_max: most extents that it took in one read.

    Raises:
        SettingsError: a setting is wrong, or the topology has no way to a level.
    """
    validate(settings)
    routes, stations = _machine(settings)
    chain = build_chain(
        settings,
        origin_extent_pages_max=origin_extent_pages_max,
        origin_batch_extents_max=origin_batch_extents_max,
    )
    return RepeatingDriver(
        chain, _indexes(settings), routes, settings.page_bytes, Timeline(clock), stations
    )


def _indexes(settings: Settings) -> list[PageIndex]:
    return [
        create_index(tier.capacity_bytes // settings.page_bytes, tier.ways, settings.seed)
        for tier in settings.tiers
    ]


def _machine(settings: Settings) -> tuple[list[Route], Mapping[str, Station]]:
    """The way of every level's pages, and all stations on the ways, by name."""
    devices: dict[str, Station] = {
        tier.name: _device(tier.model or default_model(tier.name), settings)
        for tier in settings.tiers
    }
    if settings.origin is not None:
        devices["origin"] = _device(settings.origin.model or default_model("origin"), settings)
    if settings.topology is None:
        return [Route((device,), (device,)) for device in devices.values()], devices
    topology = Topology(settings.topology)
    routes = [
        topology.route(name, device, is_device=name in _ISSUED) for name, device in devices.items()
    ]
    return routes, {**devices, **topology.stations}


def _device(model: DeviceModel, settings: Settings) -> Station:
    return ModelledDevice(model, settings.seed)
