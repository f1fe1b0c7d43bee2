"""What holds unless a file says otherwise: tiers of ``replay``, device models of ``simulate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from kvtier.settings.values import DeviceModel, TierName

DEFAULT_TOML: Final = """
[tiers.hbm]
capacity = "64 MiB"

[tiers.dram]
capacity = "256 MiB"

[tiers.nvme]
capacity = "1 GiB"

[origin]
backend = "file"
"""
"""The settings of a run without a file; ``nvme`` and ``origin`` take temporary files."""

_MODELS: Final[Mapping[str, DeviceModel]] = {
    # NVIDIA H200: 518 M hits/s of 4 KiB copied out, which is 4.3 TB/s of HBM traffic, for each byte
    # is read and written; 3.8 G/s of 512 B. The latency is that of one dependent HBM access.
    "hbm": DeviceModel(latency_s=1e-6, iops=3.8e9, bytes_per_s=518e6 * 4096),
    # Pinned host memory over PCIe Gen5 x16: 55 GB/s, so 13.4 M/s of 4 KiB and 107 M/s of 512 B.
    "dram": DeviceModel(latency_s=2e-6, iops=107e6, bytes_per_s=55e9),
    # Micron 9550 (PCIe Gen5) data sheet, random reads: 3.3 M IOPS of 4 KiB, 14 GB/s, 60 us.
    "nvme": DeviceModel(latency_s=60e-6, iops=3.3e6, bytes_per_s=14e9),
    # A server over 100 GbE: the line's 12.5 GB/s, one host core's 1 M requests/s, and 50 us for
    # the round trip through the network stacks of two hosts.
    "origin": DeviceModel(latency_s=50e-6, iops=1e6, bytes_per_s=12.5e9),
}


def default_model(level_name: TierName | Literal["origin"]) -> DeviceModel:
    """The device that stands for a level in virtual time unless its settings name another."""
    return _MODELS[level_name]
