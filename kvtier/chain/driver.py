"""What every driver of a chain does alike: perform actions, and everything on the indexes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol, cast

import numpy as np

from kvtier.chain.actions import (
    Abort,
    Action,
    Complete,
    Copy,
    Fetch,
    Fill,
    Invalidate,
    Lookup,
    Move,
    Publish,
)
from kvtier.chain.admission import admitted
from kvtier.chain.machine import Chain
from kvtier.chain.second_touch import SecondTouch
from kvtier.pages import I64, U32, U64, Bool, LookupResult


class Index(Protocol):
    """The part of a page index that a driver needs; see :mod:`kvtier.index`."""

    def lookup(
        self,
        page_ids: U64,
        epoch: int,
        oldest_epoch: int,
        *,
        admit: Bool | None = None,
        priorities: U32 | None = None,
    ) -> LookupResult: ...

    def publish(self, slots: I64) -> None: ...

    def abort(self, slots: I64) -> None: ...

    def invalidate(self, page_ids: U64) -> I64: ...

    def peek(self, page_ids: U64) -> I64: ...


class MovingIndex(Index, Protocol):
    """An index whose lookups ask for moves; see :class:`kvtier.index.LogIndex`."""

    def moved(self, sources: I64, targets: I64, ok: Bool) -> int: ...


class ChainDriver(ABC):
    """Performs a chain's actions. A subclass moves the bytes, or models their moving.

    Args:
        chain: the state machine.
        indexes: the page index of each tier.
    """

    def __init__(self, chain: Chain, indexes: Sequence[Index]) -> None:
        self.chain = chain
        self.indexes: tuple[Index, ...] = tuple(indexes)

    def perform(self, actions: Iterable[Action]) -> None:
        """Perform actions, and those that follow from them, in order."""
        queue = deque(actions)
        while queue:
            match queue.popleft():
                case Lookup() as action:
                    queue.extend(self.look_up(action))
                case Copy() as action:
                    queue.extend(self.copy(action))
                case Fill() as action:
                    queue.extend(self.fill(action))
                case Fetch() as action:
                    self.fetch(action)
                case Move() as action:
                    self.move(action)
                case Publish(level, slots):
                    self.indexes[level].publish(slots)
                case Abort(level, slots) as action:
                    self.indexes[level].abort(slots)
                    self.chain.aborted(action)
                case Invalidate(level, page_ids):
                    self.indexes[level].invalidate(page_ids)
                case Complete() as action:
                    self.complete(action)

    def look_up(self, action: Lookup) -> Iterable[Action]:
        """Ask a tier's index for pages; returns what follows."""
        admit = self.admit(action)
        index = self.indexes[action.level]
        result = index.lookup(action.page_ids, action.epoch, action.oldest_epoch, admit=admit)
        if isinstance(action.admit, SecondTouch):
            action.admit.note(result.misses)
        return self.chain.looked_up(action, result)

    def end_move(self, action: Move, ok: Bool | None = None) -> None:
        """Go on after pages were moved; ``ok`` (bool[m]) says which of them (None: all)."""
        moves = action.moves
        if ok is None:
            ok = np.ones(len(moves.page_ids), np.bool_)
        index = cast("MovingIndex", self.indexes[action.level])
        lost = index.moved(moves.sources, moves.targets, ok)
        self.perform(self.chain.moved(action, ok, lost))

    def admit(self, action: Lookup) -> Bool | None:
        """Which of the pages that are looked up may reserve a slot; None: all."""
        return self.admitted(action, action.page_ids)

    def invalidate(self, page_ids: U64) -> None:
        """Forget pages (u64[n]) in every tier."""
        self.perform(self.chain.invalidate(page_ids))

    def resident(self, page_ids: U64, first_level: int = 0) -> Bool:
        """Which pages (u64[n]) some tier has, from a level on; touches nothing."""
        found = np.zeros(len(page_ids), np.bool_)
        for index in self.indexes[first_level:]:
            found |= index.peek(page_ids) >= 0
        return found

    def admitted(self, action: Lookup, page_ids: U64) -> Bool | None:
        """The same, of ``page_ids`` in host memory."""
        if action.is_shut:
            return np.zeros(len(page_ids), np.bool_)
        chosen = admitted(page_ids, action.epoch, action.admit)
        if not action.only_resident:
            return chosen
        found = self.resident(page_ids, action.level + 1)
        return found if chosen is None else found & chosen

    @abstractmethod
    def copy(self, action: Copy) -> Iterable[Action]:
        """Bring pages to the caller; returns what follows if that is done at once."""

    @abstractmethod
    def fill(self, action: Fill) -> Iterable[Action]:
        """Bring pages into a tier; returns what follows if that is done at once."""

    @abstractmethod
    def fetch(self, action: Fetch) -> None:
        """Start a device read; its end is reported to the chain later."""

    @abstractmethod
    def move(self, action: Move) -> None:
        """Start moving pages of a device; the end is reported by :meth:`end_move`."""

    @abstractmethod
    def complete(self, action: Complete) -> None:
        """Answer whoever waits for the batch."""
