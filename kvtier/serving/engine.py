"""A node that serves a model: it admits sequences, loads what it can, and steps through the rest.

It looks at its queue between two steps, as servers do. A sequence that loads holds a place and its
memory, but takes no part in the steps until its pages are there; the others go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import numpy as np

from kvtier.emulator.timeline import Timeline
from kvtier.serving.arrivals import Source
from kvtier.serving.batcher import Batch, Batcher, Job
from kvtier.serving.meter import NodeMeter
from kvtier.serving.roofline import Roofline
from kvtier.serving.sequence import Sequence

_STEPS_MAX: Final = 4096
"""Steps alike whose times are worked out at once."""


class Role(NamedTuple):
    """What a node does for a sequence.

    Attributes:
        name: in reports.
        prefills: computes what could not be loaded of the prompt, and the first token.
        decodes: computes the tokens after the first.
    """

    name: str
    prefills: bool
    decodes: bool

    def kv_tokens(self, sequence: Sequence) -> int:
        """Tokens that the sequence will have in the node's memory at its end."""
        return sequence.prompt_tokens + (sequence.output_tokens if self.decodes else 0)

    def job(self, sequence: Sequence, loaded_tokens: int) -> Job:
        """What is to be computed when so many tokens were found.

        A node that prefills computes one token of the prompt at least: its end gives the first of
        the answer.
        """
        prompt = sequence.prompt_tokens
        context = min(loaded_tokens, prompt - 1 if self.prefills else prompt)
        steps = sequence.decode_steps if self.decodes else 0
        return Job(sequence, context, prompt - context, steps)


class Prompts(Protocol):
    """Where a node finds blocks of prompts, and puts them."""

    async def load(self, sequence: Sequence) -> int:
        """Load the blocks that can be found; returns how many leading tokens they hold."""
        ...

    async def write(self, sequence: Sequence) -> None:
        """Write the blocks of a prompt that nobody has written yet."""
        ...


class Listener(Protocol):
    """Who is told what became of sequences."""

    def admitted(self, sequence: Sequence, role: Role) -> None: ...

    def prompt_computed(self, sequence: Sequence) -> None: ...

    def written(self, sequence: Sequence, role: Role) -> None: ...

    def ended(self, sequence: Sequence, role: Role) -> None: ...

    def after_round(self) -> None: ...


