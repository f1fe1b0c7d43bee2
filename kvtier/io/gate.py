"""A bound on work in flight, and a wait that cancellation cannot cut short."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TypeVar

from kvtier.errors import ClosedError

T = TypeVar("T")


class Gate:
    """Lets in so many units of work at once; first come, first served, so that none starves.

    Args:
        capacity: units inside at once.
        name: what is closed, for the error.
    """

    def __init__(self, capacity: int, name: str) -> None:
        self._capacity = capacity
        self._name = name
        self._free = capacity
        self._closed = False
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def enter(self, count: int) -> None:
        """Wait until ``count`` units (at most the capacity) may enter; ``leave`` gives them back.

        Raises:
            ClosedError: the gate was closed.
        """
        if self._closed:
            raise ClosedError(f"{self._name} is closed")
        await self._take(count)

    def leave(self, count: int) -> None:
        """Give ``count`` units back."""
        self._free += count
        self._admit()

    def shut(self) -> None:
        """Refuse whoever comes now."""
        self._closed = True

    async def close(self) -> None:
        """Refuse whoever comes now, and wait for all who came before."""
        self.shut()
        await self._take(self._capacity)
        self.leave(self._capacity)

    async def _take(self, count: int) -> None:
        if not self._waiting and count <= self._free:
            self._free -= count
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._admit()  # whoever waited behind this one may fit now
            else:
                self.leave(count)  # let in and cancelled at the same time
            raise

    def _admit(self) -> None:
        while self._waiting:
            count, turn = self._waiting[0]
            if not turn.cancelled():
                if count > self._free:
                    return
                self._free -= count
                turn.set_result(None)
            self._waiting.popleft()


async def outlast(work: asyncio.Future[T]) -> T:
    """Wait for ``work`` to end even when cancelled meanwhile; then pass the cancellation on."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait((work,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return work.result()
