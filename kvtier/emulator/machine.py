"""The modelled hardware of all GPUs: a station for every device and link, and who passes which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from kvtier.emulator.device import ModelledDevice
from kvtier.emulator.station import Route, Station
from kvtier.emulator.topology import Topology
from kvtier.settings import DeviceModel, Settings, default_model, device_names

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
            tier.name: tier.capacity_bytes // settings.page_bytes for tier in settings.tiers
        }
        self._names: dict[str, tuple[str, ...]] = {}
        self._devices: dict[str, Station] = {}
        for tier in settings.tiers:
            self._add_devices(tier.name, tier.model or default_model(tier.name))
        if settings.origin is not None:
            self._add_devices("origin", settings.origin.model or default_model("origin"))

    @property
    def stations(self) -> Mapping[str, Station]:
        """By name: all devices, and the links that :meth:`routes` has passed."""
        links = {} if self._topology is None else self._topology.stations
        return {**self._devices, **links}

    def routes(self, gpu: int) -> list[Route]:
        """The way of every level's pages to a GPU, given by its number, in the chain's order."""
        return [self._route(level, gpu) for level in self._names]

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
        return replace(route, first_slot=before * self._slots.get(level, 0))
