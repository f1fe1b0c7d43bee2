"""What every I/O engine does, and the table in which it takes a batch."""

from __future__ import annotations

import math
from typing import Final, Protocol

import numpy as np

from kvtier.errors import LimitError
from kvtier.jit import jit
from kvtier.pages import I64, U8

OFFSET: Final = 0
LENGTH: Final = 1
ROW: Final = 2
RESULT: Final = 3

_NEVER: Final = np.iinfo(np.int64).max
_UNALIGNED: Final = 1
_OUTSIDE: Final = 2

WRITE_OPERATION_BYTES: Final = 64 << 10
"""Most bytes of one operation that writes: a read that comes behind it waits for no more.

Four times as much writes no faster, and doubled the p99 of reads beside it (``bench/nvme.py``)."""


class FileEngine(Protocol):
    """One open file, read and written in batches of extents.

    Calls may overlap. A call that is cancelled raises only once the kernel has ended every
    operation of its batch: the memory it was given is not touched after that.
    """

    @property
    def name(self) -> str:
        """The engine's name in the settings."""
        ...

    @property
    def direct(self) -> bool:
        """O_DIRECT is in use; otherwise reads and writes pass through the page cache."""
        ...

    @property
    def alignment_bytes(self) -> int:
        """What the address of the memory given must be a multiple of; 1 if not direct."""
        ...

    async def read(self, offsets_bytes: I64, lengths_bytes: I64, out: U8, rows: I64) -> I64:
        """Read extents of the file into rows of ``out``.

        Args:
            offsets_bytes: i64[n], where each extent starts in the file.
            lengths_bytes: i64[n].
            out: u8[rows, page_bytes], C-contiguous, writable; an extent longer than one row goes
                on in the rows that follow.
            rows: i64[n], the first row of each extent.

        Returns:
            i64[n]: bytes read (fewer than asked for where the file ends), or ``-errno``.

        Raises:
            LimitError: an extent leaves ``out``, or ``out`` is not aligned; nothing was read.
            ClosedError: the engine was closed.
        """
        ...

    async def write(self, offsets_bytes: I64, lengths_bytes: I64, source: U8, rows: I64) -> I64:
        """Write rows of ``source`` to extents of the file; as :meth:`read`.

        A result that is not the extent's length says that what the file holds there is unknown.
        """
        ...

    def pin(self, memory: U8) -> None:
        """Say that most batches will move to or from this memory, before the first of them.

        An engine may have the kernel pin it, and keeps it alive then; the last call counts.
        """
        ...

    async def close(self) -> None:
        """Wait for what is in flight and close the file; a second call does nothing."""
        ...


def pack_extents(
    offsets_bytes: I64, lengths_bytes: I64, memory: U8, rows: I64, alignment_bytes: int
) -> I64:
    """A batch as one table, i64[4, n]: offsets, lengths, rows, and room for the results.

    One array of one layout is all that compiled code then sees, whatever views it was made from.

    Raises:
        LimitError: the memory is not fit, or an extent leaves it.
    """
    if memory.ndim != 2 or memory.dtype != np.uint8 or not memory.flags.c_contiguous:
        raise LimitError(
            f"memory is {memory.dtype}{list(memory.shape)}: "
            "it must be u8[rows, page_bytes], C-contiguous"
        )
    table = np.empty((4, len(offsets_bytes)), np.int64)
    table[OFFSET] = offsets_bytes
    table[LENGTH] = lengths_bytes
    table[ROW] = rows
    flaw = _flaw(table, memory, alignment_bytes)
    if flaw == _UNALIGNED:
        raise LimitError(
            f"memory does not start at a multiple of {alignment_bytes} bytes, as O_DIRECT needs: "
            "take it from kvtier.rows.aligned_rows"
        )
    if flaw == _OUTSIDE:
        raise LimitError(
            f"an extent leaves its memory of {memory.shape[0]} rows of {memory.shape[1]} bytes, "
            "or has a negative offset, length or row"
        )
    return table


