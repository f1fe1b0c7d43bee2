"""Bounds of a server."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from kvtier.backend import Capability
from kvtier.wire.frames import FrameLimits


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of a server. A connection holds at most about the first two together.

    Attributes:
        frame: of a single frame, received or sent.
        inflight_bytes_max: bytes of requests and replies being worked on, of one connection.
            Beyond it the connection is not read from; one request alone may be larger.
        connections_max: connections at once.
        listings_max: listings that a connection may have open; another one ends the oldest.
        uploads_max: objects that a connection may be sending in parts at once.
        upload_bytes_max: bytes of one object, however it is sent. What is larger than a frame is
            spooled to disk until it is complete.
        hello_timeout_s: how long a new connection may stay silent.
    """

    frame: FrameLimits = field(default_factory=FrameLimits)
    inflight_bytes_max: int = 32 << 20
    connections_max: int = 256
    listings_max: int = 16
    uploads_max: int = 4
    upload_bytes_max: int = 64 << 30
    hello_timeout_s: float = 10.0

    def capability(self, behind: Capability, page_bytes: int) -> Capability:
        """What a server with these limits announces of the store behind it."""
        object_pages_max = min(behind.object_pages_max, self.upload_bytes_max // page_bytes)
        return replace(behind, object_pages_max=object_pages_max)
