"""What holds unless a file says otherwise: tiers of ``replay``, device models of ``simulate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal, NamedTuple

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


class ModelPreset(NamedTuple):
    """A device model, and where its figures come from."""

    model: DeviceModel
    source: str


def _preset(
    name: str, latency_s: float, iops: float, bytes_per_s: float, source: str
) -> tuple[str, ModelPreset]:
    return name, ModelPreset(DeviceModel(latency_s, iops, bytes_per_s, preset=name), source)


MODEL_PRESETS: Final[Mapping[str, ModelPreset]] = dict(
    [
        _preset(
            "h200",
            1e-6,
            3.8e9,
            518e6 * 4096,
            "NVIDIA H200: 518 M pages/s of 4 KiB copied out, which is 4.3 TB/s of HBM traffic, for "
            "each byte is read and written; 3.8 G/s of 512 B; 1 us for a dependent access",
        ),
        _preset(
            "pcie-gen5",
            2e-6,
            107e6,
            55e9,
            "pinned host memory over PCIe Gen5 x16: 55 GB/s measured for copies, so 13.4 M pages/s "
            "of 4 KiB and 107 M/s of 512 B; 2 us for a dependent access",
        ),
        _preset(
            "gen4-nvme",
            78e-6,
            1.4e6,
            7e9,
            "PCIe Gen4 drive, data-sheet class: 1.4 M random reads/s of 4 KiB, 7 GB/s, 78 us",
        ),
        _preset(
            "gen5-nvme",
            60e-6,
            3.3e6,
            14e9,
            "Micron 9550 (PCIe Gen5) data sheet: 3.3 M random reads/s of 4 KiB, 14 GB/s, 60 us",
        ),
        _preset(
            "gen6-nvme",
            60e-6,
            5.5e6,
            28e9,
            "Micron 9650 (PCIe Gen6) data sheet: 5.5 M random reads/s of 4 KiB, 28 GB/s; the "
            "latency is assumed to be that of Gen5",
        ),
        _preset(
            "storage-next",
            5e-6,
            57.4e6,
            11.1e6 * 4096,
            "Storage-Next SLC drive, base case of arXiv 2511.03944: 57.4 M random reads/s of 512 "
            "B, 11.1 M/s of 4 KiB, 5 us to sense a page",
        ),
        _preset(
            "100gbe-server",
            50e-6,
            1e6,
            12.5e9,
            "a server over 100 GbE: the line's 12.5 GB/s, one host core's 1 M requests/s, and 50 "
            "us for the round trip through the network stacks of two hosts",
        ),
        _preset(
            "400gbe-server",
            50e-6,
            4e6,
            50e9,
            "a server over 400 GbE: the line's 50 GB/s, four host cores of 1 M requests/s each, "
            "and 50 us for the round trip through the network stacks of two hosts",
        ),
    ]
)
"""By name, as ``preset`` in TOML has it. Each is one device."""

_DEFAULTS: Final[Mapping[str, str]] = {
    "hbm": "h200",
    "dram": "pcie-gen5",
    "nvme": "gen5-nvme",
    "origin": "100gbe-server",
}


def default_model(level_name: TierName | Literal["origin"]) -> DeviceModel:
    """The device that stands for a level in virtual time unless its settings name another."""
    return MODEL_PRESETS[_DEFAULTS[level_name]].model


def model_source(model: DeviceModel) -> str:
    """Where the figures of a model come from."""
    preset = MODEL_PRESETS.get(model.preset)
    if preset is None:
        return "given in the settings"
    if model == replace(preset.model, devices=model.devices):
        return preset.source
    return f"given in the settings; what is left out there: {preset.source}"
