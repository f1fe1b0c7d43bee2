"""What is checked before a backend is open, so that nothing of it shows at the first read."""

from __future__ import annotations

from redis.exceptions import (
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from kvtier.errors import BackendError, SettingsError
from kvtier_redis.address import Address
from kvtier_redis.cluster import Cluster
from kvtier_redis.commands import Reply, Request, error_in, pack, transaction
from kvtier_redis.layout import HEADER_FIELD, Layout
from kvtier_redis.reasons import Patience
from kvtier_redis.server import Server
from kvtier_redis.servers import Servers, SingleServer

_OLDEST = (6, 0)
_FULL = "MISCONF"


async def open_servers(
    address: Address, *, is_cluster: bool, layout: Layout, patience: Patience
) -> Servers:
    """Connect, and make sure that everything can be done that will be asked.

    Raises:
        SettingsError: the server is a Cluster and should not be, or the other way round; the
            namespace holds something else.
        BackendError: it cannot be reached, does not let this user in or do what is needed, or is
            too old.
    """
    seed = Server(address, patience)
    servers: Servers = Cluster(seed, patience) if is_cluster else SingleServer(seed)
    try:
        await _check_kind(seed, is_cluster=is_cluster)
        for name in await servers.spread(layout.probe_names()):
            await _check_rights(servers, address, name)
        for master in await servers.masters():
            _check(await master.ask(Request(b"", pack(b"SCAN", b"0", b"COUNT", b"1"))), address)
            if is_cluster:
                _check(await master.ask(Request(b"", pack(b"ASKING"))), address)
        await _check_format(servers, layout, address)
    except BaseException:
        await servers.close()
        raise
    return servers


async def _check_kind(seed: Server, *, is_cluster: bool) -> None:
    (reply,) = await seed.ask(Request(b"", pack(b"HELLO")))
    needs = f"kvtier needs Redis {'.'.join(map(str, _OLDEST))} or newer, or Valkey"
    if isinstance(reply, ResponseError) and "unknown command" in str(reply):
        raise BackendError(f"origin {seed.address}: the server does not know HELLO: {needs}")
    _check([reply], seed.address)
    facts = dict(zip(reply[::2], reply[1::2], strict=True))
    version = facts.get(b"version", b"").decode()
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _OLDEST:
        raise BackendError(f"origin {seed.address}: the server has version {version}: {needs}")
    mode = facts.get(b"mode", b"standalone").decode()
    if mode == "sentinel":
        raise SettingsError(
            f"origin {seed.address} is a Sentinel: give the url of the server that it watches"
        )
    if is_cluster and mode != "cluster":
        raise SettingsError(
            f"origin {seed.address} is no Redis Cluster: leave out the option 'cluster'"
        )
    if mode == "cluster" and not is_cluster:
        raise SettingsError(f"origin {seed.address} is a Redis Cluster: set the option 'cluster'")


async def _check_rights(servers: Servers, address: Address, name: bytes) -> None:
    """Do once, in one transaction that leaves nothing, what reads and writes will do."""
    other = name + b"-"
    probe = transaction(
        name,
        pack(b"HSET", name, HEADER_FIELD, b""),
        pack(b"PEXPIRE", name, b"60000"),
        pack(b"PERSIST", name),
        pack(b"RENAME", name, other),
        pack(b"HMGET", other, HEADER_FIELD),
        pack(b"HGET", other, HEADER_FIELD),
        pack(b"HLEN", other),
        pack(b"UNLINK", other),
    )
    got: list[list[Reply]] = []
    await servers.exchange([probe], lambda _, replies: got.append(replies))
    _check(got[0], address)


async def _check_format(servers: Servers, layout: Layout, address: Address) -> None:
    """Make sure that everybody who uses a namespace means the same pages."""
    name = layout.format_name
    got: list[list[Reply]] = []
    asked = [
        Request(name, pack(b"SET", name, layout.format_text(), b"NX")),
        Request(name, pack(b"GET", name)),
    ]
    await servers.exchange(asked, lambda _, replies: got.append(replies))
    (written,), (text,) = got
    if not isinstance(text, ResponseError) or isinstance(text, NoPermissionError):
        _check([written, text], address)
    if text is None:  # a full server took nothing
        return
    held = layout.page_bytes_in(text) if isinstance(text, bytes) else None
    if held is None:
        raise SettingsError(
            f"origin {address}: the key {name.decode()!r} is not of kvtier: "
            "set the option 'namespace' to a name that nothing else uses"
        )
    if held != layout.page_bytes:
        raise SettingsError(
            f"origin {address}: {name.decode()!r} tells of pages of {held} bytes, not "
            f"{layout.page_bytes}: set page_bytes to {held}, or take another namespace"
        )


def _check(replies: list[Reply], address: Address) -> None:
    """Raise for what a server refuses for good; one that is full may still be read."""
    error = error_in(replies)
    if error is None or isinstance(error, OutOfMemoryError) or str(error).startswith(_FULL):
        return
    if isinstance(error, BackendError):
        raise error
    if isinstance(error, NoPermissionError) or "NOPERM" in str(error):  # in what EXEC tells
        user = address.username or "default"
        raise BackendError(
            f"origin {address}: user {user!r} lacks a right ({error}): see docs/backends.md for "
            "the ACL rule that kvtier needs"
        )
    if isinstance(error, ReadOnlyError):
        raise BackendError(
            f"origin {address}: the server is a replica and takes no writes: give its master"
        )
    raise BackendError(f"origin {address}: the server refuses: {error}")
