"""From settings to an emulator, or to one for each of several GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kvtier.chain import build_chain
from kvtier.chain.driver import Index
from kvtier.clock import VirtualClock
from kvtier.directory import ObjectDirectory
from kvtier.emulator.driver import VirtualDriver
from kvtier.emulator.machine import Machine, geometry_of
from kvtier.emulator.origin import ModelledOrigin, OriginContents
from kvtier.emulator.repeating import RepeatingDriver
from kvtier.emulator.timeline import Timeline
from kvtier.errors import SettingsError
from kvtier.index import LogIndex, create_index
from kvtier.machine import check_emulated
from kvtier.settings import Settings, TierSettings, gpus_of, validate


class Emulator(NamedTuple):
    """What a cache in virtual time is made of.

    Attributes:
        gpu: whose it is.
        driver: on the timeline that all GPUs share.
        directory: shared with the driver.
        origin: None where the settings have none.
    """

    gpu: str
    driver: VirtualDriver
    directory: ObjectDirectory
    origin: ModelledOrigin | None


def open_emulators(
    settings: Settings, clock: VirtualClock, objects: Mapping[bytes, int]
) -> list[Emulator]:
    """An emulator for each GPU, on one timeline and over one machine.

    Args:
        settings: checked first; a level without a model takes its preset.
        clock: the virtual time.
        objects: pages of each object that the origin has from the start.

    Raises:
        SettingsError: a setting is wrong, the topology has no way to a level, or the indexes need
            more memory than there is.
    """
    validate(settings)
    gpus = gpus_of(settings.topology)
    directories = [ObjectDirectory(settings.chain.objects_max) for _ in gpus]
    return _open(settings, directories, clock, objects)


def open_emulator(
    settings: Settings,
    directory: ObjectDirectory,
    clock: VirtualClock,
    objects: Mapping[bytes, int],
) -> tuple[VirtualDriver, ModelledOrigin | None]:
    """The emulator of a single GPU; arguments as of :func:`open_emulators`.

    Args:
        settings: of one GPU.
        directory: of the cache that will use the driver.
        clock: as there.
        objects: as there.

    Raises:
        SettingsError: as there, or the settings have several GPUs.
    """
    validate(settings)
    if len(gpus_of(settings.topology)) > 1:
        raise SettingsError("topology.gpus: several GPUs were given, and one is opened")
    (emulator,) = _open(settings, [directory], clock, objects)
    return emulator.driver, emulator.origin


def _open(
    settings: Settings,
    directories: list[ObjectDirectory],
    clock: VirtualClock,
    objects: Mapping[bytes, int],
) -> list[Emulator]:
    check_emulated(settings)
    timeline, contents = Timeline(clock), OriginContents(objects)
    gpus, machine = gpus_of(settings.topology), Machine(settings)
    emulators = []
    for gpu, directory, hardware in zip(gpus, directories, machine.hardware(), strict=True):
        driver = VirtualDriver(
            build_chain(settings), _indexes(settings), hardware, directory, timeline
        )
        origin = None if settings.origin is None else ModelledOrigin(contents, driver)
        emulators.append(Emulator(gpu, driver, directory, origin))
    return emulators


def open_repetition(
    settings: Settings,
    clock: VirtualClock,
    *,
    origin_extent_pages_max: int,
    origin_batch_extents_max: int,
) -> RepeatingDriver:
    """Levels as ``settings`` describe them, in virtual time, that are told what a log says.

    Args:
        settings: of one GPU, checked first; a level without a model takes its preset.
        clock: the virtual time.
        origin_extent_pages_max: most pages that the logged origin took as one extent.
        origin_batch_extents_max: most extents that it took in one read.

    Raises:
        SettingsError: a setting is wrong, the topology has no way to a level or several GPUs.
    """
    validate(settings)
    if len(gpus_of(settings.topology)) > 1:
        raise SettingsError("topology.gpus: several GPUs were given, and a log is of one")
    check_emulated(settings)
    (hardware,) = Machine(settings).hardware()
    chain = build_chain(
        settings,
        origin_extent_pages_max=origin_extent_pages_max,
        origin_batch_extents_max=origin_batch_extents_max,
    )
    return RepeatingDriver(chain, _indexes(settings), hardware, Timeline(clock))


def _indexes(settings: Settings) -> list[Index]:
    return [_index(tier, settings) for tier in settings.tiers]


def _index(tier: TierSettings, settings: Settings) -> Index:
    if tier.name == "nvme":
        return LogIndex(geometry_of(tier, settings.page_bytes), tier.ways, settings.seed)
    return create_index(tier.capacity_bytes // settings.page_bytes, tier.ways, settings.seed)
