"""The portable baseline: aiofiles, an await and two hops to a thread per extent.

It is what a program without an I/O engine of its own would do, and the peer that the others are
measured against. Work in Python per extent is inherent to it.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import aiofiles
import numpy as np

from kvtier.io.engine import LENGTH, OFFSET, ROW, pack_extents
from kvtier.io.file import OpenFile
from kvtier.io.gate import Gate, outlast
from kvtier.pages import I64, U8

EXTENTS_PER_HANDLE: Final = 64
"""Extents waiting or under way, per handle; a batch that finds no room waits."""


class AiofilesEngine:
    """Keeps up to ``queue_depth`` handles, because the position of each is its own.

    Args:
        file: taken over, closed by ``close``.
        queue_depth: operations in flight at once.
    """

    name: Final = "aiofiles"

    def __init__(self, file: OpenFile, queue_depth: int) -> None:
        self.direct = file.direct
        self.alignment_bytes = file.alignment_bytes
        self._file = file
        self._capacity = EXTENTS_PER_HANDLE * queue_depth
        self._gate = Gate(self._capacity, str(file.path))
        self._turns = asyncio.Semaphore(queue_depth)
        self._idle: list[Any] = []
        self._threads = ThreadPoolExecutor(queue_depth, "kvtier-aiofiles")
        self._open = True

    async def read(self, offsets_bytes: I64, lengths_bytes: I64, out: U8, rows: I64) -> I64:
        """See :meth:`FileEngine.read`."""
        table = pack_extents(offsets_bytes, lengths_bytes, out, rows, self.alignment_bytes)
        return await self._move("readinto", table, out)

    async def write(self, offsets_bytes: I64, lengths_bytes: I64, source: U8, rows: I64) -> I64:
        """See :meth:`FileEngine.write`."""
        table = pack_extents(offsets_bytes, lengths_bytes, source, rows, self.alignment_bytes)
        return await self._move("write", table, source)

    def pin(self, memory: U8) -> None:
        """See :meth:`FileEngine.pin`: of no use here."""

    async def close(self) -> None:
        """See :meth:`FileEngine.close`."""
        await self._gate.close()
        if self._open:
            self._open = False
            await outlast(asyncio.gather(*(handle.close() for handle in self._idle)))
            self._threads.shutdown()
            os.close(self._file.fd)

    async def _move(self, method: str, table: I64, memory: U8) -> I64:
        count = table.shape[1]
        units = min(count, self._capacity)
        await self._gate.enter(units)
        try:
            view = memory.reshape(-1).data
            starts = table[ROW] * memory.shape[1]
            ends = starts + table[LENGTH]
            extents = zip(table[OFFSET].tolist(), starts.tolist(), ends.tolist(), strict=True)
            moves = [self._move_one(method, offset, view[a:b]) for offset, a, b in extents]
            # Exceptions are collected, so that none ends the wait while others still move bytes.
            results = await outlast(asyncio.gather(*moves, return_exceptions=True))
        finally:
            self._gate.leave(units)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return np.array(results, np.int64)

    async def _move_one(self, method: str, offset_bytes: int, memory: memoryview) -> int:
        """Move one extent; bytes moved, or -errno."""
        async with self._turns:
            try:
                handle = self._idle.pop() if self._idle else await self._open_handle()
            except OSError as error:
                return _code(error)
            try:
                await handle.seek(offset_bytes)
                return await _move_all(getattr(handle, method), memory)
            except OSError as error:
                return _code(error)
            finally:
                self._idle.append(handle)

    async def _open_handle(self) -> Any:
        # By descriptor, not by name: the file may have been renamed or removed by now.
        return await aiofiles.open(
            f"/proc/self/fd/{self._file.fd}",
            "rb+" if self._file.writable else "rb",
            buffering=0,
            opener=self._open_flags,
            executor=self._threads,
        )

    def _open_flags(self, path: str, flags: int) -> int:
        return os.open(path, flags | os.O_DIRECT if self.direct else flags)


async def _move_all(move: Callable[[memoryview], Awaitable[int]], memory: memoryview) -> int:
    """Move until ``memory`` is full or empty, or the file ends; bytes moved."""
    done = 0
    while done < len(memory):
        try:
            moved = await move(memory[done:])
        except OSError as error:
            # A direct read that met the end of the file inside a block cannot go on from there.
            if done and error.errno == errno.EINVAL:
                break
            raise
        if moved == 0:
            break
        done += moved
    return done


def _code(error: OSError) -> int:
    # A handle for reading refuses a write by itself, without asking the kernel for a number.
    return -(error.errno or errno.EBADF)
