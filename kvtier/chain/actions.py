"""What the chain asks its driver to do. An action concerns a whole batch, never a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from kvtier.chain.admission import AdmissionRule
from kvtier.chain.extents import Extents
from kvtier.chain.flight import Flight, Read, Write
from kvtier.pages import I64, U64, Moves


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """Look pages up in a tier's index; answer with ``Chain.looked_up``.

    Lookups are performed in the order in which they were asked for.

    Attributes:
        admit: which of the missing pages may reserve a slot (:mod:`kvtier.chain.admission`).
        only_resident: of these, only those that a level below has: no others will come.
        is_shut: none of them, for the write limit of the tier is reached.
    """

    level: int
    ticket: Read | Flight | Write
    page_ids: U64
    epoch: int
    oldest_epoch: int
    admit: AdmissionRule
    only_resident: bool = False
    is_shut: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Fetch:
    """Read a flight's extents from its level into a staging buffer; answer with ``fetched``."""

    level: int
    flight: Flight
    extents: Extents
    buffer: int


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """Bring pages to the caller; answer with ``copied``.

    Attributes:
        flight: where the bytes are: its staging buffer, or the slots of its level in memory;
            None: slots of the first tier.
        sources: i64[m], buffer rows or slots; without a flight, the ``hits`` of a lookup.
        rows: i64[m], rows of the caller's batch, or None for all of them in order.
    """

    level: int
    read: Read
    flight: Flight | None
    sources: I64
    rows: I64 | None


@dataclass(frozen=True, slots=True, eq=False)
class Fill:
    """Bring pages into reserved slots of a tier; answer with ``filled``.

    Attributes:
        origin: where the bytes are: a flight's buffer or slots, or a write's payload rows.
        sources: i64[m], rows or slots there.
        slots: i64[m], where they go.
        page_ids: u64[m], what they are.
    """

    level: int
    origin: Flight | Write
    sources: I64
    slots: I64
    page_ids: U64


@dataclass(frozen=True, slots=True, eq=False)
class Move:
    """Write pages of a tier again elsewhere in it; answer with ``ChainDriver.end_move``.

    Attributes:
        number: its name.
        ticket: of the lookup that makes room by it.
        moves: from where to where.
    """

    level: int
    number: int
    ticket: Read | Flight | Write
    moves: Moves


@dataclass(frozen=True, slots=True, eq=False)
class Publish:
    """Make filled slots visible."""

    level: int
    slots: I64


@dataclass(frozen=True, slots=True, eq=False)
class Abort:
    """Give reserved slots back."""

    level: int
    slots: I64


@dataclass(frozen=True, slots=True, eq=False)
class Invalidate:
    """Forget pages, if the tier has them."""

    level: int
    page_ids: U64


@dataclass(frozen=True, slots=True, eq=False)
class Complete:
    """A batch is done: every row of a read has its status, every fill of a write its end."""

    ticket: Read | Write


Action: TypeAlias = Lookup | Fetch | Copy | Fill | Move | Publish | Abort | Invalidate | Complete


def if_any(action: type[Publish] | type[Abort], level: int, slots: I64) -> list[Action]:
    """The action on slots (i64[m]), none on no slots."""
    return [action(level, slots)] if len(slots) else []
