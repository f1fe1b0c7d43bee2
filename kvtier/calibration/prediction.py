"""What a device model would do under a load: its station in virtual time, in a closed loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvtier.calibration.load import Load, Operations
from kvtier.emulator.queueing import Queue, make_queue, serve_one
from kvtier.jit import jit
from kvtier.pages import I64
from kvtier.settings import DeviceModel

ROUNDS: Final = 400
"""Operations in each place of the loop: enough batches for a 99th percentile."""

_OPERATIONS_MIN: Final = 4096
_PER_CALL: Final = 1 << 14


def predict(model: DeviceModel, load: Load, seed: int = 1, rounds: int = ROUNDS) -> Operations:
    """Operations of a load on an emulated device, once it runs steadily and a burst is used up.

    Args:
        model: of the device.
        load: what is asked of it.
        seed: of every random choice.
        rounds: operations in each place of the loop.
    """
    warm = 2 * load.depth
    count = max(_OPERATIONS_MIN, rounds * load.depth)
    done = closed_loop(replace(model, burst=None), load, warm + count, seed)
    return Operations(done.starts_ns[warm:], done.ends_ns[warm:])


def closed_loop(model: DeviceModel, load: Load, operations: int, seed: int = 1) -> Operations:
    """The first ``operations`` of a load, in virtual time from 0.

    ``depth`` operations begin at once; whenever one is done, the next begins.
    """
    queue = make_queue(model, seed)
    writes = np.random.default_rng(seed).random(operations) < load.write_share
    begun_ns = np.zeros(load.depth)
    done_ns = np.full(load.depth, -1.0)  # none is under way
    stamps = np.empty((2, operations), np.int64)
    for first in range(0, operations, _PER_CALL):
        last = min(first + _PER_CALL, operations)
        _loop(queue, load.io_bytes, writes, begun_ns, done_ns, stamps, first, last)
    return Operations(stamps[0], stamps[1])


@jit
def _loop(
    queue: Queue,
    io_bytes: int,
    writes: NDArray[np.bool_],
    begun_ns: NDArray[np.float64],
    done_ns: NDArray[np.float64],
    stamps: I64,
    first: int,
    last: int,
) -> None:
    """Operations ``first`` to ``last - 1``: end one, note it, begin the next in its place."""
    for number in range(first, last):
        if done_ns[0] < 0.0:
            for each in range(done_ns.size):
                done_ns[each] = serve_one(queue, 0.0, io_bytes, writes[each % writes.size])
        slot = np.argmin(done_ns)
        now_ns = done_ns[slot]
        stamps[0, number] = np.int64(begun_ns[slot])
        stamps[1, number] = np.int64(now_ns)
        begun_ns[slot] = now_ns
        done_ns[slot] = serve_one(queue, now_ns, io_bytes, writes[number])
