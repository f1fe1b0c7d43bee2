"""Exports a backend to other hosts, over the protocol of :mod:`kvtier.wire`.

Everything has a bound: a connection that asks faster than it reads is no longer read from, and a
frame beyond the limits is refused and its connection closed. Beyond loopback tokens are needed,
and TLS; a token may stand for a tenant, who sees nobody else's objects.
"""

from kvtier.server.limits import ServerLimits
from kvtier.server.listener import Server, serve
from kvtier.server.probes import Probes, start_probes
from kvtier.server.service import run, run_server
from kvtier.server.tls import server_context
from kvtier.server.tokens import Tokens, load_tokens

__all__ = [
    "Probes",
    "Server",
    "ServerLimits",
    "Tokens",
    "load_tokens",
    "run",
    "run_server",
    "serve",
    "server_context",
    "start_probes",
]
