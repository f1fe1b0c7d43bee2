"""A model server: one node, or a prefill node and a decode node, and the requests between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from kvtier.emulator.timeline import Timeline
from kvtier.serving.arrivals import Arrivals, Handover
from kvtier.serving.engine import Engine, Prompts, Role
from kvtier.serving.meter import ServingMeter
from kvtier.serving.roofline import Roofline
from kvtier.serving.sequence import Sequence

ROLES: Final[Mapping[str, tuple[Role, ...]]] = {
    "one": (Role("gpu", prefills=True, decodes=True),),
    "split": (
        Role("prefill", prefills=True, decodes=False),
        Role("decode", prefills=False, decodes=True),
    ),
}
"""The nodes, by ``serving.roles``; the first computes prompts, the last the ends of answers."""


class Requests(Protocol):
    """Who measures requests: :class:`kvtier.replay.meter.RequestMeter`."""

    @property
    def in_flight(self) -> int: ...

    def begin(self, arrival_ns: int | None = None) -> int: ...

    def end(self, arrival_ns: int, answered_ns: int | None = None) -> None: ...

    def waited(self, request_ns: int) -> None: ...

    def computed(self, request_ns: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one node takes on.

    Attributes:
        slots: sequences at once.
        kv_tokens: tokens of the KV cache that its memory holds.
        batch_tokens_max: tokens of a step.
    """

    slots: int
    kv_tokens: int
    batch_tokens_max: int


class Service:
    """Serves the requests of a trace.

    Args:
        timeline: lets time pass.
        roofline: of every node.
        roles: of the nodes, in the order in which a sequence passes them.
        prompts: the cache of each.
        bounds: of every node.
        arrivals: the requests.
        requests: measures them.
        meter: measures their tokens.
        after_round: called after every few steps.
    """

    def __init__(
        self,
        timeline: Timeline,
        roofline: Roofline,
        roles: tuple[Role, ...],
        prompts: tuple[Prompts, ...],
        bounds: Bounds,
        *,
        arrivals: Arrivals,
        requests: Requests,
        meter: ServingMeter,
        after_round: Callable[[], None],
    ) -> None:
        self.meter = meter
        self.after_round = after_round
        self._timeline = timeline
        self._roofline = roofline
        self._arrivals = arrivals
        self._handover = Handover()
        self._requests = requests
        self.engines = [
            Engine(
                timeline,
                roofline,
                role,
                arrivals if role.prefills else self._handover,
                cache,
                slots=bounds.slots,
                kv_tokens=bounds.kv_tokens,
                tokens_max=bounds.batch_tokens_max,
                listener=self,
            )
            for role, cache in zip(roles, prompts, strict=True)
        ]

    async def run(self) -> None:
        """Serve every request to its end, and let what is written be written.

        Raises:
            KvtierError: a block could not be written, or the trace is broken.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                first, *others = self.engines
                for engine in others:
                    tasks.create_task(engine.run(tasks))
                await first.run(tasks)
        except BaseExceptionGroup as group:
            raise _first_of(group) from None

    # -- what engines tell --------------------------------------------------------------------

    def admitted(self, sequence: Sequence, role: Role) -> None:
        """A sequence found room at a node."""
        if role.prefills:
            self._requests.begin(sequence.arrival_ns)

    def prompt_computed(self, sequence: Sequence) -> None:
        """The first token of a sequence is out."""
        self.meter.prompt_computed(sequence, self._roofline)

    def written(self, sequence: Sequence, role: Role) -> None:
        """The blocks of a sequence can be loaded."""
        if not role.decodes and sequence.decode_steps:
            now_ns = self._timeline.now_ns
            sequence.waited_ns += now_ns - sequence.first_ns
            self._handover.put(sequence, now_ns)
            self._wake()

    def ended(self, sequence: Sequence, role: Role) -> None:
        """A node has nothing more to compute of a sequence."""
        if sequence.decode_steps and not role.decodes:
            return
        now_ns = self._timeline.now_ns
        self.meter.ended(sequence, now_ns)
        self._requests.waited(sequence.waited_ns)
        self._requests.computed(sequence.computed_ns)
        self._requests.end(sequence.arrival_ns)
        self._arrivals.end(sequence, now_ns)
        self._handover.is_closed = self._arrivals.is_over and not self._requests.in_flight
        self._wake()

    def _wake(self) -> None:
        for engine in self.engines:
            engine.wake()


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, without the group that it came in."""
    error = group.exceptions[0]
    return _first_of(error) if isinstance(error, BaseExceptionGroup) else error
