"""Which tokens the next step computes: continuous batching, decided without any I/O or time.

As vLLM's scheduler and Sarathi-Serve do: every sequence that decodes has a token in every step;
what is left of the step's budget goes to prompts, in the order in which they were added, in
chunks.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from kvtier.serving.sequence import Sequence


@dataclass(slots=True, eq=False)
class Job:
    """What a node has to compute of a sequence.

    Attributes:
        sequence: which one.
        context: tokens whose keys and values the node has.
        prompt_left: tokens of the prompt that are still to be computed.
        decode_left: steps after those, one token each.
    """

    sequence: Sequence
    context: int
    prompt_left: int
    decode_left: int


class Chunk(NamedTuple):
    """Tokens of a prompt that one step computes."""

    job: Job
    tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step computes.

    Attributes:
        decodes: sequences that decode, a token each.
        context: tokens that these attend to, all together, before the step.
        chunks: of prompts.
    """

    decodes: int
    context: int
    chunks: tuple[Chunk, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the step."""
        return self.decodes + sum(chunk.tokens for chunk in self.chunks)

    @property
    def sequences(self) -> int:
        """Sequences that have a part in the step."""
        return self.decodes + len(self.chunks)

    @property
    def chunk_context(self) -> int:
        """Tokens that the chunks attend to, their own included; once for each chunk."""
        return sum(chunk.job.context + chunk.tokens for chunk in self.chunks)

    @property
    def chunk_pairs(self) -> int:
        """Pairs of a token of a chunk and one that it attends to, itself included."""
        return sum(tokens * job.context + tokens * (tokens + 1) // 2 for job, tokens in self.chunks)


class Batcher:
    """The sequences that a node computes.

    Every sequence that decodes moves on by one token in every step, so a count of steps says when
    each ends, and what they attend to is kept as a sum.

    Args:
        tokens_max: tokens of a step; no fewer than sequences are added at once.
    """

    def __init__(self, tokens_max: int) -> None:
        self._tokens_max = tokens_max
        self._prompts: deque[Job] = deque()
        self._decodes: list[tuple[int, int, Job]] = []
        """A heap: the step after which a job ends, and when it was added."""
        self._context = 0
        self._steps = 0
        self._added = 0

    def add(self, job: Job) -> None:
        """Let a job, which has something left to compute, have a part in the next step."""
        if job.prompt_left:
            self._prompts.append(job)
        else:
            self._decode(job)

    def plan(self) -> Batch | None:
        """The next step; None if there is nothing to compute."""
        left = self._tokens_max - len(self._decodes)
        chunks = []
        for job in self._prompts:
            if left <= 0:
                break
            chunks.append(Chunk(job, min(left, job.prompt_left)))
            left -= chunks[-1].tokens
        if not chunks and not self._decodes:
            return None
        return Batch(len(self._decodes), self._context, tuple(chunks))

    def steps_alike(self, batch: Batch) -> int:
        """So many steps in a row compute tokens of the same sequences, if none is added."""
        return 1 if batch.chunks else self._decodes[0][0] - self._steps

    def advance(self, batch: Batch, steps: int) -> tuple[list[Job], list[Job]]:
        """Steps have been computed, as many as are alike at most.

        Returns:
            Jobs whose prompts are now computed, and jobs that have ended; some are both.
        """
        self._steps += steps
        self._context += batch.decodes * steps
        ended = []
        while self._decodes and self._decodes[0][0] <= self._steps:
            job = heapq.heappop(self._decodes)[2]
            job.context += job.decode_left
            job.decode_left = 0
            self._context -= job.context
            ended.append(job)
        computed = []
        for job, tokens in batch.chunks:
            job.context += tokens
            job.prompt_left -= tokens
            if job.prompt_left == 0:
                assert self._prompts[0] is job
                self._prompts.popleft()
                computed.append(job)
                if job.decode_left:
                    self._decode(job)
                else:
                    ended.append(job)
        return computed, ended

    def _decode(self, job: Job) -> None:
        self._added += 1
        heapq.heappush(self._decodes, (self._steps + job.decode_left, self._added, job))
        self._context += job.context
