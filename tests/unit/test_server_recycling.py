"""The memory of answers is used again, and never while anything still reads it."""

from __future__ import annotations

import numpy as np

from kvtier.server.recycling import Recycler

SIZE_BYTES = 300_000


def test_memory_is_used_again_when_its_last_view_is_gone() -> None:
    memory = Recycler()
    first = memory.take(SIZE_BYTES)
    address, view = first.ctypes.data, first.data[10:]
    del first
    other = memory.take(SIZE_BYTES)
    assert other.ctypes.data != address
    view.release()
    assert memory.take(SIZE_BYTES).ctypes.data == address


def test_sizes_of_one_power_of_two_share_memory() -> None:
    memory = Recycler()
    address = memory.take(SIZE_BYTES).ctypes.data
    again = memory.take(SIZE_BYTES + 5)
    assert again.ctypes.data == address
    assert len(again) == SIZE_BYTES + 5
    again[:] = 1


def test_a_byte_that_shall_lie_on_a_cache_line_does() -> None:
    for head_bytes in (0, 1, 63, 64, 104):
        taken = Recycler().take(SIZE_BYTES, aligned_from=head_bytes)
        assert taken[head_bytes:].ctypes.data % 64 == 0


def test_what_is_kept_has_a_bound() -> None:
    memory = Recycler()
    taken = [memory.take(1 << 20) for _ in range(64)]
    assert len({one.ctypes.data for one in taken}) == 64
    taken.clear()
    assert memory.free_bytes == 32 << 20


def test_small_memory_is_left_to_the_allocator() -> None:
    memory = Recycler()
    small = memory.take(1000)
    assert small.dtype == np.uint8
    del small
    assert memory.free_bytes == 0
