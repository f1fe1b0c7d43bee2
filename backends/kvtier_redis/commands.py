"""Commands as they go over the wire (RESP), and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from kvtier.errors import BackendError

Reply = Any
"""bytes, int, None, a list of these, or the ResponseError or BackendError in its place."""

Take = Callable[[int, list[Reply]], None]
"""Gets the number of a request, and the replies to its commands."""


class Request(NamedTuple):
    """Commands that go to one server, in one piece.

    Attributes:
        name: the key that they are about; it decides which server of a Cluster gets them.
        packed: the commands.
        replies: how many there are.
    """

    name: bytes
    packed: bytes
    replies: int = 1


def pack(*arguments: bytes) -> bytes:
    """A command."""
    parts = [b"*%d\r\n" % len(arguments)]
    parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
    return b"".join(parts)


def pack_with(more: int, packed: bytes, *arguments: bytes) -> bytes:
    """A command whose last ``more`` arguments are ``packed`` already."""
    head = pack(*arguments)
    count = b"*%d\r\n" % len(arguments)
    return b"*%d\r\n%b%b" % (len(arguments) + more, head[len(count) :], packed)


def transaction(name: bytes, *commands: bytes) -> Request:
    """A request whose commands take effect together or, where one is refused, not at all."""
    packed = b"".join([pack(b"MULTI"), *commands, pack(b"EXEC")])
    return Request(name, packed, len(commands) + 2)


def error_in(replies: list[Reply]) -> ResponseError | BackendError | None:
    """The first error among replies, those in the list of an EXEC included."""
    for reply in replies:
        for one in reply if isinstance(reply, list) else (reply,):
            if isinstance(one, ResponseError | BackendError):
                return one
    return None
