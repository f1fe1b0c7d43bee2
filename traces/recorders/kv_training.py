"""Trains the transformer of ``kv_model.py`` to name the next token of a text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from kv_model import Transformer, attend_causally
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

STEP_TOKENS = 2048
# Short windows are cheaper; the last ones are as long as a step, for the contexts that are served.
SHORT_TOKENS = 512
SHORT_SHARE = 0.85
RATE = 3e-3
REPORT_STEPS = 50
HELD_OUT_WINDOWS = 16

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Training:
    """How a model was trained; losses in nats per token, of windows as long as a step.

    Attributes:
        steps, tokens: trained on.
        loss_untrained, loss_served: before and after, of text that is never trained on.
        loss_final: of the last steps.
    """

    steps: int
    tokens: int
    loss_untrained: float
    loss_final: float
    loss_served: float


def train(
    model: Transformer, trained: I64, served: I64, steps: int, rng: np.random.Generator
) -> Training:
    """Train on random windows of ``trained``; ``served`` is text that is never trained on."""
    loss_untrained = held_out_loss(model, served)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    losses: list[float] = []
    for step in range(steps):
        length = SHORT_TOKENS if step < SHORT_SHARE * steps else STEP_TOKENS
        starts = rng.integers(0, len(trained) - length, STEP_TOKENS // length)
        loss = _loss(model, _windows(trained, starts, length))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % REPORT_STEPS == 0:
            recent = np.mean(losses[-REPORT_STEPS:])
            print(f"  step {step + 1} of {steps}: {recent:.3f} nats per token", flush=True)
    return Training(
        steps=steps,
        tokens=steps * STEP_TOKENS,
        loss_untrained=loss_untrained,
        loss_final=float(np.mean(losses[-REPORT_STEPS:])),
        loss_served=held_out_loss(model, served),
    )


@torch.inference_mode()
def held_out_loss(model: Transformer, tokens: I64) -> float:
    """The mean loss of evenly spaced windows."""
    starts = np.linspace(0, len(tokens) - STEP_TOKENS - 1, HELD_OUT_WINDOWS).astype(np.int64)
    windows = _windows(tokens, starts, STEP_TOKENS)
    return float(np.mean([_loss(model, window[None]).item() for window in windows]))


def _windows(tokens: I64, starts: I64, length: int) -> Tensor:
    return torch.from_numpy(tokens[starts[:, None] + np.arange(length + 1)])


def _loss(model: Transformer, windows: Tensor) -> Tensor:
    scores = model(windows[:, :-1], 0, attend_causally)
    return functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten())
