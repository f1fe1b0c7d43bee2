"""Serves a transformer from a paged KV cache, and writes down which pages it reads.

A block is the keys and values of 16 tokens. It is stored once it is full, under a key that hashes
all tokens up to its end, so sequences with the same beginning share blocks (as in vLLM's prefix
caching). One head's keys, or values, of a block are one page of 4 KiB.

Decoding attends to the pages that Quest chooses (Tang et al., "Quest: Query-Aware Sparsity for
Efficient Long-Context LLM Inference", ICML 2024): per page of keys the least and the greatest value
of each channel are held in memory; they bound how well any key of the page can match a query, and
the pages of the highest bound are read. Query heads that share a KV head choose together, by the
sum of the softmax of their bounds (as Yuan et al., "Native Sparse Attention", ACL 2025, add shares
of attention over such heads).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
from kv_model import Shape, Transformer
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

BLOCK_TOKENS = 16
PAGE_BYTES = 4096

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Extents that were read together: block, first page, pages (i64[n] each)."""

    blocks: I64
    pages: I64
    counts: I64


class BlockStore:
    """Stored blocks, and the log of what was read from them.

    Args:
        shape: of the model.
        capacity: most blocks.
    """

    def __init__(self, shape: Shape, capacity: int) -> None:
        sides = (capacity, shape.layers, 2, shape.kv_heads, BLOCK_TOKENS, shape.head_size)
        self._payload = torch.zeros(sides, dtype=torch.bfloat16)
        self.block_pages = shape.layers * 2 * shape.kv_heads
        self._pages = self._payload.view(capacity, self.block_pages, BLOCK_TOKENS, shape.head_size)
        assert self._pages[0, 0].numel() * self._pages.element_size() == PAGE_BYTES
        self._least = torch.zeros(capacity, shape.layers, shape.kv_heads, shape.head_size)
        self._greatest = torch.zeros_like(self._least)
        self._heads = shape.kv_heads
        self.numbers: dict[bytes, int] = {}
        self.log: list[Batch] = []

    def write(self, key: bytes, block: Tensor) -> int:
        """Store a block [layers, 2, kv heads, 16, size] if it is not stored yet; its number."""
        if key not in self.numbers:
            number = len(self.numbers)
            self.numbers[key] = number
            self._payload[number] = block
            keys = self._payload[number, :, 0].float()
            self._least[number] = keys.amin(dim=2)
            self._greatest[number] = keys.amax(dim=2)
        return self.numbers[key]

    def load(self, blocks: I64) -> Tensor:
        """Read whole blocks, together: [n, layers, 2, kv heads, 16, size]."""
        whole = np.full(len(blocks), self.block_pages)
        self.log.append(Batch(blocks, np.zeros_like(whole), whole))
        return self._payload[torch.from_numpy(blocks)].float()

    def read(self, blocks: I64, layer: int) -> tuple[Tensor, Tensor]:
        """Read the pages of ``blocks`` (i64[kv heads, k], each head its own), together.

        Returns:
            keys and values, each [kv heads, k * 16, size].
        """
        heads = np.arange(self._heads)[:, None]
        key_pages = np.broadcast_to(layer * 2 * self._heads + heads, blocks.shape)
        pages = np.stack((key_pages, key_pages + self._heads), axis=-1)
        both = np.stack((blocks, blocks), axis=-1)
        self.log.append(Batch(both.ravel(), pages.ravel(), np.ones(both.size, np.int64)))
        read = self._pages[torch.from_numpy(both), torch.from_numpy(pages)].float()
        return read[:, :, 0].flatten(1, 2), read[:, :, 1].flatten(1, 2)

    def peek(self, blocks: I64, layer: int) -> tuple[Tensor, Tensor]:
        """What reading all of ``blocks`` (i64[n]) would give; for measuring, so not logged."""
        pages = self._payload[torch.from_numpy(blocks), layer].float()
        return pages[:, 0].transpose(0, 1).flatten(1, 2), pages[:, 1].transpose(0, 1).flatten(1, 2)

    def bounds(self, queries: Tensor, blocks: I64, layer: int) -> Tensor:
        """Upper bounds [kv heads, group, n] of queries [kv heads, group, size] times any key."""
        chosen = torch.from_numpy(blocks)
        least, greatest = (
            side[chosen, layer].transpose(0, 1).unsqueeze(1)
            for side in (self._least, self._greatest)
        )
        queries = queries.unsqueeze(2)
        return torch.maximum(queries * least, queries * greatest).sum(dim=-1)


