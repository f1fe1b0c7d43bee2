"""One client of Mooncake, its registered memory, and the threads that call it."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, Self

import numpy as np

from kvtier.errors import BackendError
from kvtier.pages import U8
from kvtier_mooncake.codes import NO_MASTER
from kvtier_mooncake.probing import INSTALL, probe, setup_arguments
from kvtier_mooncake.publishing import Publisher
from kvtier_mooncake.settings import MooncakeSettings
from kvtier_mooncake.workers import Workers

_HEADS_BYTES: Final = 1 << 16
"""Memory of the publishing thread."""

_CLOSE_S: Final = 5.0
"""How long calls may still take when the client is closed, or less where a call may take less."""

_LEFT_OPEN: Final[list[Any]] = []
"""Clients that it would be wrong to close: a call of theirs hangs, or their master is gone, and
closing would hold up the interpreter."""


class Link:
    """Use :meth:`open`.

    Attributes:
        store: Mooncake's client. Its calls block, and let other threads run.
        config: how what is put is replicated.
        workers: threads to call it from, for everything but publishing.
        publishing: the one thread that calls ``publisher``.
        publisher: changes heads.
        slot_bytes: memory of each worker.
    """

    def __init__(self, store: Any, config: Any, memory: U8, settings: MooncakeSettings) -> None:
        self._memory = memory
        self._close_s = min(settings.timeout_s, _CLOSE_S)
        self.store = store
        self.config = config
        self.slot_bytes = settings.slot_bytes
        slots = [
            memory[number * self.slot_bytes :][: self.slot_bytes]
            for number in range(settings.threads)
        ]
        self.workers = Workers(slots, "kvtier-mooncake")
        self.publishing = Workers([memory[-_HEADS_BYTES:]], "kvtier-mooncake-heads")
        self.publisher = Publisher(store, config)

    @classmethod
    async def open(cls, settings: MooncakeSettings) -> Self:
        """Set up a client.

        Raises:
            BackendError: it is not installed, or cannot be reached or set up.
        """
        settings = await probe(settings)
        return cls(*await asyncio.to_thread(_set_up, settings), settings)

    async def close(self) -> None:
        """Let calls end, and close the client if that can be done."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        until_s = time.monotonic() + self._close_s
        ended = self.workers.end(self._close_s)
        sweep = self.publishing.submit(self._sweep)
        ended = self.publishing.end(max(0.1, until_s - time.monotonic())) and ended
        if ended and sweep.result():
            self.store.unregister_buffer(self._memory.ctypes.data)
            self.store.close()
        else:
            _LEFT_OPEN.append(self)

    def _sweep(self, _slot: U8) -> bool:
        """Clear away what can be, at the end; whether the master still answers."""
        self.publisher.sweep()
        return NO_MASTER.isdisjoint(self.store.batch_is_exist(["kvtier"]))


def _set_up(settings: MooncakeSettings) -> tuple[Any, Any, U8]:
    """A client, how it replicates, and its registered memory."""
    try:
        from mooncake.store import MooncakeDistributedStore, ReplicateConfig  # noqa: PLC0415 - heavy
    except ImportError as error:
        raise BackendError(f"Mooncake's client cannot be loaded ({error}): {INSTALL}") from error
    store = MooncakeDistributedStore()
    code = store.setup(*setup_arguments(settings))
    if code != 0:
        raise BackendError(
            f"the client of the Mooncake at {settings.master} cannot be set up (code {code}): "
            f"can this host lend {settings.segment_bytes} bytes?"
        )
    memory = np.zeros(settings.slot_bytes * settings.threads + _HEADS_BYTES, np.uint8)
    code = store.register_buffer(memory.ctypes.data, memory.nbytes)
    if code != 0:
        store.close()
        raise BackendError(
            f"Mooncake cannot register {memory.nbytes} bytes of memory (code {code}): "
            "lower the option 'buffer_bytes'"
        )
    config = ReplicateConfig()
    config.replica_num = settings.replicas
    return store, config, memory
