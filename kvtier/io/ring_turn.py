"""One turn of a ring, compiled: what has ended is told, what waits goes to the kernel.

There is no Python, no lock and no allocation per operation. The kernel knows an operation by its
batch's slot and its extent's number; how far an extent has come is kept in the batch's own table.

Reads and writes wait in a queue each. Writes have their share of what is under way, and no more: a
drive works off what it was given in its own order, so only what is held back here is out of the
way of a read.
"""

from __future__ import annotations

import errno
from typing import Final

import numpy as np

from kvtier.io.engine import LENGTH, OFFSET, RESULT, ROW
from kvtier.io.libc import (
    errno_location,
    load_acquire,
    load_word,
    read,
    store_release,
    store_word,
    syscall,
)
from kvtier.io.ring import (
    CQ_HEAD,
    CQ_MASK,
    CQ_TAIL,
    EVENT_FD,
    FD,
    SQ_FLAGS,
    SQ_HEAD,
    SQ_MASK,
    SQ_TAIL,
    SYS_ENTER,
)
from kvtier.jit import jit
from kvtier.pages import I64, U8

# Columns of ``batches``, i64[slots, 8].
TABLE: Final = 0
"""Address of the batch's table, i64[4, n] (:func:`kvtier.io.engine.pack_extents`)."""
COUNT: Final = 1
NEXT: Final = 2
"""The first extent that was not begun."""
LEFT: Final = 3
"""Extents that have not ended."""
START: Final = 4
"""Address of row 0 of the batch's memory."""
ROW_BYTES: Final = 5
COMMAND: Final = 6
"""First word of an entry: operation, flags and file."""
WRITING: Final = 7
"""1 of a write, else 0: also the row of ``queue`` in which it waits."""
BATCH_WORDS: Final = 8

# Columns of ``state``, i64[STATE_WORDS].
DEPTH: Final = 0
UNDER_WAY: Final = 1
"""Operations in the ring, or with the kernel."""
WRITES_MAX: Final = 2
WRITES_UNDER_WAY: Final = 3
"""Of those under way."""
UNFINISHED: Final = 4
"""1: the turn ended early, and wants another one."""
COUNTER: Final = 5
"""Takes the count of the eventfd."""
QUEUE_HEADS: Final = 6
QUEUE_TAILS: Final = 8
"""Of reads, then of writes: batches with extents not begun are the slots
``queue[WRITING, HEAD % len]`` and on."""
WRITES_BESIDE_READS: Final = 10
"""As ``WRITES_MAX``, while reads wait or are under way; at most that many."""
LAST_KIND: Final = 11
"""Of which queue the extent was that was begun last."""
PINNED_START: Final = 12
PINNED_END: Final = 13
"""Addresses between which the kernel has pinned the memory."""
FILE: Final = 14
"""Flags and file of an entry's first word."""
WRITES_NOW: Final = 15
"""How many writes may be under way: ``WRITES_BESIDE_READS`` while there are reads; after the last
of them one more with each write that ends, up to ``WRITES_MAX``, for another read may be near."""
STATE_WORDS: Final = 16

TURN_ROUNDS_MAX: Final = 8
"""Rounds of one turn: reads of cached pages, which the kernel does at once, would go on and on."""

SUBMITTED_TOGETHER: Final = 4
"""Operations that the kernel is given at once while more are begun: a drive that is given a whole
batch at its end has nothing to do until then. The disk of a virtual machine does 5 % more reads so
at depth 64, each at 6 % more processor time, and takes whole segments 9 to 17 % faster."""

OPERATION_BYTES_MAX: Final = 1 << 30
"""Longer extents are moved piece by piece: a length is a u32, and the kernel stops below 2 GiB."""

_OP_READ_FIXED: Final = 4
_OP_READ: Final = 22
_TO_WRITE: Final = 1
"""From a reading operation to the same that writes."""
_GETEVENTS: Final = 1
_SQ_WORK: Final = 1 << 1 | 1 << 2
"""CQ_OVERFLOW and TASKRUN: the kernel has completions for whoever enters it."""
_EINTR: Final = errno.EINTR
_EAGAIN: Final = errno.EAGAIN
_EBUSY: Final = errno.EBUSY
_EINVAL: Final = errno.EINVAL
_U32: Final = (1 << 32) - 1


