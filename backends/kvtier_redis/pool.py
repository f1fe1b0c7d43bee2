"""The connections to one server: each serves one batch at a time, and is dropped when in doubt."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from kvtier.errors import ClosedError


class Pool:
    """At most ``size`` connections, made when they are needed.

    Args:
        connect: makes a connection, in bounded time.
        size: batches that may be in flight at once; more of them wait.
    """

    def __init__(self, connect: Callable[[], Awaitable[AbstractConnection]], size: int) -> None:
        self._connect = connect
        self._places = asyncio.Semaphore(size)
        self._idle: list[AbstractConnection] = []
        self._lent: set[AbstractConnection] = set()
        self.closed = False

    @contextlib.asynccontextmanager
    async def lend(self) -> AsyncIterator[AbstractConnection]:
        """A connection; an exception inside ends it, for replies may still be on their way.

        Raises:
            ClosedError: the pool was closed.
            RedisError, OSError: what ``connect`` raises.
        """
        async with self._places:
            connection = await self._take()
            self._lent.add(connection)
            # redis-py forgets the writer when it gives a connection up by itself.
            writer = connection._writer
            try:
                yield connection
                self._check_open()
            except BaseException:
                await drop(connection, writer)
                raise
            else:
                self._idle.append(connection)
            finally:
                self._lent.discard(connection)

    async def close(self) -> None:
        """End all connections, and with them what is in flight."""
        self.closed = True
        ending = [*self._idle, *self._lent]
        self._idle.clear()
        for connection in ending:
            await drop(connection, connection._writer)

    async def _take(self) -> AbstractConnection:
        while self._idle:
            connection = self._idle.pop()
            try:
                if await _is_clean(connection):
                    return connection
            except BaseException:  # older versions of redis-py suspend there
                await drop(connection, connection._writer)
                raise
            await drop(connection, connection._writer)
        self._check_open()
        connection = await self._connect()
        try:
            self._check_open()
        except ClosedError:
            await drop(connection, connection._writer)
            raise
        return connection

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError("this redis backend was closed")


async def drop(connection: AbstractConnection, writer: asyncio.StreamWriter | None) -> None:
    """End a connection at once: what was to be sent is not sent any more. Does not suspend."""
    if writer is not None:
        writer.transport.abort()
    await connection.disconnect(nowait=True)


async def _is_clean(connection: AbstractConnection) -> bool:
    """Whether a connection is open, and nothing came on it that nobody asked for."""
    # Named anew in redis-py 8, where the old name warns.
    has_data = getattr(connection, "can_read", None) or connection.can_read_destructive
    try:
        return not await has_data()
    except (RedisError, OSError):
        return False
