"""A drive that misbehaves on purpose, from a seed: slow, failing, torn, lost, misplaced, flipped.

It stands around a real engine, so that what it does to the file lies in the file. With it users
test what they build on a cache, and kvtier tests that no wrong byte of a drive is ever served.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvtier.io.engine import LENGTH, OFFSET, ROW, FileEngine, pack_extents
from kvtier.io.gate import Gate
from kvtier.pages import I64, U8, Bool
from kvtier.rows import aligned_rows
from kvtier.settings.faults import (
    FaultSettings,
    ReadFaultSettings,
    WriteFaultSettings,
    shares_of,
)

SECTOR_BYTES: Final = 512
"""What a drive writes whole or not at all."""

BLOCK_BYTES: Final = 4096
"""A misdirected operation goes to a multiple of this, which O_DIRECT takes on every device."""

CALLS_MAX: Final = 256
"""Batches under way at once; a further one waits."""


class FaultyEngine:
    """Misbehaves by ``faults``. What befalls a batch depends on the seed and its number alone.

    A fault befalls one operation, an extent of a batch. Where an extent is written in part or with
    a wrong bit, it is read and written back whole: nobody else may write there meanwhile.

    Args:
        inner: an open engine, which is closed with this one.
        faults: what happens, and how often.
        file_bytes: where the file ends; misdirected operations stay below.

    Attributes:
        faults: as given. It may be changed at any time, for the next calls.
    """

    def __init__(self, inner: FileEngine, faults: FaultSettings, file_bytes: int) -> None:
        self.faults = faults
        self._inner = inner
        self._file_bytes = file_bytes
        self._calls = 0
        self._gate = Gate(CALLS_MAX, "this faulty engine")
        self._counts = {"reads": 0, "writes": 0, "delayed": 0}
        self._counts |= {f"read_{kind}": 0 for kind in shares_of(ReadFaultSettings())}
        self._counts |= {f"write_{kind}": 0 for kind in shares_of(WriteFaultSettings())}

    @property
    def name(self) -> str:
        """The engine's name, with a word that nobody overlooks in a result."""
        return f"{self._inner.name} with faults"

    @property
    def direct(self) -> bool:
        """See :attr:`FileEngine.direct`."""
        return self._inner.direct

    @property
    def alignment_bytes(self) -> int:
        """See :attr:`FileEngine.alignment_bytes`."""
        return self._inner.alignment_bytes

    def counts(self) -> Mapping[str, int]:
        """Operations so far (``reads``, ``writes``), and how many had which fault."""
        return dict(self._counts)

    async def read(self, offsets_bytes: I64, lengths_bytes: I64, out: U8, rows: I64) -> I64:
        """See :meth:`FileEngine.read`."""
        table = pack_extents(offsets_bytes, lengths_bytes, out, rows, self.alignment_bytes)
        await self._gate.enter(1)
        try:
            fate = await self._befall("read", shares_of(self.faults.reads), table[LENGTH])
            return await self._read(table, fate, out)
        finally:
            self._gate.leave(1)

    async def write(self, offsets_bytes: I64, lengths_bytes: I64, source: U8, rows: I64) -> I64:
        """See :meth:`FileEngine.write`."""
        table = pack_extents(offsets_bytes, lengths_bytes, source, rows, self.alignment_bytes)
        await self._gate.enter(1)
        try:
            fate = await self._befall("write", shares_of(self.faults.writes), table[LENGTH])
            return await self._write(table, fate, source)
        finally:
            self._gate.leave(1)

    def pin(self, memory: U8) -> None:
        """See :meth:`FileEngine.pin`."""
        self._inner.pin(memory)

    async def close(self) -> None:
        """See :meth:`FileEngine.close`."""
        await self._gate.close()
        await self._inner.close()

    # -- what befalls a batch -----------------------------------------------------------------

    async def _befall(self, move: str, shares: Mapping[str, float], lengths: I64) -> _Fate:
        """Draw what befalls each operation of a batch; the slowest of them holds it up now."""
        self._calls += 1
        random = np.random.default_rng([self.faults.seed, self._calls])
        count = len(lengths)
        numbers = np.searchsorted(np.cumsum(list(shares.values())), random.random(count), "right")
        numbers[lengths == 0] = len(shares)
        fate = _Fate({kind: numbers == at for at, kind in enumerate(shares)}, random.random(count))
        if "misdirected" in fate.kinds:
            fate.kinds["misdirected"][lengths + BLOCK_BYTES > self._file_bytes] = False
        for kind, chosen in fate.kinds.items():
            self._counts[f"{move}_{kind}"] += int(np.count_nonzero(chosen))
        self._counts[f"{move}s"] += count
        delayed = random.random(count) < self.faults.delay_share
        self._counts["delayed"] += int(np.count_nonzero(delayed))
        delay_s = float(random.random(count)[delayed].max(initial=0.0)) * self.faults.delay_s
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        return fate

    async def _read(self, table: I64, fate: _Fate, out: U8) -> I64:
        is_short = fate.kinds["short"]
        offsets = self._directed(table, fate)
        lengths, rows = table[LENGTH], table[ROW]
        results = np.full(len(lengths), -errno.EIO, np.int64)
        whole = ~(fate.kinds["fail"] | is_short)
        results[whole] = await self._inner.read(offsets[whole], lengths[whole], out, rows[whole])
        if is_short.any():
            memory, places = _room(lengths[is_short])
            done = await self._inner.read(offsets[is_short], lengths[is_short], memory, places)
            results[is_short] = np.minimum(done, fate.ends(lengths)[is_short])
            _copy_starts((out, rows[is_short]), (memory, places), np.maximum(results[is_short], 0))
        flipped = fate.kinds["flipped"] & (results > 0)
        _flip((out, rows[flipped]), fate.bits(results)[flipped])
        return results

    async def _write(self, table: I64, fate: _Fate, source: U8) -> I64:
        offsets = self._directed(table, fate)
        lengths, rows = table[LENGTH], table[ROW]
        results: I64 = lengths.copy()  # of what is lost
        results[fate.kinds["fail"]] = -errno.EIO
        results[fate.kinds["full"]] = -errno.ENOSPC
        altered = fate.kinds["short"] | fate.kinds["torn"] | fate.kinds["flipped"]
        refused = fate.kinds["fail"] | fate.kinds["full"] | fate.kinds["lost"]
        whole = ~(altered | refused)
        results[whole] = await self._inner.write(
            offsets[whole], lengths[whole], source, rows[whole]
        )
        if altered.any():
            results[altered] = await self._write_altered(table, fate, source, altered)
        return results

    async def _write_altered(self, table: I64, fate: _Fate, source: U8, altered: Bool) -> I64:
        """Write those extents whole, with what lay there before where a part is not written."""
        offsets, lengths, rows = table[OFFSET, altered], table[LENGTH, altered], table[ROW, altered]
        flipped, short = fate.kinds["flipped"][altered], fate.kinds["short"][altered]
        ends = np.where(flipped, lengths, fate.ends(table[LENGTH])[altered])
        memory, places = _room(lengths)
        before = await self._inner.read(offsets, lengths, memory, places)
        _copy_starts((memory, places), (source, rows), ends)
        _flip((memory, places[flipped]), fate.bits(table[LENGTH])[altered][flipped])
        readable = before >= 0
        results: I64 = before.copy()
        done = await self._inner.write(
            offsets[readable], lengths[readable], memory, places[readable]
        )
        told = np.where(short, ends, lengths)[readable]
        results[readable] = np.where(done == lengths[readable], told, done)
        return results

    def _directed(self, table: I64, fate: _Fate) -> I64:
        """Where in the file each operation goes: those that are misdirected, elsewhere."""
        offsets: I64 = table[OFFSET].copy()
        chosen = fate.kinds["misdirected"]
        places = (self._file_bytes - table[LENGTH, chosen]) // BLOCK_BYTES + 1
        steps = 1 + (fate.where[chosen] * (places - 1)).astype(np.int64)
        offsets[chosen] = (offsets[chosen] // BLOCK_BYTES + steps) % places * BLOCK_BYTES
        return offsets


class _Fate(NamedTuple):
    """What befalls the ``n`` operations of a batch.

    Attributes:
        kinds: bool[n] of each kind of fault; at most one of them is True for an operation.
        where: f64[n] from 0 to below 1, where in an operation, or in the file.
    """

    kinds: dict[str, Bool]
    where: NDArray[np.float64]

    def ends(self, lengths: I64) -> I64:
        """i64[n], bytes of each operation before the sector in which it ends early."""
        sectors = -(-lengths // SECTOR_BYTES)
        whole = 1 + (self.where * (sectors - 1)).astype(np.int64)
        return np.where(sectors > 1, whole * SECTOR_BYTES, 0)

    def bits(self, lengths: I64) -> I64:
        """i64[n], a bit of each operation."""
        return (self.where * 8 * lengths).astype(np.int64)


_Spans = tuple[U8, I64]
"""Memory u8[rows, row_bytes], and the first row of each extent in it, i64[n]."""


def _room(lengths: I64) -> _Spans:
    """Memory of its own for extents of these lengths."""
    rows = -(-lengths // BLOCK_BYTES)
    return aligned_rows(int(rows.sum()), BLOCK_BYTES), np.cumsum(rows) - rows


def _copy_starts(target: _Spans, source: _Spans, counts: I64) -> None:
    """Copy the first ``counts`` bytes (i64[n]) of each extent; once per fault, not per page."""
    (to, to_rows), (origin, origin_rows) = target, source
    to_bytes, origin_bytes = to.reshape(-1), origin.reshape(-1)
    starts = zip(to_rows * to.shape[1], origin_rows * origin.shape[1], counts, strict=True)
    for here, there, count in starts:
        to_bytes[here : here + count] = origin_bytes[there : there + count]


def _flip(extents: _Spans, bits: I64) -> None:
    """Flip one bit (i64[n]) of each extent."""
    memory, rows = extents
    at = rows * memory.shape[1] + bits // 8
    memory.reshape(-1)[at] ^= np.left_shift(1, bits % 8).astype(np.uint8)
