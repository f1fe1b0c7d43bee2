"""How ``kvtier serve`` lets others in, and what it lets them do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvtier.settings.problems import Problem, given_outside, outside
from kvtier.units import format_bytes, format_seconds

_PORT_MAX: Final = 65_535
_COUNT_MAX: Final = 1 << 20
_ITEMS_MAX: Final = 1 << 16
"""Keys that the wire protocol takes in one message."""
_TIMES: Final = (
    "drain_s",
    "hello_timeout_s",
    "frame_timeout_s",
    "write_timeout_s",
    "idle_timeout_s",
    "upload_timeout_s",
)


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """A server of a backend.

    Attributes:
        host: where it listens. Beyond loopback it needs tokens and a certificate.
        port: 0 takes a free one.
        token_file: tokens of clients (:mod:`kvtier.server.tokens` says how they are written).
        token_env: an environment variable that holds the same, instead of a file.
        cert_file, key_file: the server's certificate chain and its key, as PEM; None: no TLS.
        client_ca_file: only clients whose certificate one of these authorities signed come in.
        cleartext: listen beyond loopback without TLS: whoever sees the packets has the tokens.
        metrics_host: where metrics and health are told.
        metrics_port: 0 takes a free one, None tells nobody.
        drain_s: how long answers may take once the server was told to end.
        connections_max: clients at once.
        strangers_max: of those, such as have not presented a token yet; one more ends the oldest.
        memory_bytes: requests and replies of all clients together.
        inflight_bytes: of one client.
        frame_payload_bytes: longest payload of one frame.
        frame_body_bytes: longest body of one frame.
        batch_items_max: most keys, extents or objects of one request.
        uploads_max: objects that a client may be sending in parts at once.
        upload_bytes: longest object, and all that a client may be sending in parts together.
        spool_bytes: the same of all clients: disk that is taken until the objects are complete.
        listings_max: listings that a client may have open.
        hello_timeout_s: for a new connection, until its token (and certificate) came.
        frame_timeout_s: for a frame, from its first byte to its last.
        write_timeout_s: for a client that does not read its answers.
        idle_timeout_s: for a client that asks nothing.
        upload_timeout_s: for the next part of an object to begin, without the time in which
            frames or answers are on their way.
    """

    host: str = "127.0.0.1"
    port: int = 7070
    token_file: Path | None = None
    token_env: str | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None
    cleartext: bool = False
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    drain_s: float = 10.0
    connections_max: int = 256
    strangers_max: int = 64
    memory_bytes: int = 1 << 30
    inflight_bytes: int = 32 << 20
    frame_payload_bytes: int = 64 << 20
    frame_body_bytes: int = 16 << 20
    batch_items_max: int = 4096
    uploads_max: int = 4
    upload_bytes: int = 64 << 30
    spool_bytes: int = 256 << 30
    listings_max: int = 16
    hello_timeout_s: float = 10.0
    frame_timeout_s: float = 60.0
    write_timeout_s: float = 60.0
    idle_timeout_s: float = 600.0
    upload_timeout_s: float = 60.0


def serve_problems(serve: ServeSettings, page_bytes: int) -> Iterator[Problem]:
    """What does not fit together, or is out of range."""
    if serve.token_file is not None and serve.token_env is not None:
        yield Problem(
            "serve.token_env", "serve.token_env: there is a serve.token_file, too; leave one out"
        )
    if (serve.cert_file is None) != (serve.key_file is None):
        given, missing = ("cert", "key") if serve.key_file is None else ("key", "cert")
        yield Problem(
            f"serve.{missing}_file",
            f"serve.{missing}_file is missing: serve.{given}_file needs it for TLS",
        )
    if serve.client_ca_file is not None and serve.cert_file is None:
        yield Problem(
            "serve.client_ca_file",
            "serve.client_ca_file needs TLS: give serve.cert_file and serve.key_file",
        )
    for name in ("port", "metrics_port"):
        port = getattr(serve, name)
        yield from given_outside(f"serve.{name}", port, 0, _PORT_MAX)
    yield from _count_problems(serve)
    yield from _size_problems(serve, page_bytes)
    for name in _TIMES:
        key, value = f"serve.{name.removesuffix('_s')}", getattr(serve, name)
        yield from outside(key, value, 0.001, 86_400, format_seconds)


def _count_problems(serve: ServeSettings) -> Iterator[Problem]:
    for name in (
        "connections_max",
        "strangers_max",
        "batch_items_max",
        "uploads_max",
        "listings_max",
    ):
        value = getattr(serve, name)
        most = _ITEMS_MAX if name == "batch_items_max" else _COUNT_MAX
        yield from outside(f"serve.{name}", value, 1, most)


def _size_problems(serve: ServeSettings, page_bytes: int) -> Iterator[Problem]:
    for key, value, least_bytes, why in (
        ("memory", serve.memory_bytes, serve.frame_payload_bytes, "one frame_payload"),
        ("inflight", serve.inflight_bytes, page_bytes, "a page"),
        ("frame_payload", serve.frame_payload_bytes, page_bytes, "a page"),
        # A request with one key of the greatest length.
        ("frame_body", serve.frame_body_bytes, 4096, "a request"),
        ("upload", serve.upload_bytes, page_bytes, "a page"),
        ("spool", serve.spool_bytes, serve.upload_bytes, "one upload"),
    ):
        if value < least_bytes:
            yield Problem(
                f"serve.{key}",
                f"serve.{key} is {format_bytes(value)}: {why} has {format_bytes(least_bytes)}",
            )
