"""Metrics and health over HTTP, for whoever runs a server: on a port of its own.

One request per connection, ``GET`` or ``HEAD``, HTTP/1.0: enough for Prometheus and for the probes
of an orchestrator, and little to go wrong. Everything has a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from http import HTTPStatus
from typing import Final

from kvtier.backend import Backend
from kvtier.clock import Clock
from kvtier.server.acceptor import listen
from kvtier.server.listener import Server

_HEAD_BYTES_MAX: Final = 8 << 10
_CLIENTS_MAX: Final = 32
_TIMEOUT_S: Final = 5.0
"""For a client to ask and to take the answer."""

_STORE_TIMEOUT_S: Final = 2.0
_STORE_FRESH_NS: Final = 1_000_000_000
"""How long a finding about the store holds, so that many probes are no load on it."""
_STORE_KEY: Final = b"\0kvtier-ready-"
"""Begins a key that is asked for; whether it is there does not matter. It is another each time, or
what remembers missing keys would answer in the place of the store."""

_TEXT: Final = "text/plain; charset=utf-8"
_METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"


class Probes:
    """Answers ``/metrics``, ``/healthz`` and ``/readyz``; made by :func:`start_probes`.

    ``/healthz`` says that this process answers at all. ``/readyz`` says whether it is of use now:
    it is not (status 503) while the server ends, or while its store fails or does not answer.

    Attributes:
        url: of the server, without a path.
    """

    def __init__(self, server: Server, clock: Clock) -> None:
        self.url = ""
        self._server = server
        self._store = _StoreState(server.backend, clock)
        self._listener: asyncio.Server
        self._clients: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Answer nobody any more."""
        self._listener.close()
        clients = list(self._clients)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await self._listener.wait_closed()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client."""
        client = asyncio.current_task()
        assert client is not None
        if len(self._clients) >= _CLIENTS_MAX:
            writer.transport.abort()
            return
        self._clients.add(client)
        try:
            # Whatever such a client does wrong is its own affair.
            with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError):
                async with asyncio.timeout(_TIMEOUT_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(await self._answer(head))
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        finally:
            writer.transport.abort()
            self._clients.discard(client)

    async def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _reply(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are known\n")
        status, text, kind = HTTPStatus.OK, "ok\n", _TEXT
        match path:
            case b"/metrics":
                text, kind = self._server.counters.exposition(self._server.gauges()), _METRICS
            case b"/healthz":
                pass
            case b"/readyz":
                problem = await self._problem()
                if problem is not None:
                    status, text = HTTPStatus.SERVICE_UNAVAILABLE, f"{problem}\n"
            case _:
                status = HTTPStatus.NOT_FOUND
                text = "there are /metrics, /healthz and /readyz\n"
        return _reply(status, text, kind, with_body=method == b"GET")

    async def _problem(self) -> str | None:
        """Why the server is of no use now, or None."""
        if self._server.is_ending:
            return "the server is ending"
        return await self._store.problem()


class _StoreState:
    """Whether the store behind a server answers, asked once a second at most."""

    def __init__(self, backend: Backend, clock: Clock) -> None:
        self._backend = backend
        self._clock = clock
        self._turn = asyncio.Lock()
        self._asked_ns: int | None = None
        self._problem: str | None = None

    async def problem(self) -> str | None:
        async with self._turn:
            now_ns = self._clock.now_ns()
            if self._asked_ns is None or now_ns - self._asked_ns > _STORE_FRESH_NS:
                self._problem = await self._ask()
                self._asked_ns = self._clock.now_ns()
            return self._problem

    async def _ask(self) -> str | None:
        try:
            async with asyncio.timeout(_STORE_TIMEOUT_S):
                await self._backend.stat([_STORE_KEY + secrets.token_hex(4).encode()])
        except TimeoutError:
            return "the store behind the server does not answer"
        except Exception as error:  # whatever it raises, it is of no use
            return f"the store behind the server fails: {type(error).__name__}"
        return None


async def start_probes(server: Server, host: str, port: int, clock: Clock) -> Probes:
    """Tell metrics and health of ``server``.

    Args:
        server: what they are of.
        host: where to listen. Metrics hold no keys, tenants or addresses.
        port: 0 takes a free one.
        clock: bounds how often the store is asked.

    Raises:
        BackendError: the address cannot be listened on.
    """
    probes = Probes(server, clock)
    first, *others = await listen(host, port)
    for other in others:  # of a name with several addresses the first is enough
        other.close()
    probes._listener = await asyncio.start_server(probes.serve, sock=first, limit=_HEAD_BYTES_MAX)
    shown, port = first.getsockname()[:2]
    probes.url = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    return probes


def _reply(status: HTTPStatus, text: str, kind: str = _TEXT, *, with_body: bool = True) -> bytes:
    body = text.encode()
    head = (
        f"HTTP/1.0 {status} {status.phrase}\r\n"
        f"Content-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
