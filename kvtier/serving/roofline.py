"""How long a step of a model takes on a GPU: by its operations, or by the bytes it reads.

A step runs every layer once, for one token of each sequence that decodes and for a chunk of each
prompt that is being computed (chunked prefill: Sarathi-Serve, arXiv 2403.02310). It takes

``max(operations / (flops x efficiency), bytes / bandwidth)``, the roofline (Williams et al., 2009):

- operations: ``2 x active parameters`` per token (Kaplan et al., arXiv 2001.08361), and the
  model's attention per layer and pair of a token and one that it attends to, itself included;
- bytes: the weights once, as far as so many tokens can use different ones of a mixture of experts,
  and the KV cache of every token attended to once per sequence, those of the step included.

Activations, launches of kernels, the sampler and links between GPUs take no time.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.pages import I64
from kvtier.serving.batcher import Batch
from kvtier.settings import ComputeSettings
from kvtier.trace import ModelGeometry

_KV_MEMORY_SHARE: Final = 0.9
"""Of the GPU's memory, what a server gives to weights and KV caches (vLLM's default)."""


class Roofline:
    """Times of steps of one model on one node.

    Args:
        model: what is computed.
        compute: what it is computed on.
    """

    def __init__(self, model: ModelGeometry, compute: ComputeSettings) -> None:
        self._model = model
        self._flops_per_ns = compute.flops * compute.devices * compute.efficiency / 1e9
        self._bytes_per_ns = compute.bytes_per_s * compute.devices / 1e9

    def durations_ns(self, batch: Batch, steps: int = 1) -> I64:
        """How long each of ``steps`` steps in a row takes.

        Args:
            batch: the first of them; from step to step every sequence that decodes attends to one
                token more. A batch with chunks is one step.
            steps: at least 1.

        Returns:
            i64[steps], in ns, rounded up.
        """
        grown = np.arange(1, steps + 1, dtype=np.float64) * batch.decodes
        model, tokens = self._model, batch.tokens
        pair_flops = (
            model.decode_pair_flops * (batch.context + grown)
            + model.prompt_pair_flops * batch.chunk_pairs
        )
        flops = 2.0 * model.active_parameters * tokens + model.layers * pair_flops
        read_tokens = batch.context + grown + batch.chunk_context
        weights = min(model.parameters, model.active_parameters * tokens) * model.parameter_bytes
        read_bytes = weights + model.bytes_per_token * read_tokens
        durations = np.maximum(flops / self._flops_per_ns, read_bytes / self._bytes_per_ns)
        whole: I64 = np.ceil(durations).astype(np.int64)
        return whole

    def prompt_s(self, tokens: int) -> float:
        """Time of the operations that compute the first ``tokens`` of a prompt, in s."""
        model = self._model
        pairs = tokens * (tokens + 1) / 2
        flops = (
            2.0 * model.active_parameters * tokens + model.layers * model.prompt_pair_flops * pairs
        )
        return flops / self._flops_per_ns / 1e9


def weights_bytes(model: ModelGeometry) -> int:
    """Bytes of all weights of a model."""
    return model.parameters * model.parameter_bytes


def kv_capacity_bytes(model: ModelGeometry, compute: ComputeSettings, hbm_bytes: int) -> int:
    """Bytes of KV cache of running sequences that a node has room for; may be negative.

    Args:
        model: whose weights are in the same memory.
        compute: the node.
        hbm_bytes: of the ``hbm`` tier, which is in the same memory, too.
    """
    if compute.kv_capacity_bytes is not None:
        return compute.kv_capacity_bytes
    memory_bytes = compute.memory_bytes * compute.devices
    return int(memory_bytes * _KV_MEMORY_SHARE) - weights_bytes(model) - hbm_bytes
