"""An HTTP proxy on loopback that meddles: it forwards requests, unless told otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Request:
    """What a client asked.

    Attributes:
        method: GET, PUT and so on.
        target: path and query.
        raw: all of it, head and body.
    """

    method: str
    target: str
    raw: bytes


Forward = Callable[[], Awaitable[bytes]]
Meddle = Callable[[Request, Forward], Awaitable[bytes]]
"""Gets a request, and what asks the server; returns what the client gets before the end."""


def answer(status: str, body: bytes = b"") -> bytes:
    """An HTTP answer."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


async def leave_alone(request: Request, forward: Forward) -> bytes:
    return await forward()


class Proxy:
    """A proxy that is running.

    Attributes:
        url: what clients are told.
        meddle: what it does with each request; may be changed at any time.
        requests: all that came, in order.
        most_at_once: requests that were under way at once, at most.
    """

    def __init__(self, server_url: str) -> None:
        self.url = ""
        self.meddle: Meddle = leave_alone
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._under_way = 0
        parts = urlsplit(server_url)
        self._host, self._port = parts.hostname, parts.port

    def count(self, method: str, part: str = "") -> int:
        """Requests of that method with ``part`` in their target."""
        return sum(one.method == method and part in one.target for one in self.requests)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the one request of a connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        request = await _read_request(head, reader)
        self.requests.append(request)
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            answered = await self.meddle(request, lambda: self._forward(request))
        finally:
            self._under_way -= 1
        if not writer.is_closing():
            writer.write(answered)
            writer.close()
            await writer.wait_closed()

    async def _forward(self, request: Request) -> bytes:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            line, rest = request.raw.split(b"\r\n", 1)
            writer.write(line + b"\r\nConnection: close\r\n" + rest)
            return await reader.read()
        finally:
            writer.transport.abort()


async def _read_request(head: bytes, reader: asyncio.StreamReader) -> Request:
    first, *fields = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    lengths = [one.split(":")[1] for one in fields if one.lower().startswith("content-length:")]
    body = await reader.readexactly(int(lengths[0])) if lengths else b""
    return Request(method, target, head + body)


@contextlib.asynccontextmanager
async def meddling_proxy(
    server_url: str, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Proxy]:
    """Start a proxy in front of ``server_url``, and end it."""
    proxy = Proxy(server_url)
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            await proxy.handle(reader, writer)
        except (ConnectionError, EOFError, asyncio.CancelledError):
            writer.transport.abort()  # the client hung up, or the test is over

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    scheme = "http" if tls is None else "https"
    proxy.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers)
