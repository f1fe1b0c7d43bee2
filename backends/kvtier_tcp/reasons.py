"""Why there is no connection, for a person, and what to do about it."""

from __future__ import annotations

import ssl
from typing import Final

_RUNNING: Final = "is `kvtier serve` running there?"
_TLS_ALERT: Final = r"b'\x15\x03"
"""How a message shows a record with which a server that speaks TLS answers who does not."""

_ALERTS: Final = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": (
        "the server wants a certificate of this side: set options 'cert_file' and 'key_file'"
    ),
    "TLSV1_ALERT_UNKNOWN_CA": (
        "the server does not trust the certificate of this side: set options 'cert_file' and "
        "'key_file' to one that its 'serve.client_ca_file' signed"
    ),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": (
        "the certificate of this side has expired: make a new 'cert_file'"
    ),
    "WRONG_VERSION_NUMBER": "the server does not speak TLS: use tcp://, or serve with TLS",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the server does not speak TLS 1.3, which is needed",
}


def connecting(error: OSError | TimeoutError, timeout_s: float) -> str:
    """Why a connection could not be made."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _untrusted(error)
    if isinstance(error, ssl.SSLError):
        return _tls(error)
    if isinstance(error, TimeoutError):
        return f"no connection within {timeout_s:g} s: {_RUNNING}"
    if isinstance(error, ConnectionRefusedError):
        return f"connection refused: {_RUNNING}"
    if isinstance(error, ConnectionError) and not error.strerror:
        return "the server ended the TLS handshake: it may not speak TLS 1.3, which is needed"
    return f"{error.strerror or error}: {_RUNNING}"


def losing(error: Exception | None) -> str:
    """Why a connection was lost. What a server says of a certificate comes that late."""
    if isinstance(error, ssl.SSLError):
        return _tls(error)
    return f"connection lost: {error or 'closed by the server'}"


def never_welcomed(*, tls: bool, shows_certificate: bool) -> str:
    """What may be wrong where a server hung up before it said anything.

    A server on asyncio sends no alert when a handshake fails on its side (CPython's sslproto does
    not flush it), and in TLS 1.3 the client's side is over by then.
    """
    if not tls:
        return "if it speaks TLS, use tls://"
    if shows_certificate:
        return "it may not trust the certificate of this side: set 'cert_file' and 'key_file'"
    return "it may want a certificate of this side: set options 'cert_file' and 'key_file'"


def hint(text: str) -> str:
    """``text``, and what to do where the server seems to speak TLS."""
    return f"{text}; does it speak TLS? use tls://" if _TLS_ALERT in text else text


def _untrusted(error: ssl.SSLCertVerificationError) -> str:
    said = error.verify_message.rstrip(".")
    if "expired" in said or "not yet valid" in said:
        return f"the server's certificate: {said}: renew it there, or set the clock here"
    if "match" in said:
        return (
            f"the server's certificate: {said}: name the host as it is called there, or set "
            "option 'server_name'"
        )
    return (
        f"the server's certificate is not trusted: {said}: set option 'ca_file' to the "
        "certificate of the authority that signed it"
    )


def _tls(error: ssl.SSLError) -> str:
    known = _ALERTS.get(error.reason or "")
    if known is not None:
        return known
    return f"no TLS connection: {(error.reason or str(error)).lower().replace('_', ' ')}"
