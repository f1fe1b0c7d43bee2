"""Threads that perform a batch of blocking operations, and are never left behind in one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np

from kvtier.pages import I64

T = TypeVar("T")
Work: TypeAlias = Callable[[Iterator[int]], None]
"""Performs one operation for each item that it is given, until there are no more."""

_SHARE_MIN: Final = 4
"""Items from which on another thread is worth waking."""


class Workers:
    """A fixed number of threads.

    Args:
        threads: operations at once.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, "kvtier-file")
        self._running: set[asyncio.Future[Any]] = set()

    async def for_each(self, items: I64, work: Work) -> None:
        """Have ``work`` done for all ``items``, in shares of neighbouring ones.

        However this ends, no thread is in ``work`` any more: when cancelled, it waits for the
        operation that each thread has begun, and no further one begins.
        """
        if len(items) == 0:
            return
        stop = threading.Event()
        shares = np.array_split(items, min(self._threads, -(-len(items) // _SHARE_MIN)))
        futures = [self._submit(work, _until(stop, share.tolist())) for share in shares]
        await _ended(futures, stop)
        errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error

    async def call(self, function: Callable[..., T], *args: object) -> T:
        """What ``function`` returns, called in a thread; it must not write what others can see."""
        return await self._submit(function, *args)

    async def close(self) -> None:
        """Wait until nothing runs, and end the threads."""
        if self._running:
            await asyncio.wait(set(self._running))
        self._executor.shutdown(wait=False)

    def _submit(self, function: Callable[..., T], *args: object) -> asyncio.Future[T]:
        future = asyncio.get_running_loop().run_in_executor(self._executor, function, *args)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future


async def to_the_end(function: Callable[..., T], *args: object) -> T:
    """What ``function`` returns, called in a thread; who is cancelled waits for its end as well."""
    future = asyncio.get_running_loop().run_in_executor(None, function, *args)
    try:
        await _ended([future], threading.Event())
    finally:
        future.exception()  # seen, also where a cancellation goes before it
    return future.result()


def _until(stop: threading.Event, items: Iterable[int]) -> Iterator[int]:
    for item in items:
        if stop.is_set():
            return
        yield item


async def _ended(futures: Sequence[asyncio.Future[Any]], stop: threading.Event) -> None:
    """Return once all are done; when cancelled, say stop and wait all the same."""
    cancelled: asyncio.CancelledError | None = None
    pending = set(futures)
    while pending:
        try:
            _, pending = await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            stop.set()
            cancelled = error
    if cancelled is not None:
        raise cancelled
