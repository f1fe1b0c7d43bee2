"""From settings to an emulator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from kvtier.chain import build_chain
from kvtier.clock import VirtualClock
from kvtier.directory import ObjectDirectory
from kvtier.emulator.device import ModelledDevice
from kvtier.emulator.driver import VirtualDriver
from kvtier.emulator.host import Host
from kvtier.emulator.origin import ModelledOrigin
from kvtier.emulator.station import Route, Station
from kvtier.emulator.timeline import Timeline
from kvtier.emulator.topology import Topology
from kvtier.index import create_index
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
    indexes = [
        create_index(tier.capacity_bytes // settings.page_bytes, tier.ways, settings.seed)
        for tier in settings.tiers
    ]
    machine = _machine(settings)
    driver = VirtualDriver(
        build_chain(settings),
        indexes,
        machine.routes,
        directory,
        settings.page_bytes,
        Timeline(clock),
        machine.stations,
        machine.staging,
        machine.host,
    )
    if settings.origin is None:
        return driver, None
    return driver, ModelledOrigin(objects, driver)


class _Machine(NamedTuple):
    """What stands for the hardware, and for the software of its host.

    Attributes:
        routes: of every level.
        stations: all on the routes but the host, by name.
        staging: what copies out of staging pass.
        host: its software, None if that takes no time.
    """

    routes: list[Route]
    stations: Mapping[str, Station]
    staging: Route
    host: Host | None


def _machine(settings: Settings) -> _Machine:
    devices: dict[str, Station] = {
        tier.name: _device(tier.model or default_model(tier.name), settings)
        for tier in settings.tiers
    }
    if settings.origin is not None:
        devices["origin"] = _device(settings.origin.model or default_model("origin"), settings)
    stations = dict(devices)
    if settings.topology is None:
        routes = [Route((device,), (device,)) for device in devices.values()]
    else:
        topology = Topology(settings.topology)
        routes = [
            topology.route(name, device, is_device=name in _ISSUED)
            for name, device in devices.items()
        ]
        stations |= topology.stations
    # Staging lies in the memory of the first tier, and no link is between the two.
    memory = next((devices[name] for name in devices if name not in _ISSUED), None)
    staging = Route(() if memory is None else (memory,), ())
    if settings.host is None:
        return _Machine(routes, stations, staging, None)
    host = Host(settings.host)
    for number, name in enumerate(devices):
        face = host.devices if name in _ISSUED else host.copies
        # Who reads slots of a first tier in memory copies hits, which belong to their batch.
        is_hits = number == 0 and face is host.copies
        routes[number] = routes[number].behind(host.hits if is_hits else face, face)
    staging = staging.behind(host.copies, host.copies)
    return _Machine(routes, stations, staging, host)


def _device(model: DeviceModel, settings: Settings) -> Station:
    return ModelledDevice(model, settings.seed)
