"""The tier in host memory."""

from __future__ import annotations

from kvtier.gpu import Gpu
from kvtier.index import create_index
from kvtier.settings import TierSettings
from kvtier.tiers.memory import HostTier


def open_dram(
    settings: TierSettings, slots: int, page_bytes: int, seed: int, gpu: Gpu | None
) -> HostTier:
    """Arguments and errors as in :func:`kvtier.tiers.open_tier`; ``slots`` is in whole sets."""
    index = create_index(slots, settings.ways, seed)
    return HostTier("dram", "numba", index, slots, page_bytes, gpu)
