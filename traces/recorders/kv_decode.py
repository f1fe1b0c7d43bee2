"""Records which KV pages a transformer reads: prefix loads, and sparse attention in decoding.

    pip install '.[record]'
    python traces/recorders/kv_decode.py --out traces/kv-sample.parquet

PyTorch trains a small decoder-only model (``kv_model.py``) on the source text of Python's standard
library, then serves sessions of several turns from a paged KV cache (``kv_serving.py``), with text
of files that were not trained on. All sessions share a beginning, some share a document:

- At admission a turn loads every stored block of its prefix in one batch. What is not stored is
  computed and stored; that is no read.
- In decoding, each KV head of each layer reads the keys and values of the blocks that Quest's
  bounds choose, and attends to those and to the tokens of the block that is not yet full. The
  pages of a layer's heads are one batch; the next layer and the next token depend on it.

One object is one block of 16 tokens. Its pages are in the order layer, keys or values, head: a
whole block is one extent, and one head's keys and its values are single pages apart.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from kv_model import Shape, Transformer
from kv_serving import BLOCK_TOKENS, PAGE_BYTES, Batch, Choice, Sequence, Server
from kv_text import I64, Tokenizer, read_library
from kv_training import Training, train

from kvtier.trace import READ, PageRequest, TraceMetadata, TraceObject, write_page_io

SHAPE = Shape()
SERVED_SHARE = 0.1
BUDGET = 8
MEASURE_EVERY = 4
BLOCKS_MAX = 4096

DOCUMENTS = 4
SESSIONS_PER_DOCUMENT = 3
TURNS = 4
BEGINNING_TOKENS = 256
DOCUMENT_TOKENS = 1024
PROMPT_TOKENS = (192, 320)
ANSWER_TOKENS = (12, 28)

# Time stamps are made up: a model of this size on a CPU says nothing of a server's pace.
PREFILL_NS = 40_000_000
LAYER_NS = 2_000_000


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn to serve: whose it is, the tokens that are new, and how many shall follow."""

    session: int
    prompt: I64
    answer: int


@dataclass(frozen=True, slots=True)
class Served:
    """One turn served: what it read, and per step and layer what was chosen."""

    batches: list[Batch]
    loaded: bool
    steps: list[list[Choice]]


def plan_turns(texts: list[I64], rng: np.random.Generator) -> list[Turn]:
    """The turns of all sessions, in the order in which they are served.

    A session begins with a beginning that all share and a document that some share; the prompt of
    each turn is a further piece of the document's file. Every session has its first turn, in
    random order, then every session its second, and so on.
    """
    needed = DOCUMENT_TOKENS + SESSIONS_PER_DOCUMENT * TURNS * PROMPT_TOKENS[1]
    beginning, *files = [text for text in texts if len(text) >= needed][: 1 + DOCUMENTS]
    offsets = [DOCUMENT_TOKENS] * DOCUMENTS
    turns = []
    for number in range(TURNS):
        for session in rng.permutation(DOCUMENTS * SESSIONS_PER_DOCUMENT).tolist():
            document = session % DOCUMENTS
            length = int(rng.integers(*PROMPT_TOKENS))
            text = files[document][offsets[document] : offsets[document] + length]
            offsets[document] += length
            if number == 0:
                shared = files[document][:DOCUMENT_TOKENS]
                text = np.concatenate((beginning[:BEGINNING_TOKENS], shared, text))
            turns.append(Turn(session, text, int(rng.integers(*ANSWER_TOKENS))))
    return turns


def serve(server: Server, turns: list[Turn]) -> list[Served]:
    """Serve turn after turn."""
    sequences: dict[int, Sequence] = {}
    served = []
    for turn in turns:
        sequence = sequences.setdefault(turn.session, server.begin())
        server.store.log = []
        steps = server.answer(sequence, turn.prompt, turn.answer)
        batches = server.store.log
        served.append(Served(batches, len(batches) > len(steps) * SHAPE.layers, steps))
    return served


def page_requests(served: list[Served]) -> Iterator[PageRequest]:
    """The turns as requests of the trace, each begun when the one before has ended."""
    begun_ns = 0
    for number, turn in enumerate(served):
        t_ns = begun_ns + PREFILL_NS + LAYER_NS * np.arange(len(turn.batches), dtype=np.int64)
        if turn.loaded:
            t_ns = np.concatenate(([begun_ns], t_ns[:-1]))
        begun_ns = int(t_ns[-1]) + LAYER_NS
        blocks, pages, counts = (
            np.concatenate([getattr(batch, side) for batch in turn.batches]).astype(np.uint32)
            for side in ("blocks", "pages", "counts")
        )
        yield PageRequest(
            request=number,
            t_ns=t_ns,
            ops=np.full(len(t_ns), READ, np.uint8),
            ends=np.cumsum([len(batch.blocks) for batch in turn.batches], dtype=np.int64),
            objects=blocks,
            pages=pages,
            counts=counts,
        )


def shared_share(one: I64, other: I64) -> float:
    """The share of ``other`` that is in ``one``."""
    return float(np.isin(other, one).mean())


