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

from kvtier.pages import Purpose
from kvtier.trace import READ, PageRequest, TraceMetadata, TraceObject, write_page_io

SHAPE = Shape()
SERVED_SHARE = 0.1
BUDGET = 8
MEASURE_EVERY = 4
BLOCKS_MAX = 2048

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
        purposes = np.full(len(t_ns), Purpose.SPARSE, np.uint8)
        if turn.loaded:
            t_ns = np.concatenate(([begun_ns], t_ns[:-1]))
            purposes[0] = Purpose.PREFIX
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
            purposes=purposes,
        )


def choices_of(served: list[Served], layer: int) -> list[Choice]:
    """What a layer has chosen, turn after turn and step after step."""
    return [step[layer] for turn in served for step in turn.steps]


def overlap_of_steps(served: list[Served], layer: int) -> float:
    """The share of the blocks a head chooses that it chose in the step before."""
    shares = [
        np.isin(after[layer].blocks[head], before[layer].blocks[head]).mean()
        for turn in served
        for before, after in pairwise(turn.steps)
        for head in range(SHAPE.kv_heads)
    ]
    return float(np.mean(shares))


def overlap_of_layers(served: list[Served]) -> tuple[float, float]:
    """The share of the blocks that a layer's heads choose which those of the layer before chose.

    Returns:
        the share, and what it would be by chance.
    """
    pairs = [pair for turn in served for step in turn.steps for pair in pairwise(step)]
    shares = [np.isin(np.unique(upper.blocks), lower.blocks).mean() for lower, upper in pairs]
    chance = [len(np.unique(lower.blocks)) / lower.candidates for lower, _ in pairs]
    return float(np.mean(shares)), float(np.mean(chance))


def per_layer(shares: list[float]) -> str:
    """Shares of the layers, the first first."""
    return ", ".join(f"{share:.0%}" for share in shares)


def describe_choices(served: list[Served], server: Server) -> str:
    """What sparse attention has chosen, in words and numbers."""
    layers = [choices_of(served, layer) for layer in range(SHAPE.layers)]
    measured = np.array([[one.shares for one in layer if one.shares] for layer in layers])
    read, best, stored = measured.mean(axis=1).T.tolist()
    chance = float(np.mean([BUDGET / one.candidates for one in layers[0]]))
    between_layers, chance_of_layers = overlap_of_layers(served)
    between_steps = [overlap_of_steps(served, layer) for layer in range(SHAPE.layers)]
    return (
        f"Of the blocks that a head chooses, it chose in the step before (by layer) "
        f"{per_layer(between_steps)}; by chance {chance:.1%}. Of those that a layer chooses, the "
        f"layer before chose {between_layers:.1%}; by chance {chance_of_layers:.1%}. "
        f"Of dense attention, stored blocks hold (by layer) {per_layer(stored)}, the block in GPU "
        f"memory the rest; of the former, the blocks read hold {per_layer(read)}, the best "
        f"{BUDGET} would hold {per_layer(best)}; measured on {len(server.agreements)} steps, in "
        f"{np.mean(server.agreements):.1%} of which dense attention names the same next token"
    )


def describe_reads(served: list[Served], turns: list[Turn]) -> str:
    """What was served and read, in words and numbers."""
    loads = [turn.batches[0] for turn in served if turn.loaded]
    sparse = [batch for turn in served for batch in turn.batches[turn.loaded :]]
    contexts = [BLOCK_TOKENS * choice.candidates for choice in choices_of(served, 0)]
    return (
        f"{DOCUMENTS * SESSIONS_PER_DOCUMENT} sessions of {TURNS} turns on {DOCUMENTS} documents, "
        f"{sum(len(turn.prompt) for turn in turns)} prompt tokens, "
        f"{sum(turn.answer for turn in turns)} answered, stored contexts of {min(contexts)} to "
        f"{max(contexts)} tokens. {len(loads)} prefix loads (batch 0 of a request, extents of "
        f"whole objects) of {sum(int(batch.counts.sum()) for batch in loads)} pages; "
        f"{sum(int(batch.counts.sum()) for batch in sparse)} single pages of sparse attention, "
        f"{BUDGET} blocks per KV head, layer and step"
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
    parser.add_argument("--steps", type=int, default=500, help="training steps")
    parser.add_argument(
        "--threads", type=int, default=1, help="of PyTorch; another number, another order of sums"
    )
    parser.add_argument("--seed", type=int, default=1, help="of every random choice")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    library = read_library(SERVED_SHARE, options.seed)
    tokenizer = Tokenizer(library.trained, SHAPE.vocabulary)
    trained = np.concatenate([tokenizer.encode(text) for text in library.trained])
    texts = [tokenizer.encode(text) for text in library.served]
    print(f"{len(trained)} tokens to train on, {len(library.served)} files to serve")
    model = Transformer(SHAPE)
    training = train(
        model, trained, np.concatenate(texts), options.steps, np.random.default_rng(options.seed)
    )
    print(describe_model(model, training))
    server = Server(model, BLOCKS_MAX, BUDGET, MEASURE_EVERY, options.seed)
    turns = plan_turns(texts, np.random.default_rng(options.seed))
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
            f"{describe_model(model, training)}. {describe_reads(served, turns)}. "
            f"{describe_choices(served, server)}. "
            f"Python {platform.python_version()}, PyTorch {torch.__version__}, "
            f"NumPy {np.__version__}"
        ),
    )
    summary = write_page_io(options.out, metadata, page_requests(served))
    print(metadata.provenance)
    print(f"{summary.path}: {summary.file_bytes} bytes, {len(metadata.objects)} blocks stored")


if __name__ == "__main__":
    main()
