"""One server: sends it batches of commands, over connections of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from kvtier.errors import BackendError, ClosedError
from kvtier_redis.address import Address
from kvtier_redis.commands import Reply, Request, Take
from kvtier_redis.pool import Pool, drop
from kvtier_redis.reasons import Patience, reason_of


class Server:
    """A server, and the connections to it.

    Attributes:
        address: where it is.
    """

    def __init__(self, address: Address, patience: Patience) -> None:
        self.address = address
        self._patience = patience
        self._pool = Pool(self._connect, patience.connections)

    async def exchange(self, requests: Sequence[Request], take: Take) -> None:
        """Send requests in one go, and hand over the replies to each as they come.

        Args:
            requests: a refused command shows as an error among its replies, and stops no other.
            take: called in the order of the requests, by the awaiting task alone.

        Raises:
            BackendError: the server cannot be reached, is gone, or did not answer in time; what
                ``take`` did not get is unknown.
            ClosedError: :meth:`close` was called.
        """
        try:
            async with self._pool.lend() as connection:
                await self._exchange(connection, requests, take)
        except (RedisError, OSError) as error:
            if isinstance(error, BackendError):
                raise
            if self._pool.closed:
                raise ClosedError("this redis backend was closed") from error
            raise BackendError(
                f"origin {self.address}: {reason_of(error, self.address, self._patience)}"
            ) from error

    async def ask(self, request: Request) -> list[Reply]:
        """The replies to one request; raises as :meth:`exchange`."""
        got: list[list[Reply]] = []
        await self.exchange([request], lambda _, replies: got.append(replies))
        return got[0]

    async def close(self) -> None:
        """End all connections; what is in flight raises ClosedError."""
        await self._pool.close()

    async def _exchange(
        self, connection: AbstractConnection, requests: Sequence[Request], take: Take
    ) -> None:
        try:
            async with asyncio.timeout(self._patience.answer_s):
                # In one piece: a loop may make a system call of each.
                packed = b"".join([request.packed for request in requests])
                await connection.send_packed_command(packed, check_health=False)
                for number, request in enumerate(requests):
                    take(number, [await _reply(connection) for _ in range(request.replies)])
        except TimeoutError:
            raise BackendError(
                f"origin {self.address}: no answer within {self._patience.answer_s:g} s"
            ) from None

    async def _connect(self) -> AbstractConnection:
        connection = self.address.connection(self._patience.connect_s)
        try:
            async with asyncio.timeout(self._patience.connect_s):
                await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await drop(connection, connection._writer)
            raise
        return connection


async def _reply(connection: AbstractConnection) -> Reply:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error