def overlaps(served: list[Served]) -> tuple[float, float, float]:
    """Of the chosen blocks: shared with the step before; with the layer before; by chance.

    Steps are compared head by head, layers by what any of their heads has chosen.
    """
    between_steps = [
        shared_share(one.blocks[head], other.blocks[head])
        for turn in served
        for before, after in pairwise(turn.steps)
        for one, other in zip(before, after, strict=True)
        for head in range(SHAPE.kv_heads)
    ]
    between_layers = [
        shared_share(one.blocks, np.unique(other.blocks))
        for turn in served
        for step in turn.steps
        for one, other in pairwise(step)
    ]
    chance = [choice.blocks.shape[1] / choice.candidates for choice in choices_of(served)]
    return float(np.mean(between_steps)), float(np.mean(between_layers)), float(np.mean(chance))


def choices_of(served: list[Served]) -> list[Choice]:
    return [choice for turn in served for step in turn.steps for choice in step]


def describe_reads(served: list[Served], turns: list[Turn], server: Server) -> str:
    """What was served and read, in words and numbers."""
    loads = sum(int(turn.batches[0].counts.sum()) for turn in served if turn.loaded)
    sparse = sum(int(b.counts.sum()) for turn in served for b in turn.batches[turn.loaded :])
    choices = choices_of(served)
    shares = np.mean([choice.shares for choice in choices if choice.shares], axis=0)
    steps, layers, chance = overlaps(served)
    contexts = [choice.candidates * BLOCK_TOKENS for choice in choices]
    return (
        f"{DOCUMENTS * SESSIONS_PER_DOCUMENT} sessions on {DOCUMENTS} documents, {TURNS} turns "
        f"each, {sum(len(turn.prompt) for turn in turns)} prompt tokens and "
        f"{sum(turn.answer for turn in turns)} answered, stored contexts of {min(contexts)} to "
        f"{max(contexts)} tokens; {loads} pages by {sum(turn.loaded for turn in served)} prefix "
        f"loads (batch 0 of a request, extents of whole objects), {sparse} pages by sparse "
        f"attention (single pages; {BUDGET} blocks per KV head, layer and step). "
        f"Chosen blocks shared with the step before {steps:.1%}, with the layer before "
        f"{layers:.1%}, by chance {chance:.1%}. Of the dense attention to stored blocks "
        f"({shares[2]:.1%} of all, the rest is to the block in GPU memory) the blocks read hold "
        f"{shares[0]:.1%}, the best {BUDGET} hold {shares[1]:.1%}; dense attention names the same "
        f"next token in {np.mean(server.agreements):.1%} of {len(server.agreements)} steps"
    )


def describe_model(model: Transformer, training: Training) -> str:
    """What served, in words and numbers."""
    return (
        f"decoder-only transformer of {SHAPE.layers} layers, {SHAPE.heads} query and "
        f"{SHAPE.kv_heads} KV heads of {SHAPE.head_size}, width {SHAPE.width}, "
        f"{model.parameter_count()} parameters, vocabulary {SHAPE.vocabulary}; trained in "
        f"{training.steps} steps on {training.tokens} tokens: loss {training.loss_final:.2f} "
        f"nats per token, {training.loss_served:.2f} on files not trained on, "
        f"{training.loss_untrained:.2f} before training"
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Record the KV page reads of a transformer.")
    parser.add_argument("--out", type=Path, required=True, help="the trace to write")
    parser.add_argument("--steps", type=int, default=700, help="training steps")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--seed", type=int, default=1, help="of every random choice")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    library = read_library(SERVED_SHARE, options.seed)
    tokenizer = Tokenizer(library.trained, SHAPE.vocabulary)
    trained = np.concatenate([tokenizer.encode(text) for text in library.trained])
    texts = [tokenizer.encode(text) for text in library.served]
    print(f"{len(trained)} tokens to train on, {len(library.served)} files to serve")
    model = Transformer(SHAPE)
    training = train(model, trained, np.concatenate(texts), options.steps, rng)
    print(describe_model(model, training))
    server = Server(model, BLOCKS_MAX, BUDGET, MEASURE_EVERY, options.seed)
    turns = plan_turns(texts, rng)
    print(f"serving {len(turns)} turns")
    served = serve(server, turns)
    metadata = TraceMetadata(
        kind="page_io",
        page_bytes=PAGE_BYTES,
        objects=tuple(TraceObject(key, server.store.block_pages) for key in server.store.numbers),
        licence="Apache-2.0",
        source=f"source text of the standard library of Python {platform.python_version()}",
        source_sha256=library.sha256,
        time_quantum_ns=LAYER_NS,
        synthetic=(
            f"t_ns: a prefix load takes {PREFILL_NS // 1_000_000} ms, a layer "
            f"{LAYER_NS // 1_000_000} ms, and turns follow one another; the order and the "
            "dependence of reads are real",
        ),
        provenance=(
            f"traces/recorders/kv_decode.py, seed {options.seed}: "
            f"{describe_model(model, training)}. {describe_reads(served, turns, server)}. "
            f"Python {platform.python_version()}, PyTorch {torch.__version__}, "
            f"NumPy {np.__version__}"
        ),
    )
    summary = write_page_io(options.out, metadata, page_requests(served))
    print(metadata.provenance)
    print(f"{summary.path}: {summary.file_bytes} bytes, {len(metadata.objects)} blocks stored")


if __name__ == "__main__":
    main()
