"""Requests to columns, and columns to Arrow record batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from kvtier.errors import TraceError
from kvtier.pages import I64, U32
from kvtier.trace.arrow import load_pyarrow
from kvtier.trace.columns import PageColumns, Place, RequestColumns
from kvtier.trace.records import PageRequest, Request, encode_runs

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

    Raises TraceError for a request or a batch that is empty, and for arrays that do not fit.
    """
    batch_rows = np.concatenate([_batch_rows(request, place) for request in requests])
    request_rows = np.array([len(request.objects) for request in requests], np.int64)
    numbers = np.array([request.request for request in requests], np.uint32)
    within = [np.arange(len(request.ends), dtype=np.uint32) for request in requests]
    return PageColumns(
        t_ns=np.repeat(np.concatenate([request.t_ns for request in requests]), batch_rows),
        request=np.repeat(numbers, request_rows),
        batch=np.repeat(np.concatenate(within), batch_rows),
        op=np.repeat(np.concatenate([request.ops for request in requests]), batch_rows),
        object=np.concatenate([request.objects for request in requests]),
        page=np.concatenate([request.pages for request in requests]),
        pages=np.concatenate([request.counts for request in requests]),
        purpose=np.repeat(np.concatenate([request.purposes for request in requests]), batch_rows),
    )


def _batch_rows(request: PageRequest, place: Place) -> I64:
    """How many rows each batch of a request takes, once the request is known to be well formed."""
    where = f"{place.path}: request {request.request}"
    if not 0 <= request.request <= _U32_MAX:
        raise TraceError(f"{where}: its number is not from 0 to {_U32_MAX}")
    batches = len(request.ends)
    of_batches = (
        (request.t_ns, np.int64),
        (request.ops, np.uint8),
        (request.ends, np.int64),
        (request.purposes, np.uint8),
    )
    if any(array.dtype != dtype or array.shape != (batches,) for array, dtype in of_batches):
        raise TraceError(
            f"{where}: t_ns, ops, ends and purposes must be equal rows of int64, uint8, int64 and "
            "uint8"
        )
    extents = len(request.objects)
    of_extents = (request.objects, request.pages, request.counts)
    if any(array.dtype != np.uint32 or array.shape != (extents,) for array in of_extents):
        raise TraceError(f"{where}: objects, pages and counts must be equal rows of uint32")
    if not batches:
        raise TraceError(f"{where} is empty; leave it out")
    rows = np.diff(request.ends, prepend=0)
    if rows.min() < 1 or request.ends[-1] != extents:
        raise TraceError(
            f"{where}: ends must ascend up to {extents}, its extents; leave empty batches out"
        )
    return rows


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
        pa.array(columns.purpose),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
