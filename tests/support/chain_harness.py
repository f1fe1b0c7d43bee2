"""A driver of the chain whose device reads end when the test says so; a page is its own id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kvtier.chain import (
    Action,
    Chain,
    ChainDriver,
    Complete,
    Copy,
    Fetch,
    Fill,
    Flight,
    Move,
    Read,
    Write,
)
from kvtier.chain.admission import AdmissionRule
from kvtier.chain.extents import ExtentRules
from kvtier.chain.level import Level
from kvtier.chain.write_limit import WriteLimit
from kvtier.index import LogGeometry, LogIndex, create_index
from kvtier.pages import U8, U64, Bool, PageStatus
from kvtier.settings import ChainSettings

PAGE_BYTES = 512
GARBAGE = np.uint64(0xDEAD_DEAD_DEAD_DEAD)


def make_chain(
    tiers: Iterable[str] = ("hbm", "dram", "nvme"),
    *,
    origin: bool = True,
    admit: AdmissionRule = 1.0,
    batch_pages: int = 8,
    buffers: int = 4,
    inflight: int = 1 << 10,
    extent_pages: int = 4,
    gap: int = 0,
    coalesce: bool = True,
    write_limits: Mapping[str, WriteLimit] | None = None,
) -> Chain:
    rules = ExtentRules(gap, extent_pages if coalesce else 1, batch_pages, batch_pages)
    limits = write_limits or {}
    levels = [Level(name, name != "nvme", admit, True, rules, limits.get(name)) for name in tiers]
    settings = ChainSettings(
        inflight_pages_max=inflight,
        device_batch_pages=batch_pages,
        staging_bytes=buffers * batch_pages * PAGE_BYTES,
        coalesce=coalesce,
    )
    last = Level("origin", False, 0.0, False, rules) if origin else None
    return Chain(levels, last, settings, PAGE_BYTES)


class Harness(ChainDriver):
    """Arenas hold PageIds as payload, so that a wrong byte is a wrong id.

    With a geometry of a ``log``, tiers that are not in memory have one.
    """

    def __init__(
        self,
        chain: Chain,
        slots: Iterable[int] = (8, 16, 32),
        ways: int = 8,
        log: LogGeometry | None = None,
    ) -> None:
        indexes = [
            create_index(count, ways, seed=7)
            if log is None or level.in_memory
            else LogIndex(log, ways, seed=7)
            for level, count in zip(chain._tiers, slots, strict=False)
        ]
        super().__init__(chain, indexes)
        self.arenas = [np.full(index.slots, GARBAGE) for index in self.indexes]
        self.staging: dict[int, U64] = {}
        self.fetches: list[Fetch] = []
        self.fills: list[Fill] = []
        self.moves: list[Move] = []
        self.manual_fills = False
        self.answers: dict[int, U64] = {}
        self.done: list[Read | Write] = []

    def read(self, page_ids: list[int], **options: Any) -> Read:
        ids = np.array(page_ids, np.uint64)
        read, actions = self.chain.read(ids, **options)
        self.answers[read.epoch] = np.full(len(ids), GARBAGE)
        self.perform(actions)
        return read

    def write(self, page_ids: list[int]) -> Write:
        write, actions = self.chain.write(np.array(page_ids, np.uint64), 1)
        self.perform(actions)
        return write

    def end_fetch(self, fetch: Fetch, status: U8 | None = None) -> None:
        """The device answers; pages that it fails leave garbage in the buffer."""
        self.fetches.remove(fetch)
        flight = fetch.flight
        if status is None:
            status = np.zeros(len(flight), np.uint8)
        buffer = np.full(8, GARBAGE)
        payload = flight.page_ids
        if fetch.level < len(self.arenas):
            payload = self.arenas[fetch.level][flight.slots]
        ok = status == PageStatus.OK
        buffer[flight.rows[ok]] = payload[ok]
        self.staging[fetch.buffer] = buffer
        self.perform(self.chain.fetched(flight, status, fetch.extents))

    def end_all(self) -> None:
        while self.fetches or self.fills or self.moves:
            while self.fetches:
                self.end_fetch(self.fetches[0])
            while self.fills:
                self.end_fill(self.fills[0])
            while self.moves:
                self.end_move(self.moves[0])

    def end_fill(self, fill: Fill) -> None:
        self.fills.remove(fill)
        self.perform(self._fill_now(fill))

    def end_move(self, action: Move, ok: Bool | None = None) -> None:
        self.moves.remove(action)
        moves, arena = action.moves, self.arenas[action.level]
        came = slice(None) if ok is None else ok
        # Whoever reads there goes on doing so, and the page is still the one that was moved.
        np.testing.assert_array_equal(arena[moves.sources], moves.page_ids)
        arena[moves.targets[came]] = arena[moves.sources[came]]
        super().end_move(action, ok)

    def move(self, action: Move) -> None:
        self.moves.append(action)

    def copy(self, action: Copy) -> Iterable[Action]:
        if not action.read.detached:
            flight = action.flight
            if flight is not None and flight.buffer >= 0:
                payload = self.staging[flight.buffer][action.sources]
            else:
                payload = self.arenas[action.level][action.sources]
            rows = slice(None) if action.rows is None else action.rows
            self.answers[action.read.epoch][rows] = payload
        return self.chain.copied(action)

    def fill(self, action: Fill) -> Iterable[Action]:
        if self.manual_fills:
            self.fills.append(action)
            return ()
        return self._fill_now(action)

    def _fill_now(self, action: Fill) -> Iterable[Action]:
        origin = action.origin
        if isinstance(origin, Flight) and origin.buffer >= 0:
            payload = self.staging[origin.buffer][action.sources]
        elif isinstance(origin, Flight):
            payload = self.arenas[origin.source][action.sources]
        else:
            payload = origin.page_ids[action.sources]
        np.testing.assert_array_equal(payload, action.page_ids)
        self.arenas[action.level][action.slots] = payload
        return self.chain.filled(action)

    def fetch(self, action: Fetch) -> None:
        self.fetches.append(action)

    def complete(self, action: Complete) -> None:
        self.done.append(action.ticket)
