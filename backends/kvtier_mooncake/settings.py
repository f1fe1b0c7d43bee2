"""The options of the backend, checked before anything is opened.

The client library would take minutes over some wrong values, and hold up all of Python meanwhile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from kvtier.backend import check_options
from kvtier.errors import SettingsError
from kvtier_mooncake.limits import THREADS_MAX

PROTOCOLS: Final = ("tcp", "rdma", "efa", "cxi", "cxl", "ub", "ubshmem", "ascend", "sunrise_link")
"""What the client of Mooncake 0.3.13 has for host memory; builds of it have only some."""
PEER_TO_PEER: Final = "P2PHANDSHAKE"

_SEGMENT_BYTES_MIN: Final = 16 << 20
_BUFFER_BYTES_MIN: Final = 1 << 20
_REPLICAS_MAX: Final = 16
_METADATA_SCHEMES: Final = ("http", "https", "etcd", "redis")
_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+):(?P<port>\d{1,5})")
_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]*")

_OPTIONS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "master": str,
    "metadata": str,
    "protocol": str,
    "device": str,
    "host": str,
    "namespace": str,
    "admin": str,
    "segment_bytes": int,
    "buffer_bytes": int,
    "chunk_bytes": int,
    "threads": int,
    "replicas": int,
    "connect_timeout_s": float,
    "timeout_s": float,
}


@dataclass(frozen=True, slots=True)
class MooncakeSettings:
    """See :class:`kvtier_mooncake.backend.MooncakeBackend` for what each means."""

    master: str
    metadata: str = PEER_TO_PEER
    protocol: str = "tcp"
    device: str = ""
    host: str = ""
    namespace: str = "kvtier"
    admin: str = ""
    segment_bytes: int = 0
    buffer_bytes: int = 64 << 20
    chunk_bytes: int = 4 << 20
    threads: int = 4
    replicas: int = 1
    connect_timeout_s: float = 10.0
    timeout_s: float = 30.0

    @property
    def slot_bytes(self) -> int:
        """Memory of one thread, for what it reads or writes at once."""
        return self.buffer_bytes // self.threads


def parse_settings(options: Mapping[str, Any], page_bytes: int) -> MooncakeSettings:
    """Raise :class:`SettingsError` unless ``options`` are what the backend takes."""
    check_options(options, _OPTIONS, "mooncake", required=("master",))
    settings = MooncakeSettings(**options)
    parse_address(settings.master, "master")
    if settings.admin:
        parse_address(settings.admin, "admin")
    _check_metadata(settings.metadata)
    if settings.protocol not in PROTOCOLS:
        raise _wrong("protocol", settings.protocol, f"it is one of {', '.join(PROTOCOLS)}")
    for name in ("device", "host"):
        text = getattr(settings, name)
        if not _NAME.fullmatch(text.replace(",", "") if name == "device" else text):
            raise _wrong(name, text, "a name has letters, digits and the signs _ . : -")
    if not settings.namespace:
        raise _wrong("namespace", "", "give it at least one character")
    if settings.segment_bytes and settings.segment_bytes < _SEGMENT_BYTES_MIN:
        raise _wrong(
            "segment_bytes",
            settings.segment_bytes,
            f"it is 0, to lend no memory, or {_SEGMENT_BYTES_MIN} at least",
        )
    _check_room(settings.segment_bytes + settings.buffer_bytes)
    _check_range("threads", settings.threads, 1, THREADS_MAX)
    _check_range("replicas", settings.replicas, 1, _REPLICAS_MAX)
    least = max(_BUFFER_BYTES_MIN, page_bytes) * settings.threads
    if settings.buffer_bytes < least:
        raise _wrong(
            "buffer_bytes",
            settings.buffer_bytes,
            f"{settings.threads} threads and pages of {page_bytes} bytes need {least} at least",
        )
    if settings.chunk_bytes < page_bytes:
        raise _wrong("chunk_bytes", settings.chunk_bytes, f"one page has {page_bytes}")
    for name in ("connect_timeout_s", "timeout_s"):
        if not 0 < getattr(settings, name) < float("inf"):
            raise _wrong(name, getattr(settings, name), "it must be over 0")
    return settings


def parse_address(text: str, option: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 1 << 16:
        raise _wrong(option, text, "it must be of the form HOST:PORT")
    return match["host"].strip("[]"), int(match["port"])


def metadata_address(metadata: str) -> tuple[str, int] | None:
    """Where the metadata server listens; None where there is none."""
    if metadata == PEER_TO_PEER:
        return None
    parts = urlsplit(metadata)
    assert parts.hostname is not None
    return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _check_metadata(metadata: str) -> None:
    if metadata == PEER_TO_PEER:
        return
    try:
        parts = urlsplit(metadata)
        fits = parts.scheme in _METADATA_SCHEMES and bool(parts.hostname)
        fits = fits and (parts.port is not None or parts.scheme.startswith("http"))
    except ValueError:  # a port that is no number, a bracket that is not closed
        fits = False
    if not fits:
        raise _wrong(
            "metadata",
            "…" + metadata.rpartition("@")[2] if "@" in metadata else metadata,  # no password
            f"it is {PEER_TO_PEER}, or a server: http://HOST:PORT/metadata, etcd://HOST:PORT "
            "or redis://HOST:PORT",
        )


def _check_room(size_bytes: int) -> None:
    room_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size_bytes > room_bytes:
        raise SettingsError(
            f"options 'segment_bytes' and 'buffer_bytes' of backend 'mooncake' ask for "
            f"{size_bytes} bytes: this machine has {room_bytes}"
        )


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise _wrong(name, value, f"{least} to {most} are possible")


def _wrong(name: str, value: object, why: str) -> SettingsError:
    return SettingsError(f"option {name!r} of backend 'mooncake' is {value!r}: {why}")
