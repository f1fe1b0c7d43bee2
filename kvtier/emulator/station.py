"""What serves operations in virtual time: drives, memories, links; and the way through several."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol

from kvtier.emulator.timeline import Event, Timeline
from kvtier.pages import I64, U64
from kvtier.settings import DeviceModel


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Operations that reach a station together.

    Attributes:
        locations: u64[n] or i64[n], the first page of each: a PageId at an origin, else a slot.
        pages: i64[n], pages of each; None: one.
        page_bytes: bytes of a page.
        is_write: they bring pages to the device.
    """

    locations: U64 | I64
    pages: I64 | None
    page_bytes: int
    is_write: bool

    @property
    def operations(self) -> int:
        return len(self.locations)

    @property
    def total_pages(self) -> int:
        return len(self.locations) if self.pages is None else int(self.pages.sum())

    @property
    def size_bytes(self) -> int:
        return self.total_pages * self.page_bytes


class ReadLoad(NamedTuple):
    """What a station is, and how much it has let through on the way to the GPU.

    Attributes:
        model: of the station.
        reads: operations that it served.
        pages: of them all together.
    """

    model: DeviceModel
    reads: int
    pages: int


class Server(Protocol):
    """Serves work in the order in which it comes; calls have non-decreasing times."""

    @property
    def busy_ns(self) -> int:
        """Time that it was occupied, all its servers taken together as one."""
        ...

    def serve(self, now_ns: int, work: Work) -> int:
        """Queue work at ``now_ns``; returns when the last of it is done, in ns."""
        ...


class Station(Server, Protocol):
    """A server that a report knows by its name."""

    @property
    def load(self) -> ReadLoad:
        """The reads that it served so far."""
        ...


@dataclass(frozen=True, slots=True)
class Route:
    """The stations that the pages of a level pass, one after the other.

    Attributes:
        reads: on their way to the GPU.
        writes: on their way to the level.
        first_slot: where the GPU's share begins of a device that several GPUs share.
    """

    reads: tuple[Server, ...]
    writes: tuple[Server, ...]
    first_slot: int = 0

    def behind(self, for_reads: Server, for_writes: Server) -> Route:
        """The same route, with a station that work passes first."""
        return replace(self, reads=(for_reads, *self.reads), writes=(for_writes, *self.writes))

    def between(self, before: Server, after: Server) -> Route:
        """The same route, with a station that work passes first, and one that it passes last."""
        return replace(
            self, reads=(before, *self.reads, after), writes=(before, *self.writes, after)
        )

    def travel(self, timeline: Timeline, work: Work, arrived: Event) -> None:
        """Send work from now on through every station, and then let ``arrived`` happen."""
        stations = self.writes if work.is_write else self.reads
        if stations:
            _pass_on(stations, 0, timeline, work, arrived)
        else:
            arrived()


def _pass_on(
    stations: tuple[Server, ...], number: int, timeline: Timeline, work: Work, arrived: Event
) -> None:
    # No closure that calls itself: it would be a reference cycle, and keep the work's arrays, and
    # the flight behind ``arrived``, until the garbage collector comes.
    end_ns = stations[number].serve(timeline.now_ns, work)
    number += 1
    is_last = number == len(stations)
    event = arrived if is_last else partial(_pass_on, stations, number, timeline, work, arrived)
    timeline.at(end_ns, event)
