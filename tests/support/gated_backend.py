"""The memory backend with a gate before its reads, and faults behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from kvtier_memory import MemoryBackend

from kvtier.backend import ExtentBatch, ObjectBatch, PutResult
from kvtier.pages import U8, PageStatus


class GatedBackend(MemoryBackend):
    """Reads wait while ``gate`` is clear; ``answer`` replaces what they return.

    Puts and deletes wait, once they are done, while ``put_gate`` is clear.
    """

    def __init__(self, page_bytes: int) -> None:
        super().__init__(page_bytes, None)
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()
        self.asked: list[ExtentBatch] = []
        self.answer: BaseException | U8 | None = None
        self.refuse_puts = False
        self.put_gate = asyncio.Event()
        self.put_gate.set()
        self.put_arrived = asyncio.Event()

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        self.asked.append(batch)
        self.arrived.set()
        await self.gate.wait()
        if isinstance(self.answer, BaseException):
            raise self.answer
        if self.answer is not None:
            return self.answer
        return await super().read(batch, out)

    async def put(self, batch: ObjectBatch) -> PutResult:
        if self.refuse_puts:
            count = len(batch)
            return PutResult(
                np.full(count, PageStatus.FAILED, np.uint8), np.zeros(count, np.uint64)
            )
        result = await super().put(batch)
        self.put_arrived.set()
        await self.put_gate.wait()
        return result

    async def delete(self, keys: Sequence[bytes]) -> U8:
        status = await super().delete(keys)
        self.put_arrived.set()
        await self.put_gate.wait()
        return status
