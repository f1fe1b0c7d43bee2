"""The connections of one backend: used in turn, made again when lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import cycle

from kvtier.errors import ClosedError, KvtierError
from kvtier_tcp.connection import Connection


class Pool:
    """A fixed number of places for connections.

    A lost connection is made again by the next call that gets its place: one attempt, which all
    callers that come meanwhile share, so that a dead server costs each of them one timeout.

    Args:
        connect: makes a connection, in bounded time.
        size: number of places.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], size: int) -> None:
        self._connect = connect
        self._places: list[asyncio.Task[Connection] | None] = [None] * size
        self._turn = cycle(range(size))

    async def take(self) -> Connection:
        """The next connection in turn. Raises what ``connect`` raises."""
        place = next(self._turn)
        making = self._places[place]
        if making is None or _is_over(making):
            making = asyncio.ensure_future(self._make())
            making.add_done_callback(_look_at)
            self._places[place] = making
        if not making.done():
            # Waited for, not awaited: a cancelled caller must not end the attempt of the others.
            await asyncio.wait([making])
        if making.cancelled():
            raise ClosedError("this backend was closed while it connected")
        return making.result()

    async def close(self, kind: type[KvtierError], why: str) -> None:
        """End all connections; what is in flight raises ``kind``."""
        for making in self._places:
            if making is None:
                continue
            making.cancel()
            await asyncio.wait([making])
            if not making.cancelled() and making.exception() is None:
                await making.result().close(kind, why)

    async def _make(self) -> Connection:
        return await self._connect()


def _is_over(making: asyncio.Task[Connection]) -> bool:
    """Whether there is no connection, and none is being made."""
    if not making.done():
        return False
    return making.cancelled() or making.exception() is not None or making.result().is_lost


def _look_at(making: asyncio.Task[Connection]) -> None:
    """Retrieve the error of an attempt whose callers have all gone, which asyncio would log."""
    if not making.cancelled():
        making.exception()
