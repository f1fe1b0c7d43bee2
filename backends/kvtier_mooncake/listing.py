"""Keys, listed by the master's admin server, for the client has no call for that."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException
from urllib.parse import unquote_to_bytes

from kvtier.errors import BackendError
from kvtier_mooncake.layout import Names


def list_keys(host: str, port: int, names: Names, timeout_s: float) -> list[bytes]:
    """The keys of one store, out of the names of everything that the Mooncake holds."""
    connection = HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", "/get_all_keys")
        response = connection.getresponse()
        text = response.read().decode("ascii", "replace")
    except (OSError, HTTPException) as error:
        raise BackendError(
            f"the admin server of the Mooncake master at {host}:{port} does not list its keys "
            f"({error}): is option 'admin' its --metrics_port?"
        ) from error
    finally:
        connection.close()
    if response.status != 200:
        raise BackendError(
            f"{host}:{port} answers {response.status} instead of a list of keys: is option "
            "'admin' the --metrics_port of a Mooncake master?"
        )
    heads = (line for line in text.splitlines() if line.startswith(names.prefix))
    # A chunk has an @ behind its head's name, which no name of a head has.
    return [unquote_to_bytes(name[len(names.prefix) :]) for name in heads if "@" not in name]
