"""A server as a program: serves until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Final

from kvtier.backend import Backend
from kvtier.clock import WallClock
from kvtier.registry import open_backend
from kvtier.server.limits import ServerLimits
from kvtier.server.listener import serve
from kvtier.settings import OriginSettings
from kvtier.wrappers import wrapped

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


async def run(
    origin: OriginSettings,
    host: str,
    port: int,
    ready: Callable[[str, int], None],
    page_bytes: int,
    *,
    seed: int = 1,
    token: str | None = None,
) -> None:
    """Open the backend that ``origin`` names, with its wrappers, and export it.

    ``seed`` is of the wrappers' random choices. The other arguments, and errors, are those of
    :func:`run_server`.
    """
    backend = await open_backend(origin.backend, origin.options, page_bytes)
    try:
        backend = wrapped(backend, origin, page_bytes, seed=seed, clock=WallClock()).backend
        await run_server(backend, host, port, page_bytes=page_bytes, ready=ready, token=token)
    finally:
        await backend.close()


async def run_server(
    backend: Backend,
    host: str,
    port: int,
    *,
    page_bytes: int,
    ready: Callable[[str, int], None],
    token: str | None = None,
    limits: ServerLimits | None = None,
) -> None:
    """Export ``backend`` until SIGINT, SIGTERM or cancellation; then finish what was begun.

    Arguments and errors are those of :func:`kvtier.server.serve`, and ``ready``, which is told
    host and port once clients can connect.
    """
    stop = asyncio.Event()
    with _stop_signals(stop):
        server = await serve(backend, host, port, page_bytes=page_bytes, token=token, limits=limits)
        try:
            ready(server.host, server.port)
            await stop.wait()
        finally:
            await server.close()


@contextlib.contextmanager
def _stop_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set ``stop`` on a signal. Only the main thread may handle them; elsewhere, cancel."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
