"""All flights under way, and the in-flight table that says which page is on which of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from kvtier.chain.epochs import Epochs
from kvtier.chain.flight import Flight, TakeOff, Waiter, group
from kvtier.inflight import InflightTable
from kvtier.pages import I64, U64


class Flights:
    """Takes pages into flight, divides flights, lands them; each holds its epoch.

    The table knows with what a page took off, and that knows the flight that has it now: dividing
    a flight leaves the table as it is.

    Args:
        pages_max: pages in flight at once.
        epochs: what flights hold.
    """

    def __init__(self, pages_max: int, epochs: Epochs) -> None:
        self._table = InflightTable(pages_max)
        self._epochs = epochs
        self._by_number: dict[int, Flight] = {}
        self._take_offs: list[TakeOff | None] = []
        self._free_berths: list[int] = []
        self._last_number = 0
        self._lone_pages = 0

    def __len__(self) -> int:
        return len(self._by_number)

    @property
    def room_pages(self) -> int:
        """Pages that can still take off."""
        return self._table.free - self._lone_pages

    def find(self, page_ids: U64) -> tuple[I64, I64]:
        """Number of the flight that carries each page, and its position there; -1 for none."""
        if len(self._table) == 0:
            nowhere = np.full(len(page_ids), -1)
            return nowhere, nowhere
        berths, positions = self._table.find(page_ids)
        numbers = berths
        for berth, chosen in group(berths):
            take_off = self._take_offs[berth] if berth >= 0 else None
            if take_off is not None:
                spots = positions[chosen]
                numbers[chosen] = take_off.numbers[spots]
                positions[chosen] = take_off.positions[spots]
        return numbers, positions

    def grouped(self, numbers: I64) -> Iterator[tuple[Flight, I64]]:
        """Each flight of which the number occurs, with the indices at which it does."""
        for number, chosen in group(numbers):
            if number >= 0:
                yield self._by_number[number], chosen

    def take_off(self, epoch: int, page_ids: U64, waiter: Waiter, *, lone: bool = False) -> Flight:
        """A new flight, of distinct pages unless it is ``lone``: then nobody finds it.

        Raises:
            LimitError: there is no room for it; nothing changed.
        """
        number = self._last_number + 1
        spots = np.arange(len(page_ids))
        berth = -1
        if not lone:
            berth = self._free_berths[-1] if self._free_berths else len(self._take_offs)
            self._table.assign(page_ids, berth, spots)
        take_off = TakeOff(berth, len(page_ids), np.full(len(page_ids), number), spots.copy())
        if lone:
            self._lone_pages += len(page_ids)
        elif self._free_berths:
            self._take_offs[self._free_berths.pop()] = take_off
        else:
            self._take_offs.append(take_off)
        flight = Flight(number, epoch, page_ids, [], [waiter], take_off, spots, lone=lone)
        self._add(flight)
        return flight

    def divide(self, flight: Flight, order: I64, ends: Sequence[int]) -> list[Flight | None]:
        """Cut a flight into parts; None for an empty part.

        Args:
            flight: ends here, unless one part is all of it: that part is the flight as it is.
            order: i64[m], its pages (positions), part after part; ascending in a part that is all.
            ends: where each part ends.
        """
        spans = list(pairwise((0, *ends)))
        if (0, len(flight)) in spans:
            return [flight if start < end else None for start, end in spans]
        flights: list[Flight | None] = []
        dealt = flight.split_waiters(order, np.array(ends))
        for (start, end), waiters in zip(spans, dealt, strict=True):
            if start == end:
                flights.append(None)
                continue
            part = flight.take(self._last_number + 1, order[start:end], waiters)
            part.take_off.numbers[part.spots] = part.number
            part.take_off.positions[part.spots] = np.arange(len(part))
            self._add(part)
            flights.append(part)
        self._remove(flight)
        return flights

    def doom(self, page_ids: U64) -> None:
        """Pages were invalidated: those on their way will be delivered, but not cached."""
        numbers, positions = self.find(page_ids)
        for flight, chosen in self.grouped(numbers):
            if flight.doomed is None:
                flight.doomed = np.zeros(len(flight), np.bool_)
            flight.doomed[positions[chosen]] = True

    def land(self, flight: Flight) -> None:
        """End a flight: its pages are on their way no more."""
        if flight.lone:
            self._lone_pages -= len(flight)
        else:
            self._table.remove(flight.page_ids)
            flight.take_off.pages_left -= len(flight)
            if flight.take_off.pages_left == 0:
                self._take_offs[flight.take_off.berth] = None
                self._free_berths.append(flight.take_off.berth)
        self._remove(flight)

    def _add(self, flight: Flight) -> None:
        self._last_number = flight.number
        self._by_number[flight.number] = flight
        self._epochs.hold(flight.epoch)

    def _remove(self, flight: Flight) -> None:
        del self._by_number[flight.number]
        self._epochs.let_go(flight.epoch)
