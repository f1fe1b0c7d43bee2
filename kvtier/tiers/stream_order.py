"""Readers and writers of one piece of memory, on streams that know nothing of each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvtier.gpu import Stream


class StreamOrder:
    """A lock for readers and writers, kept by the GPU: streams wait, the host does not.

    Whoever enqueues work on the memory says so before and after. A reader then runs after every
    write that was enqueued before it, and a writer after every read and write: the order in which
    the host enqueued them, whichever streams they are on. So a slot may be given to another page
    as soon as its last read is *enqueued*; the read has ended before the slot is written.
    """

    def __init__(self) -> None:
        self._writes: list[Any] = []
        """Events after the latest write, one per stream that took part."""
        self._reads: dict[int, Any] = {}
        """The latest read of each stream since then, by its handle."""

    def before_read(self, stream: Stream) -> None:
        """What is enqueued on ``stream`` from now on may read."""
        for event in self._writes:
            stream.wait_event(event)

    def after_read(self, stream: Stream) -> None:
        """All reads of ``stream`` are enqueued."""
        before = self._reads.get(stream.ptr)
        if before is not None:
            # The handle may be that of another stream by now, whose reads go on.
            stream.wait_event(before)
        self._reads[stream.ptr] = stream.record()

    def before_write(self, streams: Iterable[Stream]) -> None:
        """What is enqueued on ``streams`` from now on may write, each in a place of its own."""
        events = [*self._writes, *self._reads.values()]
        for stream in streams:
            for event in events:
                stream.wait_event(event)

    def after_write(self, streams: Iterable[Stream]) -> None:
        """All writes are enqueued."""
        self._writes = [stream.record() for stream in streams]
        self._reads.clear()

    def wait_for_reads(self) -> None:
        """Wait on the host until nothing reads any more."""
        for event in self._reads.values():
            event.synchronize()
        self._reads.clear()
