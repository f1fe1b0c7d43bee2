"""Takes new connections, and makes them secret where that is asked for.

This is done here and not by ``create_server`` because of what happens before a protocol is made:
a TLS handshake that fails must be logged, and those under way must have a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from kvtier.errors import BackendError
from kvtier.server.connection import peer_name
from kvtier.server.limits import ServerLimits
from kvtier.server.refusals import Reason, Refusals

_LOG: Final = logging.getLogger(__name__)

_BACKLOG: Final = 128
_PAUSE_S: Final = 0.2
"""After an ``accept`` that failed: mostly for want of a file descriptor, which others hold."""
_SHUTDOWN_S: Final = 5.0
_NOT_HERE: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


async def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of ``host``, all on one port.

    Raises:
        BackendError: none of them can be listened on.
    """
    loop = asyncio.get_running_loop()
    sockets: list[socket.socket] = []
    try:
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(infos):
            try:
                made = _listen(family, kind, protocol, (address[0], port, *address[2:]))
            except OSError as error:
                # A name may have addresses of a family that this machine does not use.
                if error.errno in _NOT_HERE and (sockets or len(infos) > 1):
                    continue
                raise
            sockets.append(made)
            port = made.getsockname()[1]
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, "the address is none of this machine")
    except OSError as error:
        for made in sockets:
            made.close()
        raise BackendError(
            f"cannot listen on {host}:{port}: {error.strerror or error}: take another address"
        ) from error
    return sockets


def _listen(family: int, kind: int, protocol: int, address: tuple[Any, ...]) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(_BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


class Acceptor:
    """Accepts on listening sockets until it is closed, which closes them.

    Args:
        sockets: of :func:`listen`.
        make: makes the protocol of a connection.
        context: of TLS; None: connections are in clear text.
        limits: bound the handshakes, in number and time.
        refusals: where handshakes that fail are told.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        make: Callable[[], asyncio.BaseProtocol],
        context: ssl.SSLContext | None,
        limits: ServerLimits,
        refusals: Refusals,
    ) -> None:
        self._sockets = sockets
        self._make = make
        self._limits = limits
        self._refusals = refusals
        self._tls: dict[str, Any] = {}
        if context is not None:
            self._tls = {
                "ssl": context,
                "ssl_handshake_timeout": limits.hello_timeout_s,
                "ssl_shutdown_timeout": _SHUTDOWN_S,
            }
        self._opening: dict[asyncio.Task[None], socket.socket] = {}  # the oldest first
        loop = asyncio.get_running_loop()
        self._accepting = [loop.create_task(self._accept(one)) for one in sockets]

    async def close(self) -> None:
        """Accept nothing more, and end the handshakes that are under way."""
        for task in self._accepting:
            task.cancel()
        if self._tls:
            for accepted in self._opening.values():
                _cut(accepted)
        await asyncio.gather(*self._accepting, *self._opening, return_exceptions=True)
        for one in self._sockets:
            one.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:
                _LOG.warning("no connection could be accepted: %s", error)
                await asyncio.sleep(_PAUSE_S)
                continue
            opening = loop.create_task(self._open(accepted, peer_name(address)))
            self._opening[opening] = accepted
            opening.add_done_callback(self._opened)
            if self._tls and len(self._opening) > self._limits.strangers_max:
                _cut(next(iter(self._opening.values())))

    async def _open(self, accepted: socket.socket, peer: str) -> None:
        try:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(self._make, accepted, **self._tls)
        except OSError as error:
            self._refusals.note(Reason.TLS, peer, _reason(error))
            accepted.close()

    def _opened(self, opening: asyncio.Task[None]) -> None:
        self._opening.pop(opening, None)
        if not opening.cancelled() and opening.exception() is not None:
            _LOG.error("a connection could not be opened", exc_info=opening.exception())


def _cut(accepted: socket.socket) -> None:
    """End a handshake from below: uvloop closes a cancelled one without telling its protocol."""
    with contextlib.suppress(OSError):  # the peer was quicker
        accepted.shutdown(socket.SHUT_RDWR)


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"no TLS: {error.reason.lower().replace('_', ' ')}"
    return f"no TLS: {error.strerror or error}"
