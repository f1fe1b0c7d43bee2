"""Whoever takes requests: one server that holds every key, or a Cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from kvtier_redis.commands import Request, Take
from kvtier_redis.server import Server


class Servers(ABC):
    """Sends requests to where their keys lie."""

    @abstractmethod
    async def exchange(self, requests: Sequence[Request], take: Take) -> None:
        """Send requests, and hand over the replies to each.

        Args:
            requests: what one server gets goes in one piece.
            take: called once for each request, until this call ends and not after it; with a
                BackendError as the only reply where one server of several failed.

        Raises:
            BackendError: no server answered.
            ClosedError: :meth:`close` was called.
        """

    @abstractmethod
    async def masters(self) -> list[Server]:
        """The servers that hold keys. Raises BackendError where nobody can say."""

    @abstractmethod
    async def spread(self, names: Iterator[bytes]) -> list[bytes]:
        """The first of ever more names that lie on each of the masters."""

    @abstractmethod
    async def close(self) -> None:
        """End all connections; what is in flight raises ClosedError."""


class SingleServer(Servers):
    """One server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def exchange(self, requests: Sequence[Request], take: Take) -> None:
        await self._server.exchange(requests, take)

    async def masters(self) -> list[Server]:
        return [self._server]

    async def spread(self, names: Iterator[bytes]) -> list[bytes]:
        return [next(names)]

    async def close(self) -> None:
        await self._server.close()
