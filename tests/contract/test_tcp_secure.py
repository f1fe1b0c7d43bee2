"""The tcp backend over TLS: the contract for tenants, and whom each side refuses."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from kvtier_memory import MemoryBackend
from kvtier_tcp import TcpBackend
from tls_authority import Authority, Certificate

from kvtier.backend import Backend
from kvtier.errors import BackendError, SettingsError
from kvtier.pages import U8
from kvtier.server import Server, ServerLimits, Tokens, serve, server_context
from kvtier.server.tenants import TenantView
from kvtier.settings import ServeSettings
from kvtier.testing.batches import put_objects, read_objects
from kvtier.testing.contract import BackendContract
from kvtier.testing.pages import make_pages
from kvtier.wire.frames import FrameLimits

PAGE_BYTES = 512
TENANT, TOKEN = "team-a", "0f6d9c1b2a"
TOKENS = Tokens.of({TOKEN: TENANT, "another": "team-b"})
QUICK = ServerLimits(denial_delay_s=0.01, linger_s=0.05)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def of_server(authority: Authority) -> Certificate:
    return authority.issue("server", hosts=("localhost",), addresses=("127.0.0.1", "::1"))


@pytest.fixture(scope="module")
def of_client(authority: Authority) -> Certificate:
    return authority.issue("client")


def context(server: Certificate, client_ca: Path | None = None) -> ssl.SSLContext:
    made = server_context(
        ServeSettings(cert_file=server.cert, key_file=server.key, client_ca_file=client_ca)
    )
    assert made is not None
    return made


class OverTls(BackendContract):
    """The contract for one tenant of several, with its token."""

    server: Server
    behind: Backend
    options: dict[str, object]

    @pytest_asyncio.fixture
    async def backend(
        self, authority: Authority, of_server: Certificate, of_client: Certificate
    ) -> AsyncIterator[Backend]:
        store = await MemoryBackend.open({}, self.page_bytes)
        await put_objects(
            store, {b"unseen": make_pages(b"", 0, 1, self.page_bytes)}, self.page_bytes
        )
        self.behind = TenantView(store, TENANT)
        self.server = await serve(
            store,
            page_bytes=self.page_bytes,
            tokens=TOKENS,
            tls=self.context(authority, of_server),
            limits=self.limits(),
        )
        self.options = {
            "url": self.server.url,
            "ca_file": authority.file,
            "token": TOKEN,
            **self.shown(of_client),
        }
        backend = await TcpBackend.open(self.options, self.page_bytes)
        yield backend
        await backend.close()
        await self.server.close()
        await store.close()

    def context(self, authority: Authority, server: Certificate) -> ssl.SSLContext:
        return context(server)

    def shown(self, client: Certificate) -> dict[str, object]:
        return {}

    def limits(self) -> ServerLimits:
        return ServerLimits()

    async def raw_get(self, backend: Backend, key: bytes) -> U8 | None:
        return (await read_objects(self.behind, [key], self.page_bytes))[key]

    async def raw_set(self, backend: Backend, key: bytes, pages: U8) -> None:
        await put_objects(self.behind, {key: pages}, self.page_bytes)

    async def reopen(self, backend: Backend) -> Backend:
        return await TcpBackend.open(self.options, self.page_bytes)


class TestTls(OverTls):
    pass


class TestMutualTlsWithNarrowLimits(OverTls):
    """Both sides show a certificate; objects go in parts, batches are cut, connections wait."""

    def context(self, authority: Authority, server: Certificate) -> ssl.SSLContext:
        return context(server, authority.file)

    def shown(self, client: Certificate) -> dict[str, object]:
        return {"cert_file": client.cert, "key_file": client.key}

    def limits(self) -> ServerLimits:
        return ServerLimits(
            frame=FrameLimits(payload_bytes_max=1 << 18),
            memory_bytes_max=1 << 18,
            inflight_bytes_max=1,
            batch_items_max=300,
            upload_bytes_max=8 << 20,
        )


async def refused(server: Server, caplog: pytest.LogCaptureFixture, **options: object) -> str:
    """What opening a backend says; the server must have logged one line, without the token."""
    caplog.clear()
    given = {"url": server.url, "connections": 1, **options}
    with caplog.at_level(logging.WARNING), pytest.raises(BackendError) as caught:
        await TcpBackend.open(given, PAGE_BYTES)
    while not caplog.records:  # noqa: ASYNC110 - the log tells nobody
        await asyncio.sleep(0.001)
    (record,) = caplog.records
    assert record.getMessage().startswith("refused 127.0.0.1:")
    assert "\n" not in str(caught.value)
    for text in (record.getMessage(), str(caught.value)):
        assert TOKEN not in text
    return str(caught.value)


@pytest_asyncio.fixture
async def store() -> AsyncIterator[Backend]:
    store = await MemoryBackend.open({}, PAGE_BYTES)
    yield store
    await store.close()


@pytest.mark.asyncio
class TestDoor:
    async def test_a_wrong_token_is_told_and_logged(
        self,
        store: Backend,
        authority: Authority,
        of_server: Certificate,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server = await serve(
            store, page_bytes=PAGE_BYTES, tokens=TOKENS, tls=context(of_server), limits=QUICK
        )
        for token in ("", "0f6d9c1b2", "team-a"):
            text = await refused(server, caplog, ca_file=authority.file, token=token)
            assert "the token is missing or wrong" in text
        assert server.counters.refusals == {"token": 3}
        await server.close()

    async def test_a_certificate_of_nobody_known_is_told(
        self, store: Backend, of_server: Certificate, caplog: pytest.LogCaptureFixture
    ) -> None:
        server = await serve(store, page_bytes=PAGE_BYTES, tls=context(of_server), limits=QUICK)
        text = await refused(server, caplog)
        assert "the server's certificate is not trusted" in text
        assert "'ca_file'" in text
        assert server.counters.refusals == {"tls": 1}
        await server.close()

    @pytest.mark.parametrize(
        ("hosts", "days", "message"),
        [
            (("127.0.0.1",), -1, "has expired: renew it there"),
            (("192.0.2.1",), 30, "set option 'server_name'"),
        ],
    )
    async def test_an_expired_certificate_and_another_name_are_told(
        self,
        store: Backend,
        authority: Authority,
        caplog: pytest.LogCaptureFixture,
        hosts: tuple[str, ...],
        days: int,
        message: str,
    ) -> None:
        certificate = authority.issue("odd", addresses=hosts, days=days)
        server = await serve(store, page_bytes=PAGE_BYTES, tls=context(certificate), limits=QUICK)
        assert message in await refused(server, caplog, ca_file=authority.file)
        await server.close()

    async def test_the_name_in_the_certificate_can_be_given(
        self, store: Backend, authority: Authority
    ) -> None:
        certificate = authority.issue("named", hosts=("kv.example",))
        server = await serve(store, page_bytes=PAGE_BYTES, tls=context(certificate))
        options = {"url": server.url, "ca_file": str(authority.file), "server_name": "kv.example"}
        await (await TcpBackend.open(options, PAGE_BYTES)).close()
        await server.close()

    async def test_a_client_without_a_certificate_is_told_that_one_is_wanted(
        self,
        store: Backend,
        authority: Authority,
        of_server: Certificate,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        tls = context(of_server, authority.file)
        server = await serve(store, page_bytes=PAGE_BYTES, tls=tls, limits=QUICK)
        text = await refused(server, caplog, ca_file=authority.file)
        assert "want a certificate of this side: set options 'cert_file'" in text
        await server.close()

    @pytest.mark.parametrize("days", [30, -1], ids=["of another authority", "expired"])
    async def test_a_clients_certificate_that_is_not_trusted_is_told(
        self,
        store: Backend,
        authority: Authority,
        of_server: Certificate,
        caplog: pytest.LogCaptureFixture,
        tmp_path: Path,
        days: int,
    ) -> None:
        issuer = Authority(tmp_path, "stranger") if days > 0 else authority
        shown = issuer.issue("visitor", days=days)
        tls = context(of_server, authority.file)
        server = await serve(store, page_bytes=PAGE_BYTES, tls=tls, limits=QUICK)
        text = await refused(
            server, caplog, ca_file=authority.file, cert_file=shown.cert, key_file=shown.key
        )
        assert "may not trust the certificate of this side" in text
        await server.close()

    async def test_tls_that_only_one_side_speaks_is_told_by_both(
        self,
        store: Backend,
        authority: Authority,
        of_server: Certificate,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        plain = await serve(store, page_bytes=PAGE_BYTES, limits=QUICK)
        url = plain.url.replace("tcp://", "tls://")
        text = await refused(plain, caplog, url=url, ca_file=authority.file)
        assert "the server does not speak TLS: use tcp://" in text
        assert "the peer speaks TLS and this server does not" in caplog.text
        await plain.close()
        secret = await serve(store, page_bytes=PAGE_BYTES, tls=context(of_server), limits=QUICK)
        text = await refused(secret, caplog, url=secret.url.replace("tls://", "tcp://"))
        assert "use tls://" in text
        await secret.close()

    async def test_an_older_tls_is_told(
        self,
        store: Backend,
        authority: Authority,
        of_server: Certificate,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        old = context(of_server)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
        server = await serve(store, page_bytes=PAGE_BYTES, tls=old, limits=QUICK)
        text = await refused(server, caplog, ca_file=authority.file)
        assert "TLS 1.3" in text
        await server.close()

    async def test_who_begins_no_handshake_is_hung_up_on_and_logged(
        self, store: Backend, of_server: Certificate, caplog: pytest.LogCaptureFixture
    ) -> None:
        limits = replace(QUICK, hello_timeout_s=0.1)
        server = await serve(store, page_bytes=PAGE_BYTES, tls=context(of_server), limits=limits)
        reader, writer = await asyncio.open_connection(server.host, server.port)
        with caplog.at_level(logging.WARNING):
            assert await reader.read() == b""
        assert server.counters.refusals == {"tls": 1}
        assert "handshake" in caplog.text
        writer.close()
        await writer.wait_closed()
        await server.close()

    async def test_of_too_many_handshakes_the_oldest_ends(
        self, store: Backend, authority: Authority, of_server: Certificate
    ) -> None:
        limits = replace(QUICK, strangers_max=3)
        server = await serve(store, page_bytes=PAGE_BYTES, tls=context(of_server), limits=limits)
        silent = [await asyncio.open_connection(server.host, server.port) for _ in range(3)]
        options = {"url": server.url, "ca_file": authority.file, "connections": 1}
        await (await TcpBackend.open(options, PAGE_BYTES)).close()
        assert await silent[0][0].read() == b""
        assert server.counters.refusals == {"tls": 1}
        for _, writer in silent:
            writer.transport.abort()
        await server.close()


@pytest.mark.asyncio
class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"url": "tcp://h:1", "ca_file": "f"}, "'ca_file' .* needs TLS: write .* tls://h:1"),
            ({"url": "tcp://h:1", "server_name": "n"}, "'server_name' .* needs TLS"),
            ({"url": "tls://h:1", "ca_file": "/none"}, "'/none': cannot be read: No such file"),
            ({"url": "tls://h:1", "cert_file": "f"}, "'cert_file' .* needs the option 'key_file'"),
            ({"url": "tls://h:1", "key_file": "f"}, "'key_file' .* needs the option 'cert_file'"),
            ({"url": "tcp://h:1", "token": "t"}, "in clear text: use tls://h:1, or set"),
            ({"url": "tcp://127.0.0.1:1", "token": "t", "token_env": "E"}, "are both given"),
            ({"url": "tcp://127.0.0.1:1", "token_env": "KVTIER_NO_SUCH"}, "set it"),
            ({"url": "tcp://127.0.0.1:1", "token_file": "/none"}, "cannot be read"),
            ({"url": "tcp://h:1", "cleartext": 1}, "cleartext"),
        ],
    )
    async def test_what_does_not_fit_is_refused(
        self, options: dict[str, object], message: str
    ) -> None:
        with pytest.raises(SettingsError, match=message):
            await TcpBackend.open(options, PAGE_BYTES)

    async def test_files_that_are_no_certificates_are_refused(
        self, tmp_path: Path, of_client: Certificate
    ) -> None:
        text = tmp_path / "text"
        text.write_text("nothing of use")
        with pytest.raises(SettingsError, match="has no certificates"):
            await TcpBackend.open({"url": "tls://h:1", "ca_file": text}, PAGE_BYTES)
        shown = {"url": "tls://h:1", "cert_file": of_client.cert, "key_file": text}
        with pytest.raises(SettingsError, match="as PEM, the key without a password"):
            await TcpBackend.open(shown, PAGE_BYTES)

    async def test_a_token_of_other_bytes_than_text_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KVTIER_BYTES", "\udcff")  # as the system gives the byte 0xff
        options = {"url": "tcp://127.0.0.1:1", "token_env": "KVTIER_BYTES"}
        with pytest.raises(SettingsError, match=r"'token_env' .* is no UTF-8 text"):
            await TcpBackend.open(options, PAGE_BYTES)

    @pytest.mark.parametrize("source", ["token_file", "token_env"])
    async def test_a_token_comes_from_a_file_or_the_environment(
        self, store: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
    ) -> None:
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        monkeypatch.setenv("KVTIER_TOKEN", TOKEN)
        place = {"token_file": tmp_path / "token", "token_env": "KVTIER_TOKEN"}[source]
        server = await serve(store, page_bytes=PAGE_BYTES, tokens=TOKENS)
        backend = await TcpBackend.open({"url": server.url, source: place}, PAGE_BYTES)
        await backend.close()
        await server.close()
