"""Tokens, tenants, and the files of TLS."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from kvtier_memory import MemoryBackend
from kvtier_tcp import TcpBackend
from tls_authority import Authority

from kvtier.backend import Backend
from kvtier.errors import LimitError, SettingsError
from kvtier.pages import U8, PageStatus
from kvtier.server import ServerLimits, Tokens, load_tokens, serve, server_context
from kvtier.server.tenants import TenantView, namespace_of
from kvtier.settings import BreakerSettings, ServeSettings
from kvtier.testing.batches import make_extents, put_objects, read_objects
from kvtier.testing.contract import BackendContract
from kvtier.testing.pages import make_pages
from kvtier.wrappers.breaker import BreakerBackend

PAGE_BYTES = 512

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


class TestTokens:
    def test_each_stands_for_its_tenant(self) -> None:
        tokens = Tokens.parse("# ours\nteam-a one  # old\nteam-a two\n\nteam-b three\n", "F")
        found = [tokens.tenant_of(token) for token in (b"one", b"two", b"three", b"four", b"")]
        assert found == ["team-a", "team-a", "team-b", None, None]

    def test_without_tenants_all_have_the_same_store(self) -> None:
        tokens = Tokens.parse("one\ntwo\n", "F")
        assert [tokens.tenant_of(token) for token in (b"one", b"two", b"o")] == ["", "", None]

    def test_they_are_not_shown(self) -> None:
        assert "secret" not in repr(Tokens.of({"secret": "team-a"}))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "F: is empty; put the token into it"),
            ("# nothing\n \n", "F: is empty"),
            ("a b c\n", "F line 1: write a tenant and its token"),
            ("team/a secret\n", "F line 1: the name of a tenant has 1 to 64 letters"),
            ("a secret\nb secret\n", "F line 2: another tenant has this token already"),
            ("a secret\nother\n", "F line 2: some tokens have a tenant and others none"),
            ("other\na secret\n", "F line 2: some tokens have a tenant and others none"),
            ("x" * 1025, "F line 1: a token has 1024 bytes at most"),
        ],
    )
    def test_what_is_none_is_refused_without_showing_it(self, text: str, message: str) -> None:
        with pytest.raises(SettingsError) as caught:
            Tokens.parse(text, "F")
        assert message in str(caught.value)
        assert "secret" not in str(caught.value)

    def test_they_come_from_a_file_or_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert load_tokens(ServeSettings()) is None
        path = tmp_path / "tokens"
        path.write_text("team-a one\n")
        path.chmod(0o600)
        monkeypatch.setenv("KVTIER_TOKENS", "team-b two")
        of_file = load_tokens(ServeSettings(token_file=path))
        of_environment = load_tokens(ServeSettings(token_env="KVTIER_TOKENS"))
        assert of_file == Tokens.of({"one": "team-a"})
        assert of_environment == Tokens.of({"two": "team-b"})
        monkeypatch.setenv("KVTIER_BYTES", "\udcff")  # as the system gives the byte 0xff
        with pytest.raises(SettingsError, match=r"serve\.token_env KVTIER_BYTES: is no UTF-8 text"):
            load_tokens(ServeSettings(token_env="KVTIER_BYTES"))
        with pytest.raises(SettingsError, match=r"serve\.token_env KVTIER_NONE: there is no such"):
            load_tokens(ServeSettings(token_env="KVTIER_NONE"))

    def test_a_file_that_others_can_read_is_warned_of(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "tokens"
        path.write_text("one\n")
        for mode, warnings in ((0o600, 0), (0o644, 1)):
            path.chmod(mode)
            with caplog.at_level(logging.WARNING):
                load_tokens(ServeSettings(token_file=path))
            assert len(caplog.records) == warnings


class TestTlsFiles:
    def test_without_a_certificate_there_is_no_tls(self) -> None:
        assert server_context(ServeSettings()) is None

    def test_files_that_are_of_no_use_are_refused(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        one, other = authority.issue("one"), authority.issue("other")
        text = tmp_path / "text"
        text.write_text("nothing of use")
        for cert, key, message in (
            (one.cert, tmp_path / "none", "serve.key_file .*: cannot be read: No such file"),
            (tmp_path / "none", one.key, "serve.cert_file .*: cannot be read: No such file"),
            (one.cert, other.key, "key values mismatch"),
            (text, one.key, "give a certificate chain and its key, as PEM"),
        ):
            with pytest.raises(SettingsError, match=message):
                server_context(ServeSettings(cert_file=cert, key_file=key))
        with pytest.raises(SettingsError, match=r"serve\.client_ca_file .*: give certificates of"):
            server_context(ServeSettings(cert_file=one.cert, key_file=one.key, client_ca_file=text))


class TestTenantView(BackendContract):
    """One tenant of a store that has objects of others."""

    @pytest_asyncio.fixture
    async def backend(self) -> AsyncIterator[Backend]:
        self.store = await MemoryBackend.open({}, self.page_bytes)
        pages = make_pages(b"", 0, 1, self.page_bytes)
        await put_objects(self.store, {b"unseen": pages, b"\x06team-bk": pages}, self.page_bytes)
        backend = TenantView(self.store, "team-a")
        yield backend
        await backend.close()

    async def raw_get(self, backend: Backend, key: bytes) -> U8 | None:
        stored = b"\x06team-a" + key
        return (await read_objects(self.store, [stored], self.page_bytes))[stored]

    async def raw_set(self, backend: Backend, key: bytes, pages: U8) -> None:
        await put_objects(self.store, {b"\x06team-a" + key: pages}, self.page_bytes)


async def _call_and_compare(calls: list[tuple[str, str, bytes]]) -> None:
    """Each tenant beside a dict of its own."""
    store = MemoryBackend(PAGE_BYTES, None)
    views = {name: TenantView(store, name) for name in ("a", "ab", "b", "\x01a")}
    models: dict[str, dict[bytes, U8]] = {name: {} for name in views}
    for number, (name, what, key) in enumerate(calls):
        if what == "put":
            pages = make_pages(b"%d" % number, 0, 1, PAGE_BYTES)
            await put_objects(views[name], {key: pages}, PAGE_BYTES)
            models[name][key] = pages
        else:
            (status,) = await views[name].delete([key])
            was_there = models[name].pop(key, None) is not None
            assert status == (PageStatus.OK if was_there else PageStatus.ABSENT)
    every = sorted({key for _, _, key in calls})
    for name, view in views.items():
        listing = view.keys()
        assert sorted([key async for key in listing]) == sorted(models[name])
        found = await read_objects(view, every, PAGE_BYTES)
        for key in every:
            mine = models[name].get(key)
            assert (found[key] is None) == (mine is None)
            if mine is not None:
                assert found[key].tobytes() == mine.tobytes()


class TestTenants:
    @given(names, names, st.binary(max_size=80), st.binary(max_size=80))
    def test_no_key_of_one_is_a_key_of_another(
        self, one: str, other: str, key: bytes, other_key: bytes
    ) -> None:
        same = (one, key) == (other, other_key)
        assert (namespace_of(one) + key == namespace_of(other) + other_key) == same

    @settings(deadline=None, max_examples=50)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["a", "ab", "b", "\x01a"]),
                st.sampled_from(["put", "delete"]),
                st.sampled_from([b"k", b"bk", b"\x01ak", b"\x02abk", b"\x01"]),
            ),
            max_size=30,
        )
    )
    def test_nobody_sees_or_touches_what_is_anothers(
        self, calls: list[tuple[str, str, bytes]]
    ) -> None:
        asyncio.run(_call_and_compare(calls))

    @pytest.mark.asyncio
    async def test_who_reads_past_the_end_shuts_out_nobody(self) -> None:
        """It is no failure of the store, whose breaker all clients share."""
        store = BreakerBackend(MemoryBackend(PAGE_BYTES, None), BreakerSettings(calls_min=1))
        tokens = Tokens.of({"one": "team-a", "two": "team-b"})
        server = await serve(store, page_bytes=PAGE_BYTES, tokens=tokens)
        first, second = [
            await TcpBackend.open({"url": server.url, "token": token}, PAGE_BYTES)
            for token in ("one", "two")
        ]
        pages = make_pages(b"k", 0, 2, PAGE_BYTES)
        versions = await put_objects(first, {b"k": pages}, PAGE_BYTES)
        out = np.zeros((3, PAGE_BYTES), np.uint8)
        past = make_extents(versions, [(b"k", 1, 2, 0)])
        assert (await first.read(past, out)).tolist() == [PageStatus.ABSENT]
        mixed = make_extents(versions, [(b"k", 2, 1, 0), (b"k", 1, 1, 1), (b"k", 9, 1, 2)])
        absent_ok_absent = [PageStatus.ABSENT, PageStatus.OK, PageStatus.ABSENT]
        assert (await first.read(mixed, out)).tolist() == absent_ok_absent
        assert out[1].tobytes() == pages[1].tobytes()
        assert store.available
        assert await read_objects(second, [b"k"], PAGE_BYTES) == {b"k": None}
        await first.close()
        await second.close()
        await server.close()

    @pytest.mark.asyncio
    async def test_the_longest_key_leaves_room_for_the_namespace(self) -> None:
        store = MemoryBackend(PAGE_BYTES, None)
        view = TenantView(store, "team-a")
        most = view.capability.key_bytes_max
        assert most == store.capability.key_bytes_max - len(namespace_of("team-a"))
        pages = make_pages(b"", 0, 1, PAGE_BYTES)
        await put_objects(view, {bytes(most): pages}, PAGE_BYTES)
        with pytest.raises(LimitError, match=f"1 to {most} are possible"):
            await view.stat([bytes(most + 1)])

    @pytest.mark.asyncio
    async def test_a_store_of_short_keys_cannot_have_tenants(self) -> None:
        store = MemoryBackend(PAGE_BYTES, None)
        store.capability = replace(store.capability, key_bytes_max=7)
        with pytest.raises(SettingsError, match="too short for the namespace of tenant team-a"):
            await serve(store, page_bytes=PAGE_BYTES, tokens=Tokens.of({"t": "team-a"}))


def test_the_limits_of_default_settings_are_the_default_limits() -> None:
    assert ServerLimits.of(ServeSettings()) == ServerLimits()
