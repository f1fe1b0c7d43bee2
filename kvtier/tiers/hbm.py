"""The tier in GPU memory, and its twin in host memory where there is no GPU.

The twin takes the same decisions, page by page: only where the bytes lie differs.
"""

from __future__ import annotations

from kvtier.errors import DeviceError
from kvtier.index import create_index
from kvtier.settings import Device, TierSettings
from kvtier.tiers.cuda import CudaTier
from kvtier.tiers.memory import HostTier, MemoryTier


def open_hbm(
    settings: TierSettings, slots: int, page_bytes: int, seed: int, device: Device
) -> MemoryTier:
    """The tier on the GPU for ``cuda``, its CPU twin for ``cpu``, whichever works for ``auto``.

    Other arguments as in :func:`kvtier.tiers.open_tier`; ``slots`` is in whole sets.

    Raises:
        DeviceError: ``cuda`` without a GPU that CuPy can use, or not enough memory.
    """
    trouble = None if device == "cpu" else find_cuda_trouble()
    if device == "cuda" and trouble is not None:
        raise DeviceError(f"device cuda cannot be used: {trouble}, or use --device cpu")
    index = create_index(slots, settings.ways, seed)
    if device == "cpu" or trouble is not None:
        return HostTier("hbm", "cpu-twin", index, slots, page_bytes)
    return CudaTier(index, slots, page_bytes)


def find_cuda_trouble() -> str | None:
    """Why CuPy cannot use a GPU here, and what to do about it; None if it can."""
    try:
        import cupy  # noqa: PLC0415 -- not a base dependency
    except ImportError:
        return "CuPy is not installed; install kvtier[cuda12] or kvtier[cuda13]"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"the CUDA driver answers {error}; check nvidia-smi"
    return None if count else "CuPy finds no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"
