"""What the redis backend refuses to open, and the one line that it says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import Authority
from kvtier_redis import RedisBackend
from redis_servers import ACL_RULE, RedisServer, redis_server
from servers import free_port

from kvtier.errors import BackendError, SettingsError

PAGE_BYTES = 512
SECRET = "hunter2"

pytestmark = pytest.mark.asyncio


async def open_redis(url: str, page_bytes: int = PAGE_BYTES, **options: object) -> RedisBackend:
    return await RedisBackend.open({"url": url, "connect_timeout_s": 5, **options}, page_bytes)


async def opens(url: str, **options: object) -> bool:
    await (await open_redis(url, **options)).close()
    return True


async def refusal(url: str, **options: object) -> str:
    """The one line that opening raises, which never tells a password."""
    with pytest.raises((SettingsError, BackendError)) as caught:
        await open_redis(url, **options)
    text = str(caught.value)
    assert SECRET not in text
    assert "\n" not in text
    return text


@dataclass(frozen=True)
class Tls:
    """A server with TLS beside its plain port."""

    server: RedisServer
    url: str
    authority: Authority
    other_authority: Authority
    client: tuple[Path, Path]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    directory = tmp_path_factory.mktemp("redis")
    authority = Authority(directory)
    cert_file, key_file = authority.sign("server")
    port = free_port()
    options = (
        *("--tls-port", str(port), "--tls-ca-cert-file", str(authority.ca_file)),
        *("--tls-cert-file", str(cert_file), "--tls-key-file", str(key_file)),
    )
    with redis_server(directory, *options) as server:
        other = Authority(tmp_path_factory.mktemp("other"))
        url = f"rediss://127.0.0.1:{port}"
        yield Tls(server, url, authority, other, authority.sign("client"))


@pytest.fixture
def server(tls: Tls) -> RedisServer:
    tls.server.client.flushall()
    return tls.server


@pytest.fixture
def url_of_user(server: RedisServer) -> Iterator[str]:
    """Of user ``kv``, who may do what is needed."""
    server.client.execute_command("ACL", "SETUSER", "kv", "reset", "on", f">{SECRET}", *ACL_RULE)
    yield f"redis://kv:{SECRET}@127.0.0.1:{server.port}"
    server.client.acl_deluser("kv")


@contextlib.asynccontextmanager
async def answering(hello: bytes) -> AsyncIterator[str]:
    """A server that knows ``HELLO`` and what redis-py tells of itself; yields its url."""
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while asked := await reader.read(1 << 16):
                writer.write(b"+OK\r\n" * asked.count(b"SETINFO"))
                if b"HELLO" in asked:
                    writer.write(hello)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers)


class TestOptions:
    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("", "scheme ''"),
            ("127.0.0.1:6379", "not one of redis://"),
            ("http://127.0.0.1", "scheme 'http'"),
            ("redis://", "must name a host"),
            ("redis://:6379", "must name a host"),
            ("redis://host:0", "port from 1 on"),
            ("redis://host:70000", "cannot be read"),
            ("redis://[::1", "cannot be read"),
            ("redis://host/one", "the database 'one'"),
            ("redis://host/-1", "the database '-1'"),
            ("redis://host/1?db=2", "database twice"),
            ("redis://host?socket_timeout=1", "parameter 'socket_timeout'"),
            ("redis://host?db", "cannot be read"),
            ("redis://host?ssl_ca_certs=ca.pem", "rediss:// URL only"),
            ("unix://", "must name a socket"),
            ("unix://host/path", "must name a socket"),
            (f"redis://user:{SECRET}@host:x", "cannot be read"),
            (f"redis://user:{SECRET}@", "must name a host"),
            (f"redis://:{SECRET}/@host", "as %XX"),
            (f"redis://user:1/{SECRET}@host", "as %XX"),
            (f"redis://user:1?{SECRET}=1@host", "as %XX"),
            (f"redis://user:1#{SECRET}@host", "as %XX"),
            (f"redis://:[{SECRET}@host", "as %XX"),
            (f"redis://host?{SECRET}", "cannot be read"),
        ],
    )
    async def test_a_wrong_url_is_refused(self, url: str, message: str) -> None:
        text = await refusal(url)
        assert text.startswith("option 'url' of backend 'redis'") or "'ca_file'" in text
        assert message in text

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"name_space": "x"}, "did you mean 'namespace'"),
            ({"namespace": ""}, "'namespace'"),
            ({"namespace": "a{b"}, "no braces"),
            ({"namespace": "a" * 129}, "1 to 128 bytes"),
            ({"connections": 0}, "'connections'"),
            ({"connections": 1.5}, "'connections'"),
            ({"timeout_s": 0}, "'timeout_s'"),
            ({"connect_timeout_s": float("inf")}, "'connect_timeout_s'"),
            ({"cluster": 1}, "'cluster'"),
            ({"ca_file": "ca.pem"}, "rediss:// URL only"),
        ],
    )
    async def test_a_wrong_option_is_refused(
        self, options: dict[str, object], message: str
    ) -> None:
        assert message in await refusal("redis://127.0.0.1", **options)

    @pytest.mark.parametrize("url", ["unix:///tmp/socket", "redis://host/1"])
    async def test_a_cluster_has_hosts_and_one_database(self, url: str) -> None:
        assert "database 0 only" in await refusal(url, cluster=True)

    async def test_the_url_is_needed(self) -> None:
        with pytest.raises(SettingsError, match="needs the option 'url'"):
            await RedisBackend.open({}, PAGE_BYTES)


class TestReaching:
    async def test_nobody_listening_is_told_with_what_to_do(self) -> None:
        with socket.socket() as taken:  # bound and not listening: nobody else gets the port
            taken.bind(("127.0.0.1", 0))
            url = f"redis://127.0.0.1:{taken.getsockname()[1]}"
            expected = f"origin {url}: connection refused: is a Redis or Valkey server running"
            assert (await refusal(url)).startswith(expected)

    async def test_a_socket_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        text = await refusal(f"unix://{tmp_path}/socket")
        assert text.startswith(f"origin unix://{tmp_path}/socket: ")
        assert "No such file" in text

    async def test_a_frozen_server_is_given_up_in_time(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as frozen:  # accepts nothing, ever
            url = f"redis://127.0.0.1:{frozen.getsockname()[1]}"
            assert "no connection within 0.2 s" in await refusal(url, connect_timeout_s=0.2)

    async def test_a_host_without_a_name_is_told(self) -> None:
        assert "origin redis://host.invalid:6379: " in await refusal("redis://host.invalid")

    async def test_a_server_of_something_else_is_told(self) -> None:
        async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
            assert "is a Redis or Valkey server running" in await refusal(url)

    @pytest.mark.parametrize(
        ("hello", "message"),
        [
            (b"-ERR unknown command 'HELLO'\r\n", "does not know HELLO: kvtier needs Redis 6.0"),
            (b"*2\r\n$7\r\nversion\r\n$5\r\n5.0.9\r\n", "has version 5.0.9: kvtier needs"),
            (b"*2\r\n$4\r\nmode\r\n$8\r\nsentinel\r\n", "has version"),
            (
                b"*4\r\n$7\r\nversion\r\n$5\r\n7.0.1\r\n$4\r\nmode\r\n$8\r\nsentinel\r\n",
                "is a Sentinel",
            ),
        ],
    )
    async def test_a_server_that_cannot_serve_is_refused(self, hello: bytes, message: str) -> None:
        async with answering(hello) as url:
            assert message in await refusal(url)


class TestLoggingIn:
    async def test_a_user_with_the_rights_of_the_docs_gets_in(self, url_of_user: str) -> None:
        assert await opens(url_of_user)

    async def test_a_wrong_password_is_refused(self, server: RedisServer, url_of_user: str) -> None:
        text = await refusal(f"redis://kv:{SECRET}no@127.0.0.1:{server.port}")
        assert "does not let user 'kv' in" in text
        assert "check user and password" in text

    async def test_a_missing_password_is_refused(self, server: RedisServer) -> None:
        server.client.config_set("requirepass", SECRET)
        try:
            assert "does not let the default user in" in await refusal(server.url)
            assert "does not let the default user in" in await refusal(f"{server.url}/2")
            assert await opens(f"redis://:{SECRET}@127.0.0.1:{server.port}")
        finally:
            server.client.config_set("requirepass", "")

    async def test_a_database_that_is_not_there_is_refused(self, server: RedisServer) -> None:
        assert "has no database 99" in await refusal(f"{server.url}/99")

    @pytest.mark.parametrize(
        "rule", [one for one in ACL_RULE if one.startswith("+") and one != "+select"]
    )
    async def test_a_missing_right_is_refused(
        self, server: RedisServer, url_of_user: str, rule: str
    ) -> None:
        server.client.execute_command("ACL", "SETUSER", "kv", rule.replace("+", "-"))
        text = await refusal(url_of_user)
        assert "user 'kv' lacks a right" in text
        assert rule[1:] in text

    async def test_a_namespace_beyond_the_rights_is_refused(self, url_of_user: str) -> None:
        assert "user 'kv' lacks a right" in await refusal(url_of_user, namespace="other")

    async def test_a_replica_is_refused(self, server: RedisServer) -> None:
        server.client.replicaof("127.0.0.1", 1)
        try:
            assert "is a replica" in await refusal(server.url)
        finally:
            server.client.replicaof("NO", "ONE")

    async def test_a_full_server_can_still_be_read(self, server: RedisServer) -> None:
        server.client.config_set("maxmemory", 1)
        try:
            assert await opens(server.url)
        finally:
            server.client.config_set("maxmemory", 0)


class TestKind:
    async def test_a_single_server_is_no_cluster(self, server: RedisServer) -> None:
        assert "leave out the option 'cluster'" in await refusal(server.url, cluster=True)

    async def test_a_cluster_is_no_single_server(self, tmp_path: Path) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
        with redis_server(tmp_path, *options) as alone:
            assert "set the option 'cluster'" in await refusal(alone.url)
            assert "slot" in await refusal(alone.url, cluster=True)


class TestNamespaces:
    async def test_pages_of_another_size_are_refused(self, server: RedisServer) -> None:
        assert await opens(server.url)
        assert "set page_bytes to 512" in await refusal(server.url, page_bytes=4096)
        assert await opens(server.url, page_bytes=4096, namespace="other")

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"page_bytes": 512}', "[" * 99_999])
    async def test_a_namespace_of_something_else_is_refused(
        self, server: RedisServer, text: str
    ) -> None:
        server.client.set("kvtier:format", text)
        assert "set the option 'namespace'" in await refusal(server.url)

    async def test_a_foreign_list_in_the_namespace_is_refused(self, server: RedisServer) -> None:
        server.client.rpush("kvtier:format", "x")
        assert "origin redis://" in await refusal(server.url)

    async def test_opening_leaves_one_key_and_no_more(self, server: RedisServer) -> None:
        assert await opens(server.url)
        assert server.client.keys() == [b"kvtier:format"]


class TestTls:
    async def test_a_trusted_server_is_opened(self, tls: Tls, server: RedisServer) -> None:
        cert_file, key_file = map(str, tls.client)
        files = {"ca_file": str(tls.authority.ca_file), "cert_file": cert_file}
        assert await opens(tls.url, **files, key_file=key_file)
        in_url = f"?ssl_ca_certs={files['ca_file']}&ssl_certfile={cert_file}&ssl_keyfile={key_file}"
        assert await opens(tls.url + in_url)

    async def test_an_unknown_authority_is_refused(self, tls: Tls) -> None:
        assert "its certificate is not trusted" in await refusal(tls.url)
        ca_file = str(tls.other_authority.ca_file)
        assert "its certificate is not trusted" in await refusal(tls.url, ca_file=ca_file)

    async def test_an_expired_certificate_is_refused(self, tls: Tls, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        cert_file, key_file = authority.sign("expired", has_expired=True)
        port = free_port()
        options = (
            *("--tls-port", str(port), "--tls-ca-cert-file", str(authority.ca_file)),
            *("--tls-cert-file", str(cert_file), "--tls-key-file", str(key_file)),
        )
        with redis_server(tmp_path, *options):
            url = f"rediss://127.0.0.1:{port}"
            text = await refusal(url, ca_file=str(authority.ca_file))
        assert "expired" in text
        assert "check its dates" in text

    async def test_another_name_than_the_certificate_tells_is_refused(self, tls: Tls) -> None:
        url = tls.url.replace("127.0.0.1", "localhost")
        text = await refusal(url, ca_file=str(tls.authority.ca_file))
        assert "its certificate is not trusted" in text

    async def test_a_client_without_a_certificate_is_refused(self, tls: Tls) -> None:
        text = await refusal(tls.url, ca_file=str(tls.authority.ca_file))
        assert text.startswith(f"origin {tls.url}: ")

    async def test_tls_to_a_plain_port_is_refused(self, tls: Tls) -> None:
        url = f"rediss://127.0.0.1:{tls.server.port}"
        ca_file = str(tls.authority.ca_file)
        text = await refusal(url, ca_file=ca_file, connect_timeout_s=0.5)
        assert "its port with TLS?" in text

    async def test_no_tls_to_a_tls_port_is_refused(self, tls: Tls) -> None:
        assert "connection lost" in await refusal(tls.url.replace("rediss", "redis"))

    @pytest.mark.parametrize("option", ["ca_file", "cert_file"])
    async def test_files_that_cannot_be_loaded_are_named(self, tmp_path: Path, option: str) -> None:
        garbage = tmp_path / "garbage.pem"
        garbage.write_text("no certificate")
        for path in (tmp_path / "missing.pem", garbage):
            text = await refusal("rediss://127.0.0.1", **{option: str(path)})
            assert f"option {option!r}" in text
            assert str(path) in text

    async def test_a_key_without_a_certificate_is_refused(self) -> None:
        assert "needs the option 'cert_file'" in await refusal("rediss://h", key_file="key.pem")

    async def test_a_file_that_is_named_twice_is_refused(self) -> None:
        text = await refusal("rediss://h?ssl_ca_certs=a.pem", ca_file="b.pem")
        assert "give one" in text
