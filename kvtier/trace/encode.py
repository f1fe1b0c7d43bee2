"""Requests to columns, and columns to Arrow record batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from kvtier.errors import TraceError
from kvtier.pages import I64, U32
from kvtier.trace.arrow import load_pyarrow
from kvtier.trace.columns import PageColumns, Place, RequestColumns
from kvtier.trace.records import READ, WRITE, PageRequest, Request, encode_runs

_U32_MAX: Final = (1 << 32) - 1


def gather_requests(requests: Sequence[Request], place: Place) -> RequestColumns:
    """Columns of some requests. Raises TraceError where a value does not fit its column."""
    for row, request in enumerate(requests):
        if request.block_ids.dtype != np.uint64 or request.block_ids.ndim != 1:
            raise place.error(row, "run_start", "block_ids must be one row of uint64")
    models = tuple(dict.fromkeys(request.model for request in requests))
    codes = {name: code for code, name in enumerate(models)}
    runs = [encode_runs(request.block_ids) for request in requests]
    counts = np.fromiter((len(starts) for starts, _ in runs), np.int64, len(runs))
    return RequestColumns(
        t_ns=_i64((request.t_ns for request in requests), "t_ns", place),
        session=_u32((request.session for request in requests), "session", place),
        parent=_i64((request.parent for request in requests), "parent", place),
        turn=_u32((request.turn for request in requests), "turn", place),
        model=np.fromiter((codes[request.model] for request in requests), np.int32, len(runs)),
        models=models,
        in_tokens=_u32((request.in_tokens for request in requests), "in_tokens", place),
        out_tokens=_u32((request.out_tokens for request in requests), "out_tokens", place),
        run_offsets=np.concatenate((np.zeros(1, np.int64), np.cumsum(counts))),
        run_start=np.concatenate([starts for starts, _ in runs]),
        run_len=np.concatenate([lengths for _, lengths in runs]),
    )


def _i64(values: Iterable[int], name: str, place: Place) -> I64:
    listed = list(values)
    try:
        return np.fromiter(listed, np.int64, len(listed))
    except OverflowError:
        row = next(i for i, value in enumerate(listed) if not -(1 << 63) <= value < 1 << 63)
        raise place.error(row, name, f"{listed[row]} does not fit in 64 bits") from None


def _u32(values: Iterable[int], name: str, place: Place) -> U32:
    wide = _i64(values, name, place)
    beyond = np.flatnonzero((wide < 0) | (wide > _U32_MAX))
    if len(beyond):
        row = int(beyond[0])
        raise place.error(row, name, f"{wide[row]} is not from 0 to {_U32_MAX}")
    return wide.astype(np.uint32)


def gather_pages(requests: Sequence[PageRequest], place: Place) -> PageColumns:
    """Columns of some requests; their batches are numbered from 0.

    Raises TraceError for a request or a batch that is empty, and for values that do not fit.
    """
    for request in requests:
        _check_page_request(request, place)
    batches = [batch for request in requests for batch in request.batches]
    sizes = np.fromiter(map(len, batches), np.int64, len(batches))
    numbers = _u32(
        (request.request for request in requests for _ in request.batches), "request", place
    )
    within = [i for request in requests for i in range(len(request.batches))]
    return PageColumns(
        t_ns=np.repeat(_i64((batch.t_ns for batch in batches), "t_ns", place), sizes),
        request=np.repeat(numbers, sizes),
        batch=np.repeat(np.array(within, np.uint32), sizes),
        op=np.repeat(np.array([batch.op for batch in batches], np.uint8), sizes),
        object=np.concatenate([batch.objects for batch in batches]),
        page=np.concatenate([batch.pages for batch in batches]),
        pages=np.concatenate([batch.counts for batch in batches]),
    )


def _check_page_request(request: PageRequest, place: Place) -> None:
    where = f"{place.path}: request {request.request}"
    if not request.batches or not all(map(len, request.batches)):
        raise TraceError(f"{where} is empty; leave it out, and its empty batches")
    for batch in request.batches:
        arrays = (batch.objects, batch.pages, batch.counts)
        if any(array.dtype != np.uint32 or array.shape != (len(batch),) for array in arrays):
            raise TraceError(f"{where}: objects, pages and counts must be equal rows of uint32")
        if batch.op not in (READ, WRITE):
            raise TraceError(
                f"{where}: op is {batch.op}; it must be {READ} (read) or {WRITE} (write)"
            )


def encode_requests(columns: RequestColumns, schema: Any) -> Any:
    """A ``pyarrow.RecordBatch`` of the columns."""
    pa = load_pyarrow()
    offsets = pa.array(columns.run_offsets.astype(np.int32))
    lists = {
        name: pa.ListArray.from_arrays(offsets, pa.array(items), type=schema.field(name).type)
        for name, items in (("run_start", columns.run_start), ("run_len", columns.run_len))
    }
    model = pa.DictionaryArray.from_arrays(
        pa.array(columns.model.astype(np.int32)), pa.array(columns.models, pa.string())
    )
    arrays = [
        pa.array(columns.t_ns),
        pa.array(columns.session),
        pa.array(columns.parent),
        pa.array(columns.turn),
        model,
        pa.array(columns.in_tokens),
        pa.array(columns.out_tokens),
        lists["run_start"],
        lists["run_len"],
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def encode_pages(columns: PageColumns, schema: Any) -> Any:
    """A ``pyarrow.RecordBatch`` of the columns."""
    pa = load_pyarrow()
    arrays = [
        pa.array(columns.t_ns),
        pa.array(columns.request),
        pa.array(columns.batch),
        pa.array(columns.op),
        pa.array(columns.object),
        pa.array(columns.page),
        pa.array(columns.pages),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
