"""What the drivers in virtual time share: hardware that is modelled, and the way of pages on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kvtier.chain import Chain, ChainDriver, Move
from kvtier.chain.driver import Index
from kvtier.emulator.host import Host
from kvtier.emulator.station import Route, Station, Work
from kvtier.emulator.timeline import Event, Timeline
from kvtier.measure import measurements_by_purpose
from kvtier.pages import I64, U64

RUN_BYTES: Final = 256 << 10
"""Of a drive, that one operation of pages side by side writes or moves."""


@dataclass(frozen=True, slots=True, eq=False)
class Hardware:
    """What one GPU's driver has of a machine.

    Attributes:
        page_bytes: bytes of a page.
        routes: of every level, in the chain's order.
        staging: what copies out of staging pass; no station: they take no time.
        host: the software of the GPU's process, passed by every batch; None: it takes no time.
        stations: all of the machine but hosts, by name, for reports.
    """

    page_bytes: int
    routes: Sequence[Route]
    staging: Route
    host: Host | None
    stations: Mapping[str, Station]


class ModelledDriver(ChainDriver):
    """Performs a chain's actions on modelled devices; no bytes move.

    Args:
        chain: the state machine.
        indexes: of the tiers, in the chain's order.
        hardware: that stands for the levels.
        timeline: virtual time, which drivers may share.

    Attributes:
        hardware, timeline: as given.
        measurements: latencies of the reads for each purpose.
    """

    def __init__(
        self, chain: Chain, indexes: Sequence[Index], hardware: Hardware, timeline: Timeline
    ) -> None:
        super().__init__(chain, indexes)
        self.hardware = hardware
        self.timeline = timeline
        self.measurements = measurements_by_purpose(len(hardware.routes))
        self._objects_put = 0

    def travel(
        self, route: Route, locations: U64 | I64, pages: I64 | None, end: Event, *, is_write: bool
    ) -> None:
        """Send operations on their way from now on; ``end`` happens when the last has arrived."""
        if route.first_slot:
            locations = locations + locations.dtype.type(route.first_slot)
        work = Work(locations, pages, self.hardware.page_bytes, is_write)
        route.travel(self.timeline, work, end)

    def travel_runs(self, route: Route, slots: I64, end: Event, *, is_write: bool) -> None:
        """Send pages (i64[n], where they are in a tier) on their way, neighbours together.

        An operation stays within :data:`RUN_BYTES`, so that others get their turn.
        """
        slots = np.sort(slots)
        runs = slots // max(1, RUN_BYTES // self.hardware.page_bytes)
        breaks = (np.diff(slots) != 1) | (np.diff(runs) != 0)
        starts = np.flatnonzero(np.concatenate(([True], breaks)))
        pages = np.diff(starts, append=len(slots))
        self.travel(route, slots[starts], pages, end, is_write=is_write)

    def travel_moves(self, action: Move, end: Event) -> None:
        """Let pages of a device be read, and then written elsewhere."""
        route, moves = self.hardware.routes[action.level], action.moves

        def write() -> None:
            self.travel_runs(route, moves.targets, end, is_write=True)

        self.travel_runs(route, moves.sources, write, is_write=False)

    def put_objects(self, pages: I64, end: Event) -> None:
        """Send new objects (i64[n], pages of each) on their way to the last level, as travel does.

        They have no id yet; each is put at a place of its own, for the drives of an origin share
        the load by places.
        """
        numbers = np.arange(self._objects_put, self._objects_put + len(pages), dtype=np.uint64)
        self._objects_put += len(pages)
        firsts = numbers << np.uint64(32)
        self.travel(self.hardware.routes[-1], firsts, pages, end, is_write=True)
