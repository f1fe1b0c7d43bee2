"""A chain that logs what it is told from outside: its decisions depend on nothing else.

The asyncio driver reports copies, and fills of tiers in memory, at once: they follow from what was
told before, so they are not logged.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from kvtier.chain import Action, Chain, Extents, Fill, Flight, Move, Read, Write
from kvtier.errors import DeviceLostError, LimitError
from kvtier.events.owners import present_owners
from kvtier.events.schema import EventKind, Flag
from kvtier.events.writer import EventLog
from kvtier.pages import I64, U8, U64, Bool, PageStatus, Purpose

_LOST: Final = "the GPU was lost, and an event log cannot tell of that: read without one"


class RecordingChain(Chain):
    """A chain that logs; made as every :class:`kvtier.chain.Chain`, with a log first.

    A GPU that is lost ends the run with a DeviceLostError: a repetition could not lose it as well.
    """

    def __init__(self, log: EventLog, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._log = log

    def read(
        self,
        page_ids: U64,
        *,
        wants_bytes: bool = True,
        held: bool = False,
        purpose: Purpose = Purpose.UNSTATED,
        origin_shut: bool = False,
        writes_shut: bool = False,
    ) -> tuple[Read, list[Action]]:
        asked_for: object = page_ids
        if not isinstance(asked_for, np.ndarray):
            raise LimitError("an event log needs page ids in host memory: give a NumPy array")
        read, actions = super().read(
            page_ids,
            wants_bytes=wants_bytes,
            held=held,
            purpose=purpose,
            origin_shut=origin_shut,
            writes_shut=writes_shut,
        )
        owners = present_owners()
        flags = Flag.WANTS_BYTES * wants_bytes | Flag.HELD * held | Flag.GOES_ON * owners.goes_on
        flags |= Flag.ORIGIN_SHUT * origin_shut | Flag.WRITES_SHUT * writes_shut
        log = self._log.read
        log(read.epoch, page_ids, purpose, Flag(flags), owners.requests, owners.pages)
        return read, actions

    def write(
        self, page_ids: U64, objects: int, *, writes_shut: bool = False
    ) -> tuple[Write, list[Action]]:
        write, actions = super().write(page_ids, objects, writes_shut=writes_shut)
        flags = Flag(Flag.WRITES_SHUT * writes_shut)
        self._log.write(write.epoch, page_ids, objects, flags, present_owners().requests)
        return write, actions

    def invalidate(self, page_ids: U64) -> list[Action]:
        self._log.invalidate(page_ids)
        return super().invalidate(page_ids)

    def expire(self, read: Read) -> U8:
        self._log.batch(EventKind.EXPIRE, read.epoch)
        return super().expire(read)

    def leave(self, read: Read) -> None:
        if read.unresolved:  # otherwise it changes nothing
            self._log.batch(EventKind.LEAVE, read.epoch)
        super().leave(read)

    def release(self, read: Read) -> None:
        if read.held:
            self._log.batch(EventKind.RELEASE, read.epoch)
        super().release(read)

    def turn_away(self, pages: int, purpose: Purpose) -> None:
        self._log.turn_away(pages, purpose)
        super().turn_away(pages, purpose)

    def fetched(self, flight: Flight, status: U8, issued: Extents) -> list[Action]:
        some_failed = status if status.any() else None
        self._log.fetched(flight.number, some_failed, _existing(flight, issued))
        return super().fetched(flight, status, issued)

    def lose_memory(self) -> None:
        raise DeviceLostError(_LOST)

    def filled(self, fill: Fill, ok: Bool | None = None) -> list[Action]:
        if not self.is_in_memory(fill.level):
            status = None if ok is None else _status(ok)
            if isinstance(fill.origin, Flight):
                self._log.filled(EventKind.FILLED, fill.origin.number, fill.level, status)
            else:
                self._log.filled(EventKind.STORED, fill.origin.epoch, fill.level, status)
        return super().filled(fill, ok)

    def moved(self, move: Move, ok: Bool, lost: int) -> list[Action]:
        self._log.filled(EventKind.MOVED, move.number, move.level, _status(ok))
        return super().moved(move, ok, lost)


def _status(ok: Bool) -> U8 | None:
    """A ``PageStatus`` of each page that was written or not (bool[n]); None: all were."""
    if ok.all():
        return None
    return np.where(ok, np.uint8(PageStatus.OK), np.uint8(PageStatus.FAILED))


def _existing(flight: Flight, issued: Extents) -> I64 | None:
    """Pages of each extent of a flight that its device was asked for; None: all."""
    planned = flight.extents
    assert planned is not None
    if len(issued) == len(planned) and (issued.count == planned.count).all():
        return None
    existing = np.zeros(len(planned), np.int64)
    existing[np.searchsorted(planned.row, issued.row)] = issued.count
    return existing
