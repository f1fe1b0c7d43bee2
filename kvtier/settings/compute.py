"""The GPUs that a model runs on in a serving simulation, and how they share its work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Roles = Literal["one", "split"]


@dataclass(frozen=True, slots=True)
class ComputeSettings:
    """One node of GPUs that runs a model (:mod:`kvtier.serving.roofline`).

    Attributes:
        flops: floating-point operations per second of one GPU, dense, in the precision that the
            model computes in.
        bytes_per_s: bandwidth of one GPU's memory.
        memory_bytes: of one GPU.
        preset: where the three come from; in TOML, the preset that gives those left out.
        devices: so many GPUs compute as one (tensor parallelism); what they tell each other takes
            no time.
        efficiency: share of ``flops`` that is reached; an assumption.
        batch_tokens_max: tokens of one step: one for each sequence that decodes, and the rest for
            chunks of prompts.
        kv_capacity_bytes: KV cache of the running sequences that fits; None: nine tenths of the
            memory without the weights and the ``hbm`` tier.
    """

    flops: float = 989e12
    bytes_per_s: float = 4.3e12
    memory_bytes: int = 141_000_000_000
    preset: str = "h200"
    devices: int = 1
    efficiency: float = 0.5
    batch_tokens_max: int = 8192
    kv_capacity_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """How a serving simulation spreads its work.

    Attributes:
        roles: ``one``: a node prefills and decodes. ``split``: a prefill node computes the prompt
            and the first token, and writes the prompt's blocks; a decode node, with tiers of the
            same sizes, loads them and goes on.
    """

    roles: Roles = "one"


class ComputePreset(NamedTuple):
    """One GPU, and where its figures come from."""

    compute: ComputeSettings
    source: str


def _preset(
    name: str, flops: float, bytes_per_s: float, memory_bytes: float, source: str
) -> tuple[str, ComputePreset]:
    return name, ComputePreset(
        ComputeSettings(flops, bytes_per_s, round(memory_bytes), preset=name), source
    )


COMPUTE_PRESETS: Final[Mapping[str, ComputePreset]] = dict(
    [
        _preset(
            "h200",
            989e12,
            4.3e12,
            141e9,
            "NVIDIA H200 SXM data sheet: 989 TFLOPS of bf16 without sparsity, 141 GB; 4.3 TB/s "
            "measured for copies, of 4.8 TB/s by data sheet",
        ),
        _preset(
            "h100",
            989e12,
            3.0e12,
            80e9,
            "NVIDIA H100 SXM data sheet: 989 TFLOPS of bf16 without sparsity, 80 GB; of its 3.35 "
            "TB/s the share that an H200 reaches, which is assumed",
        ),
        _preset(
            "b200",
            2250e12,
            7.2e12,
            180e9,
            "NVIDIA B200 data sheet: 2.25 PFLOPS of bf16 without sparsity, 180 GB; of its 8 TB/s "
            "the share that an H200 reaches, which is assumed",
        ),
    ]
)
"""By name, as ``preset`` in TOML has it. Each is one GPU."""


def compute_source(compute: ComputeSettings) -> str:
    """Where the figures of a GPU come from."""
    known = COMPUTE_PRESETS[compute.preset]
    figures = (compute.flops, compute.bytes_per_s, compute.memory_bytes)
    preset = known.compute
    if figures == (preset.flops, preset.bytes_per_s, preset.memory_bytes):
        return known.source
    return f"given in the settings; what is left out there: {known.source}"
