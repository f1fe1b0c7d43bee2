"""Exports a backend to other hosts, over the protocol of :mod:`kvtier.wire`.

Everything has a bound: a connection that asks faster than it reads is no longer read from, and a
frame beyond the limits is refused and its connection closed. Beyond loopback a token is needed.
"""

from kvtier.server.limits import ServerLimits
from kvtier.server.listener import Server, serve
from kvtier.server.service import run, run_server

__all__ = ["Server", "ServerLimits", "run", "run_server", "serve"]
