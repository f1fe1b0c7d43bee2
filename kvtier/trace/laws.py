"""What must hold in every trace, checked rows by rows, when one is written and when one is read."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvtier.pages import I64, Bool, Purpose
from kvtier.trace.columns import PageColumns, Place, RequestColumns
from kvtier.trace.metadata import TraceObject
from kvtier.trace.records import NO_PARENT, READ, WRITE
from kvtier.trace.schema import BLOCKS_PER_REQUEST_MAX, EXTENT_PAGES_MAX, ROWS_PER_REQUEST_MAX

_U64_MAX: Final = np.uint64((1 << 64) - 1)
_PURPOSES: Final = ", ".join(f"{purpose} ({purpose.word})" for purpose in Purpose)


def _first(broken: Bool) -> int | None:
    """The first row that breaks a law."""
    row = int(np.argmax(broken)) if len(broken) else 0
    return row if len(broken) and broken[row] else None


def _before(values: NDArray[np.integer], carried: int) -> I64:
    """Each row's predecessor, as i64; ``carried`` for the first row."""
    return np.concatenate((np.array([carried], np.int64), values[:-1].astype(np.int64)))


class RequestLaws:
    """The laws of kind ``requests``, for rows given in file order."""

    def __init__(self) -> None:
        self._last_t_ns = 0

    def check(self, columns: RequestColumns, place: Place) -> None:
        """Raise :class:`kvtier.errors.TraceError` for the first law that a row breaks."""
        if not len(columns):
            return
        self._check_times(columns, place)
        _check_parents(columns, place)
        _check_runs(columns, place)
        self._last_t_ns = int(columns.t_ns[-1])

    def _check_times(self, columns: RequestColumns, place: Place) -> None:
        before = _before(columns.t_ns, self._last_t_ns)
        row = _first(columns.t_ns < before)
        if row is not None:
            what = f"{columns.t_ns[row]} is less than {before[row]}; sort requests by time, from 0"
            raise place.error(row, "t_ns", what)


def _check_parents(columns: RequestColumns, place: Place) -> None:
    numbers = np.arange(len(columns), dtype=np.int64) + place.first_row
    row = _first((columns.parent < NO_PARENT) | (columns.parent >= numbers))
    if row is not None:
        what = f"{columns.parent[row]} is no earlier request; give an earlier row's number, or -1"
        raise place.error(row, "parent", what)


def _check_runs(columns: RequestColumns, place: Place) -> None:
    offsets = columns.run_offsets
    row = _first(np.diff(offsets) == 0)
    if row is not None:
        raise place.error(row, "run_start", "is empty; a request has at least one block")

    run = _first(columns.run_len == 0)
    if run is not None:
        raise place.error(_row_of(run, offsets), "run_len", "0; a run has at least one block")

    # A first length of 0 was refused above, so `run_len - 1` cannot wrap.
    room = _U64_MAX - (columns.run_len.astype(np.uint64) - np.uint64(1))
    run = _first(columns.run_start > room)
    if run is not None:
        what = f"{columns.run_start[run]} and its length exceed 64 bits; number blocks lower"
        raise place.error(_row_of(run, offsets), "run_start", what)

    blocks = np.add.reduceat(columns.run_len.astype(np.int64), offsets[:-1])
    row = _first(blocks > BLOCKS_PER_REQUEST_MAX)
    if row is not None:
        what = f"{blocks[row]} blocks; a request has at most {BLOCKS_PER_REQUEST_MAX}"
        raise place.error(row, "run_len", what)


def _row_of(run: int, offsets: I64) -> int:
    return int(np.searchsorted(offsets, run, side="right")) - 1


