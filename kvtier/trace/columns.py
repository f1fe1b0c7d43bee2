"""Rows of a trace as structs of arrays, and where in a file they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvtier.errors import TraceError
from kvtier.pages import I64, U8, U32, U64


@dataclass(frozen=True, slots=True)
class Place:
    """Where rows stand: the file, and the number (from 0) of the first of them."""

    path: Path
    first_row: int

    def error(self, row: int, column: str, what: str) -> TraceError:
        """The error about one of the rows."""
        return TraceError(f"{self.path}: row {self.first_row + row}, column {column}: {what}")


@dataclass(frozen=True, slots=True, eq=False)
class RequestColumns:
    """``n`` rows of kind ``requests``.

    Attributes:
        t_ns, parent: i64[n]. session, turn, in_tokens, out_tokens: u32[n].
        model: integers[n], index into ``models``.
        run_offsets: i64[n + 1], where the runs of each row begin in ``run_start`` and ``run_len``.
        run_start, run_len: u64[k] and u32[k].
    """

    t_ns: I64
    session: U32
    parent: I64
    turn: U32
    model: NDArray[np.integer]
    models: tuple[str, ...]
    in_tokens: U32
    out_tokens: U32
    run_offsets: I64
    run_start: U64
    run_len: U32

    def __len__(self) -> int:
        return len(self.t_ns)


@dataclass(frozen=True, slots=True, eq=False)
class PageColumns:
    """``n`` rows of kind ``page_io``; arrays[n] with the dtypes of the columns."""

    t_ns: I64
    request: U32
    batch: U32
    op: U8
    object: U32
    page: U32
    pages: U32
    purpose: U8

    def __len__(self) -> int:
        return len(self.t_ns)

    def rows(self, start: int, stop: int) -> PageColumns:
        """A view of some of the rows."""
        cut = slice(start, stop)
        return PageColumns(
            self.t_ns[cut],
            self.request[cut],
            self.batch[cut],
            self.op[cut],
            self.object[cut],
            self.page[cut],
            self.pages[cut],
            self.purpose[cut],
        )


def join_pages(parts: Sequence[PageColumns]) -> PageColumns:
    """The rows of several parts, one after the other; at least one part."""
    if len(parts) == 1:
        return parts[0]
    return PageColumns(
        np.concatenate([part.t_ns for part in parts]),
        np.concatenate([part.request for part in parts]),
        np.concatenate([part.batch for part in parts]),
        np.concatenate([part.op for part in parts]),
        np.concatenate([part.object for part in parts]),
        np.concatenate([part.page for part in parts]),
        np.concatenate([part.pages for part in parts]),
        np.concatenate([part.purpose for part in parts]),
    )
