"""What a server counts, and how Prometheus reads it.

Nothing in the text names a tenant, a key or an address, so its size has a bound.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import Final

from kvtier.prometheus import Kind, family, head

LATENCY_BOUNDS_S: Final = tuple(
    scale * step for scale in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0) for step in (1.0, 2.5, 5.0)
)
"""Upper ends of the buckets of a latency; above the last there is one more."""


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    """It was answered, be it that an object was not there."""
    LIMIT = "limit"
    BACKEND = "backend"
    PROTOCOL = "protocol"
    CANCELLED = "cancelled"
    """Its client left, or the server ended, first."""

    __hash__ = str.__hash__  # an enum's own hashes the name, in Python


@dataclass(slots=True)
class _Latencies:
    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, latency_s: float) -> None:
        self.counts[bisect_left(LATENCY_BOUNDS_S, latency_s)] += 1
        self.sum_s += latency_s


class ServerCounters:
    """Counted since the server began.

    Attributes:
        accepted: connections that came.
        refusals: connections that were ended against their will, by reason.
        received_bytes, sent_bytes: of frames, without what TLS adds.
    """

    def __init__(self) -> None:
        self.accepted = 0
        self.refusals: Counter[str] = Counter()
        self.received_bytes = 0
        self.sent_bytes = 0
        self._requests: Counter[tuple[str, Outcome]] = Counter()
        self._latencies: dict[str, _Latencies] = {}

    def request(self, kind: str, outcome: Outcome, latency_s: float) -> None:
        """Count a request that ended.

        Args:
            kind: what it was, a name of :mod:`kvtier.wire.messages`.
            outcome: how it ended.
            latency_s: from its last byte until its answer was there.
        """
        self._requests[kind, outcome] += 1
        latencies = self._latencies.get(kind)
        if latencies is None:
            latencies = self._latencies[kind] = _Latencies()
        latencies.add(latency_s)

    def exposition(self, gauges: Mapping[str, float]) -> str:
        """All of it, and what is so now: values by name, of which ``HELP`` has a line each."""
        lines: list[str] = []
        for name, value in gauges.items():
            lines += _family(name, "gauge", [({}, value)])
        lines += _family("kvtier_connections_accepted_total", "counter", [({}, self.accepted)])
        lines += _family("kvtier_received_bytes_total", "counter", [({}, self.received_bytes)])
        lines += _family("kvtier_sent_bytes_total", "counter", [({}, self.sent_bytes)])
        lines += _family(
            "kvtier_refusals_total",
            "counter",
            [({"reason": reason}, count) for reason, count in sorted(self.refusals.items())],
        )
        lines += _family(
            "kvtier_requests_total",
            "counter",
            [
                ({"kind": kind, "status": outcome}, count)
                for (kind, outcome), count in sorted(self._requests.items())
            ],
        )
        lines += head("kvtier_request_seconds", "histogram", HELP["kvtier_request_seconds"])
        for kind, latencies in sorted(self._latencies.items()):
            lines += _histogram("kvtier_request_seconds", kind, latencies)
        return "\n".join(lines) + "\n"


HELP: Final[Mapping[str, str]] = {
    "kvtier_connections": "Connections there are now.",
    "kvtier_strangers": "Of those, such as have not been let in yet.",
    "kvtier_inflight_requests": "Requests being worked on now.",
    "kvtier_held_bytes": "Bytes that requests and their answers hold now.",
    "kvtier_uploads": "Objects of which a part lies on the disk of the server now.",
    "kvtier_ready": "1 while requests are taken, 0 while the server ends.",
    "kvtier_connections_accepted_total": "Connections that came.",
    "kvtier_received_bytes_total": "Bytes of frames that came.",
    "kvtier_sent_bytes_total": "Bytes of frames that were sent.",
    "kvtier_refusals_total": "Connections that the server ended, by reason.",
    "kvtier_requests_total": "Requests that ended, by kind and how.",
    "kvtier_request_seconds": "Time from the last byte of a request until its answer was there.",
}


def _family(name: str, kind: Kind, samples: Iterable[tuple[Mapping[str, str], float]]) -> list[str]:
    return family(name, kind, HELP[name], samples)


def _histogram(name: str, kind: str, latencies: _Latencies) -> list[str]:
    bounds = [*(f"{bound:g}" for bound in LATENCY_BOUNDS_S), "+Inf"]
    running = list(accumulate(latencies.counts))
    return [
        *(
            f'{name}_bucket{{kind="{kind}",le="{bound}"}} {count}'
            for bound, count in zip(bounds, running, strict=True)
        ),
        f'{name}_sum{{kind="{kind}"}} {latencies.sum_s:.15g}',
        f'{name}_count{{kind="{kind}"}} {running[-1]}',
    ]