@dataclass(slots=True)
class Sequence:
    """The tokens of a session so far.

    Attributes:
        tokens: all of them.
        blocks: stored blocks of the leading tokens.
        tail: the keys and values of later tokens, which are in GPU memory:
            [layers, 2, kv heads, n, size].
    """

    tail: Tensor
    tokens: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Choice:
    """What one layer of one decoding step has read, and what it was to choose from.

    Attributes:
        blocks: i64[kv heads, k], positions in the sequence.
        candidates: stored blocks of the sequence.
        shares: where measured, the share of dense attention to stored blocks that falls on the
            blocks that were read, and on the best ``k``; and the share of all dense attention
            that falls on stored blocks.
    """

    blocks: I64
    candidates: int
    shares: tuple[float, float, float] | None


def block_key(tokens: list[int]) -> bytes:
    """The name of the block that ends these tokens."""
    return b"kv/" + hashlib.sha256(np.array(tokens, "<u2").tobytes()).hexdigest()[:16].encode()


class Server:
    """Answers turns of sessions.

    Args:
        model: its weights are not changed.
        capacity: most blocks.
        budget: pages of keys that a KV head reads per layer and step.
        measure_every: of so many steps one is compared with dense attention.
        seed: of the sampling.
    """

    def __init__(
        self, model: Transformer, capacity: int, budget: int, measure_every: int, seed: int
    ) -> None:
        self.model = model
        self.store = BlockStore(model.shape, capacity)
        self.agreements: list[bool] = []
        self._budget = budget
        self._measure_every = measure_every
        self._random = torch.Generator().manual_seed(seed)

    def begin(self) -> Sequence:
        """A sequence without tokens."""
        return Sequence(self._no_tail())

    def _no_tail(self) -> Tensor:
        shape = self.model.shape
        return torch.zeros(shape.layers, 2, shape.kv_heads, 0, shape.head_size)

    @torch.inference_mode()
    def answer(self, sequence: Sequence, prompt: I64, length: int) -> list[list[Choice]]:
        """Serve one turn: ``prompt`` is appended to the sequence, then ``length`` tokens follow.

        Returns:
            per step and layer, what was read.
        """
        sequence.tokens += prompt.tolist()
        scores = self._prefill(sequence)
        steps = []
        for step in range(length):
            sequence.tokens.append(self._sample(scores))
            measured = step % self._measure_every == 0
            dense = self._decode(sequence, None, measured=False)[0] if measured else None
            scores, fresh, choices = self._decode(sequence, self._budget, measured=measured)
            if dense is not None:
                self.agreements.append(bool(dense.argmax() == scores.argmax()))
            self._extend(sequence, fresh)
            steps.append(choices)
        return steps

    def _sample(self, scores: Tensor) -> int:
        odds = functional.softmax(scores / 0.8, dim=-1)
        return int(torch.multinomial(odds, 1, generator=self._random))

    def _prefill(self, sequence: Sequence) -> Tensor:
        """Load the stored prefix, compute the rest densely; the next token's scores."""
        sequence.blocks = self._stored_prefix(sequence.tokens)
        sequence.tail = self._no_tail()
        first = BLOCK_TOKENS * len(sequence.blocks)
        loaded = None
        if sequence.blocks:
            loaded = self.store.load(np.array(sequence.blocks)).permute(1, 2, 3, 0, 4, 5)
            loaded = loaded.flatten(3, 4)
        fresh: list[Tensor] = []

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            new = _rounded(torch.stack((keys[0], values[0])))
            fresh.append(new)
            both = new if loaded is None else torch.cat((loaded[layer], new), dim=2)
            count = queries.shape[2]
            visible = torch.ones(count, both.shape[2], dtype=torch.bool).tril(first)
            return functional.scaled_dot_product_attention(
                queries, both[:1], both[1:], attn_mask=visible, enable_gqa=True
            )

        tokens = torch.tensor([sequence.tokens[first:]])
        scores: Tensor = self.model(tokens, first, attend)[0, -1]
        self._extend(sequence, torch.stack(fresh))
        return scores

    def _stored_prefix(self, tokens: list[int]) -> list[int]:
        """The leading blocks that are stored; at least the last token is left to compute."""
        blocks: list[int] = []
        for end in range(BLOCK_TOKENS, len(tokens), BLOCK_TOKENS):
            number = self.store.numbers.get(block_key(tokens[:end]))
            if number is None:
                break
            blocks.append(number)
        return blocks

    def _extend(self, sequence: Sequence, fresh: Tensor) -> None:
        """Append keys and values of the next tokens, and store the blocks that are full now."""
        sequence.tail = torch.cat((sequence.tail, fresh), dim=3)
        while sequence.tail.shape[3] >= BLOCK_TOKENS:
            end = BLOCK_TOKENS * (len(sequence.blocks) + 1)
            block = sequence.tail[:, :, :, :BLOCK_TOKENS]
            sequence.blocks.append(self.store.write(block_key(sequence.tokens[:end]), block))
            sequence.tail = sequence.tail[:, :, :, BLOCK_TOKENS:]

    def _decode(
        self, sequence: Sequence, budget: int | None, *, measured: bool
    ) -> tuple[Tensor, Tensor, list[Choice]]:
        """One step for the last token; without a budget all pages are attended, and none logged.

        Returns:
            the next token's scores, the token's keys and values, and what was read per layer.
        """
        fresh: list[Tensor] = []
        choices: list[Choice] = []
        blocks = np.array(sequence.blocks)
        kv_heads = self.model.shape.kv_heads

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            fresh.append(_rounded(torch.stack((keys[0], values[0]))))
            tail = torch.cat((sequence.tail[layer], fresh[-1]), dim=2)
            grouped = queries[0, :, 0].unflatten(0, (kv_heads, -1))
            if budget is None:
                stored = self.store.peek(blocks, layer)
            else:
                chosen = self._choose(grouped, blocks, layer, budget)
                stored = self.store.read(blocks[chosen], layer)
                shares = self._shares(grouped, blocks, layer, chosen, tail) if measured else None
                choices.append(Choice(chosen, len(blocks), shares))
            both = (torch.cat((pages, late), 1) for pages, late in zip(stored, tail, strict=True))
            return functional.scaled_dot_product_attention(grouped, *both).flatten(0, 1)[
                None, :, None
            ]

        first = len(sequence.tokens) - 1
        scores = self.model(torch.tensor([sequence.tokens[-1:]]), first, attend)[0, -1]
        return scores, torch.stack(fresh), choices

    def _choose(self, grouped: Tensor, blocks: I64, layer: int, budget: int) -> I64:
        """The blocks of the highest bounds, i64[kv heads, k], in the order of the sequence."""
        bounds = self.store.bounds(grouped, blocks, layer) / grouped.shape[-1] ** 0.5
        together = functional.softmax(bounds, dim=-1).sum(dim=1)
        highest = together.topk(min(budget, len(blocks)), dim=-1).indices
        return highest.sort(dim=-1).values.numpy()

    def _shares(
        self, grouped: Tensor, blocks: I64, layer: int, chosen: I64, tail: Tensor
    ) -> tuple[float, float, float]:
        """See :class:`Choice`."""
        keys = torch.cat((self.store.peek(blocks, layer)[0], tail[0]), dim=1)
        matches = grouped @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5
        odds = functional.softmax(matches, dim=-1).mean(dim=1)[:, : BLOCK_TOKENS * len(blocks)]
        stored = odds.unflatten(1, (-1, BLOCK_TOKENS)).sum(dim=-1)
        read = stored.gather(1, torch.from_numpy(chosen)).sum(dim=1)
        best = stored.topk(chosen.shape[1], dim=-1).values.sum(dim=1)
        total = stored.sum(dim=1)
        return (
            float((read / total).mean()),
            float((best / total).mean()),
            float(total.mean()),
        )


def _rounded(x: Tensor) -> Tensor:
    """As a stored page would give it back."""
    return x.bfloat16().float()
