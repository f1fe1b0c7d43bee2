"""From settings to an emulator."""

from __future__ import annotations

from collections.abc import Mapping

from kvtier.chain import build_chain
from kvtier.clock import VirtualClock
from kvtier.directory import ObjectDirectory
from kvtier.emulator.device import ModelledDevice
from kvtier.emulator.driver import VirtualDriver
from kvtier.emulator.origin import ModelledOrigin
from kvtier.emulator.station import Route
from kvtier.emulator.timeline import Timeline
from kvtier.index import create_index
from kvtier.settings import Settings, default_model, validate


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
        SettingsError: a setting is wrong.
    """
    validate(settings)
    indexes = [
        create_index(tier.capacity_bytes // settings.page_bytes, tier.ways, settings.seed)
        for tier in settings.tiers
    ]
    models = [tier.model or default_model(tier.name) for tier in settings.tiers]
    if settings.origin is not None:
        models.append(settings.origin.model or default_model("origin"))
    driver = VirtualDriver(
        build_chain(settings),
        indexes,
        [Route((ModelledDevice(model),)) for model in models],
        directory,
        settings.page_bytes,
        Timeline(clock),
    )
    if settings.origin is None:
        return driver, None
    return driver, ModelledOrigin(objects, driver)
