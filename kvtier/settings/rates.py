"""How many reads a device model serves when it always has some: the roof of its level."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from kvtier.settings.values import DeviceModel
from kvtier.ssd import SsdModel

NORMAL_P99: Final = 2.3263478740408408
"""99th percentile of the standard normal distribution."""


def reads_per_s(model: DeviceModel, page_bytes: int, pages: float = 1.0) -> float:
    """Reads that all devices of a model together serve per second, never idle, and without writes.

    The slowest of operations, throttle and bandwidth counts. ``B`` operations that are taken as a
    batch cost ``latency + B * service``, and a tail stretches that on average by the mean of its
    log-normal factor, ``exp(sigma**2 / 2)`` with ``sigma = ln(tail_latency / latency) / 2.33``. A
    flash drive serves what its slowest stage does (:meth:`~kvtier.ssd.SsdModel.capacity_iops`).

    Args:
        model: a drive, a memory, a link or what issues operations.
        page_bytes: bytes of a page.
        pages: of one read, on average; a flash drive's are taken to be of the next whole numbers.
    """
    if model.flash is not None:
        return _flash_reads_per_s(model.flash, page_bytes, pages) * model.devices
    service_s = max(1 / model.iops, pages * page_bytes / model.bytes_per_s)
    if model.batch is not None:
        per_operation_s = model.latency_s / model.batch + service_s
        service_s = per_operation_s * math.exp(tail_sigma(model) ** 2 / 2)
    return min(1 / service_s, model.sustained_iops or math.inf) * model.devices


def tail_sigma(model: DeviceModel) -> float:
    """Of the log-normal factor of a latency: median 1, 99th percentile ``tail / latency``."""
    if model.tail_latency_s is None:
        return 0.0
    return math.log(model.tail_latency_s / model.latency_s) / NORMAL_P99


def _flash_reads_per_s(flash: SsdModel, page_bytes: int, pages: float) -> float:
    reading = replace(flash, reads_per_write=math.inf)
    fewer = max(1, math.floor(pages))
    share = max(0.0, pages - fewer)  # of the reads that have one page more
    read_s = (1 - share) / reading.capacity_iops(fewer * page_bytes)
    if share:
        read_s += share / reading.capacity_iops((fewer + 1) * page_bytes)
    return 1 / read_s
