"""What all connections of a server share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvtier.backend import Backend
from kvtier.clock import Clock
from kvtier.server.budget import Budget
from kvtier.server.counting import ServerCounters
from kvtier.server.limits import ServerLimits
from kvtier.server.recycling import Recycler
from kvtier.server.refusals import Refusals
from kvtier.server.spool import SpoolRoom
from kvtier.server.tokens import Tokens

if TYPE_CHECKING:
    from kvtier.server.connection import Connection


@dataclass(frozen=True, slots=True)
class Export:
    """A backend, and what there is to export it with.

    Attributes:
        backend: what is exported.
        page_bytes: the page size that it was opened with.
        tokens: what a client must present one of; None accepts all.
        limits: bounds.
        clock: of deadlines and latencies.
        counters, refusals: what is told of the server.
        budget: the memory of requests and answers.
        room: where uploads wait for their end.
        memory: what replies are made in.
        connections: the connections there are, the oldest first.
        strangers: those of them that have not been let in yet.
        leaving: those that were hung up on and are not closed yet, the oldest first.
        tasks: what runs on their behalf.
    """

    backend: Backend
    page_bytes: int
    tokens: Tokens | None
    limits: ServerLimits
    clock: Clock
    counters: ServerCounters
    refusals: Refusals
    budget: Budget
    room: SpoolRoom
    memory: Recycler = field(default_factory=Recycler)
    connections: dict[Connection, None] = field(default_factory=dict)
    strangers: dict[Connection, None] = field(default_factory=dict)
    leaving: dict[Connection, None] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` on behalf of a connection; the server waits for its end."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task