@jit
def enqueue(
    state: I64, batches: I64, queue: I64, slot: int, table: I64, memory: U8, writing: bool
) -> None:
    """Queue a batch under a free slot.

    Args:
        state: as of :func:`turn`, as are ``batches`` and ``queue``.
        batches: see there.
        queue: see there.
        slot: a row of ``batches``.
        table: i64[4, n], at least one extent; its results become 0. Stays where it is.
        memory: u8[rows, row_bytes], as ``table``.
        writing: memory to file; otherwise file to memory.
    """
    kind = int(writing)
    start = memory.ctypes.data
    is_pinned = state[PINNED_START] <= start and start + memory.size <= state[PINNED_END]
    operation = (_OP_READ_FIXED if is_pinned else _OP_READ) + kind * _TO_WRITE
    table[RESULT] = 0
    batches[slot, TABLE] = table.ctypes.data
    batches[slot, COUNT] = table.shape[1]
    batches[slot, NEXT] = 0
    batches[slot, LEFT] = table.shape[1]
    batches[slot, START] = start
    batches[slot, ROW_BYTES] = memory.shape[1]
    batches[slot, COMMAND] = operation | state[FILE]
    batches[slot, WRITING] = kind
    queue[kind, state[QUEUE_TAILS + kind] % queue.shape[1]] = slot
    state[QUEUE_TAILS + kind] += 1


@jit
def turn(
    ring: I64,
    sqes: I64,
    cqes: I64,
    state: I64,
    batches: I64,
    queue: I64,
    ended: I64,
    woken: bool,
    wait: bool,
) -> int:
    """Tell what has ended, begin what fits, and let the kernel know.

    Args:
        ring: ``Ring.words``.
        sqes: ``Ring.sqes``.
        cqes: ``Ring.cqes``.
        state: i64[STATE_WORDS].
        batches: i64[slots, BATCH_WORDS].
        queue: i64[2, slots], a circle of slots for reads, and one for writes.
        ended: i64[slots], takes the slots of the batches that ended.
        woken: the eventfd is readable.
        wait: block until at least one operation has ended, if one is under way.

    Returns:
        How many batches ended; or ``-errno``, if the kernel cannot be entered at all.
    """
    finished = 0
    for _ in range(TURN_ROUNDS_MAX):
        head = load_acquire(ring[CQ_HEAD])
        finished = _reap(ring, sqes, cqes, state, batches, ended, finished)
        woken = woken or load_acquire(ring[CQ_HEAD]) != head
        finished = _fill(ring, sqes, state, batches, queue, ended, finished)
        fresh = (load_acquire(ring[SQ_TAIL]) - load_acquire(ring[SQ_HEAD])) & _U32
        work = load_acquire(ring[SQ_FLAGS]) & _SQ_WORK
        least = 1 if wait and state[UNDER_WAY] > 0 else 0
        if fresh == 0 and work == 0 and least == 0:
            if not woken:
                state[UNFINISHED] = 0
                return finished
            # Only now, for every completion sets it. Whatever ended before is seen in one more
            # look; whatever ends from here on sets it again.
            read(np.int32(ring[EVENT_FD]), state.ctypes.data + 8 * COUNTER, 8)
            woken = False
            continue
        if syscall(SYS_ENTER, ring[FD], fresh, least, _GETEVENTS, 0, 0) >= 0:
            wait = False
            continue
        error = int(errno_location()[0])
        if error in (_EAGAIN, _EBUSY, _EINTR):
            break
        if fresh == 0:
            return -error
        finished = _refuse(ring, sqes, state, batches, ended, finished, error)
    state[UNFINISHED] = 1
    return finished


@jit
def _reap(
    ring: I64, sqes: I64, cqes: I64, state: I64, batches: I64, ended: I64, finished: int
) -> int:
    head = load_acquire(ring[CQ_HEAD])
    tail = load_acquire(ring[CQ_TAIL])
    while head != tail:
        at = head & ring[CQ_MASK]
        name = cqes[at, 0]
        moved = cqes[at, 1] & _U32
        if moved > _U32 >> 1:
            moved -= _U32 + 1
        head = (head + 1) & _U32
        state[UNDER_WAY] -= 1
        writing = batches[name >> 32, WRITING]
        state[WRITES_UNDER_WAY] -= writing
        state[WRITES_NOW] = min(state[WRITES_NOW] + writing, state[WRITES_MAX])
        finished = _advance(ring, sqes, state, batches, ended, finished, name, moved)
    store_release(ring[CQ_HEAD], head)
    return finished


@jit
def _advance(
    ring: I64,
    sqes: I64,
    state: I64,
    batches: I64,
    ended: I64,
    finished: int,
    name: int,
    moved: int,
) -> int:
    """An operation of extent ``name`` moved so many bytes, or failed (-errno)."""
    slot = name >> 32
    extent = name & _U32
    count = batches[slot, COUNT]
    table = batches[slot, TABLE]
    result = table + 8 * (RESULT * count + extent)
    done = load_word(result)
    if moved > 0:
        done += moved
        store_word(result, done)
        if done < load_word(table + 8 * (LENGTH * count + extent)):
            _push(ring, sqes, state, batches, slot, extent)
            return finished
    elif moved in (-_EINTR, -_EAGAIN):
        _push(ring, sqes, state, batches, slot, extent)
        return finished
    elif moved < 0 and (batches[slot, WRITING] or moved != -_EINVAL or done == 0):
        # Else: a direct read that met the end of the file inside a block cannot go on from there.
        store_word(result, moved)
    return _end(batches, ended, finished, slot)


