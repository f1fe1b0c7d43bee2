"""A device in virtual time."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from kvtier.emulator.flash import FlashQueues
from kvtier.emulator.queueing import QueueingDevice
from kvtier.emulator.station import ReadLoad, Server, Work
from kvtier.settings import DeviceModel
from kvtier.ssd import SsdModel

_NS_PER_S: Final = 1_000_000_000


class ModelledDevice:
    """The station that a device model describes.

    A model of a latency, an operation rate and a byte rate alone needs no queue of operations: a
    :class:`SteadyDevice` serves whole batches.
    """

    def __init__(self, model: DeviceModel, seed: int = 1) -> None:
        self._server: Server
        if model.flash is not None:
            self._server = FlashDevice(model.flash, model.devices, seed)
        elif _is_steady(model):
            self._server = SteadyDevice(model)
        else:
            self._server = QueueingDevice(model, seed)
        self._model = model
        self._reads = 0
        self._read_pages = 0

    @property
    def busy_ns(self) -> int:
        """Time that it was occupied."""
        return self._server.busy_ns

    @property
    def load(self) -> ReadLoad:
        """The reads that it served so far."""
        return ReadLoad(self._model, self._reads, self._read_pages)

    def serve(self, now_ns: int, work: Work) -> int:
        """Queue a batch at ``now_ns``; returns when its bytes are usable, in ns."""
        if not work.is_write:
            self._reads += work.operations
            self._read_pages += work.total_pages
        return self._server.serve(now_ns, work)


class FlashDevice:
    """Flash drives that share the load, each page of it on the drive that a hash gives."""

    def __init__(self, model: SsdModel, drives: int, seed: int) -> None:
        self._queues = FlashQueues(model, drives, seed)

    @property
    def busy_ns(self) -> int:
        """Time that its busiest stage was occupied: planes, channels or links."""
        stages = zip(self._queues.busy_ns, self._queues.servers, strict=True)
        return max(busy_ns // servers for busy_ns, servers in stages)

    def serve(self, now_ns: int, work: Work) -> int:
        """Queue a batch at ``now_ns``; returns when the last of it is done, in ns."""
        pages = np.ones(work.operations, np.int64) if work.pages is None else work.pages
        locations = work.locations.astype(np.uint64)
        ends_ns = self._queues.serve(now_ns, locations, pages, work.page_bytes, work.is_write)
        return int(ends_ns.max(initial=now_ns))


class SteadyDevice:
    """One server with a queue: batches are served in order, each as long as its slower limit.

    A batch of ``o`` operations and ``b`` bytes occupies ``n`` devices alike for
    ``max(o / iops, b / bytes_per_s) / n``, and its bytes are usable ``latency_s`` after that.

    Times are kept in fractions of a ns, for a fast device serves a page in less.
    """

    def __init__(self, model: DeviceModel) -> None:
        self._latency_ns = round(model.latency_s * _NS_PER_S)
        self._ns_per_operation = _NS_PER_S / (model.iops * model.devices)
        self._ns_per_byte = _NS_PER_S / (model.bytes_per_s * model.devices)
        self._free_ns = 0.0
        self._busy_ns = 0.0

    @property
    def busy_ns(self) -> int:
        """Time that it was occupied."""
        return round(self._busy_ns)

    def serve(self, now_ns: int, work: Work) -> int:
        """Queue a batch at ``now_ns``; returns when its bytes are usable, in ns."""
        by_count = work.operations * self._ns_per_operation
        service_ns = max(by_count, work.size_bytes * self._ns_per_byte)
        self._free_ns = max(float(now_ns), self._free_ns) + service_ns
        self._busy_ns += service_ns
        return math.ceil(self._free_ns) + self._latency_ns


def _is_steady(model: DeviceModel) -> bool:
    rest = (
        model.tail_latency_s,
        model.batch,
        model.sustained_iops,
        model.write_latency_s,
        model.write_iops,
        model.write_bytes_per_s,
    )
    return all(figure is None for figure in rest)
