"""Servers that tests start: whether they are there, where they listen, and that they end."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

READY_S = 30
END_S = 10


def required(command: str) -> str:
    """The path of a command; without it the test skips, or fails under KVTIER_REQUIRE_SERVERS=1."""
    path = shutil.which(command)
    if path is None:
        if os.environ.get("KVTIER_REQUIRE_SERVERS") == "1":
            pytest.fail(f"{command} is not installed, and KVTIER_REQUIRE_SERVERS=1 asks for it")
        pytest.skip(f"{command} is not installed")
    return path


def free_port() -> int:
    """A port of loopback that nobody uses at this moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def start(command: list[str], directory: Path, ready: bytes) -> subprocess.Popen[bytes]:
    """Start a server and wait until it says ``ready``; ends it where it does not."""
    process = subprocess.Popen(
        command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    )
    assert process.stdout is not None
    said = b""
    deadline = time.monotonic() + READY_S
    while ready not in said:
        left_s = max(0, deadline - time.monotonic())
        is_readable, _, _ = select.select([process.stdout], [], [], left_s)
        more = process.stdout.read(1 << 16) if is_readable else b""
        if not more:
            end(process)
            pytest.fail(f"{command[0]} did not come up:\n{said.decode(errors='replace')}")
        said += more
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server, whatever state it is in, and wait for that."""
    process.kill()
    process.wait(END_S)
    if process.stdout is not None:
        process.stdout.close()
