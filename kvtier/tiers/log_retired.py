"""The table of retired keys: what no restart may bring back.

Where an object has no origin, nobody but the log can say that it was rewritten or deleted. So its
fingerprint and its version go into this table, on the device, before the call returns. A record is
needed as long as pages are there that were written before it; they are, as segments are reclaimed
in order, until every segment has been written again. Should the table be full of such records, all
that was written so far is given up instead: a restart then believes only what came later.

A block is written over the older of its two copies. Both must be whole when the table is read: the
newer one may be what was damaged, and without it a key may come back. So both are there from the
beginning, and a write is read back, lest the drive lost it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from kvtier.errors import DeviceError
from kvtier.io import FileEngine
from kvtier.io.gate import outlast
from kvtier.pages import I64, U8, U64, Bool
from kvtier.rows import aligned_rows
from kvtier.tiers.log_format import (
    BLOCK_BYTES,
    RECORDS,
    RETIRED,
    RETIRED_MAGIC,
    Blocks,
    LogLayout,
    intact,
    seal,
)

logger = logging.getLogger(__name__)

NOTHING: Final = (1 << 64) - 1
"""The floor under which everything lies."""

_SEQUENCE_NEW: Final = 2
"""Of the newer copy of each block of a new table, the first one."""

_ATTEMPTS: Final = 3
"""How often a drive may lose a write of the table."""


def new_table(layout: LogLayout, file_id: U64, floor: int = 0) -> Blocks:
    """An empty table, as it lies behind the superblocks: both copies of every block."""
    blocks = np.zeros((layout.retired_blocks, 2), RETIRED)
    blocks["magic"] = RETIRED_MAGIC
    blocks["file_id"] = file_id
    blocks["generation"] = floor
    blocks["block"] = np.arange(layout.retired_blocks)[:, None]
    blocks["sequence"] = (_SEQUENCE_NEW, _SEQUENCE_NEW - 1)
    table: Blocks = blocks.reshape(-1)
    seal(table, file_id[0])
    return table


class RetiredKeys:
    """Versions of keys up to which nothing counts any more.

    Args:
        file: the log, with a new table if :meth:`load` is not called.
        paths: its file, or those it is striped over, to be synced.
        layout: of the file.
        file_id: u64[2], of this file.

    Attributes:
        floor: generation up to which nothing of the log is believed at a restart.
    """

    def __init__(
        self, file: FileEngine, paths: Sequence[Path], layout: LogLayout, file_id: U64
    ) -> None:
        self.floor = 0
        self._file = file
        self._paths = tuple(paths)
        self._layout = layout
        self._file_id = file_id
        self._blocks = np.zeros(layout.retired_blocks, RETIRED)
        self._blocks["sequence"] = _SEQUENCE_NEW
        self._slot_of: dict[bytes, int] = {}
        self._free: list[int] = []
        self._dirty: set[int] = set()
        self._replaced = False
        """A record was replaced that only what was written since had made needless."""
        self._saving = asyncio.Lock()

    def add(self, keys: Iterable[tuple[bytes, int]], newest: int, oldest: int) -> None:
        """Retire versions of keys, and all before them.

        Args:
            keys: fingerprint and version of each.
            newest: generation of the log's newest segment.
            oldest: the oldest generation of which anything is left on the device.
        """
        for fingerprint, version in keys:
            slot = self._slot_of.get(fingerprint)
            if slot is None:
                slot = self._take_slot(oldest)
            if slot is None:
                self.give_up(newest)
                continue
            block, place = divmod(slot, RECORDS)
            record = self._blocks["records"][block, place]
            record["fingerprint"] = np.frombuffer(fingerprint, "<u8")
            record["version"] = max(version, int(record["version"]))
            record["generation"] = newest
            self._slot_of[fingerprint] = slot
            self._dirty.add(block)

    def give_up(self, generation: int) -> None:
        """Believe nothing at the next restart that was written so far, up to ``generation``."""
        self.raise_floor(generation)
        self._blocks["records"] = np.zeros((), self._blocks["records"].dtype)
        self._slot_of.clear()
        self._free = list(range(len(self._blocks) * RECORDS))

    def raise_floor(self, generation: int) -> None:
        """Believe nothing at the next restart of an older generation, nor of this one."""
        self.floor = max(self.floor, generation)
        self._dirty.add(0)

    async def save(self) -> None:
        """Write what has changed to the device, and wait until it will outlast a power failure.

        Raises:
            DeviceError: it could not be written; a restart may bring retired keys back.
        """
        async with self._saving:
            numbers = np.array(sorted(self._dirty), np.int64)
            self._dirty.clear()
            if not len(numbers):
                return
            try:
                if self._replaced:
                    await self.sync()  # else a power failure may leave neither of the two
                    self._replaced = False
                await self._write(numbers)
            except BaseException:
                self._dirty.update(numbers.tolist())
                raise

    async def make(self) -> None:
        """Write an empty table, over whatever is there.

        Raises:
            DeviceError: it could not be written.
        """
        memory = aligned_rows(2 * self._layout.retired_blocks, BLOCK_BYTES)
        memory.reshape(-1).view(RETIRED)[:] = new_table(self._layout, self._file_id, self.floor)
        offset, length = np.array([self._layout.retired_offset]), np.array([memory.nbytes])
        await self._put(offset, length, memory, np.array([0]))
        self._blocks["sequence"] = _SEQUENCE_NEW

    async def load(self) -> None:
        """Read the table; one that is damaged is told, and then nothing of the log is believed.

        Raises:
            DeviceError: one that is damaged could not be written anew.
        """
        copies = aligned_rows(2 * self._layout.retired_blocks, BLOCK_BYTES)
        offset, length = np.array([self._layout.retired_offset]), np.array([copies.nbytes])
        done = await self._file.read(offset, length, copies, np.array([0]))
        blocks = copies.reshape(-1).view(RETIRED)
        good = intact(blocks, RETIRED_MAGIC, self._file_id[0])
        good &= (blocks["file_id"] == self._file_id).all(axis=1)
        good &= blocks["block"] == np.arange(len(blocks)) // 2
        self._take(blocks.reshape(-1, 2), good.reshape(-1, 2))
        if not good.all() or int(done[0]) != copies.nbytes:
            logger.warning(
                "nvme: %s: the table of retired keys is damaged, so the log starts empty",
                self._paths[0],
            )
            self.give_up(NOTHING)
            await self.make()

    def settle(self, newest: int) -> None:
        """After a table that was damaged: what is written from now on counts again."""
        if self.floor == NOTHING:
            self.floor = newest
            self._dirty.update(range(len(self._blocks)))

    def versions(self) -> tuple[U64, U64]:
        """First word of each retired fingerprint, ascending (u64[n]), and its version (u64[n])."""
        records = self._blocks["records"].reshape(-1)
        records = records[records["generation"] > 0]
        order = np.argsort(records["fingerprint"][:, 0])
        return records["fingerprint"][order, 0], records["version"][order]

    def _take(self, copies: np.ndarray[tuple[int, int], np.dtype[np.void]], good: Bool) -> None:
        sequences = np.where(good, copies["sequence"], 0)
        newest: I64 = np.argmax(sequences, axis=1)
        chosen = np.take_along_axis(copies, newest[:, None], 1)[:, 0]
        whole = good.any(axis=1)
        self._blocks[whole] = chosen[whole]
        self.floor = int(self._blocks["generation"].max(initial=0))
        generations = self._blocks["records"]["generation"].reshape(-1)
        fingerprints = self._blocks["records"]["fingerprint"].reshape(-1, 2)
        for slot in np.flatnonzero(generations).tolist():
            self._slot_of[fingerprints[slot].tobytes()] = slot

    def _take_slot(self, oldest: int) -> int | None:
        """A place for a record, possibly of one that is needed no more."""
        records = self._blocks["records"].reshape(-1)
        while self._free and records["generation"][self._free[-1]] >= oldest:
            self._free.pop()  # its key was retired again meanwhile
        if not self._free:
            self._free = np.flatnonzero(records["generation"] < oldest).tolist()
        if not self._free:
            return None
        slot = self._free.pop()
        self._replaced |= bool(records["generation"][slot])
        self._slot_of.pop(records["fingerprint"][slot].tobytes(), None)
        records["version"][slot] = 0
        return slot

    async def _write(self, numbers: I64) -> None:
        blocks = self._blocks
        blocks["magic"][numbers] = RETIRED_MAGIC
        blocks["file_id"][numbers] = self._file_id
        blocks["generation"][numbers] = self.floor
        blocks["block"][numbers] = numbers
        chosen = blocks[numbers]
        chosen["sequence"] += np.uint64(1)
        chosen["count"] = np.count_nonzero(chosen["records"]["generation"], axis=1)
        seal(chosen, self._file_id[0])
        memory = aligned_rows(len(numbers), BLOCK_BYTES)
        memory.reshape(-1).view(RETIRED)[:] = chosen
        copies = (chosen["sequence"] & np.uint64(1)).astype(np.int64)
        offsets = self._layout.retired_offset + (2 * numbers + copies) * BLOCK_BYTES
        lengths = np.full(len(numbers), BLOCK_BYTES)
        await self._put(offsets, lengths, memory, np.arange(len(numbers)))
        blocks["sequence"][numbers] = chosen["sequence"]

    async def _put(self, offsets: I64, lengths: I64, memory: U8, rows: I64) -> None:
        """Write extents, and see that they are there."""
        there = aligned_rows(*memory.shape)
        for _ in range(_ATTEMPTS):
            done = await self._file.write(offsets, lengths, memory, rows)
            if (done != lengths).any():
                raise self._refusal(_reason(int(done.min())))
            await self.sync()
            done = await self._file.read(offsets, lengths, there, rows)
            if (done == lengths).all() and (there == memory).all():
                return
        raise self._refusal("the drive has something else there")

    async def sync(self) -> None:
        """Wait until everything that was written to the file will outlast a power failure.

        Raises:
            DeviceError: the drive cannot say so.
        """
        loop = asyncio.get_running_loop()
        try:
            await outlast(loop.run_in_executor(None, _sync, self._paths))
        except OSError as error:
            raise self._refusal(str(error.strerror)) from error

    def _refusal(self, reason: str) -> DeviceError:
        return DeviceError(
            f"{self._paths[0]}: what was deleted or rewritten could not be recorded ({reason}); "
            "it may be found again after a restart"
        )


def _sync(paths: Sequence[Path]) -> None:
    """Have the drives write down what they were given."""
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # removed: nothing can be restarted from it
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)


def _reason(done: int) -> str:
    return os.strerror(-done) if done < 0 else "a write ended short"
