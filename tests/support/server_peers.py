"""Raw protocol peers of a server, for tests."""

from __future__ import annotations

from kvtier.server import Server
from kvtier.testing.peer import Peer
from kvtier.wire.messages import Failure, Hello, Welcome


async def connect(server: Server, token: str = "") -> Peer:
    """A client that was let in."""
    client = await knock(server)
    welcome, _ = await client.ask(Hello(token.encode()))
    assert isinstance(welcome, Welcome)
    return client


async def knock(server: Server) -> Peer:
    """A client that said nothing yet."""
    return await Peer.connect(server.host, server.port)


async def failure_of(client: Peer) -> Failure:
    """What the server says of the whole connection."""
    number, failure, _ = await client.next()
    assert number == 0
    assert isinstance(failure, Failure)
    return failure
