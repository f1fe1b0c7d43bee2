"""Cache tiers: a page index, and the pages behind it, in memory or in a file."""

from __future__ import annotations

from typing import TypeAlias

from kvtier.errors import SettingsError
from kvtier.gpu import Gpu
from kvtier.identities import Identities
from kvtier.settings import TierSettings
from kvtier.tiers.cuda import CudaTier
from kvtier.tiers.dram import open_dram
from kvtier.tiers.hbm import open_hbm
from kvtier.tiers.log_opening import open_nvme
from kvtier.tiers.memory import MemoryTier
from kvtier.tiers.nvme import NvmeTier

__all__ = ["CudaTier", "MemoryTier", "NvmeTier", "Tier", "open_tier", "slots_of"]

Tier: TypeAlias = MemoryTier | NvmeTier


async def open_tier(
    settings: TierSettings,
    page_bytes: int,
    seed: int,
    gpu: Gpu | None = None,
    identities: Identities | None = None,
) -> Tier:
    """Open one tier, its compiled parts ready; empty, but for an ``nvme`` tier that was kept.

    Args:
        settings: which tier, and its bounds.
        page_bytes: bytes of a page.
        seed: of the index's hash.
        gpu: where an ``hbm`` tier lives, and for which a ``dram`` tier is pinned; None: the host.
        identities: what object ids mean, for an ``nvme`` tier that outlives the process, which
            fills them with what it kept; None: pages have no name beyond their ids.

    Raises:
        SettingsError: the capacity is less than one set, or a setting is not possible.
        DeviceError: its memory, file or GPU cannot be had.
    """
    slots = slots_of(settings, page_bytes)
    if settings.name == "hbm":
        return open_hbm(settings, slots, page_bytes, seed, gpu)
    if settings.name == "dram":
        return open_dram(settings, slots, page_bytes, seed, gpu)
    if identities is None:
        identities = Identities(1)
    return await open_nvme(settings, slots, page_bytes, seed, identities)


def slots_of(settings: TierSettings, page_bytes: int) -> int:
    """Pages that a tier holds: its capacity, rounded down to whole sets.

    Raises:
        SettingsError: that is not even one set.
    """
    set_bytes = page_bytes * settings.ways
    if settings.capacity_bytes < set_bytes:
        raise SettingsError(
            f"tier {settings.name}: capacity_bytes is {settings.capacity_bytes}, less than one set "
            f"of {settings.ways} pages of {page_bytes} bytes: give it {set_bytes} or more"
        )
    return settings.capacity_bytes // set_bytes * settings.ways
