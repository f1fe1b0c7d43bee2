"""Where a server is, and how to prove oneself there: URLs in, arguments of redis-py out."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)

from kvtier.errors import SettingsError

_PORT: Final = 6379
_READ_BYTES: Final = 256 << 10
_TLS_FILES: Final = {
    "ssl_ca_certs": "ca_file",
    "ssl_certfile": "cert_file",
    "ssl_keyfile": "key_file",
}
_UNREADABLE: Final = "cannot be read: in user and password, write / ? # @ [ ] as %XX"
_FORMS: Final = "redis://, rediss:// (TLS) or unix://"


@dataclass(frozen=True, slots=True)
class Address:
    """One server.

    Attributes:
        scheme: ``redis``, ``rediss`` or ``unix``.
        host: name or number; empty for ``unix``.
        port: 0 for ``unix``.
        path: of the socket, for ``unix``.
        database: number of it.
        username: None for the user ``default``.
        password: None where none is asked for.
        ca_file: certificates to trust, None for those of the system.
        cert_file: what the client shows of itself, if anything.
        key_file: its key, None where ``cert_file`` holds it.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def __str__(self) -> str:
        """The URL without secrets."""
        if self.scheme == "unix":
            return f"unix://{self.path}" + (f"?db={self.database}" if self.database else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}" + (
            f"/{self.database}" if self.database else ""
        )

    def connection(self, timeout_s: float) -> AbstractConnection:
        """A connection that is still to be made."""
        arguments: dict[str, Any] = {
            "db": self.database,
            "username": self.username,
            "password": self.password,
            "protocol": 2,
            "socket_connect_timeout": timeout_s,
            "socket_timeout": None,  # a whole batch has one timeout, not each of its replies
            "socket_read_size": _READ_BYTES,
        }
        if self.scheme == "unix":
            return UnixDomainSocketConnection(path=self.path, **arguments)
        arguments |= {"host": self.host, "port": self.port}
        if self.scheme == "redis":
            return Connection(**arguments)
        return SSLConnection(
            ssl_ca_certs=self.ca_file,
            ssl_certfile=self.cert_file,
            ssl_keyfile=self.key_file,
            **arguments,
        )


def parse_address(options: Mapping[str, Any]) -> Address:
    """The address that options give.

    Raises:
        SettingsError: the URL is of no known form, says something twice, or names TLS files that
            cannot be used. The message shows no password.
    """
    try:
        parts = urlsplit(options["url"])
        host, port = parts.hostname or "", parts.port
        username = unquote(parts.username, errors="strict") if parts.username else None
        password = unquote(parts.password, errors="strict") if parts.password else None
        query = dict(
            parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        )
    except ValueError:  # a port that is no number, a bracket that is not closed
        # Not what is wrong with it: a port that is no number may be the half of a password.
        raise _wrong(_UNREADABLE) from None
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise _wrong(f"has the scheme {parts.scheme!r}, not one of {_FORMS}")
    if parts.fragment or (parts.scheme != "unix" and "@" in parts.path):
        raise _wrong(_UNREADABLE)
    files = _tls_files(options, query, parts.scheme)
    database = query.pop("db", None)
    for name in query:
        if "@" in parts.query:
            raise _wrong(_UNREADABLE)
        raise _wrong(f"has the parameter {name!r}: it takes db, {', '.join(_TLS_FILES)}")
    if parts.scheme == "unix":
        if host or not parts.path:
            raise _wrong("must name a socket: unix:///PATH, or unix://USER:PASSWORD@/PATH")
        path = unquote(parts.path)
        return Address(
            "unix",
            path=path,
            database=_number(database),
            username=username,
            password=password,
        )
    if not host or port == 0:
        raise _wrong("must name a host, and a port from 1 on")
    path = parts.path.strip("/")
    if path and database is not None:
        raise _wrong("names its database twice, as path and as db")
    return Address(
        parts.scheme,
        host=host,
        port=port or _PORT,
        database=_number(path or database),
        username=username,
        password=password,
        ca_file=files["ca_file"],
        cert_file=files["cert_file"],
        key_file=files["key_file"],
    )


def _tls_files(
    options: Mapping[str, Any], query: dict[str, str], scheme: str
) -> dict[str, str | None]:
    """The files of TLS, from the URL or from options, and that they can be loaded."""
    files: dict[str, str | None] = {}
    for parameter, option in _TLS_FILES.items():
        named = query.pop(parameter, None)
        if named is not None and option in options:
            raise _wrong(f"has {parameter}, and the option {option!r} is given too: give one")
        files[option] = options.get(option, named)
        if files[option] is not None and scheme != "rediss":
            raise SettingsError(
                f"option {option!r} of backend 'redis' is of use with a rediss:// URL only"
            )
    if files["key_file"] is not None and files["cert_file"] is None:
        raise SettingsError("option 'key_file' of backend 'redis' needs the option 'cert_file'")
    _check_files(files["ca_file"], files["cert_file"], files["key_file"])
    return files


def _check_files(ca_file: str | None, cert_file: str | None, key_file: str | None) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    option, path = "ca_file", ca_file
    try:
        if ca_file is not None:
            context.load_verify_locations(ca_file)
        if cert_file is not None:
            option, path = (
                "cert_file",
                cert_file if key_file is None else f"{cert_file}, {key_file}",
            )
            # A key with a passphrase would be asked for at the terminal.
            context.load_cert_chain(cert_file, key_file, password=_no_passphrase)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"option {option!r} of backend 'redis' ({path}) cannot be loaded: "
            f"{getattr(error, 'strerror', None) or error}"
        ) from error


def _no_passphrase() -> str:
    raise ValueError("its key has a passphrase: give one without")


def _number(database: str | None) -> int:
    if database is None:
        return 0
    if not (database.isascii() and database.isdigit() and len(database) < 10):
        raise _wrong(f"names the database {database!r}: it must be a number")
    return int(database)


def _wrong(what: str) -> SettingsError:
    """Without the URL: it may hold a password."""
    return SettingsError(f"option 'url' of backend 'redis' {what}")
