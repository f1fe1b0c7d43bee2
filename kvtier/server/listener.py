"""A listening server: accepts connections, and ends them in good order."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl
from typing import Final

from kvtier import extents
from kvtier.backend import Backend
from kvtier.clock import Clock, WallClock
from kvtier.errors import SettingsError
from kvtier.pages import check_page_bytes
from kvtier.server import direct
from kvtier.server.acceptor import Acceptor, listen
from kvtier.server.budget import Budget
from kvtier.server.connection import Connection
from kvtier.server.counting import ServerCounters
from kvtier.server.export import Export
from kvtier.server.limits import ServerLimits
from kvtier.server.pace import interval_s
from kvtier.server.refusals import Refusals
from kvtier.server.spool import SpoolRoom
from kvtier.server.tenants import tenant_view
from kvtier.server.tokens import Tokens

_LOG: Final = logging.getLogger(__name__)

GRACE_S: Final = 5.0


async def serve(
    backend: Backend,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    page_bytes: int,
    tokens: Tokens | None = None,
    tls: ssl.SSLContext | None = None,
    cleartext: bool = False,
    limits: ServerLimits | None = None,
    clock: Clock | None = None,
) -> Server:
    """Start to export ``backend``.

    Args:
        backend: stays open; closing it is the caller's.
        host: address or name to listen on.
        port: where to listen; 0 takes a free one.
        page_bytes: the page size that ``backend`` was opened with.
        tokens: what clients must present one of; None accepts all.
        tls: makes connections secret; None leaves them in clear text.
        cleartext: let that be so beyond loopback, too.
        limits: bounds; the defaults where None.
        clock: of deadlines and latencies; the wall clock where None.

    Raises:
        SettingsError: the host is not loopback and there are no tokens, or there is no TLS; the
            limits let nothing through, or keys of the backend are too short for tenants.
        BackendError: the address cannot be listened on.
    """
    check_page_bytes(page_bytes)
    extents.compile_all()
    direct.compile_all()
    _check_door(host, tokens, tls is not None or cleartext)
    limits, clock = limits or ServerLimits(), clock or WallClock()
    limits.check(page_bytes)
    for _, tenant in () if tokens is None else tokens.digests:
        tenant_view(backend, tenant)
    counters = ServerCounters()
    refusals = Refusals(counters, clock)
    budget = Budget(limits.memory_bytes_max)
    room = SpoolRoom(limits.spool_bytes_max)
    export = Export(backend, page_bytes, tokens, limits, clock, counters, refusals, budget, room)
    sockets = await listen(host, port)
    scheme = "tcp" if tls is None else "tls"
    host, port = sockets[0].getsockname()[:2]
    return Server(
        f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}",
        (host, port),
        Acceptor(sockets, lambda: Connection(export), tls, limits, refusals),
        export,
    )


class Server:
    """A listening server, made by :func:`serve`.

    Attributes:
        url: what a ``tcp`` backend takes as its option ``url``.
        host, port: where it listens.
        counters: what happened since it began.
    """

    def __init__(
        self, url: str, address: tuple[str, int], acceptor: Acceptor, export: Export
    ) -> None:
        self.url = url
        self.host, self.port = address
        self.counters = export.counters
        self._acceptor = acceptor
        self._export = export
        self._closed = False
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    @property
    def backend(self) -> Backend:
        """What is exported."""
        return self._export.backend

    @property
    def connections(self) -> int:
        """Connections there are now."""
        return len(self._export.connections)

    @property
    def uploads(self) -> int:
        """Objects of which a part lies on the disk of this server now."""
        return self._export.room.spools

    @property
    def is_ending(self) -> bool:
        """Whether it takes no more requests."""
        return self._closed

    def gauges(self) -> dict[str, float]:
        """What is so now, under the names that Prometheus reads."""
        export = self._export
        return {
            "kvtier_connections": len(export.connections),
            "kvtier_strangers": len(export.strangers),
            "kvtier_inflight_requests": sum(one.running for one in export.connections),
            "kvtier_held_bytes": export.budget.held_bytes,
            "kvtier_uploads": export.room.spools,
            "kvtier_ready": not self._closed,
        }

    async def close(self, grace_s: float = GRACE_S) -> None:
        """Accept nothing more, answer what was received, then close every connection.

        Args:
            grace_s: how long answers may take; connections that are not done by then are cut.
        """
        if self._closed:
            return
        self._closed = True
        await self._acceptor.close()
        connections = [*self._export.connections, *self._export.leaving]
        await asyncio.gather(*(connection.finish(grace_s) for connection in connections))
        self._watching.cancel()
        await asyncio.wait([self._watching])
        if self._export.tasks:
            _, stuck = await asyncio.wait(self._export.tasks, timeout=grace_s)
            if stuck:
                _LOG.warning("%d calls of the backend do not end", len(stuck))

    async def _watch(self) -> None:
        """Look at every connection again and again."""
        pause_s = interval_s(self._export.limits)
        while True:
            await asyncio.sleep(pause_s)
            now_ns = self._export.clock.now_ns()
            for connection in list(self._export.connections):
                connection.check(now_ns)


def _check_door(host: str, tokens: Tokens | None, is_secret: bool) -> None:
    """Beyond loopback nobody comes in without a token, and nobody sees it on its way."""
    if is_loopback(host):
        return
    if tokens is None:
        raise SettingsError(
            f"serving on {host} lets other hosts in: give a token (serve.token_file or "
            "serve.token_env), or serve on 127.0.0.1"
        )
    if not is_secret:
        raise SettingsError(
            f"serving on {host} without TLS shows the tokens to whoever sees the packets: give "
            "serve.cert_file and serve.key_file, or set serve.cleartext = true where you trust "
            "the network"
        )


def is_loopback(host: str) -> bool:
    """Whether what listens on ``host`` is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
