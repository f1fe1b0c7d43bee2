"""Tiers that keep their pages in memory: what they do, and the one in host memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np

from kvtier.gpu import DeviceRows, Gpu
from kvtier.index import PageIndex
from kvtier.pages import I64, U8
from kvtier.rows import aligned_rows, copy_rows
from kvtier.tiers.mapped import MappedRows


class MemoryTier(ABC):
    """A page index and an arena of pages. Its calls must not overlap.

    Host memory is copied at once. Copies between a GPU's memories are enqueued, on the stream of
    the :class:`kvtier.gpu.DeviceRows` that are copied.

    Attributes:
        name: ``hbm`` or ``dram``.
        engine: what looks pages up and moves them: ``numba``, ``cpu-twin`` or ``cuda``.
        index: which page lies in which slot.
        arena: u8[slots, page_bytes], the page of each slot; a CuPy array if the engine is ``cuda``.
    """

    in_memory: ClassVar[Literal[True]] = True
    name: str
    engine: str
    index: PageIndex
    arena: U8

    @abstractmethod
    def gather(self, slots: I64, out: U8 | DeviceRows, rows: I64 | None = None) -> None:
        """Copy the pages of ``slots`` to rows of ``out``.

        Args:
            slots: i64[n].
            out: u8[any, page_bytes], C-contiguous.
            rows: i64[n], distinct, or None for rows 0 to n-1.

        Raises:
            ValueError: a slot, a row or a shape does not fit; nothing was copied.
            DeviceLostError: the GPU failed, that of the tier or of ``out``.
        """

    @abstractmethod
    def scatter(self, slots: I64, source: U8, rows: I64 | None = None) -> None:
        """Copy rows of ``source`` to the pages of ``slots``.

        Args:
            slots: i64[n], distinct.
            source: u8[any, page_bytes], C-contiguous.
            rows: i64[n], or None for rows 0 to n-1.

        Raises:
            ValueError: a slot, a row or a shape does not fit; nothing was copied.
            DeviceLostError: the GPU of the tier failed.
        """

    @abstractmethod
    def transfer(self, slots: I64, source: MemoryTier, source_slots: I64) -> None:
        """Copy pages from another tier's arena; ``slots`` and ``source_slots`` are i64[n]."""

    @abstractmethod
    async def close(self) -> None:
        """Let the memory go; a second call does nothing."""


class HostTier(MemoryTier):
    """A tier in host memory: ``dram``, and the CPU twin of ``hbm``.

    Args:
        name, engine, index: see :class:`MemoryTier`.
        slots: pages of the arena.
        page_bytes: bytes of a page.
        gpu: reads the arena where it is; None: nobody but the host does.

    Attributes:
        mapped: the arena as ``gpu`` sees it.

    Raises:
        DeviceError: there is no memory for the arena, or it cannot be pinned.
    """

    def __init__(
        self,
        name: str,
        engine: str,
        index: PageIndex,
        slots: int,
        page_bytes: int,
        gpu: Gpu | None = None,
    ) -> None:
        self.name = name
        self.engine = engine
        self.index = index
        self.arena = aligned_rows(slots, page_bytes)
        self.mapped = None if gpu is None else MappedRows(gpu, self.arena)
        # Compiled now, not inside the first request.
        copy_rows(np.empty((1, page_bytes), np.uint8), None, self.arena[:1], None)

    def gather(self, slots: I64, out: U8 | DeviceRows, rows: I64 | None = None) -> None:
        """See :meth:`MemoryTier.gather`."""
        if isinstance(out, DeviceRows):
            assert self.mapped is not None, "memory of a GPU is given to a tier that knows none"
            self.mapped.gather(out, rows, slots)
        else:
            copy_rows(out, rows, self.arena, slots)

    def scatter(self, slots: I64, source: U8, rows: I64 | None = None) -> None:
        """See :meth:`MemoryTier.scatter`."""
        self._before_write()
        copy_rows(self.arena, slots, source, rows)

    def transfer(self, slots: I64, source: MemoryTier, source_slots: I64) -> None:
        """See :meth:`MemoryTier.transfer`."""
        self._before_write()
        source.gather(source_slots, self.arena, slots)

    async def close(self) -> None:
        """See :meth:`MemoryTier.close`."""
        if self.mapped is not None:
            self.mapped.close()
        # The mapping ends with the last array over it: a caller may still hold one.
        self.arena = self.arena[:0]

    def _before_write(self) -> None:
        if self.mapped is not None:
            self.mapped.before_write()
