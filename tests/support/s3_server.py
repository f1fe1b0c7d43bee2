"""An S3 server of its own process on loopback: moto's S3, behind waitress.

Run as a script, it serves until its standard input ends, and writes its port on standard output.
moto keeps objects in memory, speaks ranges, conditions, metadata, multipart uploads and listings,
and can check signatures and rights.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BUCKET = "kvtier"
RIGHTS = {
    "writer": ["s3:*"],
    "reader": ["s3:ListBucket", "s3:GetObject"],
    "stranger": ["s3:GetObject"],
}
"""What each user may do on a server that checks it."""

_SIGNED = (
    "AWS4-HMAC-SHA256 Credential=id/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
)
"""Nobody checks it, but without one a request is a stranger's, who may not read."""


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
        self.request("PUT", name)

    def request(self, method: str, path: str, data: bytes | None = None) -> bytes | None:
        """A plain HTTP request, without any client of S3; None for a 404."""
        headers = {"Authorization": _SIGNED, "Content-Type": "application/octet-stream"}
        asked = urllib.request.Request(f"{self.url}/{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                return None
            raise


@contextlib.contextmanager
def s3_server(*, checks_rights: bool = False) -> Iterator[S3Server]:
    """Start a server, and end it.

    Args:
        checks_rights: it has the bucket ``BUCKET``, and serves the users of ``RIGHTS`` alone.
    """
    environment = dict(os.environ)
    if checks_rights:
        environment["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"
    with subprocess.Popen(
        [sys.executable, __file__, *(["--rights"] if checks_rights else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, "the S3 server did not start: its own words are above"
            started: dict[str, Any] = json.loads(line)
            users = {name: (key, secret) for name, (key, secret) in started["users"].items()}
            yield S3Server(f"http://127.0.0.1:{started['port']}", users)
        finally:
            process.kill()


def _make_users() -> dict[str, tuple[str, str]]:
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.iam.models import iam_backends
    from moto.s3.models import s3_backends

    iam = iam_backends[DEFAULT_ACCOUNT_ID]["aws"]
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


def _serve(*, checks_rights: bool) -> None:
    import waitress
    from moto.moto_server.werkzeug_app import create_backend_app

    logging.getLogger("waitress").setLevel(logging.ERROR)  # it warns of every request that waits
    users = _make_users() if checks_rights else {}
    # Of all AWS services only S3, and with connections kept: twice as fast as `moto_server`.
    app = create_backend_app("s3")
    server = waitress.create_server(app, host="127.0.0.1", port=0, connection_limit=1000)
    threading.Thread(target=server.run, daemon=True).start()
    sys.stdout.write(json.dumps({"port": server.effective_port, "users": users}) + "\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()  # ends with whoever started this


if __name__ == "__main__":
    _serve(checks_rights="--rights" in sys.argv)
