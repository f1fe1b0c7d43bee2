"""Bounds of a server."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from kvtier.backend import Capability, ExtentBatch
from kvtier.errors import LimitError, SettingsError
from kvtier.settings import ServeSettings
from kvtier.wire.codec import ITEMS_MAX
from kvtier.wire.frames import FrameLimits


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of a server, and of each of its connections.

    Attributes:
        frame: of a single frame, received or sent.
        memory_bytes_max: requests and replies being worked on, of all connections together;
            payloads count from their first byte on. Who finds no room is not read from; only a
            connection's single small request always has some.
        inflight_bytes_max: the same of one connection; one request alone may be larger.
        batch_items_max: most keys, extents or objects of one request.
        connections_max: connections at once.
        strangers_max: of those, such as have not been let in yet; one more ends the oldest.
        listings_max: listings that a connection may have open; another one ends the oldest.
        uploads_max: objects that a connection may be sending in parts at once.
        upload_bytes_max: bytes of one object, however it is sent, and of all that a connection is
            sending in parts. What is larger than a frame is spooled to disk until it is complete.
        spool_bytes_max: disk that such objects of all connections may take together. One that
            finds no room fails.
        hello_timeout_s: for a new connection: its TLS handshake, and then its HELLO.
        frame_timeout_s: for a frame that has begun to come, while it is read.
        write_timeout_s: for a peer to take what was answered.
        idle_timeout_s: between two requests.
        upload_timeout_s: for the next part of an object to begin, without the time in which
            frames or answers are on their way.
        denial_delay_s: before a wrong token is answered, so that guessing is slow.
        linger_s: for a peer that is hung up on to read why.
    """

    frame: FrameLimits = field(default_factory=FrameLimits)
    memory_bytes_max: int = 1 << 30
    inflight_bytes_max: int = 32 << 20
    batch_items_max: int = ITEMS_MAX
    connections_max: int = 256
    strangers_max: int = 64
    listings_max: int = 16
    uploads_max: int = 4
    upload_bytes_max: int = 64 << 30
    spool_bytes_max: int = 256 << 30
    hello_timeout_s: float = 10.0
    frame_timeout_s: float = 60.0
    write_timeout_s: float = 60.0
    idle_timeout_s: float = 600.0
    upload_timeout_s: float = 60.0
    denial_delay_s: float = 1.0
    linger_s: float = 1.0

    @classmethod
    def of(cls, settings: ServeSettings) -> ServerLimits:
        """The bounds that settings ask for."""
        return cls(
            frame=FrameLimits(settings.frame_body_bytes, settings.frame_payload_bytes),
            memory_bytes_max=settings.memory_bytes,
            inflight_bytes_max=settings.inflight_bytes,
            batch_items_max=settings.batch_items_max,
            connections_max=settings.connections_max,
            strangers_max=settings.strangers_max,
            listings_max=settings.listings_max,
            uploads_max=settings.uploads_max,
            upload_bytes_max=settings.upload_bytes,
            spool_bytes_max=settings.spool_bytes,
            hello_timeout_s=settings.hello_timeout_s,
            frame_timeout_s=settings.frame_timeout_s,
            write_timeout_s=settings.write_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            upload_timeout_s=settings.upload_timeout_s,
        )

    def check(self, page_bytes: int) -> None:
        """Raise :class:`SettingsError` where nothing of use would be let through."""
        for name, most in (
            ("payload_bytes_max", self.frame.payload_bytes_max),
            ("upload_bytes_max", self.upload_bytes_max),
            ("spool_bytes_max", self.spool_bytes_max),
        ):
            if most < page_bytes:
                raise SettingsError(f"{name} is {most}: one page has {page_bytes}")
        for name in ("uploads_max", "batch_items_max", "connections_max", "strangers_max"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}: at least 1 is needed")

    def capability(self, behind: Capability, page_bytes: int) -> Capability:
        """What a server with these limits announces of the store behind it."""
        object_pages_max = min(behind.object_pages_max, self.upload_bytes_max // page_bytes)
        return replace(behind, object_pages_max=object_pages_max)

    def check_items(self, items: Collection[bytes] | ExtentBatch) -> None:
        """Raise :class:`LimitError` where a request names too much at once."""
        if len(items) > self.batch_items_max:
            what = "extents" if isinstance(items, ExtentBatch) else "keys"
            raise LimitError(
                f"a request names {len(items)} {what}: {self.batch_items_max} are possible at once"
            )
