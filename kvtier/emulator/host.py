"""The host's software in virtual time: one server that all work passes before it starts.

A real cache runs on one thread, which looks pages up, plans operations, hands them to devices and
copies bytes, all in turn. Half of what it does for operations of a device comes before them, and
half when they are answered; in between they also wait for threads, while nobody is busy.
"""

from __future__ import annotations

from typing import Final

from kvtier.emulator.station import Work
from kvtier.settings import HostSettings

_NS_PER_S: Final = 1_000_000_000


class Host:
    """The server, and its faces to the routes of levels.

    Args:
        settings: what it takes for what.
        is_paced: requests come in a drive that paces them, not in waves.

    Attributes:
        settings: as given.
        busy_ns: time that it was occupied.
        batches: batches of the chain that passed it.
        hits: passed by copies of pages that the first memory had.
        copies: passed by other copies between memories.
        devices: passed by operations given to a device together.
        answers: passed by the same when the device is done.
    """

    def __init__(self, settings: HostSettings, *, is_paced: bool = False) -> None:
        self.settings = settings
        self.busy_ns = 0
        self.batches = 0
        self.hits = HostFace(self, 0.0, settings.page_s)
        self.copies = HostFace(self, settings.copy_s, settings.page_s)
        half = (settings.device_batch_s / 2, settings.operation_s / 2)
        self.devices = HostFace(self, *half, settings.wait_s, settings.operation_wait_s)
        self.answers = HostFace(self, *half)
        self._batch_ns = round(settings.batch_s * _NS_PER_S)
        self._request_ns = _NS_PER_S * (
            settings.paced_request_s if is_paced else settings.request_s
        )
        self._free_ns = 0

    def counts(self) -> tuple[int, int, int, int, int]:
        """How often it did what of the path, in the order of its settings."""
        copies, devices = self.copies, self.devices
        pages = self.hits.items + copies.items
        return (self.batches, copies.visits, pages, devices.visits, devices.items)

    def begin(self, now_ns: int) -> int:
        """Queue a batch of the chain; returns when it may start, in ns."""
        self.batches += 1
        return self.occupy(now_ns, self._batch_ns)

    def prepare(self, now_ns: int, requests: int) -> int:
        """Queue what the drive of so many requests does; returns when that is done, in ns."""
        return self.occupy(now_ns, round(requests * self._request_ns))

    def occupy(self, now_ns: int, service_ns: int) -> int:
        """Queue what takes so long; returns when it is done, in ns."""
        self.busy_ns += service_ns
        self._free_ns = max(now_ns, self._free_ns) + service_ns
        return self._free_ns


class HostFace:
    """Work of one kind, as a station of the routes that it passes.

    Attributes:
        visits: so often it was passed.
        items: operations or pages that passed it, taken together.
    """

    def __init__(
        self,
        host: Host,
        visit_s: float,
        item_s: float,
        wait_s: float = 0.0,
        item_wait_s: float = 0.0,
    ) -> None:
        self.visits = 0
        self.items = 0
        self._host = host
        self._visit_ns = visit_s * _NS_PER_S
        self._item_ns = item_s * _NS_PER_S
        self._wait_ns = wait_s * _NS_PER_S
        self._item_wait_ns = item_wait_s * _NS_PER_S

    @property
    def busy_ns(self) -> int:
        """Time that the whole host was occupied."""
        return self._host.busy_ns

    def serve(self, now_ns: int, work: Work) -> int:
        """Queue work; returns when it may go on, in ns."""
        self.visits += 1
        self.items += work.operations
        service_ns = self._visit_ns + work.operations * self._item_ns
        wait_ns = self._wait_ns + work.operations * self._item_wait_ns
        return self._host.occupy(now_ns, round(service_ns)) + round(wait_ns)
