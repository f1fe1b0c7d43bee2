"""The memory backend with a gate before its reads, and faults behind it."""

from __future__ import annotations

import asyncio

import numpy as np
from kvtier_memory import MemoryBackend

from kvtier.backend import ExtentBatch, ObjectBatch, PutResult
from kvtier.pages import U8, PageStatus


class GatedBackend(MemoryBackend):
    """Reads wait while ``gate`` is clear; ``answer`` replaces what they return."""

    def __init__(self, page_bytes: int) -> None:
        super().__init__(page_bytes, None)
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()
        self.asked: list[ExtentBatch] = []
        self.answer: Exception | U8 | None = None
        self.refuse_puts = False

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        self.asked.append(batch)
        self.arrived.set()
        await self.gate.wait()
        if isinstance(self.answer, Exception):
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
        return await super().put(batch)
