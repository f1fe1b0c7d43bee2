"""How many bytes of KV cache a model keeps for a token.

For attention with KV heads, ``2 (K and V) x layers x KV heads x head size x bytes per element``;
for multi-head latent attention (MLA), ``layers x bytes of the latent``. The values come from the
models' published ``config.json`` files.
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
    """The KV cache of one model.

    Attributes:
        name: of the preset.
        layers: layers that keep a KV cache.
        bytes_per_layer_token: what one layer keeps for one token.
    """

    name: str
    layers: int
    bytes_per_layer_token: int

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
    name: str, layers: int, kv_heads: int, head_size: int = 128, element_bytes: int = 2
) -> ModelGeometry:
    """The geometry of a model with KV heads; bf16 has 2 bytes an element."""
    return ModelGeometry(name, layers, 2 * kv_heads * head_size * element_bytes)


def latent_attention(name: str, layers: int, latent_bytes: int) -> ModelGeometry:
    """The geometry of a model with MLA, where a layer keeps ``latent_bytes`` for a token."""
    return ModelGeometry(name, layers, latent_bytes)


GEOMETRIES: Final[Mapping[str, ModelGeometry]] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            attention("llama-3-8b", layers=32, kv_heads=8),
            attention("llama-3-70b", layers=80, kv_heads=8),
            attention("qwen2.5-7b", layers=28, kv_heads=4),
            attention("qwen2.5-72b", layers=80, kv_heads=8),
            attention("qwen3-8b", layers=36, kv_heads=8),
            attention("qwen3-32b", layers=64, kv_heads=8),
            attention("qwen3-30b-a3b", layers=48, kv_heads=4),
            # 512 latent and 64 rotary elements of bf16; as fp8, 512 + 4 scales of 4 bytes + 64 of
            # bf16. The 132 bytes of the sparse attention's indexer (V3.2) are not counted.
            latent_attention("deepseek-v3", layers=61, latent_bytes=1152),
            latent_attention("deepseek-v3-fp8", layers=61, latent_bytes=656),
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
