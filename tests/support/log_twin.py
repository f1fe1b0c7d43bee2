"""The index of a log once more, in plain Python: slow, obviously right, the oracle of LogIndex."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from kvtier.index import LogGeometry
from kvtier.index.reference import ReferenceIndex
from kvtier.pages import LookupResult, PageState


@dataclass(slots=True)
class _Place:
    """A location that was given, in its segment's present life."""

    location: int
    slot: int = -1
    touched: bool = False


@dataclass(slots=True)
class _Segment:
    """A segment from its opening until it is free."""

    number: int
    generation: int
    places: list[_Place] = field(default_factory=list)
    touched_at: int = 0
    pending: int = 0
    moving: int = 0


class Answer(NamedTuple):
    """What a lookup says, as plain lists: of each row its state and location."""

    states: list[int]
    locations: list[int]
    evicted: list[int]
    bypasses: int
    moves: list[tuple[int, int, int]]


class LogTwin:
    """Takes the same calls as a LogIndex, with lists, and answers with an :class:`Answer`."""

    def __init__(self, geometry: LogGeometry, ways: int, seed: int) -> None:
        self.geometry = geometry
        slots = geometry.locations + geometry.locations // 2
        self.index = ReferenceIndex(-(-slots // ways) * ways, ways, seed)
        self.free = list(range(geometry.segments))
        self.open: list[_Segment] = []
        """Those not let go, oldest first; the last is being written."""
        self.draining: list[_Segment] = []
        self.generations = [0] * geometry.segments
        self.places: dict[int, _Place] = {}
        """By the slot of their page."""
        self.holes: list[tuple[int, int]] = []
        """Generation and offset of locations that were aborted."""

    def lookup(self, page_ids: list[int], epoch: int, oldest_epoch: int) -> Answer:
        found = self.index.lookup(np.array(page_ids, np.uint64), epoch, oldest_epoch)
        states, slots = _by_row(found, len(page_ids))
        reserved = [
            int(slot)
            for slot, state in zip(found.misses.slots, found.misses.states, strict=True)
            if state == PageState.EMPTY and slot >= 0
        ]
        for slot in reserved:
            self._leave(slot)
        for slot, state in zip(slots, states, strict=True):
            if state != PageState.EMPTY:
                self.places[slot].touched = True
                self._segment_of(self.places[slot].location).touched_at = epoch
        at = {slot: place.location for slot, place in self.places.items()}
        evicted = found.evicted.tolist()
        bypasses = found.bypasses
        moves: list[tuple[int, int, int]] = []
        if reserved:
            moves = self._make_room(len(reserved), oldest_epoch, evicted)
            holes = sorted(self.holes)[-len(reserved) :]
            del self.holes[len(self.holes) - len(holes) :]
            places = [self._again(*hole) for hole in holes]
            while len(places) < len(reserved) and self._room():
                places.append(self._next_place())
            for slot, place in zip(reserved, places, strict=False):
                self._settle(slot, place)
                at[slot] = place.location
                segment = self._segment_of(place.location)
                segment.pending += 1
                segment.touched_at = epoch
            rest = reserved[len(places) :]
            self.index.abort(np.array(rest, np.int64))
            bypasses += len(rest)
        locations = [at.get(slot, -1) for slot in slots]
        return Answer(states, locations, evicted, bypasses, moves)

    def publish(self, locations: list[int]) -> None:
        self.index.publish(np.array([self._slot_at(one) for one in locations], np.int64))
        for location in locations:
            self._segment_of(location).pending -= 1

    def abort(self, locations: list[int]) -> None:
        slots = [self._slot_at(one) for one in locations]
        self.index.abort(np.array(slots, np.int64))
        for slot, location in zip(slots, locations, strict=True):
            segment = self._segment_of(location)
            segment.pending -= 1
            self.holes.append((segment.generation, location % self.geometry.segment_pages))
            self._leave(slot)
        self.holes.sort()

    def invalidate(self, page_ids: list[int]) -> list[int]:
        slots = self.index.invalidate(np.array(page_ids, np.uint64)).tolist()
        locations = [self.places[slot].location for slot in slots]
        for slot in slots:
            self._leave(slot)
        return locations

    def peek(self, page_ids: list[int]) -> list[int]:
        slots = self.index.peek(np.array(page_ids, np.uint64)).tolist()
        return [self.places[slot].location if slot >= 0 else -1 for slot in slots]

    def moved(self, sources: list[int], targets: list[int], ok: list[bool]) -> int:
        lost = 0
        for source, target, came in zip(sources, targets, ok, strict=True):
            here, there = self._segment_of(source), self._segment_of(target)
            there.touched_at = max(there.touched_at, here.touched_at)
            here.moving -= 1
            there.pending -= 1
            slot = self._slot_at(source)
            if slot < 0:
                continue
            touched = self.places[slot].touched
            self._leave(slot)
            if came:
                place = self._place_at(target)
                place.touched = touched
                self._settle(slot, place)
            else:
                self.index.drop(np.array([slot]))
                lost += 1
        return lost

    def pages(self) -> dict[int, tuple[int, int]]:
        """Page and state of each location that holds one."""
        snapshot = self.index.snapshot()
        return {
            place.location: (int(snapshot.tags[slot]), int(snapshot.states[slot]))
            for slot, place in self.places.items()
        }

    # -- segments -----------------------------------------------------------------------------

    def _make_room(
        self, pages: int, oldest_epoch: int, evicted: list[int]
    ) -> list[tuple[int, int, int]]:
        moves: list[tuple[int, int, int]] = []
        self._free_drained(oldest_epoch)
        full = [segment for segment in self.open if self._is_full(segment)]
        for segment in full:
            if not self._is_short_of(pages) or segment.pending:
                break
            held = [place for place in segment.places if place.slot >= 0]
            hot = [place for place in held if place.touched]
            youngest = sorted(hot, key=lambda place: -self.index._slots[place.slot].epoch)
            stays_max = min(self.geometry.segment_pages // 2, self._room())
            kept = sorted(youngest[:stays_max], key=lambda place: place.location)
            for place in held:
                if place in kept:
                    continue
                evicted.append(self.index._slots[place.slot].page)
                self.index.drop(np.array([place.slot]))
                self._leave(place.slot)
            for place in kept:
                target = self._next_place()
                self._segment_of(target.location).pending += 1
                segment.moving += 1
                place.touched = False
                page = self.index._slots[place.slot].page
                moves.append((page, place.location, target.location))
            self.open.remove(segment)
            self.draining.append(segment)
            self.holes = [hole for hole in self.holes if hole[0] != segment.generation]
            self._free_drained(oldest_epoch)
        return moves

    def _free_drained(self, oldest_epoch: int) -> None:
        while (
            self.draining
            and not self.draining[0].moving
            and self.draining[0].touched_at < oldest_epoch
        ):
            self.free.append(self.draining.pop(0).number)

    def _is_full(self, segment: _Segment) -> bool:
        return len(segment.places) == self.geometry.segment_pages

    def _is_short_of(self, pages: int) -> bool:
        new = max(0, pages - len(self.holes))
        if self.open:
            new -= self.geometry.segment_pages - len(self.open[-1].places)
        opened = len(self.open) + max(0, -(-new // self.geometry.segment_pages))
        return self.geometry.segments - opened < self.geometry.spare_segments

    def _room(self) -> int:
        pages = self.geometry.segment_pages
        left = pages - len(self.open[-1].places) if self.open else 0
        return left + len(self.free) * pages

    def _next_place(self) -> _Place:
        if not self.open or self._is_full(self.open[-1]):
            number = self.free.pop(0)
            self.generations[number] = max(self.generations) + 1
            self.open.append(_Segment(number, self.generations[number]))
        segment = self.open[-1]
        first = segment.number * self.geometry.segment_pages
        segment.places.append(_Place(first + len(segment.places)))
        return segment.places[-1]

    def _again(self, generation: int, offset: int) -> _Place:
        (segment,) = [one for one in self.open if one.generation == generation]
        segment.places[offset].touched = False
        return segment.places[offset]

    # -- places -------------------------------------------------------------------------------

    def _segment_of(self, location: int) -> _Segment:
        number = location // self.geometry.segment_pages
        (segment,) = [one for one in (*self.open, *self.draining) if one.number == number]
        return segment

    def _place_at(self, location: int) -> _Place:
        return self._segment_of(location).places[location % self.geometry.segment_pages]

    def _slot_at(self, location: int) -> int:
        return self._place_at(location).slot

    def _settle(self, slot: int, place: _Place) -> None:
        place.slot = slot
        self.places[slot] = place

    def _leave(self, slot: int) -> None:
        place = self.places.pop(slot, None)
        if place is not None:
            place.slot = -1


def _by_row(found: LookupResult, count: int) -> tuple[list[int], list[int]]:
    """State and slot of each row."""
    states = np.full(count, PageState.VALID, np.uint8)
    slots = np.full(count, -1)
    slots[slice(None) if found.rows is None else found.rows] = found.hits
    misses = found.misses
    states[misses.rows] = misses.states[misses.page_of]
    slots[misses.rows] = misses.slots[misses.page_of]
    return states.tolist(), slots.tolist()


def answer_of(found: LookupResult, count: int) -> Answer:
    """A LogIndex's answer as the twin gives it."""
    states, locations = _by_row(found, count)
    moves = []
    if found.moves is not None:
        columns = [column.tolist() for column in found.moves]
        moves = list(zip(*columns, strict=True))
    return Answer(states, locations, found.evicted.tolist(), found.bypasses, moves)
