"""A server as a program: serves until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from kvtier.backend import Backend
from kvtier.clock import WallClock
from kvtier.registry import open_backend
from kvtier.server.limits import ServerLimits
from kvtier.server.listener import serve
from kvtier.server.probes import start_probes
from kvtier.server.tls import server_context
from kvtier.server.tokens import load_tokens
from kvtier.settings import OriginSettings, ServeSettings
from kvtier.wrappers import wrapped

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

Ready = Callable[[str, str | None], None]
"""Is told, once clients can connect, the URL of the server, and of its metrics if it has any."""


async def run(
    origin: OriginSettings,
    settings: ServeSettings,
    page_bytes: int,
    ready: Ready,
    *,
    seed: int = 1,
) -> None:
    """Open the backend that ``origin`` names, with its wrappers, and export it.

    ``seed`` is of the wrappers' random choices. The other arguments, and errors, are those of
    :func:`run_server`.
    """
    backend = await open_backend(origin.backend, origin.options, page_bytes)
    try:
        backend = wrapped(backend, origin, page_bytes, seed=seed, clock=WallClock()).backend
        await run_server(backend, settings, page_bytes, ready)
    finally:
        await backend.close()


async def run_server(
    backend: Backend, settings: ServeSettings, page_bytes: int, ready: Ready
) -> None:
    """Export ``backend`` until SIGINT, SIGTERM or cancellation; then finish what was begun.

    A second signal ends the process at once, as if nobody had asked for the first.

    Args:
        backend: stays open; closing it is the caller's.
        settings: how clients come in, and what they may do.
        page_bytes: the page size that ``backend`` was opened with.
        ready: see :data:`Ready`.

    Raises:
        SettingsError: settings do not fit together, or files that they name are of no use.
        BackendError: an address cannot be listened on.
    """
    clock = WallClock()
    server = await serve(
        backend,
        settings.host,
        settings.port,
        page_bytes=page_bytes,
        tokens=load_tokens(settings),
        tls=server_context(settings),
        cleartext=settings.cleartext,
        limits=ServerLimits.of(settings),
        clock=clock,
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.close, 0)
        metrics_url = None
        if settings.metrics_port is not None:
            probes = await start_probes(server, settings.metrics_host, settings.metrics_port, clock)
            stack.push_async_callback(probes.close)
            metrics_url = probes.url
        stop = asyncio.Event()
        with _stop_signals(stop):
            try:
                ready(server.url, metrics_url)
                await stop.wait()
            finally:
                # The probes go on meanwhile: they tell that the server ends.
                await server.close(settings.drain_s)


@contextlib.contextmanager
def _stop_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set ``stop`` on a signal. Only the main thread may handle them; elsewhere, cancel."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in _STOP_SIGNALS}
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, partial(_stop, loop, stop))
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _stop(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Begin to end; from now on a signal has its way, whatever the backend is doing."""
    stop.set()
    for number in _STOP_SIGNALS:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
