"""The modelled hardware of all GPUs: a station for every device and link, and who passes which."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from kvtier.emulator.device import ModelledDevice
from kvtier.emulator.host import Host
from kvtier.emulator.modelled import Hardware
from kvtier.emulator.station import Route, Station
from kvtier.emulator.topology import Topology
from kvtier.index import LogGeometry, log_geometry
from kvtier.settings import (
    DeviceModel,
    Settings,
    TierSettings,
    default_model,
    device_names,
    gpus_of,
)

_ISSUED: Final = ("nvme", "origin")
"""Levels whose operations somebody must issue; the others are memory."""

_U64_MASK: Final = (1 << 64) - 1


class Machine:
    """Devices and links, shared as the settings say.

    Args:
        settings: checked before.

    Raises:
        SettingsError: the topology has no way from a level to a GPU.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topology = None if settings.topology is None else Topology(settings.topology)
        self._slots: dict[str, int] = {
            tier.name: geometry_of(tier, settings.page_bytes).locations
            if tier.name == "nvme"
            else tier.capacity_bytes // settings.page_bytes
            for tier in settings.tiers
        }
        # Each GPU's process runs on a core of its own.
        self._hosts = [
            None
            if settings.host is None
            else Host(settings.host, is_paced=settings.replay.drive != "waves")
            for _ in gpus_of(settings.topology)
        ]
        self._names: dict[str, tuple[str, ...]] = {}
        self._devices: dict[str, Station] = {}
        for tier in settings.tiers:
            self._add_devices(tier.name, tier.model or default_model(tier.name))
        if settings.origin is not None:
            self._add_devices("origin", settings.origin.model or default_model("origin"))

    def hardware(self) -> list[Hardware]:
        """What each GPU has of all this, in the order of the settings."""
        gpus = range(len(self._hosts))
        routes = [[self._route(level, gpu) for level in self._names] for gpu in gpus]
        links = {} if self._topology is None else self._topology.stations  # those of the routes
        stations = {**self._devices, **links}
        return [
            Hardware(
                page_bytes=self._settings.page_bytes,
                routes=routes[gpu],
                staging=self._staging(gpu),
                host=self._hosts[gpu],
                stations=stations,
            )
            for gpu in gpus
        ]

    def _staging(self, gpu: int) -> Route:
        """The way of pages out of staging, which lies in the memory of the first tier."""
        memory = next((level for level in self._names if level not in _ISSUED), None)
        device = () if memory is None else (self._devices[self._names[memory][gpu]],)
        host = self._hosts[gpu]
        route = Route(device, ())
        return route if host is None else route.behind(host.copies, host.copies)

    def _add_devices(self, level: str, model: DeviceModel) -> None:
        self._names[level] = device_names(self._settings, level)
        for number, name in enumerate(dict.fromkeys(self._names[level])):
            seed = (self._settings.seed + number) & _U64_MASK  # tails of two devices are their own
            self._devices[name] = ModelledDevice(model, seed)

    def _route(self, level: str, gpu: int) -> Route:
        names = self._names[level]
        device = self._devices[names[gpu]]
        if self._topology is None:
            route = Route((device,), (device,))
        else:
            route = self._topology.route(level, device, is_device=level in _ISSUED, gpu=gpu)
        # Caches share a device, not its pages: each has a part of it. The origin's are shared.
        before = names[:gpu].count(names[gpu])
        route = replace(route, first_slot=before * self._slots.get(level, 0))
        return self._behind_host(route, level, gpu)

    def _behind_host(self, route: Route, level: str, gpu: int) -> Route:
        host = self._hosts[gpu]
        if host is None:
            return route
        if level in _ISSUED:
            return route.between(host.devices, host.answers)
        # Who reads slots of a first tier in memory copies hits, which belong to their batch.
        is_first = level == next(iter(self._names))
        return route.behind(host.hits if is_first else host.copies, host.copies)


def geometry_of(tier: TierSettings, page_bytes: int) -> LogGeometry:
    """The geometry of an ``nvme`` tier, as of one that is opened on a real drive."""
    slots = tier.capacity_bytes // page_bytes // tier.ways * tier.ways
    return log_geometry(slots, page_bytes, tier.segment_bytes)
