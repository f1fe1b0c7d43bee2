"""A listening server: accepts connections, and ends them in good order."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Final

from kvtier.backend import Backend
from kvtier.errors import BackendError, SettingsError
from kvtier.pages import check_page_bytes
from kvtier.server.connection import Connection, Export
from kvtier.server.limits import ServerLimits

_GRACE_S: Final = 5.0


async def serve(
    backend: Backend,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    page_bytes: int,
    token: str | None = None,
    limits: ServerLimits | None = None,
) -> Server:
    """Start to export ``backend``.

    Args:
        backend: stays open; closing it is the caller's.
        host: address or name to listen on.
        port: where to listen; 0 takes a free one.
        page_bytes: the page size that ``backend`` was opened with.
        token: what clients must present; None accepts all.
        limits: bounds; the defaults where None.

    Raises:
        SettingsError: the host is not loopback and there is no token.
        BackendError: the address cannot be listened on.
    """
    check_page_bytes(page_bytes)
    if not token and not _is_loopback(host):
        raise SettingsError(
            f"serving on {host} lets other hosts in: give a token, or serve on 127.0.0.1"
        )
    limits = limits or ServerLimits()
    for name, most in (
        ("payload_bytes_max", limits.frame.payload_bytes_max),
        ("upload_bytes_max", limits.upload_bytes_max),
    ):
        if most < page_bytes:
            raise SettingsError(f"{name} is {most}: one page has {page_bytes}")
    if limits.uploads_max < 1:
        raise SettingsError(f"uploads_max is {limits.uploads_max}: at least 1 is needed")
    export = Export(backend, page_bytes, token, limits)
    loop = asyncio.get_running_loop()
    try:
        listener = await loop.create_server(lambda: Connection(export), host, port)
    except OSError as error:
        raise BackendError(
            f"cannot listen on {host}:{port}: {error.strerror or error}: take another address"
        ) from error
    return Server(listener, export)


class Server:
    """A listening server, made by :func:`serve`.

    Attributes:
        host, port: where it listens.
    """

    def __init__(self, listener: asyncio.Server, export: Export) -> None:
        self._listener = listener
        self._export = export
        self._closed = False
        self.host: str
        self.port: int
        self.host, self.port = listener.sockets[0].getsockname()[:2]

    @property
    def url(self) -> str:
        """What a ``tcp`` backend takes as its option ``url``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"

    @property
    def connections(self) -> int:
        """Connections there are now."""
        return len(self._export.connections)

    @property
    def uploads(self) -> int:
        """Objects of which a part lies on the disk of this server now."""
        return self._export.room.spools

    async def close(self, grace_s: float = _GRACE_S) -> None:
        """Accept nothing more, answer what was received, then close every connection.

        Args:
            grace_s: how long answers may take; connections that are not done by then are cut.
        """
        if self._closed:
            return
        self._closed = True
        self._listener.close()
        connections = list(self._export.connections)
        await asyncio.gather(*(connection.finish(grace_s) for connection in connections))
        if self._export.tasks:
            await asyncio.wait(self._export.tasks)
        await self._listener.wait_closed()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
