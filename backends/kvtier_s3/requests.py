"""Requests in flight: as many at once as one backend may have, whoever asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from kvtier.errors import ClosedError


class Requests:
    """Performs batches of requests under one bound, until it is closed.

    Args:
        in_flight: requests at once, over all calls.
    """

    def __init__(self, in_flight: int) -> None:
        self._in_flight = in_flight
        self._gate = asyncio.Semaphore(in_flight)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def for_each(
        self, items: Collection[int], perform: Callable[[int], Awaitable[None]]
    ) -> None:
        """Have ``perform`` awaited for all ``items``.

        However this ends, none of them runs any more. The first exception ends the others.

        Raises:
            ClosedError: ``close`` was called before or meanwhile.
        """
        self.check_open()
        left = iter(items)

        async def work() -> None:
            for item in left:
                async with self._gate:
                    await perform(item)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(items), self._in_flight)):
                    task = group.create_task(work())
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures
        self.check_open()

    async def close(self) -> None:
        """End what is in flight, with ClosedError for who waits for it."""
        self._is_closed = True
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def check_open(self) -> None:
        """Raise :class:`ClosedError` after ``close``."""
        if self._is_closed:
            raise ClosedError("this s3 backend is closed: open another")
