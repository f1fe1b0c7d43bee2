"""Threads that make blocking calls, each with memory of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Final, TypeAlias, TypeVar

from kvtier.errors import ClosedError
from kvtier.pages import U8

T = TypeVar("T")
_Job: TypeAlias = tuple[list[Callable[[U8], Any]], "Future[Any]"]
"""A call, until its future is done; and that future."""

_END: Final = None


class Workers:
    """A fixed number of threads that take calls from one queue.

    They are daemons, unlike those of an executor: a call that hangs in the client library must not
    keep the process from ending.

    Args:
        slots: the memory of each, u8[slot_bytes]; there are as many threads as these.
        name: of the threads.
    """

    def __init__(self, slots: Sequence[U8], name: str) -> None:
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._ended = False
        self._threads = [
            threading.Thread(
                target=_serve, args=(self._queue, slot), name=f"{name}-{number}", daemon=True
            )
            for number, slot in enumerate(slots)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[U8], T]) -> Future[T]:
        """Have ``call`` made with a thread's memory; a future that is cancelled is not begun."""
        future: Future[T] = Future()
        calls = [call]
        # What a cancelled call holds must not stay in the queue while all threads hang.
        future.add_done_callback(lambda _: calls.clear())
        with self._lock:
            if self._ended:
                raise ClosedError("this mooncake backend is closed: open another")
            self._queue.put((calls, future))
        return future

    def end(self, timeout_s: float) -> bool:
        """Let the threads do what was submitted, and end; whether they did, within the time."""
        with self._lock:
            self._ended = True
            for _ in self._threads:
                self._queue.put(_END)
        until_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)


class Gate:
    """Through which a thread writes to, or reads from, memory of the caller.

    Once it is shut nothing passes any more, so the caller need not wait for the thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shut = False

    def pass_through(self, copy: Callable[[], None]) -> bool:
        """Make the copy, unless the gate is shut; whether it was made."""
        with self._lock:
            if self._shut:
                return False
            copy()
            return True

    def shut(self) -> None:
        """Return once no copy is going on, and none will be."""
        with self._lock:
            self._shut = True


def _serve(queue: SimpleQueue[_Job | None], slot: U8) -> None:
    while (job := queue.get()) is not _END:
        calls, future = job
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(calls[0](slot))
        except BaseException as error:  # the caller gets it
            future.set_exception(error)
        # Else what the last job holds would live until the next one.
        del job, calls, future
