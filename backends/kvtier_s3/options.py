"""The options of the backend, checked, and the obstore client that they make."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from obstore.store import S3Store

from kvtier.backend import check_options
from kvtier.errors import SettingsError
from kvtier_s3.faults import StoreError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Credential

OPTIONS: Final = {
    "bucket": str,
    "prefix": str,
    "endpoint": str,
    "region": str,
    "access_key_id": str,
    "secret_access_key": str,
    "session_token": str,
    "anonymous": bool,
    "allow_http": bool,
    "virtual_hosted": bool,
    "ca_file": str,
    "read_only": bool,
    "requests": int,
    "merge_gap_pages": int,
    "timeout_s": float,
    "connect_timeout_s": float,
    "retries": int,
    "retry_timeout_s": float,
}
"""Every option and its type; what they mean: docs/backends.md."""

_RANGES: Final = {
    "requests": (1, 1024),
    "merge_gap_pages": (0, 1 << 20),
    "retries": (0, 100),
}
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REGION: Final = re.compile(r"[A-Za-z0-9-]+")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9_=-][A-Za-z0-9_.=-]*")
_PREFIX_BYTES_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class S3Options:
    """What ``open`` was told, beyond what the client itself keeps.

    Attributes:
        place: the store, as messages name it.
        folder: what the names of everything in it begin with: empty, or ending with ``/``.
        read_only: nothing is written.
        requests: requests in flight at once.
        merge_gap_pages: extents of an object with at most so many pages between them become one
            request.
    """

    place: str
    folder: str
    read_only: bool
    requests: int
    merge_gap_pages: int


def parse_options(options: Mapping[str, Any]) -> tuple[S3Options, S3Store]:
    """Check the options; the client they make has not asked for anything yet.

    Raises:
        SettingsError: an option is unknown, missing, of a wrong type or out of its range.
    """
    check_options(options, OPTIONS, "s3", required=("bucket",))
    for name, (low, high) in _RANGES.items():
        if not low <= options.get(name, low) <= high:
            raise _wrong(name, options[name], f"{low} to {high} are possible")
    _check_endpoint(options)
    _check_credentials(options)
    prefix = _prefix(options.get("prefix", ""))
    bucket, endpoint = options["bucket"], options.get("endpoint")
    if not _BUCKET.fullmatch(bucket):
        raise _wrong("bucket", bucket, "it must be the name of a bucket")
    if not _REGION.fullmatch(options.get("region", "auto")):
        raise _wrong("region", options["region"], "it must be the name of a region")
    place = f"s3://{bucket}/{prefix}" + (f" at {endpoint}" if endpoint else "")
    parsed = S3Options(
        place=place,
        folder=prefix,
        read_only=options.get("read_only", False),
        requests=options.get("requests", 64),
        merge_gap_pages=options.get("merge_gap_pages", 0),
    )
    return parsed, _make_store(options, place)


def _make_store(options: Mapping[str, Any], place: str) -> S3Store:
    # What is not given here, obstore takes from AWS_* variables of the environment.
    config: dict[str, Any] = {}
    if "endpoint" in options:
        config["aws_endpoint_url_s3"] = options["endpoint"]  # goes before any in the environment
    if "region" in options:
        config["region"] = options["region"]
    if "anonymous" in options or "access_key_id" in options:
        config["skip_signature"] = options.get("anonymous", False)
    if "access_key_id" in options:
        # Whole, for as options they would be completed by a token of the environment.
        credential = _credential(options)
        config["credential_provider"] = lambda: credential
    if "virtual_hosted" in options:
        config["virtual_hosted_style_request"] = options["virtual_hosted"]
    # One DELETE per key: its answer is that key's, and every store knows it.
    config["disable_bulk_delete"] = True
    client: ClientConfig = {
        "timeout": _seconds(options, "timeout_s", 30.0),
        "connect_timeout": _seconds(options, "connect_timeout_s", 5.0),
    }
    if "allow_http" in options:
        client["allow_http"] = options["allow_http"]
    if "ca_file" in options:
        client["root_certificate"] = _read_ca(options["ca_file"])
    retry: RetryConfig = {
        # One, for a connection that was lost while it was idle, or a part of an upload: more would
        # multiply with the attempts of [origin.resilience].
        "max_retries": options.get("retries", 1),
        "retry_timeout": _seconds(options, "retry_timeout_s", 60.0),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=5),
            "base": 2,
        },
    }
    try:
        return S3Store(options["bucket"], client_options=client, retry_config=retry, **config)
    except (*StoreError, ValueError) as error:
        raise SettingsError(
            f"the options of backend 's3' for {place} make no client: {str(error).splitlines()[0]}"
        ) from error


def _credential(options: Mapping[str, Any]) -> S3Credential:
    return {
        "access_key_id": options["access_key_id"],
        "secret_access_key": options["secret_access_key"],
        "token": options.get("session_token"),
        "expires_at": None,
    }


def _check_endpoint(options: Mapping[str, Any]) -> None:
    endpoint = options.get("endpoint")
    if endpoint is None:
        return
    try:
        parts = urlsplit(endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        is_url = False
    if "@" in endpoint:  # not shown: it may hold a password
        raise SettingsError(
            "option 'endpoint' of backend 's3' has a user: it must be of the form "
            "https://HOST[:PORT]; give 'access_key_id' and 'secret_access_key' instead"
        )
    if not is_url or parts.query or parts.fragment:
        raise _wrong("endpoint", endpoint, "it must be of the form https://HOST[:PORT]")
    if parts.scheme == "http" and not options.get("allow_http", False):
        raise _wrong("endpoint", endpoint, "give an https one, or set 'allow_http'")


def _check_credentials(options: Mapping[str, Any]) -> None:
    given = [name for name in ("access_key_id", "secret_access_key") if name in options]
    if options.get("anonymous", False) and (given or "session_token" in options):
        raise SettingsError(
            "backend 's3' got the option 'anonymous' and credentials: give one of the two"
        )
    if len(given) == 1 or ("session_token" in options and not given):
        raise SettingsError(
            "backend 's3' got a part of its credentials: give 'access_key_id' and "
            "'secret_access_key', or neither, to take them from the environment"
        )


def _prefix(text: str) -> str:
    prefix = text.strip("/")
    if not prefix:
        return ""
    is_plain = all(_SEGMENT.fullmatch(segment) for segment in prefix.split("/"))
    if not is_plain or len(prefix) > _PREFIX_BYTES_MAX:
        raise _wrong(
            "prefix",
            text,
            f"it must be up to {_PREFIX_BYTES_MAX} letters, digits, '_', '-', '=' and '.', "
            "in parts between '/' that do not begin with '.'",
        )
    return f"{prefix}/"


def _read_ca(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _wrong("ca_file", path, f"it cannot be read: {error.strerror}") from error


def _seconds(options: Mapping[str, Any], name: str, default: float) -> timedelta:
    seconds = float(options.get(name, default))
    if not 1e-3 <= seconds <= 86_400:
        raise _wrong(name, seconds, "0.001 to 86400 are possible")
    return timedelta(seconds=seconds)


def _wrong(name: str, value: object, why: str) -> SettingsError:
    return SettingsError(f"option {name!r} of backend 's3' is {value!r}: {why}")