class Engine:
    """One node, in virtual time.

    Args:
        timeline: lets time pass.
        roofline: says how long steps take.
        role: of the node.
        source: its queue.
        prompts: its cache.
        slots: sequences that it has at once.
        kv_tokens: tokens that its memory holds; every sequence fits alone.
        tokens_max: of one step.
        listener: told of every sequence.
    """

    def __init__(
        self,
        timeline: Timeline,
        roofline: Roofline,
        role: Role,
        source: Source,
        prompts: Prompts,
        *,
        slots: int,
        kv_tokens: int,
        tokens_max: int,
        listener: Listener,
    ) -> None:
        self.meter = NodeMeter()
        self.role = role
        self._timeline = timeline
        self._roofline = roofline
        self._source = source
        self._prompts = prompts
        self._slots = slots
        self._kv_tokens = kv_tokens
        self._listener = listener
        self._batcher = Batcher(tokens_max)
        self._sequences = 0
        self._reserved = 0
        self._holders: dict[Sequence, int] = {}
        """Why a sequence keeps its memory: it has not ended, it is not written."""
        self._ready: list[Job] = []
        self._sleeper: asyncio.Future[None] | None = None

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        """Serve every sequence of the source; loads and writes run as ``tasks``."""
        while True:
            if self._admit(tasks):
                # A lookup that finds nothing takes no time: who has nothing to load joins at once.
                await self._until(self._timeline.now_ns)
            for job in self._ready:
                self._batcher.add(job)
            self._ready.clear()
            batch = self._batcher.plan()
            if batch is not None:
                await self._compute(batch, tasks)
            elif self._sequences or not self._source.is_over:
                await self._wait()
            else:
                return
            self._listener.after_round()

    def wake(self) -> None:
        """Something has happened that the node may have waited for."""
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    # -- sequences ----------------------------------------------------------------------------

    def _admit(self, tasks: asyncio.TaskGroup) -> bool:
        """Let sequences in that have come, as long as there is room; returns whether any is."""
        now_ns, any_came = self._timeline.now_ns, False
        while True:
            sequence = self._source.next(now_ns)
            if sequence is None or sequence.arrival_ns > now_ns or not self._has_room(sequence):
                return any_came
            self._source.take(sequence)
            self._sequences += 1
            self._holders[sequence] = 1
            self._reserved += self.role.kv_tokens(sequence)
            self.meter.kv_tokens_peak = max(self.meter.kv_tokens_peak, self._reserved)
            self.meter.queued(now_ns - sequence.queued_ns)
            self._listener.admitted(sequence, self.role)
            tasks.create_task(self._load(sequence))
            any_came = True

    def _has_room(self, sequence: Sequence) -> bool:
        needed = self._reserved + self.role.kv_tokens(sequence)
        return self._sequences < self._slots and needed <= self._kv_tokens

    async def _load(self, sequence: Sequence) -> None:
        start_ns = self._timeline.now_ns
        job = self.role.job(sequence, await self._prompts.load(sequence))
        sequence.ready_ns = self._timeline.now_ns
        sequence.waited_ns += sequence.ready_ns - start_ns
        self.meter.loaded(job.context, sequence.ready_ns - start_ns)
        if self.role.prefills:
            sequence.loaded_tokens = job.context
        self._ready.append(job)
        self.wake()

    async def _write(self, sequence: Sequence) -> None:
        await self._prompts.write(sequence)
        self._let_go(sequence)
        self._listener.written(sequence, self.role)

    def _let_go(self, sequence: Sequence) -> None:
        """One reason less to keep the sequence's memory."""
        self._holders[sequence] -= 1
        if self._holders[sequence] == 0:
            del self._holders[sequence]
            self._reserved -= self.role.kv_tokens(sequence)
            self.wake()

    # -- steps --------------------------------------------------------------------------------

    async def _compute(self, batch: Batch, tasks: asyncio.TaskGroup) -> None:
        """Step until something changes: a sequence ends or joins, or there is room for one."""
        start_ns = self._timeline.now_ns
        steps = min(self._batcher.steps_alike(batch), _STEPS_MAX)
        durations_ns = self._roofline.durations_ns(batch, steps)
        ends_ns = start_ns + np.cumsum(durations_ns)
        try:
            await self._sleep(self._next_arrival_ns(int(ends_ns[-1])))
            # A step that has begun is completed.
            last = int(np.searchsorted(ends_ns, self._timeline.now_ns))
            await self._until(int(ends_ns[last]))
        finally:
            now_ns = self._timeline.now_ns
            steps = int(np.searchsorted(ends_ns, now_ns, side="right"))
            self.meter.busy_ns += now_ns - start_ns
            self.meter.stepped(batch, durations_ns[:steps])
        computed, ended = self._batcher.advance(batch, steps)
        for job in computed:
            if self.role.prefills:
                self._prompt_computed(job.sequence, tasks)
        for job in ended:
            self._sequences -= 1
            job.sequence.computed_ns += now_ns - job.sequence.ready_ns
            self._let_go(job.sequence)
            self._listener.ended(job.sequence, self.role)

    def _prompt_computed(self, sequence: Sequence, tasks: asyncio.TaskGroup) -> None:
        if sequence.output_tokens:
            self.meter.first_token()
        sequence.first_ns = self._timeline.now_ns
        self._holders[sequence] += 1
        self._listener.prompt_computed(sequence)
        tasks.create_task(self._write(sequence))

    def _next_arrival_ns(self, end_ns: int) -> int:
        """When a sequence comes for which there is room, ``end_ns`` at the latest."""
        now_ns = self._timeline.now_ns
        coming = self._source.next(now_ns)
        if coming is None or not self._has_room(coming):
            return end_ns
        return min(max(coming.arrival_ns, now_ns), end_ns)

    async def _wait(self) -> None:
        """There is nothing to compute: wait until something happens."""
        start_ns = self._timeline.now_ns
        coming = self._source.next(start_ns)
        is_stalled = self._sequences > 0 or (coming is not None and coming.arrival_ns <= start_ns)
        until_ns = None
        if coming is not None and self._has_room(coming):
            until_ns = max(coming.arrival_ns, start_ns)
        try:
            await self._sleep(until_ns)
        finally:
            if is_stalled:
                self.meter.stalled_ns += self._timeline.now_ns - start_ns

    # -- time ---------------------------------------------------------------------------------

    async def _sleep(self, until_ns: int | None) -> None:
        """Let time pass until then, or until something happens."""
        self._sleeper = asyncio.get_running_loop().create_future()
        if until_ns is not None:
            self._timeline.at(until_ns, _waker(self._sleeper))
        await self._sleeper

    async def _until(self, t_ns: int) -> None:
        """Let time pass until then; at once, all that takes no time happens first."""
        sleeper = asyncio.get_running_loop().create_future()
        self._timeline.at(t_ns, _waker(sleeper))
        await sleeper


def _waker(sleeper: asyncio.Future[None]) -> Callable[[], None]:
    def wake() -> None:
        if not sleeper.done():
            sleeper.set_result(None)

    return wake
