"""A real Mooncake for tests: its master, and hosts that lend it memory."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from kvtier_mooncake.link import Link
from kvtier_mooncake.settings import parse_settings
from servers import READY_S, end, free_port, required

LEASE_S = 3.0


class SharedLink(Link):
    """A link that outlives the backends which use it: making one takes a second."""

    async def close(self) -> None:
        pass

    def end(self) -> None:
        self._close()


class Master:
    """A master on free ports of loopback, and the hosts that joined it.

    Args:
        directory: where logs go.
        flags: of the master, beside those that it always gets.
    """

    def __init__(self, directory: Path, *flags: str) -> None:
        self.port, self.admin_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.admin = f"127.0.0.1:{self.admin_port}"
        self._directory = directory
        self.hosts: list[subprocess.Popen[bytes]] = []
        self._links: dict[str, SharedLink] = {}
        self.process = self._start(
            "mooncake_master",
            "--rpc_address=127.0.0.1",
            f"--rpc_port={self.port}",
            "--rpc_thread_num=2",
            "--metrics_host=127.0.0.1",
            f"--metrics_port={self.admin_port}",
            f"--default_kv_lease_ttl={int(LEASE_S * 1000)}",
            *flags,
        )
        self._wait_until(lambda: _listens(self.port) and _listens(self.admin_port))

    def add_host(self, segment: str = "256 MB") -> None:
        """Start a process that lends memory, and wait until the master knows it."""
        before = self.segments()
        self.hosts.append(
            self._start(
                "mooncake_client",
                "--host=127.0.0.1",
                "--metadata_server=P2PHANDSHAKE",
                f"--master_server_address={self.address}",
                f"--global_segment_size={segment}",
                f"--port={free_port()}",
            )
        )
        self._wait_until(lambda: self.segments() > before)

    def names(self) -> list[str]:
        """Everything that the store holds."""
        return self._asked("/get_all_keys").split()

    async def link(self, options: Mapping[str, object], page_bytes: int) -> SharedLink:
        """A client, the same for all backends that may share it; ends with the master."""
        settings = parse_settings({"master": self.address, **options}, page_bytes)
        known_by = repr(replace(settings, namespace="-", admin="", chunk_bytes=page_bytes))
        if known_by not in self._links:
            self._links[known_by] = await SharedLink.open(settings)
        return self._links[known_by]

    def end(self) -> None:
        for link in self._links.values():
            link.end()
        for process in (*self.hosts, self.process):
            end(process)

    def segments(self) -> int:
        """How many pieces of memory are lent to the store."""
        return len(self._asked("/get_all_segments").split())

    def _asked(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=READY_S) as answer:
            text: str = answer.read().decode()
        return text

    def _start(self, command: str, *flags: str) -> subprocess.Popen[bytes]:
        # Into a file: a pipe that nobody reads would fill and stop the server.
        with (self._directory / f"{command}.log").open("ab") as log:
            return subprocess.Popen(
                [_binary(command), *flags],
                cwd=self._directory,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _wait_until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_S
        while not is_so():
            if time.monotonic() > deadline:
                self.end()
                logs = [log.read_text(errors="replace") for log in self._directory.glob("*.log")]
                pytest.fail("Mooncake did not come up:\n" + "\n".join(logs))
            time.sleep(0.02)


@contextlib.contextmanager
def running(directory: Path, *flags: str) -> Iterator[Master]:
    """A master without hosts, ended afterwards."""
    master = Master(directory, *flags)
    try:
        yield master
    finally:
        master.end()


def _binary(command: str) -> str:
    """Where the package keeps it; a virtual environment need not be on the path."""
    try:
        store = importlib.import_module("mooncake.store")
    except ImportError as error:
        if os.environ.get("KVTIER_REQUIRE_SERVERS") == "1":
            pytest.fail(
                f"Mooncake cannot be loaded, and KVTIER_REQUIRE_SERVERS=1 asks for it: {error}"
            )
        pytest.skip(f"Mooncake cannot be loaded: {error}")
    assert store.__file__ is not None
    return required(str(Path(store.__file__).parent / command))


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), READY_S):
        return True
    return False
