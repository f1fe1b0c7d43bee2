"""A device in virtual time."""

from __future__ import annotations

from typing import Final

from kvtier.emulator.station import Work
from kvtier.settings import DeviceModel

_NS_PER_S: Final = 1_000_000_000


class ModelledDevice:
    """One server with a queue: batches are served in order, each as long as its slower limit.

    A batch of ``o`` operations and ``b`` bytes occupies ``n`` devices alike for
    ``max(o / iops, b / bytes_per_s) / n``, and its bytes are usable ``latency_s`` after that.

    Attributes:
        busy_ns: time that it was occupied.
    """

    def __init__(self, model: DeviceModel) -> None:
        self._latency_ns = round(model.latency_s * _NS_PER_S)
        self._ns_per_operation = _NS_PER_S / (model.iops * model.devices)
        self._ns_per_byte = _NS_PER_S / (model.bytes_per_s * model.devices)
        self._free_ns = 0
        self.busy_ns = 0

    def serve(self, now_ns: int, work: Work) -> int:
        """Queue a batch at ``now_ns``; returns when its bytes are usable, in ns."""
        by_count = work.operations * self._ns_per_operation
        service_ns = round(max(by_count, work.size_bytes * self._ns_per_byte))
        self._free_ns = max(now_ns, self._free_ns) + service_ns
        self.busy_ns += service_ns
        return self._free_ns + self._latency_ns
