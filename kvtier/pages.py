"""Pages: the unit of caching, how one is named, and what can be said of one.

A *page* is ``page_bytes`` of an *object*, an immutable run of pages. A ``PageId`` is a u64:
the object id (u32) in the high half, the page index inside the object (u32) in the low half,
so that neighbours in an object have neighbouring ids.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kvtier.errors import SettingsError

U8: TypeAlias = NDArray[np.uint8]
U32: TypeAlias = NDArray[np.uint32]
U64: TypeAlias = NDArray[np.uint64]
I64: TypeAlias = NDArray[np.int64]
Bool: TypeAlias = NDArray[np.bool_]

PAGE_BYTES_DEFAULT: Final = 4096
PAGE_BYTES_QUANTUM: Final = 512
PAGE_BYTES_MAX: Final = 4 << 20
OBJECT_PAGES_MAX: Final = (1 << 32) - 1
"""Pages of one object; one less than the page index can count, so objects never adjoin."""

SETS_MAX: Final = (1 << 32) - 1
"""Most sets of an index: a page is placed in its set by multiplying in halves."""

_PAGE_BITS: Final = np.uint64(32)
_PAGE_MASK: Final = np.uint64(0xFFFF_FFFF)


class PageStatus(enum.IntEnum):
    """What became of one demand read."""

    OK = 0
    ABSENT = 1
    """No level has the page."""
    LATE = 2
    """The deadline passed first; the fetch goes on and still fills the tiers."""
    FAILED = 3
    """The last level could not read the page."""


class Purpose(enum.IntEnum):
    """What a read is for: the two kinds are nothing alike, so reports keep them apart."""

    UNSTATED = 0
    PREFIX = 1
    """A prefix load: whole KV blocks at the admission of a request, bound by bandwidth."""
    SPARSE = 2
    """Single pages chosen by what was read before: sparse attention, graph search. IOPS count."""

    @property
    def word(self) -> str:
        """As files, reports and options have it."""
        return self.name.lower()


class PageState(enum.IntEnum):
    """What an index knows of a requested page, or of a slot."""

    EMPTY = 0
    """Of a request: a miss. Of a slot: free."""
    PENDING = 1
    """A slot is reserved, its bytes are not there yet."""
    VALID = 2
    """A hit: the slot's bytes are in place and verified."""


EMPTY: Final = np.uint8(PageState.EMPTY)
PENDING: Final = np.uint8(PageState.PENDING)
VALID: Final = np.uint8(PageState.VALID)
"""States as arrays have them: to compare an array with a member of the enum takes NumPy several
times as long."""


class Misses(NamedTuple):
    """Rows of a batch that need more than a hit: ``m`` of them, that ask for ``k`` pages.

    Always host memory. Pages are numbered in the order of the first row that asks for each.

    Attributes:
        rows: i64[m], ascending.
        leads: bool[m], whether a row is the first that asks for its page.
        page_of: i64[m], the number of the page that a row asks for.
        page_ids: u64[k].
        states: u8[k], a :class:`PageState`, as it was when the batch arrived.
        slots: i64[k]. PENDING pages: the page's slot. EMPTY ones: the slot now reserved for the
            page, or -1 (bypass, or not admitted).
    """

    rows: I64
    leads: Bool
    page_of: I64
    page_ids: U64
    states: U8
    slots: I64

    @property
    def reserved(self) -> I64:
        """i64[k], the slot now reserved for each page, or -1."""
        return np.where(self.states == EMPTY, self.slots, -1)


NO_MISSES: Final = Misses(
    np.empty(0, np.int64),
    np.empty(0, np.bool_),
    np.empty(0, np.int64),
    np.empty(0, np.uint64),
    np.empty(0, np.uint8),
    np.empty(0, np.int64),
)


class Moves(NamedTuple):
    """Pages of a log that are to be written again, elsewhere in it.

    Attributes:
        page_ids: u64[m].
        sources: i64[m], their locations, ascending within a segment.
        targets: i64[m], their new ones.
    """

    page_ids: U64
    sources: I64
    targets: I64


class LookupResult(NamedTuple):
    """What an index answers for one batch of ``n`` page ids (DESIGN: probe, fold, plan).

    Attributes:
        hits: i64[h], the slot of each row that hit, in the order of the rows. An index on a GPU
            gives them there (:class:`kvtier.gpu.DeviceHits`).
        rows: i64[h], the rows that hit, ascending; None: all ``n``.
        misses: all other rows.
        evicted: u64[e], ids of the pages dropped to make room, in the order of the plan.
        bypasses: admitted pages for which their set had no evictable way, or their log no room.
        moves: of a log, what must be moved before a segment can be written again.
    """

    hits: I64
    rows: I64 | None
    misses: Misses
    evicted: U64
    bypasses: int
    moves: Moves | None = None


def all_hit(hits: I64) -> LookupResult:
    """The answer for a batch of which every row hit."""
    return LookupResult(hits, None, NO_MISSES, NO_MISSES.page_ids, 0)


def make_page_ids(object_id: int, pages: NDArray[np.integer]) -> U64:
    """PageIds of the given page indices (any integer dtype, any shape) of one object."""
    return (np.uint64(object_id) << _PAGE_BITS) | pages.astype(np.uint64)


def expand_runs(first: U64, counts: NDArray[np.integer]) -> U64:
    """Ids of runs of neighbours (of pages, of blocks), run after run.

    Args:
        first: u64[k], the id that each run begins with.
        counts: integers[k], ids of each run.
    """
    lengths = counts.astype(np.int64)
    before = np.cumsum(lengths) - lengths
    # u64 wraps: what is taken off here comes back with the row number.
    ids: U64 = np.repeat(first - before.astype(np.uint64), lengths)
    ids += np.arange(len(ids), dtype=np.uint64)
    return ids


def expand_objects(object_ids: U32, page_counts: NDArray[np.integer]) -> U64:
    """PageIds of every page of several objects (u32[k], integers[k]), object after object."""
    return expand_runs(object_ids.astype(np.uint64) << _PAGE_BITS, page_counts)


def object_ids_of(page_ids: U64) -> U32:
    """The object half of each PageId."""
    return (page_ids >> _PAGE_BITS).astype(np.uint32)


def page_indices_of(page_ids: U64) -> U32:
    """The page half of each PageId."""
    return (page_ids & _PAGE_MASK).astype(np.uint32)


def check_page_bytes(page_bytes: int) -> int:
    """Return ``page_bytes``, or raise :class:`SettingsError` where it cannot be a page size."""
    if (
        not PAGE_BYTES_QUANTUM <= page_bytes <= PAGE_BYTES_MAX
        or page_bytes % PAGE_BYTES_QUANTUM != 0
    ):
        raise SettingsError(
            f"page_bytes is {page_bytes}: it must be a multiple of {PAGE_BYTES_QUANTUM} "
            f"from {PAGE_BYTES_QUANTUM} to {PAGE_BYTES_MAX}"
        )
    return page_bytes
