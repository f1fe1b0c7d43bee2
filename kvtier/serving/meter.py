"""What is measured of a model server: of each node's steps, and of the requests' tokens."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvtier.metrics import LatencyHistogram
from kvtier.pages import I64
from kvtier.serving.batcher import Batch
from kvtier.serving.roofline import Roofline
from kvtier.serving.sequence import Sequence


class NodeMeter:
    """Steps of one node, and time lost between them.

    Attributes:
        busy_ns: time in steps.
        stalled_ns: time with requests of which none could be computed: they waited for what they
            loaded, or for memory that blocks being written still held.
        kv_tokens_peak: most tokens for which memory was reserved at once.
    """

    def __init__(self) -> None:
        self.busy_ns = 0
        self.stalled_ns = 0
        self.kv_tokens_peak = 0
        self._steps = LatencyHistogram()
        self._sequence_steps = 0
        self._tokens_peak = 0
        self._loaded_tokens = 0
        self._computed_tokens = 0
        self._output_tokens = 0
        self._queue = LatencyHistogram()
        self._load = LatencyHistogram()

    def stepped(self, batch: Batch, durations_ns: I64) -> None:
        """Steps of one batch (ns of each) have ended."""
        steps = len(durations_ns)
        self._steps.record(durations_ns)
        self._sequence_steps += batch.sequences * steps
        self._computed_tokens += sum(chunk.tokens for chunk in batch.chunks) * steps
        self._output_tokens += batch.decodes * steps
        if steps:
            self._tokens_peak = max(self._tokens_peak, batch.tokens)

    def queued(self, waited_ns: int) -> None:
        """A sequence found room."""
        self._queue.record_same(waited_ns, 1)

    def loaded(self, tokens: int, took_ns: int) -> None:
        """What could be loaded of a prompt is there."""
        self._loaded_tokens += tokens
        self._load.record_same(took_ns, 1)

    def first_token(self) -> None:
        """A step that computed the end of a prompt gave a token, too."""
        self._output_tokens += 1

    def to_dict(self, name: str, duration_s: float, kv_token_bytes: int) -> dict[str, Any]:
        """One of the ``nodes`` of a result."""
        steps, spent_s = self._steps.count, (self.busy_ns + self.stalled_ns) / 1e9
        return {
            "name": name,
            "steps": steps,
            "step_us": self._steps.summary_us(),
            "batch_mean": self._sequence_steps / steps if steps else None,
            "batch_tokens_peak": self._tokens_peak,
            "busy_s": self.busy_ns / 1e9,
            "stalled_s": self.stalled_ns / 1e9,
            "idle_s": max(0.0, duration_s - spent_s),
            "stall_share": self.stalled_ns / 1e9 / duration_s if duration_s > 0 else None,
            "stall_per_step_us": self.stalled_ns / 1e3 / steps if steps else None,
            "loaded_tokens": self._loaded_tokens,
            "computed_tokens": self._computed_tokens,
            "output_tokens": self._output_tokens,
            "queue_us": self._queue.summary_us(),
            "load_us": self._load.summary_us(),
            "kv_peak_bytes": self.kv_tokens_peak * kv_token_bytes,
        }


class ServingMeter:
    """Tokens of requests, and when they came.

    Attributes:
        ttft_by_number: of the requests that had a first token, in ns, by their place in the trace;
            -1 for the others.
    """

    def __init__(self) -> None:
        self.ttft_by_number = array("q")
        self._ttft = LatencyHistogram()
        self._tpot = LatencyHistogram()
        self._prompt_tokens = 0
        self._loaded_tokens = 0
        self._output_tokens = 0
        self._recompute_s = 0.0

    def prompt_computed(self, sequence: Sequence, roofline: Roofline) -> None:
        """The end of a prompt is computed; its first token is out, if any was asked for."""
        self._prompt_tokens += sequence.prompt_tokens
        self._loaded_tokens += sequence.loaded_tokens
        self._recompute_s += roofline.prompt_s(sequence.loaded_tokens)
        if sequence.output_tokens:
            ttft_ns = sequence.first_ns - sequence.arrival_ns
            self._ttft.record_same(ttft_ns, 1)
            missing = sequence.number + 1 - len(self.ttft_by_number)
            self.ttft_by_number.extend([-1] * missing)
            self.ttft_by_number[sequence.number] = ttft_ns

    def ended(self, sequence: Sequence, now_ns: int) -> None:
        """A request has its last token."""
        self._output_tokens += sequence.output_tokens
        if sequence.decode_steps:
            tpot_ns = round((now_ns - sequence.first_ns) / sequence.decode_steps)
            self._tpot.record_same(tpot_ns, 1)

    def to_dict(self, duration_s: float) -> dict[str, Any]:
        """What a result says of the requests of a run that took ``duration_s``."""
        computed = self._prompt_tokens - self._loaded_tokens
        return {
            "output_tokens": self._output_tokens,
            "output_tokens_per_s": _rate(self._output_tokens, duration_s),
            "prompt_tokens": self._prompt_tokens,
            "loaded_tokens": self._loaded_tokens,
            "loaded_tokens_per_s": _rate(self._loaded_tokens, duration_s),
            "computed_tokens": computed,
            "computed_tokens_per_s": _rate(computed, duration_s),
            "ttft_us": self._ttft.summary_us(),
            "tpot_us": self._tpot.summary_us(),
            "recompute_s": self._recompute_s,
        }


def ttft_saved(cached: ServingMeter, recomputed: ServingMeter) -> dict[str, float] | None:
    """How much sooner requests had their first token than without any cache; None if none had.

    ``share`` is of the mean without a cache; ``slower_share`` counts the requests that waited
    longer with it.
    """
    with_ns, without_ns = (_array(meter.ttft_by_number) for meter in (cached, recomputed))
    count = min(len(with_ns), len(without_ns))
    both = (with_ns[:count] >= 0) & (without_ns[:count] >= 0)
    if not both.any():
        return None
    without_ns = without_ns[:count][both]
    saved_ns = without_ns - with_ns[:count][both]
    mean_without_ns = float(without_ns.mean())
    p10, p50, p90 = np.percentile(saved_ns, (10, 50, 90)).tolist()
    return {
        "mean_us": float(saved_ns.mean()) / 1e3,
        "p10_us": p10 / 1e3,
        "p50_us": p50 / 1e3,
        "p90_us": p90 / 1e3,
        "share": float(saved_ns.mean()) / mean_without_ns if mean_without_ns else 0.0,
        "slower_share": float((saved_ns < 0).mean()),
    }


def _array(values: array[int]) -> NDArray[np.float64]:
    return np.array(values, np.float64)


def _rate(count: int, duration_s: float) -> float | None:
    return count / duration_s if duration_s > 0 else None