def writes_max(queue_depth: int) -> int:
    """Of the operations in flight, how many may write while nobody reads.

    Half. At the usual depth of 128 these are 4 MiB, some milliseconds of a drive's work, so that it
    has some while the event loop gathers the next pages.
    """
    return max(1, queue_depth // 2)


def writes_beside_reads(queue_depth: int) -> int:
    """How many of them while there are reads too, so that filling a tier starves no read.

    A read waits for what the drive took before it. At the usual depth these are 256 KiB, some
    0.1 ms, and still enough to keep a drive writing.
    """
    return max(1, queue_depth // 32)


def cut_writes(table: I64, memory: U8) -> tuple[I64, U8]:
    """A batch of writes as operations of at most :data:`WRITE_OPERATION_BYTES`.

    Args:
        table: i64[4, n] of :func:`pack_extents`.
        memory: u8[rows, row_bytes], that it was packed for.

    Returns:
        The same where no extent is longer. Else i64[4, m] in the order of the extents, and the
        memory in rows at which every operation starts. :func:`join_writes` takes the results back.
    """
    lengths = table[LENGTH]
    if table.shape[1] == 0 or lengths.max() <= WRITE_OPERATION_BYTES:
        return table, memory
    row_bytes = memory.shape[1]
    unit_bytes = math.gcd(row_bytes, WRITE_OPERATION_BYTES)
    counts = _operations(lengths)
    extent = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    start = (np.arange(len(extent)) - before[extent]) * WRITE_OPERATION_BYTES
    pieces = np.empty((4, len(extent)), np.int64)
    pieces[OFFSET] = table[OFFSET, extent] + start
    pieces[LENGTH] = np.minimum(lengths[extent] - start, WRITE_OPERATION_BYTES)
    pieces[ROW] = (table[ROW, extent] * row_bytes + start) // unit_bytes
    return pieces, memory.reshape(-1, unit_bytes)


def join_writes(table: I64, pieces: I64) -> I64:
    """The results of a batch (i64[n]) from those of its operations (:func:`cut_writes`).

    Of an extent, the bytes up to its first operation that is not whole, or why that failed.
    """
    lengths = table[LENGTH]
    if pieces is table:
        results: I64 = table[RESULT]
        return results
    counts = _operations(lengths)
    first = np.cumsum(counts) - counts
    is_cut = pieces[RESULT] != pieces[LENGTH]
    ends = np.minimum.reduceat(np.where(is_cut, np.arange(len(is_cut)), _NEVER), first)
    ended = np.flatnonzero(ends != _NEVER)
    done = pieces[RESULT, ends[ended]]
    before = (ends[ended] - first[ended]) * WRITE_OPERATION_BYTES
    results = lengths.copy()
    results[ended] = np.where(done < 0, done, before + done)
    return results


def _operations(lengths: I64) -> I64:
    """How many operations each extent is."""
    counts: I64 = np.maximum(1, -(-lengths // WRITE_OPERATION_BYTES))
    return counts


@jit
def _flaw(table: I64, memory: U8, alignment_bytes: int) -> int:
    """What is wrong with a batch, 0 if nothing is; no product here can overflow."""
    if memory.ctypes.data % alignment_bytes != 0:
        return _UNALIGNED
    rows, row_bytes = memory.shape
    for at in range(table.shape[1]):
        row = table[ROW, at]
        if table[OFFSET, at] < 0 or table[LENGTH, at] < 0 or row < 0 or row > rows:
            return _OUTSIDE
        if table[LENGTH, at] > (rows - row) * row_bytes:
            return _OUTSIDE
    return 0


def compile_all() -> None:
    """Compile what every engine calls, for memory that may be written and for other."""
    none, memory = np.empty(0, np.int64), np.empty((0, 1), np.uint8)
    read_only = memory.copy()
    read_only.flags.writeable = False
    for one in (memory, read_only):
        pack_extents(none, none, one, none, 1)
