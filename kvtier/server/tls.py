"""The TLS side of a server."""

from __future__ import annotations

import ssl
from pathlib import Path

from kvtier.errors import SettingsError
from kvtier.settings import ServeSettings


def server_context(settings: ServeSettings) -> ssl.SSLContext | None:
    """What makes connections of a server secret; None where settings name no certificate.

    TLS 1.3 is spoken, nothing older: both ends are of this package.

    Raises:
        SettingsError: a file cannot be read, is no PEM, needs a password, or the key is of another
            certificate.
    """
    if settings.cert_file is None or settings.key_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    cert, key = settings.cert_file, settings.key_file
    _check_readable("serve.cert_file", cert)
    _check_readable("serve.key_file", key)
    try:
        # Without a password of its own OpenSSL would ask the terminal for one.
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        raise SettingsError(
            f"serve.cert_file {cert} and serve.key_file {key}: {_reason(error)}: give a "
            "certificate chain and its key, as PEM, the key without a password"
        ) from error
    if settings.client_ca_file is not None:
        ca = settings.client_ca_file
        _check_readable("serve.client_ca_file", ca)
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError as error:
            raise SettingsError(
                f"serve.client_ca_file {ca}: {_reason(error)}: give certificates of authorities, "
                "as PEM"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _check_readable(key: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise SettingsError(f"{key} {path}: cannot be read: {error.strerror}") from error


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
