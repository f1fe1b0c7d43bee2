"""One file laid out over several, as drives are striped: run by run, one file after the other."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np

from kvtier.io.engine import LENGTH, OFFSET, ROW, FileEngine, pack_extents
from kvtier.io.gate import outlast
from kvtier.pages import I64, U8

BLOCK_BYTES: Final = 4096
"""Stripes are multiples of it, whatever the page size, so that no block of a device is cut."""

_NONE: Final = np.iinfo(np.int64).max

T = TypeVar("T")


class StripedEngine:
    """Splits each batch over its files, which work at the same time.

    Stripe ``s``, the bytes from ``s * stripe_bytes`` on, is stripe ``s // n`` of file ``s % n``.

    Args:
        files: ``n`` open engines, at least one; closed with this one.
        stripe_bytes: of :func:`stripe_bytes_for`.
        head_bytes: what lies before the first stripe of each file.
    """

    def __init__(self, files: Sequence[FileEngine], stripe_bytes: int, head_bytes: int = 0) -> None:
        self._files = tuple(files)
        self._stripe_bytes = stripe_bytes
        self._head_bytes = head_bytes

    @property
    def name(self) -> str:
        """The name of its engines; of each, should they differ."""
        return " and ".join(dict.fromkeys(file.name for file in self._files))

    @property
    def direct(self) -> bool:
        """O_DIRECT is in use for every file."""
        return all(file.direct for file in self._files)

    @property
    def alignment_bytes(self) -> int:
        """See :attr:`FileEngine.alignment_bytes`."""
        return math.lcm(*(file.alignment_bytes for file in self._files))

    async def read(self, offsets_bytes: I64, lengths_bytes: I64, out: U8, rows: I64) -> I64:
        """See :meth:`FileEngine.read`."""
        table = pack_extents(offsets_bytes, lengths_bytes, out, rows, self.alignment_bytes)
        return await self._move(False, table, out)

    async def write(self, offsets_bytes: I64, lengths_bytes: I64, source: U8, rows: I64) -> I64:
        """See :meth:`FileEngine.write`."""
        table = pack_extents(offsets_bytes, lengths_bytes, source, rows, self.alignment_bytes)
        return await self._move(True, table, source)

    def pin(self, memory: U8) -> None:
        """See :meth:`FileEngine.pin`."""
        for file in self._files:
            file.pin(memory)

    async def close(self) -> None:
        """See :meth:`FileEngine.close`."""
        await _all(*(file.close() for file in self._files))

    async def _move(self, writing: bool, table: I64, memory: U8) -> I64:
        pieces = _split(table, memory.shape[1], len(self._files), self._stripe_bytes)
        parts = [np.flatnonzero(pieces.file == number) for number in range(len(self._files))]
        # An empty batch still asks a file, which refuses it when it was closed.
        used = [number for number, part in enumerate(parts) if len(part)] or [0]
        flat = memory.reshape(-1, 1)  # a piece may begin inside a row
        moves = [
            (self._files[number].write if writing else self._files[number].read)(
                self._head_bytes + pieces.offset[part], pieces.length[part], flat, pieces.at[part]
            )
            for number, part in ((number, parts[number]) for number in used)
        ]
        answers = [await moves[0]] if len(moves) == 1 else await _all(*moves)
        done = np.empty(len(pieces.file), np.int64)
        for number, answer in zip(used, answers, strict=True):
            done[parts[number]] = answer
        return _joined(table, pieces, done)


def stripe_bytes_for(wanted_bytes: int, page_bytes: int) -> int:
    """The next size of a stripe that cuts neither pages nor blocks of a device."""
    unit = math.lcm(page_bytes, BLOCK_BYTES)
    return -(-wanted_bytes // unit) * unit


def file_sizes(size_bytes: int, files: int, stripe_bytes: int) -> list[int]:
    """Bytes of each of so many files that hold ``size_bytes`` together, in whole stripes."""
    stripes = -(-size_bytes // stripe_bytes)
    return [-(-(stripes - number) // files) * stripe_bytes for number in range(files)]


class _Pieces(NamedTuple):
    """What lies in one stripe of an extent; i64[p] each, the pieces of an extent in their order.

    Attributes:
        first: i64[n], the first piece of each extent.
        extent: whose it is.
        file: which file has it.
        offset: in that file, behind its head.
        length: in bytes.
        at: where it goes in the batch's memory, in bytes.
        before: bytes of its extent before it.
    """

    first: I64
    extent: I64
    file: I64
    offset: I64
    length: I64
    at: I64
    before: I64


def _split(table: I64, row_bytes: int, files: int, stripe_bytes: int) -> _Pieces:
    starts, ends = table[OFFSET], table[OFFSET] + table[LENGTH]
    first_stripes = starts // stripe_bytes
    # An empty extent is one empty piece.
    counts = np.maximum((ends - 1) // stripe_bytes - first_stripes + 1, 1)
    first = np.cumsum(counts) - counts
    extent = np.repeat(np.arange(len(counts)), counts)
    stripe = first_stripes[extent] + np.arange(len(extent)) - first[extent]
    begin = np.maximum(stripe * stripe_bytes, starts[extent])
    end = np.minimum((stripe + 1) * stripe_bytes, ends[extent])
    before = begin - starts[extent]
    return _Pieces(
        first=first,
        extent=extent,
        file=stripe % files,
        offset=stripe // files * stripe_bytes + begin % stripe_bytes,
        length=end - begin,
        at=table[ROW, extent] * row_bytes + before,
        before=before,
    )


def _joined(table: I64, pieces: _Pieces, done: I64) -> I64:
    """What became of each extent: the bytes up to its first piece that is not whole, or why not."""
    results: I64 = table[LENGTH].copy()
    if len(results) == 0:
        return results
    cut = np.where(done == pieces.length, _NONE, np.arange(len(done)))
    ends = np.minimum.reduceat(cut, pieces.first)
    ended = ends != _NONE
    at = ends[ended]
    results[ended] = np.where(done[at] < 0, done[at], pieces.before[at] + done[at])
    return results


async def _all(*moves: Coroutine[Any, Any, T]) -> list[T]:
    """Await all of them to their end, even when one fails or this is cancelled; then raise."""
    answers = await outlast(asyncio.gather(*moves, return_exceptions=True))
    failures = [answer for answer in answers if isinstance(answer, BaseException)]
    if failures:
        raise failures[0]
    return [answer for answer in answers if not isinstance(answer, BaseException)]
