"""The tier in GPU memory, and its twin in host memory where there is no GPU.

The twin takes the same decisions, page by page: only where the bytes lie differs.
"""

from __future__ import annotations

from kvtier.gpu import Gpu
from kvtier.index import create_index
from kvtier.settings import TierSettings
from kvtier.tiers.cuda import CudaTier
from kvtier.tiers.memory import HostTier, MemoryTier


def open_hbm(
    settings: TierSettings, slots: int, page_bytes: int, seed: int, gpu: Gpu | None
) -> MemoryTier:
    """The tier on ``gpu``, or its CPU twin where there is none.

    Other arguments as in :func:`kvtier.tiers.open_tier`; ``slots`` is in whole sets.

    Raises:
        DeviceError: not enough memory.
    """
    if gpu is None:
        index = create_index(slots, settings.ways, seed)
        return HostTier("hbm", "cpu-twin", index, slots, page_bytes)
    return CudaTier(gpu, slots, settings.ways, seed, page_bytes)
