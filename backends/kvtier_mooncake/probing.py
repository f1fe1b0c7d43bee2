"""Whether a Mooncake can be reached, found out where it can do no harm.

Setting up its client holds up the whole interpreter, and takes from 20 seconds to for ever where
something is wrong. So connections are tried first, then the set-up, in a process that can be ended.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from typing import Final

from kvtier.errors import BackendError
from kvtier_mooncake.settings import MooncakeSettings, metadata_address, parse_address

_CHILD: Final = """
import json, os, sys
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
print(store.setup(*json.load(sys.stdin)), flush=True)
os._exit(0)
"""
"""It leaves without closing, which would take as long again: it lends no memory, so that the master
has nothing to forget but its name."""

INSTALL: Final = (
    "pip install 'kvtier[mooncake]', and libibverbs, libnuma and libcurl if they are missing"
)
"""What to do where the client is not there: its wheel lacks three libraries of the system."""

_LOCAL_BUFFER_BYTES: Final = 16 << 20
"""What the library needs of its own, beside the memory that is registered with it."""


def setup_arguments(settings: MooncakeSettings) -> list[str | int]:
    """What ``MooncakeDistributedStore.setup`` takes, in its order."""
    return [
        settings.host,
        settings.metadata,
        settings.segment_bytes,
        _LOCAL_BUFFER_BYTES,
        settings.protocol,
        settings.device,
        settings.master,
    ]


async def probe(settings: MooncakeSettings) -> MooncakeSettings:
    """Make sure that the set-up will work; the settings with this host's own address in them.

    Raises:
        BackendError: no server answers, the library is not there, or it refuses.
    """
    host = await _connect("master", *parse_address(settings.master, "master"), settings)
    metadata = metadata_address(settings.metadata)
    if metadata is not None:
        await _connect("metadata server", *metadata, settings)
    settings = settings if settings.host else replace(settings, host=host)
    await asyncio.to_thread(_try_setup, replace(settings, segment_bytes=0))
    return settings


async def _connect(what: str, host: str, port: int, settings: MooncakeSettings) -> str:
    """The address that this host has towards a server."""
    try:
        async with asyncio.timeout(settings.connect_timeout_s):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError) as error:
        why = getattr(error, "strerror", None) or f"no answer in {settings.connect_timeout_s} s"
        raise BackendError(
            f"no Mooncake {what} can be reached at {host}:{port} ({why}): is it running?"
        ) from error
    address: str = writer.get_extra_info("sockname")[0]
    writer.transport.abort()
    return address


def _try_setup(settings: MooncakeSettings) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, and a constant text
            [sys.executable, "-c", _CHILD],
            input=json.dumps(setup_arguments(settings)),
            capture_output=True,
            text=True,
            timeout=settings.connect_timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BackendError(
            f"the Mooncake at {settings.master} did not take a client within "
            f"{settings.connect_timeout_s} s: is that its master, and protocol and metadata "
            "what it runs with?"
        ) from error
    last_line = done.stderr.strip().rpartition("\n")[2]
    if last_line.startswith(("ImportError", "ModuleNotFoundError")):
        raise BackendError(f"Mooncake's client cannot be loaded ({last_line}): {INSTALL}")
    code = done.stdout.split()[-1:]
    if code != ["0"]:
        raise BackendError(
            f"the client of the Mooncake at {settings.master} cannot be set up "
            f"({'code ' + code[0] if code else 'it crashed'}): look at protocol "
            f"{settings.protocol!r}, device {settings.device!r} and host {settings.host!r}"
        )
