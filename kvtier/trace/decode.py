"""Arrow record batches to columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvtier.pages import I64, Purpose
from kvtier.trace.arrow import load_pyarrow
from kvtier.trace.columns import PageColumns, Place, RequestColumns


def decode_requests(batch: Any, place: Place) -> RequestColumns:
    """Columns of a ``pyarrow.RecordBatch``. Raises TraceError for nulls and unpaired runs."""
    starts_at, run_start = _lists(batch, "run_start", place)
    run_offsets, run_len = _lists(batch, "run_len", place)
    unpaired = np.flatnonzero(starts_at != run_offsets)
    if len(unpaired):
        what = "is not as long as run_start; give each run a start and a length"
        raise place.error(int(unpaired[0]) - 1, "run_len", what)
    model, models = _texts(batch, "model", place)
    return RequestColumns(
        t_ns=decode_numbers(batch, "t_ns", place),
        session=decode_numbers(batch, "session", place),
        parent=decode_numbers(batch, "parent", place),
        turn=decode_numbers(batch, "turn", place),
        model=model,
        models=models,
        in_tokens=decode_numbers(batch, "in_tokens", place),
        out_tokens=decode_numbers(batch, "out_tokens", place),
        run_offsets=run_offsets,
        run_start=run_start,
        run_len=run_len,
    )


def decode_pages(batch: Any, place: Place) -> PageColumns:
    """Columns of a ``pyarrow.RecordBatch``. Raises TraceError for nulls."""
    if "purpose" in batch.schema.names:
        purpose = decode_numbers(batch, "purpose", place)
    else:
        purpose = np.full(batch.num_rows, Purpose.UNSTATED, np.uint8)
    return PageColumns(
        t_ns=decode_numbers(batch, "t_ns", place),
        request=decode_numbers(batch, "request", place),
        batch=decode_numbers(batch, "batch", place),
        op=decode_numbers(batch, "op", place),
        object=decode_numbers(batch, "object", place),
        page=decode_numbers(batch, "page", place),
        pages=decode_numbers(batch, "pages", place),
        purpose=purpose,
    )


def decode_numbers(batch: Any, name: str, place: Place) -> NDArray[Any]:
    """A column of numbers. Raises TraceError for nulls."""
    column = batch.column(name)
    _check_nulls(column, name, place)
    numbers: NDArray[Any] = column.to_numpy()
    return numbers


def _lists(batch: Any, name: str, place: Place) -> tuple[I64, NDArray[Any]]:
    """Offsets i64[n + 1] into the items of a list column, and these items."""
    column = batch.column(name)
    _check_nulls(column, name, place)
    lengths = column.value_lengths().to_numpy().astype(np.int64)
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    items = column.flatten()
    if items.null_count:
        item = int(np.argmax(items.is_null().to_numpy(zero_copy_only=False)))
        row = int(np.searchsorted(offsets, item, side="right")) - 1
        raise place.error(row, name, "has a null inside; write a number")
    return offsets, items.to_numpy()


def _texts(batch: Any, name: str, place: Place) -> tuple[NDArray[np.integer], tuple[str, ...]]:
    column = batch.column(name)
    if not load_pyarrow().types.is_dictionary(column.type):
        column = column.dictionary_encode()
    _check_nulls(column, name, place)
    return column.indices.to_numpy(), tuple(column.dictionary.to_pylist())


def _check_nulls(column: Any, name: str, place: Place) -> None:
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise place.error(row, name, "is null; write a value")
