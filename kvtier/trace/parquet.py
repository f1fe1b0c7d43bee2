"""Parquet files, opened and streamed so that every fault of a file becomes one clear error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from kvtier.errors import TraceError
from kvtier.trace.arrow import load_parquet, load_pyarrow
from kvtier.trace.columns import Place

_MAGIC: Final = b"PAR1"
_READ_BUFFER_BYTES: Final = 1 << 18
_CONVERT: Final = "convert it with 'kvtier import FORMAT SRC DST', or get it again"


def open_parquet(path: Path, advice: str = _CONVERT) -> Any:
    """A ``pyarrow.parquet.ParquetFile`` that reads by small buffers and verifies checksums.

    ``advice`` is what to do with a file that is no Parquet.

    Raises:
        TraceError: the file is missing, truncated or no Parquet.
    """
    try:
        with path.open("rb") as raw:
            head = raw.read(len(_MAGIC))
            raw.seek(-min(len(_MAGIC), raw.seek(0, 2)), 2)
            tail = raw.read()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if head != _MAGIC:
        raise TraceError(f"{path}: no Parquet file; {advice}")
    if tail != _MAGIC:
        raise TraceError(f"{path}: truncated, its end is missing; get it again")
    try:
        # pre_buffer, which is on by default, would hold all of the file's columns.
        return load_parquet().ParquetFile(
            path,
            pre_buffer=False,
            buffer_size=_READ_BUFFER_BYTES,
            page_checksum_verification=True,
        )
    except (load_pyarrow().ArrowException, OSError) as error:
        raise TraceError(f"{path}: damaged ({first_line(error)}); get it again") from error


@contextmanager
def as_trace_error(path: Path) -> Iterator[None]:
    """Within, whatever keeps a Parquet file from being written is a TraceError that names it."""
    try:
        yield
    except (load_pyarrow().ArrowException, OSError) as error:
        what = f"cannot be written ({first_line(error)})"
        raise TraceError(f"{path}: {what}; check the folder and its free space") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text; Arrow's may have many."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def stream_batches(path: Path, columns: list[str], batch_rows: int) -> Iterator[tuple[Any, Place]]:
    """The ``pyarrow.RecordBatch``es of a Parquet file, each with its place.

    Raises:
        TraceError: the file cannot be opened, or is damaged where it is being read.
    """
    arrow_errors = (load_pyarrow().ArrowException, OSError)
    with open_parquet(path) as file:
        batches = file.iter_batches(batch_size=batch_rows, columns=columns, use_threads=False)
        row = 0
        while True:
            try:
                batch = next(batches, None)
            except arrow_errors as error:
                what = f"damaged at or after row {row} ({first_line(error)})"
                raise TraceError(f"{path}: {what}; get it again") from error
            if batch is None:
                return
            yield batch, Place(path, row)
            row += batch.num_rows