@jit
def _end(batches: I64, ended: I64, finished: int, slot: int) -> int:
    batches[slot, LEFT] -= 1
    if batches[slot, LEFT] == 0:
        ended[finished] = slot
        finished += 1
    return finished


@jit
def _fill(
    ring: I64, sqes: I64, state: I64, batches: I64, queue: I64, ended: I64, finished: int
) -> int:
    """Begin extents of waiting batches, as many as may be under way."""
    while state[UNDER_WAY] < state[DEPTH]:
        kind = _next_kind(state)
        if kind < 0:
            break
        state[LAST_KIND] = kind
        slot = queue[kind, state[QUEUE_HEADS + kind] % queue.shape[1]]
        extent = batches[slot, NEXT]
        count = batches[slot, COUNT]
        batches[slot, NEXT] += 1
        if extent + 1 == count:
            state[QUEUE_HEADS + kind] += 1
        if load_word(batches[slot, TABLE] + 8 * (LENGTH * count + extent)) > 0:
            _push(ring, sqes, state, batches, slot, extent)
            fresh = (load_acquire(ring[SQ_TAIL]) - load_acquire(ring[SQ_HEAD])) & _U32
            if fresh >= SUBMITTED_TOGETHER:  # what the kernel refuses now is given to it again
                syscall(SYS_ENTER, ring[FD], fresh, 0, 0, 0, 0)
        else:
            finished = _end(batches, ended, finished, slot)
    return finished


@jit
def _next_kind(state: I64) -> int:
    """Of which queue the oldest batch goes on: 1 of writes, 0 of reads, or -1, of none.

    Writes come first as long as they have not got their share: so neither starves the other. A
    queue of one operation, which has no shares, takes one of each in turn.
    """
    reads_wait = state[QUEUE_HEADS] != state[QUEUE_TAILS]
    there_are_reads = reads_wait or state[UNDER_WAY] > state[WRITES_UNDER_WAY]
    if there_are_reads:
        state[WRITES_NOW] = state[WRITES_BESIDE_READS]
    writes_wait = state[QUEUE_HEADS + 1] != state[QUEUE_TAILS + 1]
    is_their_turn = not reads_wait or state[DEPTH] > 1 or state[LAST_KIND] == 0
    if writes_wait and state[WRITES_UNDER_WAY] < state[WRITES_NOW] and is_their_turn:
        return 1
    return 0 if reads_wait else -1


@jit
def _push(ring: I64, sqes: I64, state: I64, batches: I64, slot: int, extent: int) -> None:
    """Put what is left of an extent into the ring (``struct io_uring_sqe``); there is room."""
    count = batches[slot, COUNT]
    at = batches[slot, TABLE] + 8 * extent
    done = load_word(at + 8 * RESULT * count)
    row = load_word(at + 8 * ROW * count)
    left = load_word(at + 8 * LENGTH * count) - done
    tail = load_acquire(ring[SQ_TAIL])
    entry = tail & ring[SQ_MASK]
    sqes[entry, 0] = batches[slot, COMMAND]
    sqes[entry, 1] = load_word(at + 8 * OFFSET * count) + done
    sqes[entry, 2] = batches[slot, START] + row * batches[slot, ROW_BYTES] + done
    sqes[entry, 3] = min(left, OPERATION_BYTES_MAX)
    sqes[entry, 4] = slot << 32 | extent
    sqes[entry, 5] = 0
    sqes[entry, 6] = 0
    sqes[entry, 7] = 0
    store_release(ring[SQ_TAIL], (tail + 1) & _U32)
    state[UNDER_WAY] += 1
    state[WRITES_UNDER_WAY] += batches[slot, WRITING]


@jit
def _refuse(
    ring: I64, sqes: I64, state: I64, batches: I64, ended: I64, finished: int, error: int
) -> int:
    """Take back what the kernel has not taken, and fail it."""
    head = load_acquire(ring[SQ_HEAD])
    tail = load_acquire(ring[SQ_TAIL])
    store_release(ring[SQ_TAIL], head)
    for ahead in range((tail - head) & _U32):
        name = sqes[(head + ahead) & ring[SQ_MASK], 4]
        slot = name >> 32
        state[UNDER_WAY] -= 1
        state[WRITES_UNDER_WAY] -= batches[slot, WRITING]
        count = batches[slot, COUNT]
        store_word(batches[slot, TABLE] + 8 * (RESULT * count + (name & _U32)), -error)
        finished = _end(batches, ended, finished, slot)
    return finished


def compile_enqueue() -> None:
    """Compile :func:`enqueue`, for memory that may be written and for other."""
    state, batches = np.zeros(STATE_WORDS, np.int64), np.zeros((1, BATCH_WORDS), np.int64)
    queue, table = np.zeros((2, 1), np.int64), np.zeros((4, 0), np.int64)
    memory = np.zeros((0, 1), np.uint8)
    read_only = memory.copy()
    read_only.flags.writeable = False
    for one in (memory, read_only):
        enqueue(state, batches, queue, 0, table, one, False)
