"""A device whose operations differ: a tail, a throttle, batches, and writes apart from reads.

An operation passes two stages, both in the order of submission.

*Throttle.* A bucket holds up to ``burst`` tokens and gains ``sustained_iops`` per second, in steps
of ``refill_s``. An operation takes one, or waits for it.

*Service.* It occupies the device for the slower of an operation and a byte rate. Without ``batch``
its bytes are usable a latency after that, during which the next is served: latencies overlap, as in
a drive of many dies. With ``batch`` they do not. The device takes what waits, ``batch`` operations
at most, spends one latency on all of them and serves them in turn; whatever comes meanwhile waits
for the next batch. A paravirtual disk works so: a notification wakes the hypervisor's thread, and
that thread empties the queue. With ``d`` operations always under way it reaches
``d / (latency + d / iops)``, where overlapping latencies give ``min(d / latency, iops)``.

The tail is log-normal: a factor with the median 1 and the 99th percentile ``tail_latency /
latency``. It stretches the latency of one operation, or all of one batch.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvtier.emulator.station import Work
from kvtier.hashing import fmix64, seed_word
from kvtier.jit import jit, jit_inline
from kvtier.pages import I64
from kvtier.settings import DeviceModel
from kvtier.settings.rates import tail_sigma

_OPERATIONS_PER_CALL: Final = 1 << 18
"""Operations of one compiled call: some ms, so that Ctrl-C is heard between."""

_NS_PER_S: Final = 1e9
# Rows of the figures are reads and writes; these are their columns.
_LATENCY_NS: Final = 0
_OPERATION_NS: Final = 1
_BYTE_NS: Final = 2

# Columns of the state: times in ns.
_FREE: Final = 0  # when what was accepted is served
_OPENED: Final = 1  # when the last batch starts
_FACTOR: Final = 2  # by which that batch is stretched
_TOKENS: Final = 3  # of the throttle, at the moment _REFILLED
_REFILLED: Final = 4
_BUSY: Final = 5
_STATE: Final = 6

# Columns of the counts.
_IN_BATCH: Final = 0
_DRAWN: Final = 1
_COUNTS: Final = 2

_MANTISSA: Final = 2.0**-53
_TO_MANTISSA: Final = np.uint64(11)
_ONE: Final = np.uint64(1)


class Queue(NamedTuple):
    """What compiled code needs of a device, and what it changes.

    Attributes:
        figures: f64[2, 3], of reads and of writes: latency, time of an operation, of a byte, in ns.
        sigma: of the log-normal factor; 0 draws none.
        batch: operations of a batch; 0 for none.
        burst: most tokens; 0 for no throttle.
        refill_ns: between two steps of the throttle.
        refill_tokens: of each step.
        state: f64[6], changed.
        counts: i64[2], changed.
        seed_word: XORed into a number before it is hashed.
    """

    figures: NDArray[np.float64]
    sigma: float
    batch: int
    burst: float
    refill_ns: float
    refill_tokens: float
    state: NDArray[np.float64]
    counts: I64
    seed_word: np.uint64


class QueueingDevice:
    """A station for any device model; the same seed gives the same times.

    Attributes:
        queue: its figures and its state.
    """

    def __init__(self, model: DeviceModel, seed: int = 1) -> None:
        self.queue = make_queue(model, seed)
        self._served = 0

    @property
    def busy_ns(self) -> int:
        """Time that its busier stage was occupied; latencies that overlap do not count."""
        queue = self.queue
        busy_ns = float(queue.state[_BUSY])
        if queue.burst:
            # The tokens that were there from the start took no time.
            waited_for = max(0.0, self._served - queue.burst)
            busy_ns = max(busy_ns, waited_for * queue.refill_ns / queue.refill_tokens)
        return round(busy_ns)

    def serve(self, now_ns: int, work: Work) -> int:
        """Queue operations at ``now_ns``; returns when the last of them is done, in ns."""
        pages = np.ones(work.operations, np.int64) if work.pages is None else work.pages
        self._served += len(pages)
        done_ns = float(now_ns)
        for first in range(0, len(pages), _OPERATIONS_PER_CALL):
            last = first + _OPERATIONS_PER_CALL
            end_ns = _serve(
                self.queue, float(now_ns), pages[first:last].copy(), work.page_bytes, work.is_write
            )
            done_ns = max(done_ns, end_ns)
        return math.ceil(done_ns)


def make_queue(model: DeviceModel, seed: int = 1) -> Queue:
    """An idle device at time 0; ``devices`` alike are one that is so many times as fast."""
    reads = (model.latency_s, model.iops, model.bytes_per_s)
    writes = (model.write_latency_s, model.write_iops, model.write_bytes_per_s)
    figures = np.array(
        [reads, [r if w is None else w for r, w in zip(reads, writes, strict=True)]], np.float64
    )
    figures[:, 1:] = 1 / (figures[:, 1:] * model.devices)
    queue = Queue(
        figures=figures * _NS_PER_S,
        sigma=tail_sigma(model),
        batch=(model.batch or 0) * model.devices,
        **_throttle(model),
        state=np.zeros(_STATE),
        counts=np.zeros(_COUNTS, np.int64),
        seed_word=np.uint64(seed_word(seed)),
    )
    queue.state[_TOKENS] = queue.burst
    queue.state[_OPENED] = -1.0  # no operation has come so early
    return queue


def _throttle(model: DeviceModel) -> dict[str, float]:
    if model.sustained_iops is None:
        return {"burst": 0.0, "refill_ns": 0.0, "refill_tokens": 0.0}
    rate = model.sustained_iops * model.devices
    refill_s = 1 / rate if model.refill_s is None else model.refill_s
    # A bucket smaller than a step would never let the rate through.
    burst = max((model.burst or 1) * model.devices, rate * refill_s, 1.0)
    return {"burst": burst, "refill_ns": refill_s * _NS_PER_S, "refill_tokens": rate * refill_s}


# -- compiled --------------------------------------------------------------------------------------


@jit
def _serve(queue: Queue, now_ns: float, pages: I64, page_bytes: int, is_write: bool) -> float:
    """Serve operations of so many pages each; returns when the last is done."""
    done_ns = now_ns
    for row in range(pages.size):
        done_ns = max(done_ns, serve_one(queue, now_ns, pages[row] * page_bytes, is_write))
    return done_ns


@jit_inline
def serve_one(queue: Queue, now_ns: float, size_bytes: int, is_write: bool) -> float:
    """Serve an operation that comes at ``now_ns``; returns when it is done, in ns."""
    kind = 1 if is_write else 0
    state = queue.state
    service_ns = max(queue.figures[kind, _OPERATION_NS], size_bytes * queue.figures[kind, _BYTE_NS])
    latency_ns = queue.figures[kind, _LATENCY_NS]
    ready_ns = _pass_throttle(queue, now_ns)
    if queue.batch == 0:
        state[_BUSY] += service_ns
        state[_FREE] = max(ready_ns, state[_FREE]) + service_ns
        return float(state[_FREE] + latency_ns * _draw_factor(queue))
    if ready_ns > state[_OPENED] or queue.counts[_IN_BATCH] == queue.batch:
        state[_OPENED] = max(ready_ns, state[_FREE])
        state[_FACTOR] = _draw_factor(queue)
        state[_FREE] = state[_OPENED] + latency_ns * state[_FACTOR]
        state[_BUSY] += latency_ns * state[_FACTOR]
        queue.counts[_IN_BATCH] = 0
    state[_BUSY] += service_ns * state[_FACTOR]
    state[_FREE] += service_ns * state[_FACTOR]
    queue.counts[_IN_BATCH] += 1
    return float(state[_FREE])


@jit_inline
def _pass_throttle(queue: Queue, now_ns: float) -> float:
    """Take a token; returns when there is one."""
    if queue.burst == 0.0:
        return now_ns
    state = queue.state
    steps = max(np.floor((now_ns - state[_REFILLED]) / queue.refill_ns), 0.0)
    if state[_TOKENS] + steps * queue.refill_tokens < 1.0:
        steps = np.ceil((1.0 - state[_TOKENS]) / queue.refill_tokens)
    state[_TOKENS] = min(queue.burst, state[_TOKENS] + steps * queue.refill_tokens) - 1.0
    state[_REFILLED] += steps * queue.refill_ns
    return float(max(now_ns, state[_REFILLED]))


@jit_inline
def _draw_factor(queue: Queue) -> float:
    """A log-normal factor (Box and Muller, 1958), of the next two hashed numbers."""
    if queue.sigma == 0.0:
        return 1.0
    drawn = np.uint64(queue.counts[_DRAWN])
    queue.counts[_DRAWN] += 2
    first = (fmix64(drawn ^ queue.seed_word) >> _TO_MANTISSA) * _MANTISSA
    second = (fmix64((drawn + _ONE) ^ queue.seed_word) >> _TO_MANTISSA) * _MANTISSA
    normal = np.sqrt(-2.0 * np.log(1.0 - first)) * np.cos(2.0 * np.pi * second)
    return float(np.exp(queue.sigma * normal))
