"""What every engine of the page index does, and what they share."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kvtier.errors import SettingsError
from kvtier.pages import I64, SETS_MAX, U8, U32, U64, Bool, LookupResult
from kvtier.rows import Scalar, as_column

WAYS: Final = (8, 16, 32)


class IndexSnapshot(NamedTuple):
    """Every slot of an index, for comparison; one element per slot.

    Attributes:
        tags: u64, the page id; 0 in an EMPTY slot.
        digests: u8, the low byte of the page's hash; 0 in an EMPTY slot.
        states: u8, a :class:`kvtier.pages.PageState`.
        stamps: u64, epoch of the last touch; 0 where there was none or it is long past.
        priorities: u32; 0 in an EMPTY slot.
    """

    tags: U64
    digests: U8
    states: U8
    stamps: U64
    priorities: U32


class PageIndex(Protocol):
    """Which page lies in which slot: set-associative, batched, deterministic.

    Slot ``s`` is way ``s % ways`` of set ``s // ways``; a page can only lie in the set of its hash
    (:mod:`kvtier.hashing`). Every engine gives the same answers, slot by slot, for the same
    calls. An index has one owner: its calls must not overlap.
    """

    @property
    def slots(self) -> int:
        """``sets * ways``."""
        ...

    @property
    def sets(self) -> int:
        """Number of sets; any, not only a power of two."""
        ...

    @property
    def ways(self) -> int:
        """Slots of a set: 8, 16 or 32."""
        ...

    def lookup(
        self,
        page_ids: U64,
        epoch: int,
        oldest_epoch: int,
        *,
        admit: Bool | None = None,
        priorities: U32 | None = None,
    ) -> LookupResult:
        """Find a batch of pages, and reserve slots for those that are missing; one atomic step.

        1. *Probe*: every request sees the slots as they were when the batch arrived. Slots found,
           VALID or PENDING, are stamped with ``epoch``.
        2. *Fold*: all rows of one page that did not hit follow the first of them, the leader. They
           are answered once for each page.
        3. *Plan*: for each missing page that is admitted, in ascending order of the hash, a victim
           is chosen in its set: an EMPTY slot before a VALID one, then the lowest priority, then
           the oldest stamp, then the lowest way. A PENDING slot is never a victim, nor is any slot
           (EMPTY ones too: a reader of the dropped page may still be there) whose stamp is not
           older than ``oldest_epoch``. The victim becomes PENDING, with this epoch as its stamp.

        Args:
            page_ids: u64[n].
            epoch: number of the batch, from 1; never less than at the call before.
            oldest_epoch: the oldest epoch that is not released yet, at most ``epoch``.
            admit: bool[n], whether a missing page may take a slot; the leader's row decides. None
                admits all.
            priorities: u32[n], what to give a newly reserved slot; the leader's row decides. Higher
                ones are evicted later. None gives 0.

        Raises:
            ValueError: epochs out of order, or an array of a wrong shape or dtype.
            LimitError: ``oldest_epoch`` lies about 2**32 epochs back.
            Nothing changed in either case.
        """
        ...

    def publish(self, slots: I64) -> None:
        """Make PENDING slots VALID: their bytes are in place and verified.

        Raises:
            ValueError: a slot is not PENDING; nothing changed.
        """
        ...

    def abort(self, slots: I64) -> None:
        """Make PENDING slots EMPTY and free at once: their bytes never became readable.

        Raises:
            ValueError: a slot is not PENDING; nothing changed.
        """
        ...

    def invalidate(self, page_ids: U64) -> I64:
        """Forget pages. Their slots keep their stamps, so readers there stay undisturbed.

        PENDING and unknown pages are left alone.

        Returns:
            i64[k], the slots that held the VALID ones, in the order of the request.
        """
        ...

    def peek(self, page_ids: U64) -> I64:
        """i64[n], the slot of each VALID page, else -1. Changes nothing."""
        ...

    def snapshot(self) -> IndexSnapshot:
        """A copy of every slot."""
        ...


def sets_for(slots: int, ways: int) -> int:
    """How many whole sets ``slots`` makes; at least one.

    Raises:
        SettingsError: ``ways`` is not 8, 16 or 32, or ``slots`` is out of range.
    """
    if ways not in WAYS:
        raise SettingsError(f"ways is {ways}: it must be one of 8, 16 and 32")
    if not 1 <= slots <= SETS_MAX * ways:
        raise SettingsError(f"slots is {slots}: it must be from 1 to {SETS_MAX * ways}")
    return max(1, slots // ways)


def hint_column(
    values: NDArray[Scalar] | None, dtype: type[Scalar], name: str, count: int
) -> NDArray[Scalar]:
    """An optional per-row argument of ``lookup``; None gives an empty column.

    Raises:
        ValueError: it has another dtype, or not one value per row.
    """
    if values is None:
        return np.empty(0, dtype)
    column = as_column(values, dtype, name)
    if column.size != count:
        raise ValueError(f"{name} has {column.size} values for {count} page_ids: give one per row")
    return column


def check_pending(wrong: int, count: int, action: str) -> None:
    """Raise ValueError if ``wrong`` of ``count`` slots could not take ``action``."""
    if wrong:
        raise ValueError(
            f"{wrong} of {count} slots to {action} are not PENDING: "
            "each reserved slot is published or aborted once"
        )
