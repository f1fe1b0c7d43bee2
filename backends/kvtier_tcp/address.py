"""Where a server listens, how it is known to be that server, and what it is shown."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from kvtier.errors import SettingsError

_FORM: Final = "it must be of the form tls://HOST:PORT, or tcp://HOST:PORT for clear text"
_TLS_OPTIONS: Final = ("ca_file", "cert_file", "key_file", "server_name")
_TOKEN_OPTIONS: Final = ("token", "token_file", "token_env")


@dataclass(frozen=True, slots=True)
class Address:
    """Made by :func:`parse_address`.

    Attributes:
        host, port: where the server listens.
        token: what it wants to be shown; may be empty.
        tls: makes the connection secret; None: clear text.
        server_name: the name that the server's certificate must have.
        shows_certificate: whether this side has one to show.
    """

    host: str
    port: int
    token: str = field(repr=False)
    tls: ssl.SSLContext | None
    server_name: str
    shows_certificate: bool

    def __str__(self) -> str:
        return _url("tcp" if self.tls is None else "tls", self.host, self.port)


def parse_address(options: Mapping[str, Any]) -> Address:
    """The address that the options of a ``tcp`` backend describe.

    Raises:
        SettingsError: the url is none; an option does not go with it or with another; a file
            cannot be read; or a token would cross the network in clear text.
    """
    scheme, host, port = _parse_url(options["url"])
    token = _token(options)
    if scheme == "tls":
        name = options.get("server_name", host)
        return Address(host, port, token, _context(options), name, "cert_file" in options)
    for name in _TLS_OPTIONS:
        if name in options:
            raise SettingsError(
                f"option {name!r} of backend 'tcp' needs TLS: write the url as "
                f"{_url('tls', host, port)}"
            )
    if token and not _is_loopback(host) and not options.get("cleartext", False):
        raise SettingsError(
            f"the token of backend 'tcp' would go to {host} in clear text: use "
            f"{_url('tls', host, port)}, or set option 'cleartext' to true where you trust the "
            "network"
        )
    return Address(host, port, token, None, host, False)


def _parse_url(url: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number, a bracket that is not closed
        host, port = None, None
    if host and port and parts.scheme in ("tcp", "tls"):
        whole = _url(parts.scheme, host, port)
        if url.rstrip("/").lower() == whole:
            return parts.scheme, host, port
    if "@" in url:  # not shown: it may hold a token
        raise SettingsError(f"option 'url' of backend 'tcp' has a user: {_FORM}")
    raise SettingsError(f"option 'url' of backend 'tcp' is {url!r}: {_FORM}")


def _url(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _token(options: Mapping[str, Any]) -> str:
    given = [name for name in _TOKEN_OPTIONS if name in options]
    if len(given) > 1:
        raise SettingsError(
            f"options {given[0]!r} and {given[1]!r} of backend 'tcp' are both given: leave one out"
        )
    if "token_file" in options:
        return _word(_read("token_file", options["token_file"]), "token_file")
    if "token_env" in options:
        name = options["token_env"]
        if name not in os.environ:
            raise SettingsError(
                f"option 'token_env' of backend 'tcp' is {name!r}: there is no such environment "
                "variable; set it"
            )
        return _word(os.environ[name], "token_env")
    token: str = options.get("token", "")
    return token


def _word(text: str, option: str) -> str:
    if text.encode(errors="ignore").decode() != text:  # of bytes in the environment
        raise SettingsError(f"option {option!r} of backend 'tcp': what it names is no UTF-8 text")
    words = text.split()
    if len(words) != 1:
        raise SettingsError(
            f"option {option!r} of backend 'tcp': {len(words)} words are there; one, the token, "
            "is needed"
        )
    return words[0]


def _context(options: Mapping[str, Any]) -> ssl.SSLContext:
    """TLS 1.3, a certificate that is trusted, and the name in it: none of it can be left out."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if "ca_file" in options:
        _read("ca_file", options["ca_file"])
        try:
            context.load_verify_locations(_path(options["ca_file"]))
        except ssl.SSLError as error:
            raise SettingsError(
                f"option 'ca_file' of backend 'tcp' is {str(options['ca_file'])!r}: it has no "
                "certificates, as PEM"
            ) from error
    else:
        context.load_default_certs()
    if ("cert_file" in options) != ("key_file" in options):
        given, missing = ("cert", "key") if "cert_file" in options else ("key", "cert")
        raise SettingsError(
            f"option '{given}_file' of backend 'tcp' needs the option '{missing}_file'"
        )
    if "cert_file" in options:
        cert, key = options["cert_file"], options["key_file"]
        _read("cert_file", cert)
        _read("key_file", key)
        try:
            # Without a password of its own OpenSSL would ask the terminal for one.
            context.load_cert_chain(_path(cert), _path(key), password="")
        except ssl.SSLError as error:
            raise SettingsError(
                "options 'cert_file' and 'key_file' of backend 'tcp': a certificate and its key "
                f"are needed, as PEM, the key without a password; {_reason(error)}"
            ) from error
    return context


def _read(option: str, path: str | Path) -> str:
    try:
        return _path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"option {option!r} of backend 'tcp' is {str(path)!r}: it is no text"
        ) from error
    except OSError as error:
        raise SettingsError(
            f"option {option!r} of backend 'tcp' is {str(path)!r}: cannot be read: {error.strerror}"
        ) from error


def _path(path: str | Path) -> Path:
    return Path(path).expanduser()


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
