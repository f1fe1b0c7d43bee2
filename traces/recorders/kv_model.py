"""A small decoder-only transformer.

Its layers are those of Qwen3: root mean square norms, rotary positions, normalised queries and
keys, grouped-query attention, SwiGLU. What is attended to is left to the caller, so that training,
prefill and decoding run the same layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

ROPE_BASE = 10_000.0

# Of one layer: queries [b, heads, n, size], keys and values [b, kv heads, n, size]; returns what
# its heads have read, [b, heads, n, size].
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model."""

    vocabulary: int = 2048
    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 128
    hidden: int = 640


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.attention_norm = nn.RMSNorm(shape.width)
        self.query = nn.Linear(shape.width, shape.heads * shape.head_size, bias=False)
        self.key = nn.Linear(shape.width, shape.kv_heads * shape.head_size, bias=False)
        self.value = nn.Linear(shape.width, shape.kv_heads * shape.head_size, bias=False)
        self.query_norm = nn.RMSNorm(shape.head_size)
        self.key_norm = nn.RMSNorm(shape.head_size)
        self.out = nn.Linear(shape.heads * shape.head_size, shape.width, bias=False)
        self.hidden_norm = nn.RMSNorm(shape.width)
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def project(self, x: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [b, heads, n, size], keys and values [b, kv heads, n, size] of [b, n, width]."""
        x = self.attention_norm(x)
        queries, keys, values = (
            part.unflatten(-1, (-1, self.shape.head_size)).transpose(1, 2)
            for part in (self.query(x), self.key(x), self.value(x))
        )
        return (
            _rotate(self.query_norm(queries), angles),
            _rotate(self.key_norm(keys), angles),
            values,
        )

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layer's output, from its input and what its heads have read."""
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        y = self.hidden_norm(x)
        gated: Tensor = x + self.down(functional.silu(self.gate(y)) * self.up(y))
        return gated


class Transformer(nn.Module):
    """Tokens in, scores of the next token out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)
            if name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * shape.layers))

    def forward(self, tokens: Tensor, first: int, attend: Attend) -> Tensor:
        """Scores [b, n, vocabulary] after each of tokens [b, n], at positions from ``first`` on."""
        angles = _angles(first, tokens.shape[1], self.shape.head_size)
        x = self.embedding(tokens)
        for number, layer in enumerate(self.layers):
            queries, keys, values = layer.project(x, angles)
            x = layer.finish(x, attend(number, queries, keys, values))
        return functional.linear(self.norm(x), self.embedding.weight)

    def parameter_count(self) -> int:
        return sum(weight.numel() for weight in self.parameters())


def _angles(first: int, count: int, head_size: int) -> Tensor:
    """Rotary angles [n, size / 2] of positions (Su et al., "RoFormer", 2021)."""
    speeds = ROPE_BASE ** (-torch.arange(0, head_size, 2) / head_size)
    return torch.arange(first, first + count).unsqueeze(1) * speeds


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    cosine, sine = angles.cos(), angles.sin()
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)


def attend_causally(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Dense attention of every token to itself and those before it."""
    del layer
    return functional.scaled_dot_product_attention(
        queries, keys, values, is_causal=True, enable_gqa=True
    )
