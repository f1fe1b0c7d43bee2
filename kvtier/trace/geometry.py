"""How many bytes of KV cache a model keeps for a token, and what it computes with.

For attention with KV heads, ``2 (K and V) x layers x KV heads x head size x bytes per element``;
for multi-head latent attention (MLA), ``layers x bytes of the latent``. The values come from the
models' published ``config.json`` files, counts of parameters from their weight files; the active
ones of the mixtures of experts are those of the Qwen3 and DeepSeek-V3 technical reports.

Attention multiplies each query with the key, and its weight with the value, of each token that it
attends to: ``2 x heads x (key size + value size)`` operations per layer and pair of tokens, two
per multiplication and addition. MLA expands keys and values for a prompt; to decode it works on
the latent itself, which is more operations on fewer bytes (DeepSeek-V2, arXiv 2405.04434).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final

from kvtier.errors import SettingsError


@dataclass(frozen=True, slots=True)
class ModelGeometry:
    """The KV cache of one model, its weights and its attention.

    Attributes:
        name: of the preset.
        layers: layers that keep a KV cache.
        bytes_per_layer_token: what one layer keeps for one token.
        parameters: of the whole model.
        active_parameters: that one token uses; all of them but in a mixture of experts.
        parameter_bytes: of one weight.
        prompt_pair_flops, decode_pair_flops: floating-point operations of one layer's attention
            for one token and one that it attends to, in a prompt and in decoding.
    """

    name: str
    layers: int
    bytes_per_layer_token: int
    parameters: int
    active_parameters: int
    parameter_bytes: int
    prompt_pair_flops: int
    decode_pair_flops: int

    @property
    def bytes_per_token(self) -> int:
        """Bytes of all layers for one token."""
        return self.layers * self.bytes_per_layer_token

    def block_bytes(self, tokens: int) -> int:
        """Bytes of a block of so many tokens."""
        return tokens * self.bytes_per_token

    def pages_per_block(self, tokens: int, page_bytes: int) -> int:
        """Pages that cover a block of so many tokens; the last may be partly filled."""
        return -(-self.block_bytes(tokens) // page_bytes)


def attention(
    name: str,
    parameters: float,
    *,
    layers: int,
    heads: int,
    kv_heads: int,
    active_parameters: float | None = None,
    head_size: int = 128,
    element_bytes: int = 2,
) -> ModelGeometry:
    """The geometry of a model with KV heads; bf16 has 2 bytes an element."""
    pair_flops = 2 * heads * (head_size + head_size)
    return ModelGeometry(
        name,
        layers,
        2 * kv_heads * head_size * element_bytes,
        parameters=round(parameters),
        active_parameters=round(active_parameters or parameters),
        parameter_bytes=element_bytes,
        prompt_pair_flops=pair_flops,
        decode_pair_flops=pair_flops,
    )


def deepseek_v3(name: str, latent_bytes: int) -> ModelGeometry:
    """DeepSeek-V3 (fp8 weights), whose 61 layers keep ``latent_bytes`` each for a token.

    Its 128 heads have keys of 128 + 64 (rotary) and values of 128 elements; the latent has 512, and
    the same 64.
    """
    return ModelGeometry(
        name,
        layers=61,
        bytes_per_layer_token=latent_bytes,
        parameters=671_000_000_000,
        active_parameters=37_000_000_000,
        parameter_bytes=1,
        prompt_pair_flops=2 * 128 * (192 + 128),
        decode_pair_flops=2 * 128 * (576 + 512),
    )


GEOMETRIES: Final[Mapping[str, ModelGeometry]] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            attention("llama-3-8b", 8.03e9, layers=32, heads=32, kv_heads=8),
            attention("llama-3-70b", 70.55e9, layers=80, heads=64, kv_heads=8),
            attention("qwen2.5-7b", 7.62e9, layers=28, heads=28, kv_heads=4),
            attention("qwen2.5-72b", 72.71e9, layers=80, heads=64, kv_heads=8),
            attention("qwen3-8b", 8.19e9, layers=36, heads=32, kv_heads=8),
            attention("qwen3-32b", 32.76e9, layers=64, heads=64, kv_heads=8),
            attention(
                "qwen3-30b-a3b",
                30.5e9,
                active_parameters=3.3e9,
                layers=48,
                heads=32,
                kv_heads=4,
            ),
            # 512 latent and 64 rotary elements of bf16; as fp8, 512 + 4 scales of 4 bytes + 64 of
            # bf16. The 132 bytes of the sparse attention's indexer (V3.2) are not counted.
            deepseek_v3("deepseek-v3", latent_bytes=1152),
            deepseek_v3("deepseek-v3-fp8", latent_bytes=656),
        )
    }
)
"""The presets, by name. KV caches are bf16 where the name does not say otherwise."""


def geometry(name: str) -> ModelGeometry:
    """The preset of that name. Raises :class:`SettingsError`, naming the nearest, if none is."""
    if name in GEOMETRIES:
        return GEOMETRIES[name]
    nearest = get_close_matches(name.lower(), GEOMETRIES, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise SettingsError(f"no model preset {name!r}; {hint}there are {', '.join(GEOMETRIES)}")
