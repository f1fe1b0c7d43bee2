"""Memory of answers, used again: new memory costs a fault of the MMU for each page of it."""

from __future__ import annotations

import weakref
from collections import defaultdict
from typing import Final

import numpy as np

from kvtier.pages import U8
from kvtier.rows import aligned_rows

_KEPT_BYTES_MAX: Final = 32 << 20
_SMALL_BYTES: Final = 64 << 10
"""What is no larger comes from the allocator, which keeps such memory by itself."""


class Recycler:
    """Gives memory out, and takes it back when the last array or view over it is gone.

    Attributes:
        free_bytes: what lies ready to be given out; at most 32 MiB.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[U8]] = defaultdict(list)  # by size, a power of two
        self.free_bytes = 0
        # By the identity of the reference, for an array has no hash.
        self._given: dict[int, tuple[weakref.ref[U8], U8]] = {}

    def take(self, size_bytes: int, aligned_from: int = 0) -> U8:
        """Memory of any content.

        Args:
            size_bytes: how much.
            aligned_from: a byte of it that shall lie on a cache line.
        """
        if size_bytes <= _SMALL_BYTES:
            return np.empty(size_bytes, np.uint8)
        start = -aligned_from % 64
        whole_bytes = 1 << (size_bytes + start - 1).bit_length()
        blocks = self._free[whole_bytes]
        if blocks:
            block = blocks.pop()
            self.free_bytes -= whole_bytes
        else:
            block = aligned_rows(1, whole_bytes)[0]
        given = block[start : start + size_bytes]
        reference = weakref.ref(given, self._take_back)
        self._given[id(reference)] = reference, block
        return given

    def _take_back(self, reference: weakref.ref[U8]) -> None:
        _, block = self._given.pop(id(reference))
        if self.free_bytes + len(block) <= _KEPT_BYTES_MAX:
            self._free[len(block)].append(block)
            self.free_bytes += len(block)
