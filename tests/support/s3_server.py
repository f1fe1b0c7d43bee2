"""An S3 server of its own process on loopback: moto's S3, behind werkzeug's HTTP server.

Run as a script, it serves until its standard input ends, and writes its port on standard output.
moto keeps objects in memory, speaks ranges, conditions, metadata, multipart uploads and listings,
and can check signatures and rights.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUCKET = "kvtier"
RIGHTS = {
    "writer": ["s3:*"],
    "reader": ["s3:ListBucket", "s3:GetObject"],
    "stranger": ["s3:GetObject"],
}
"""What each user may do on a server that checks it."""


@dataclass(frozen=True)
class S3Server:
    """A server that is running.

    Attributes:
        url: its endpoint.
        users: access key and secret of each user of ``RIGHTS``; empty where nothing is checked.
    """

    url: str
    users: dict[str, tuple[str, str]]

    def make_bucket(self, name: str) -> None:
        """Make a bucket, on a server that checks nothing."""
        request(self.url, name, method="PUT")


_SIGNED = (
    "AWS4-HMAC-SHA256 Credential=id/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
)
"""Nobody checks it, but without one a request is a stranger's, who may not read."""


def request(url: str, path: str, data: bytes | None = None, method: str = "GET") -> bytes | None:
    """A plain HTTP request, without any client of S3; None for a 404."""
    headers = {"Authorization": _SIGNED}
    asked = urllib.request.Request(f"{url}/{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


@contextlib.contextmanager
def s3_server(*, checks_rights: bool = False, tls: tuple[Path, Path] | None = None) -> Iterator[S3Server]:
    """Start a server, and end it.

    Args:
        checks_rights: it knows the users of ``RIGHTS``, and the bucket ``BUCKET``.
        tls: files of a certificate and its key, to speak TLS.
    """
    arguments = [sys.executable, __file__]
    if checks_rights:
        arguments.append("--rights")
    if tls is not None:
        arguments += ["--tls", *map(str, tls)]
    environment = {**os.environ, "MOTO_S3_CUSTOM_ENDPOINTS": ""}
    if checks_rights:
        environment["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, "the S3 server did not start: what it wrote is above"
            started: dict[str, Any] = json.loads(line)
            scheme = "http" if tls is None else "https"
            users = {name: (key, secret) for name, (key, secret) in started["users"].items()}
            yield S3Server(f"{scheme}://127.0.0.1:{started['port']}", users)
        finally:
            process.kill()


def _make_users() -> dict[str, tuple[str, str]]:
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.iam.models import iam_backends
    from moto.s3.models import s3_backends

    iam = iam_backends[DEFAULT_ACCOUNT_ID]["global"]
    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].create_bucket(BUCKET, "us-east-1")
    users = {}
    for name, actions in RIGHTS.items():
        iam.create_user("us-east-1", name)
        statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        iam.put_user_policy(name, "rights", json.dumps(policy))
        key = iam.create_access_key(name)
        users[name] = (key.access_key_id, key.secret_access_key)
    return users


def _serve(arguments: Sequence[str]) -> None:
    import logging
    import threading

    from moto.moto_server.werkzeug_app import create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    users = _make_users() if "--rights" in arguments else {}
    tls = None
    if "--tls" in arguments:
        start = arguments.index("--tls") + 1
        tls = (arguments[start], arguments[start + 1])
    app = create_backend_app("s3")  # of all AWS services, only S3
    server = make_server("127.0.0.1", 0, app, threaded=True, ssl_context=tls)
    print(json.dumps({"port": server.server_port, "users": users}), flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.buffer.read()  # ends with whoever started this


if __name__ == "__main__":
    _serve(sys.argv[1:])