class PageLaws:
    """The laws of kind ``page_io``, for rows given in file order."""

    def __init__(self, objects: tuple[TraceObject, ...]) -> None:
        self._object_pages = np.array([item.pages for item in objects], np.int64)
        self._request = -1
        self._request_t_ns = 0
        self._request_rows = 0
        self._batch = 0
        self._op = READ
        self._purpose: int = Purpose.UNSTATED
        self._t_ns = 0

    def check(self, columns: PageColumns, place: Place) -> None:
        """Raise :class:`kvtier.errors.TraceError` for the first law that a row breaks."""
        if not len(columns):
            return
        step = columns.request.astype(np.int64) - _before(columns.request, self._request)
        row = _first((step != 0) & (step != 1))
        if row is not None:
            what = f"{columns.request[row]}; number requests 0, 1, 2… and keep their rows together"
            raise place.error(row, "request", what)
        starts = step == 1
        self._check_times(columns, starts, place)
        self._check_batches(columns, starts, place)
        self._check_extents(columns, place)
        self._check_sizes(starts, place)
        self._carry(columns, starts)

    def _check_times(self, columns: PageColumns, starts: Bool, place: Place) -> None:
        before = np.where(starts, 0, _before(columns.t_ns, self._t_ns))
        row = _first(columns.t_ns < before)
        if row is not None:
            what = f"{columns.t_ns[row]} is less than {before[row]}; sort rows by time, from 0"
            raise place.error(row, "t_ns", what)
        first_rows = np.flatnonzero(starts)
        begun = columns.t_ns[first_rows]
        before = _before(begun, self._request_t_ns) if len(begun) else begun
        late = _first(begun < before)
        if late is not None:
            what = f"{begun[late]} is less than {before[late]}; sort requests by their first row"
            raise place.error(int(first_rows[late]), "t_ns", what)

    def _check_batches(self, columns: PageColumns, starts: Bool, place: Place) -> None:
        before = np.where(starts, 0, _before(columns.batch, self._batch))
        row = _first(columns.batch < before)
        if row is not None:
            what = f"{columns.batch[row]} is less than {before[row]}; batches of a request ascend"
            raise place.error(row, "batch", what)
        row = _first((columns.op != READ) & (columns.op != WRITE))
        if row is not None:
            what = f"{columns.op[row]}; it must be {READ} (read) or {WRITE} (write)"
            raise place.error(row, "op", what)
        row = _first(columns.purpose > max(Purpose))
        if row is not None:
            what = f"{columns.purpose[row]}; it must be one of {_PURPOSES}"
            raise place.error(row, "purpose", what)
        same_batch = ~starts & (columns.batch == before)
        constant = (("op", columns.op, self._op), ("purpose", columns.purpose, self._purpose))
        for name, values, carried in constant:
            row = _first(same_batch & (values != _before(values, carried)))
            if row is not None:
                raise place.error(row, name, "differs within a batch; begin a new batch")

    def _check_extents(self, columns: PageColumns, place: Place) -> None:
        row = _first(columns.object >= len(self._object_pages))
        if row is not None:
            what = f"{columns.object[row]}; the file's table has {len(self._object_pages)} objects"
            raise place.error(row, "object", what)
        row = _first((columns.pages == 0) | (columns.pages > EXTENT_PAGES_MAX))
        if row is not None:
            what = f"{columns.pages[row]}; a row has 1 to {EXTENT_PAGES_MAX} pages"
            raise place.error(row, "pages", what)
        ends = columns.page.astype(np.int64) + columns.pages
        lengths = self._object_pages[columns.object]
        row = _first(ends > lengths)
        if row is not None:
            what = f"ends at page {ends[row]} of an object of {lengths[row]}; correct one of them"
            raise place.error(row, "page", what)

    def _check_sizes(self, starts: Bool, place: Place) -> None:
        first_rows = np.flatnonzero(starts)
        edges = np.concatenate((np.zeros(1, np.int64), first_rows, [len(starts)]))
        rows = np.diff(edges)
        rows[0] += self._request_rows
        if rows.max() > ROWS_PER_REQUEST_MAX:
            row = int(edges[int(np.argmax(rows)) + 1]) - 1
            what = f"more than {ROWS_PER_REQUEST_MAX} rows in one request; cut it into several"
            raise place.error(row, "request", what)
        self._request_rows = int(rows[-1])

    def _carry(self, columns: PageColumns, starts: Bool) -> None:
        first_rows = np.flatnonzero(starts)
        if len(first_rows):
            self._request_t_ns = int(columns.t_ns[first_rows[-1]])
        self._request = int(columns.request[-1])
        self._batch = int(columns.batch[-1])
        self._op = int(columns.op[-1])
        self._purpose = int(columns.purpose[-1])
        self._t_ns = int(columns.t_ns[-1])
