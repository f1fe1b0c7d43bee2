"""Bytes of KV cache per token, pinned to the published geometries."""

from __future__ import annotations

import pytest

from kvtier.errors import SettingsError
from kvtier.trace import GEOMETRIES, geometry

KIB = 1024
MIB = 1024 * KIB


@pytest.mark.parametrize(
    ("name", "per_layer", "per_token", "block"),
    [
        ("llama-3-8b", 4 * KIB, 128 * KIB, 2 * MIB),
        ("llama-3-70b", 4 * KIB, 320 * KIB, 5 * MIB),
        ("qwen2.5-72b", 4 * KIB, 320 * KIB, 5 * MIB),
        ("qwen2.5-7b", 2 * KIB, 56 * KIB, 896 * KIB),
        ("qwen3-8b", 4 * KIB, 144 * KIB, 2304 * KIB),
        ("qwen3-32b", 4 * KIB, 256 * KIB, 4 * MIB),
        ("qwen3-30b-a3b", 2 * KIB, 96 * KIB, 1536 * KIB),
        ("deepseek-v3", 1152, 70_272, 1_124_352),
        ("deepseek-v3-fp8", 656, 40_016, 640_256),
    ],
)
def test_bytes_of_a_16_token_block(name: str, per_layer: int, per_token: int, block: int) -> None:
    model = geometry(name)
    assert model.bytes_per_layer_token == per_layer
    assert model.bytes_per_token == per_token
    assert model.block_bytes(16) == block


def test_no_preset_is_left_unpinned() -> None:
    assert len(GEOMETRIES) == 9
    assert all(model.name == name for name, model in GEOMETRIES.items())


def test_a_block_takes_the_pages_that_cover_it() -> None:
    assert geometry("llama-3-8b").pages_per_block(16, 4096) == 512
    assert geometry("deepseek-v3-fp8").pages_per_block(16, 4096) == 157  # 156.3 full ones
    assert geometry("llama-3-8b").pages_per_block(16, 4 * MIB) == 1


def test_an_unknown_model_gets_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match=r"'Llama-3.8b'; did you mean 'llama-3-8b'\?"):
        geometry("Llama-3.8b")


def test_an_unknown_model_gets_the_list() -> None:
    with pytest.raises(SettingsError, match="there are llama-3-8b, llama-3-70b"):
        geometry("zzz")
