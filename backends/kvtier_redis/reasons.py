"""What an error of a connection means, and what to do about it, in one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from kvtier_redis.address import Address

_HINT: Final = "is a Redis or Valkey server running there?"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things may take, and how many go at once.

    Attributes:
        connect_s: making a connection, with its log-in.
        answer_s: the replies to one piece of a batch.
        connections: to one server.
    """

    connect_s: float
    answer_s: float
    connections: int


def reason_of(error: RedisError | OSError, address: Address, patience: Patience) -> str:
    """The line for an error that redis-py raised; it shows no password."""
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, RedisTimeoutError | TimeoutError):
        with_tls = " and its port with TLS" if address.scheme == "rediss" else ""
        return f"no connection within {patience.connect_s:g} s: {_HINT[:-1]}{with_tls}?"
    if isinstance(error, AuthenticationError):
        who = f"user {address.username!r}" if address.username else "the default user"
        return f"it does not let {who} in ({text}): check user and password in the url"
    if isinstance(error, BusyLoadingError):
        return "it is still loading its data: try again when it is done"
    if isinstance(error, ResponseError):
        return f"it refuses: {text}{_about_database(text, address)}"
    return _of_transport(text)


def _about_database(text: str, address: Address) -> str:
    if "DB index" not in text:
        return ""
    return f": it has no database {address.database}, take a smaller number"


def _of_transport(text: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"its certificate is not trusted ({text}): check its dates and names, and 'ca_file'"
    if "SSL" in text or "TLS" in text:
        return f"no TLS ({text}): check the scheme of the url, 'ca_file' and 'cert_file'"
    if "refused" in text or "Connect call failed" in text:
        return f"connection refused: {_HINT}"
    return f"connection lost ({text or 'no reason given'}): {_HINT}"
