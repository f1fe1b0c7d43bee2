"""What holds unless a file says otherwise: tiers of ``replay``, device models of ``simulate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal, NamedTuple

from kvtier.settings.values import DeviceModel, TierName
from kvtier.ssd import SECTOR_BYTES, STORAGE_NEXT_SLC, SsdModel

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


_UNLIMITED: Final = 1e15
"""A rate that limits nothing."""


class ModelPreset(NamedTuple):
    """A device model, and where its figures come from."""

    model: DeviceModel
    source: str


def _preset(
    name: str, latency_s: float, iops: float, bytes_per_s: float, source: str
) -> tuple[str, ModelPreset]:
    return name, ModelPreset(DeviceModel(latency_s, iops, bytes_per_s, preset=name), source)


def _object_store(
    name: str,
    *,
    latency_s: float,
    tail_latency_s: float,
    gets_per_s: float,
    refill_s: float,
    source: str,
) -> tuple[str, ModelPreset]:
    """A store in the network that lets so many requests through, and each takes its own time."""
    model = DeviceModel(
        latency_s,
        _UNLIMITED,
        12.5e9,
        preset=name,
        tail_latency_s=tail_latency_s,
        sustained_iops=gets_per_s,
        refill_s=refill_s,
    )
    return name, ModelPreset(model, source)


def flash_model(flash: SsdModel) -> DeviceModel:
    """A device that is built so; its other figures are those of the idle drive and its limits."""
    return DeviceModel(
        latency_s=flash.sense_us * 1e-6,
        iops=flash.peak_iops(SECTOR_BYTES),
        bytes_per_s=flash.link_bytes_per_s,
        flash=flash,
    )


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
        (
            "storage-next",
            ModelPreset(
                replace(flash_model(STORAGE_NEXT_SLC), preset="storage-next"),
                "Storage-Next SLC drive, base case of arXiv 2511.03944, with its planes, channels "
                "and link: at most 57.4 M random reads and writes per second of 512 B, nine reads "
                "to a write, 11.1 M of 4 KiB; 5 us to sense a page",
            ),
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
        _object_store(
            "s3-standard",
            latency_s=0.1,
            tail_latency_s=0.2,
            gets_per_s=5_500,
            refill_s=10e-3,
            source="Amazon S3 User Guide on performance: 5,500 GET/s for each prefix at least, "
            "small objects in 100 to 200 ms; assumed: these are the median and the 99th "
            "percentile, requests are counted every 10 ms and wait instead of being refused, a "
            "write counts as a read, and each prefix (devices) has a 100 GbE line",
        ),
        _object_store(
            "s3-express",
            latency_s=4e-3,
            tail_latency_s=9e-3,
            gets_per_s=2e6,
            refill_s=1e-3,
            source="Amazon S3 Express One Zone: 2 M GET/s for each bucket, single-digit "
            "milliseconds; assumed: 4 ms in the median and 9 ms at the 99th percentile, requests "
            "are counted every ms and wait instead of being refused, a write counts as a read, and "
            "each bucket (devices) has a 100 GbE line",
        ),
        _preset(
            "pcie-gen5-x16",
            0.5e-6,
            _UNLIMITED,
            55e9,
            "PCIe Gen5 x16, one direction: 55 GB/s measured for copies; 0.5 us is assumed",
        ),
        _preset(
            "pcie-gen5-x16-p2p",
            0.5e-6,
            _UNLIMITED,
            44.5e9,
            "PCIe Gen5 x16, one direction, drives that write straight into a GPU: the 44 to 45 "
            "GB/s of payload that AiSIO reports; 0.5 us is assumed",
        ),
        _preset(
            "pcie-gen6-x16",
            0.5e-6,
            _UNLIMITED,
            110e9,
            "PCIe Gen6 x16, one direction: 128 GB/s nominal, assumed to carry the share of it that "
            "Gen5 does (55 of 64); 0.5 us is assumed",
        ),
        _preset("100gbe", 5e-6, _UNLIMITED, 12.5e9, "100 GbE: the line's rate; 5 us is assumed"),
        _preset("400gbe", 5e-6, _UNLIMITED, 50e9, "400 GbE: the line's rate; 5 us is assumed"),
        _preset(
            "host-core",
            0.0,
            1e6,
            _UNLIMITED,
            "one core of a host issues about 1 M I/Os per second",
        ),
        _preset(
            "gpu-sm",
            0.0,
            4e6,
            _UNLIMITED,
            "one SM of a GPU issues about 4 M I/Os per second",
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
