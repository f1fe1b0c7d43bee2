"""What the s3 backend does when the store is wrong, gone, slow, or changes meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import trustme
from kvtier_s3 import S3Backend
from kvtier_s3.names import name_of
from meddling_proxy import Forward, Proxy, Request, answer, leave_alone, meddling_proxy
from s3_server import BUCKET, S3Server, s3_server

from kvtier.errors import BackendError, ClosedError, SettingsError
from kvtier.pages import U8, PageStatus
from kvtier.testing.batches import list_keys, make_extents, make_objects, put_objects, read_objects
from kvtier.testing.pages import make_pages

PAGE_BYTES = 512
BUCKETS = count()
OK, ABSENT, FAILED = PageStatus.OK, PageStatus.ABSENT, PageStatus.FAILED

pytestmark = pytest.mark.asyncio


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(scope="module")
def strict_server() -> Iterator[S3Server]:
    with s3_server(checks_rights=True) as running:
        yield running


@pytest.fixture
def bucket(server: S3Server) -> str:
    name = f"failures-{next(BUCKETS)}"
    server.make_bucket(name)
    return name


@pytest_asyncio.fixture
async def proxy(server: S3Server) -> AsyncIterator[Proxy]:
    async with meddling_proxy(server.url) as running:
        yield running


@pytest_asyncio.fixture
async def store(proxy: Proxy, bucket: str) -> AsyncIterator[S3Backend]:
    backend = await open_s3(proxy.url, bucket)
    yield backend
    await backend.close()


async def open_s3(
    url: str, bucket: str = "kvtier", page_bytes: int = PAGE_BYTES, **options: object
) -> S3Backend:
    given = {
        "bucket": bucket,
        "endpoint": url,
        "allow_http": True,
        "access_key_id": "id",
        "secret_access_key": "secret",
        "retries": 0,
        **options,
    }
    wanted = {name: value for name, value in given.items() if value is not None}
    return await S3Backend.open(wanted, page_bytes)


def pages_of(key: bytes, pages: int = 4, generation: int = 0) -> U8:
    return make_pages(key, generation, pages, PAGE_BYTES)


def rows(pages: int) -> U8:
    return np.zeros((pages, PAGE_BYTES), np.uint8)


async def refusal(url: str, **options: object) -> str:
    """The one line that opening ends with."""
    with pytest.raises(BackendError) as caught:
        await open_s3(url, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"bucket": None}, "needs the option 'bucket'"),
            ({"bucket": ""}, "'bucket'"),
            ({"bucket": "a/b"}, "'bucket'"),
            ({"bucket": "a?b"}, "'bucket'"),
            ({"region": "eu west"}, "'region'"),
            ({"buckets": "b"}, "did you mean 'bucket'"),
            ({"endpoint": "127.0.0.1:9000"}, "https://HOST"),
            ({"endpoint": "ftp://h"}, "https://HOST"),
            ({"endpoint": "https://h:port"}, "https://HOST"),
            ({"endpoint": "https://user@h"}, "https://HOST"),
            ({"endpoint": "https://user:SECRET@h"}, "^(?!.*SECRET).*https://HOST"),
            ({"endpoint": "https://user:SE/CRET@h"}, "^(?!.*CRET).*https://HOST"),
            ({"endpoint": "http://h", "allow_http": False}, "set 'allow_http'"),
            ({"secret_access_key": None}, "a part of its credentials"),
            ({"access_key_id": None, "secret_access_key": None, "session_token": "t"}, "a part"),
            ({"anonymous": True}, "one of the two"),
            ({"prefix": "a//b"}, "'prefix'"),
            ({"prefix": "../b"}, "'prefix'"),
            ({"prefix": "a b"}, "'prefix'"),
            ({"prefix": "a" * 513}, "'prefix'"),
            ({"requests": 0}, "1 to 1024"),
            ({"requests": 2.5}, "'requests'"),
            ({"merge_gap_pages": -1}, "merge_gap_pages"),
            ({"retries": -1}, "retries"),
            ({"timeout_s": 0}, "timeout_s"),
            ({"connect_timeout_s": float("inf")}, "connect_timeout_s"),
            ({"retry_timeout_s": float("nan")}, "retry_timeout_s"),
            ({"ca_file": "/no/such/file.pem"}, "'ca_file'.*No such file"),
        ],
    )
    async def test_a_wrong_option_is_refused(
        self, options: dict[str, object], message: str
    ) -> None:
        with pytest.raises(SettingsError, match=message):
            await open_s3(**{"url": "http://127.0.0.1:1", **options})

    async def test_a_file_without_a_certificate_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nno\n")
        with pytest.raises(SettingsError, match="make no client"):
            await open_s3("https://127.0.0.1:1", ca_file=str(tmp_path / "ca.pem"))


class TestOpening:
    async def test_nobody_listening_is_told_with_what_to_do(self) -> None:
        with socket.socket() as taken:  # bound and not listening: nobody else gets the port
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            told = await refusal(url)
        expected = f"origin s3://kvtier/ at {url}: connection refused: is the store running there?"
        assert told == expected

    async def test_a_frozen_store_is_given_up_in_time(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as frozen:  # accepts nothing, ever
            url = f"http://127.0.0.1:{frozen.getsockname()[1]}"
            assert "no answer in time" in await refusal(url, timeout_s=0.2)

    async def test_a_host_that_is_not_there_is_told(self) -> None:
        assert "no such host" in await refusal("http://nowhere.invalid:9000")

    async def test_a_missing_bucket_is_told(self, server: S3Server) -> None:
        told = await refusal(server.url, bucket="not-there")
        assert "s3://not-there/" in told
        assert "no such bucket" in told

    async def test_tls_with_a_store_that_speaks_none_is_told(self) -> None:
        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(answer("400 Bad Request"))
            writer.close()

        plain = await asyncio.start_server(refuse, "127.0.0.1", 0)
        url = f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}"
        assert "does not speak TLS" in await refusal(url)
        plain.close()
        await plain.wait_closed()

    async def test_an_unknown_authority_is_told_and_one_in_a_file_is_trusted(
        self, server: S3Server, bucket: str, tmp_path: Path
    ) -> None:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        async with meddling_proxy(server.url, context) as proxy:
            assert "name its authority in 'ca_file'" in await refusal(proxy.url, bucket=bucket)
            backend = await open_s3(proxy.url, bucket, ca_file=str(tmp_path / "ca.pem"))
            await put_objects(backend, {b"a": pages_of(b"a")}, PAGE_BYTES)
            assert await list_keys(backend) == [b"a"]
            await backend.close()

    @pytest.mark.parametrize(
        ("status", "code", "message"),
        [
            ("301 Moved Permanently", "PermanentRedirect", "'region' or 'endpoint'"),
            ("400 Bad Request", "AuthorizationHeaderMalformed", "correct 'region'"),
            ("403 Forbidden", "RequestTimeTooSkewed", "the clock"),
            ("403 Forbidden", "ExpiredToken", "expired"),
            ("403 Forbidden", "AccessDenied", "s3:ListBucket"),
            ("500 Internal Server Error", "InternalError", "answered by 500 .InternalError."),
            ("418 I'm a teapot", "", "answered by 418"),
        ],
    )
    async def test_a_refusal_is_told_by_what_to_correct(
        self, proxy: Proxy, status: str, code: str, message: str
    ) -> None:
        async def refuse(request: Request, forward: Forward) -> bytes:
            return answer(status, f"<Error><Code>{code}</Code></Error>".encode() if code else b"")

        proxy.meddle = refuse
        with pytest.raises(BackendError, match=message):
            await open_s3(proxy.url)

    async def test_a_server_of_something_else_is_told(self, proxy: Proxy) -> None:
        async def greet(request: Request, forward: Forward) -> bytes:
            return answer("200 OK", b"welcome")

        proxy.meddle = greet
        told = await refusal(proxy.url)
        assert "list the bucket (s3:ListBucket) failed" in told
        assert told.count(proxy.url) == 1

    async def test_no_credentials_anywhere_is_told(
        self, server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
            monkeypatch.setenv("AWS_METADATA_ENDPOINT", nobody)
            told = await refusal(server.url, access_key_id=None, secret_access_key=None)
        assert "there are no credentials" in told

    async def test_credentials_come_from_the_environment(
        self, strict_server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key, secret = strict_server.users["writer"]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        backend = await open_s3(
            strict_server.url, BUCKET, access_key_id=None, secret_access_key=None, prefix="env"
        )
        assert await list_keys(backend) == []
        await backend.close()

    async def test_options_go_before_the_environment(
        self, proxy: Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "of-other-credentials")
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
        for token in (None, "own-token"):
            proxy.requests.clear()
            await (await open_s3(proxy.url, bucket, session_token=token)).close()
            head = proxy.requests[0].raw.lower()
            assert b"credential=id/" in head
            assert b"of-other" not in head
            assert (b"own-token" in head) is (token is not None)

    async def test_anonymous_requests_are_not_signed(self, proxy: Proxy, bucket: str) -> None:
        for options in ({}, {"access_key_id": None, "secret_access_key": None, "anonymous": True}):
            proxy.requests.clear()
            with contextlib.suppress(BackendError):  # the server may not serve a stranger
                await (await open_s3(proxy.url, bucket, **options)).close()
            signed = [b"authorization:" in one.raw.lower() for one in proxy.requests]
            assert signed
            assert set(signed) == {not options}

    async def test_a_bucket_may_be_part_of_the_host(self, proxy: Proxy, bucket: str) -> None:
        for virtual_hosted in (True, False):
            proxy.requests.clear()
            with contextlib.suppress(BackendError):  # the server does not know that host
                await (await open_s3(proxy.url, bucket, virtual_hosted=virtual_hosted)).close()
            assert (bucket in proxy.requests[0].target) is not virtual_hosted


class TestRights:
    def options_of(self, server: S3Server, user: str) -> dict[str, str]:
        key, secret = server.users[user]
        return {"access_key_id": key, "secret_access_key": secret}

    async def test_an_unknown_access_key_is_told(self, strict_server: S3Server) -> None:
        told = await refusal(strict_server.url, access_key_id="AKIANOBODY")
        assert "correct 'access_key_id'" in told
        assert "AKIANOBODY" not in told

    async def test_a_wrong_secret_is_told(self, strict_server: S3Server) -> None:
        options = self.options_of(strict_server, "writer")
        told = await refusal(strict_server.url, **{**options, "secret_access_key": "secret"})
        assert "correct 'secret_access_key'" in told

    async def test_who_may_not_list_is_told_so(self, strict_server: S3Server) -> None:
        told = await refusal(strict_server.url, **self.options_of(strict_server, "stranger"))
        assert "s3:ListBucket" in told

    async def test_who_may_not_write_is_told_so_and_may_read(self, strict_server: S3Server) -> None:
        reader = self.options_of(strict_server, "reader")
        writer = await open_s3(strict_server.url, **self.options_of(strict_server, "writer"))
        await put_objects(writer, {b"a": pages_of(b"a")}, PAGE_BYTES)
        assert "s3:PutObject" in await refusal(strict_server.url, **reader)
        backend = await open_s3(strict_server.url, read_only=True, **reader)
        found = await read_objects(backend, [b"a"], PAGE_BYTES)
        np.testing.assert_array_equal(found[b"a"], pages_of(b"a"))
        assert not backend.capability.writable
        for call in (
            backend.put(make_objects({b"b": pages_of(b"b")}, PAGE_BYTES)),
            backend.delete([b"a"]),
        ):
            with pytest.raises(BackendError, match="read_only"):
                await call
        await backend.close()
        await writer.close()


class TestMarker:
    async def test_pages_of_another_size_are_refused(self, proxy: Proxy, bucket: str) -> None:
        await (await open_s3(proxy.url, bucket)).close()
        with pytest.raises(SettingsError, match="set page_bytes to 512"):
            await open_s3(proxy.url, bucket, page_bytes=4096)

    async def test_a_second_opening_writes_nothing(
        self, proxy: Proxy, server: S3Server, bucket: str
    ) -> None:
        await (await open_s3(proxy.url, bucket)).close()
        before = server.request("GET", f"{bucket}/format.json")
        server.request("PUT", f"{bucket}/format.json", b" " + (before or b""))
        await (await open_s3(proxy.url, bucket)).close()
        assert server.request("GET", f"{bucket}/format.json") == b" " + (before or b"")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"", "no description"),
            (b"{", "no description"),
            (b"[]", "no description"),
            (b'{"format": "kvtier-s3", "version": 2, "page_bytes": 512}', "version 2"),
        ],
    )
    async def test_a_place_of_something_else_is_refused(
        self, server: S3Server, bucket: str, text: bytes, message: str
    ) -> None:
        server.request("PUT", f"{bucket}/format.json", text)
        with pytest.raises(SettingsError, match=message):
            await open_s3(server.url, bucket)

    async def test_a_store_without_conditions_gets_its_marker_all_the_same(
        self, proxy: Proxy, server: S3Server, bucket: str
    ) -> None:
        async def refuse_conditions(request: Request, forward: Forward) -> bytes:
            if b"if-none-match" in request.raw.lower():
                return answer("501 Not Implemented", b"<Error><Code>NotImplemented</Code></Error>")
            return await forward()

        proxy.meddle = refuse_conditions
        await (await open_s3(proxy.url, bucket)).close()
        marker = json.loads(server.request("GET", f"{bucket}/format.json") or b"")
        assert marker == {"format": "kvtier-s3", "version": 1, "page_bytes": PAGE_BYTES}

    async def test_another_process_may_make_the_store_first(
        self, proxy: Proxy, server: S3Server, bucket: str
    ) -> None:
        async def be_late(request: Request, forward: Forward) -> bytes:
            if request.method == "PUT":
                other = b'{"format": "kvtier-s3", "version": 1, "page_bytes": 4096}'
                await asyncio.to_thread(server.request, "PUT", f"{bucket}/format.json", other)
            return await forward()

        proxy.meddle = be_late
        with pytest.raises(SettingsError, match="set page_bytes to 4096"):
            await open_s3(proxy.url, bucket)


class TestLosing:
    async def test_a_store_that_is_gone_fails_each_item(
        self, server: S3Server, bucket: str
    ) -> None:
        async with meddling_proxy(server.url) as proxy:
            backend = await open_s3(proxy.url, bucket)
            versions = await put_objects(backend, {b"a": pages_of(b"a")}, PAGE_BYTES)
        batch = make_extents(versions, [(b"a", 0, 2, 0), (b"a", 3, 1, 2)])
        assert (await backend.read(batch, rows(3))).tolist() == [FAILED] * 2
        result = await backend.put(make_objects({b"a": pages_of(b"a")}, PAGE_BYTES))
        assert (result.status.tolist(), result.versions.tolist()) == ([FAILED], [0])
        assert (await backend.delete([b"a"])).tolist() == [FAILED]
        with pytest.raises(BackendError, match="connection refused"):
            await backend.stat([b"a"])
        with pytest.raises(BackendError, match="connection refused"):
            await list_keys(backend)
        await backend.close()

    async def test_one_failing_object_leaves_the_others_of_its_batch_alone(
        self, proxy: Proxy, store: S3Backend
    ) -> None:
        objects = {key: pages_of(key) for key in (b"a", b"bad", b"c")}
        versions = await put_objects(store, objects, PAGE_BYTES)

        async def refuse_one(request: Request, forward: Forward) -> bytes:
            return answer("503 Slow Down") if "/bad" in request.target else await forward()

        proxy.meddle = refuse_one
        out = rows(12)
        extents = [(key, 0, 4, 4 * index) for index, key in enumerate(objects)]
        status = await store.read(make_extents(versions, extents), out)
        assert status.tolist() == [OK, FAILED, OK]
        np.testing.assert_array_equal(out[8:], objects[b"c"])
        result = await store.put(make_objects(objects, PAGE_BYTES))
        assert result.status.tolist() == [OK, FAILED, OK]
        assert (await store.delete(list(objects))).tolist() == [OK, FAILED, OK]
        with pytest.raises(BackendError, match="answered by 503"):
            await store.stat([b"bad"])

    async def test_a_passing_failure_is_tried_again_as_often_as_is_allowed(
        self, proxy: Proxy, bucket: str
    ) -> None:
        backend = await open_s3(proxy.url, bucket, retries=2)
        versions = await put_objects(backend, {b"a": pages_of(b"a")}, PAGE_BYTES)
        failures = count()

        async def fail_at_first(request: Request, forward: Forward) -> bytes:
            return answer("503 Slow Down") if next(failures) < allowed else await forward()

        batch, proxy.meddle = make_extents(versions, [(b"a", 0, 4, 0)]), fail_at_first
        allowed = 2
        assert (await backend.read(batch, rows(4))).tolist() == [OK]
        failures, allowed = count(), 99
        assert (await backend.read(batch, rows(4))).tolist() == [FAILED]
        assert next(failures) == 3
        await backend.close()

    async def test_by_default_a_request_is_tried_once_more_and_no_oftener(
        self, proxy: Proxy, bucket: str
    ) -> None:
        """More would multiply with the attempts of ``[origin.resilience]``."""
        backend = await open_s3(proxy.url, bucket, retries=None)
        versions = await put_objects(backend, {b"a": pages_of(b"a")}, PAGE_BYTES)
        asked = count()

        async def fail(request: Request, forward: Forward) -> bytes:
            next(asked)
            return answer("503 Slow Down")

        proxy.meddle = fail
        batch = make_extents(versions, [(b"a", 0, 4, 0)])
        assert (await backend.read(batch, rows(4))).tolist() == [FAILED]
        assert next(asked) == 2
        await backend.close()

    async def test_an_answer_that_breaks_off_fails(self, proxy: Proxy, store: S3Backend) -> None:
        versions = await put_objects(store, {b"a": pages_of(b"a")}, PAGE_BYTES)

        async def break_off(request: Request, forward: Forward) -> bytes:
            return (await forward())[:-PAGE_BYTES]

        proxy.meddle = break_off
        batch = make_extents(versions, [(b"a", 0, 4, 0)])
        assert (await store.read(batch, rows(4))).tolist() == [FAILED]

    async def test_an_answer_shorter_than_it_says_fails(
        self, proxy: Proxy, store: S3Backend
    ) -> None:
        """It looks like that of a shorter object, but for the size that it tells of the object."""
        versions = await put_objects(store, {b"a": pages_of(b"a")}, PAGE_BYTES)

        async def shorten(request: Request, forward: Forward) -> bytes:
            head, _, body = (await forward()).partition(b"\r\n\r\n")
            whole = b"Content-Length: %d" % len(body)
            assert whole in head
            kept = body[:-PAGE_BYTES]
            return head.replace(whole, b"Content-Length: %d" % len(kept)) + b"\r\n\r\n" + kept

        proxy.meddle = shorten
        batch = make_extents(versions, [(b"a", 0, 4, 0)])
        assert (await store.read(batch, rows(4))).tolist() == [FAILED]

    async def test_past_the_end_costs_no_further_request(
        self, proxy: Proxy, store: S3Backend
    ) -> None:
        versions = await put_objects(store, {b"a": pages_of(b"a")}, PAGE_BYTES)
        asked: list[str] = []

        async def note(request: Request, forward: Forward) -> bytes:
            asked.append(request.method)
            return await forward()

        proxy.meddle = note
        batch = make_extents(versions, [(b"a", 4, 2, 0)])
        assert (await store.read(batch, rows(2))).tolist() == [ABSENT]
        assert asked == ["GET"]

    async def test_an_extent_of_several_requests_is_absent_if_it_goes_past_the_end(
        self, store: S3Backend
    ) -> None:
        versions = await put_objects(store, {b"a": pages_of(b"a")}, PAGE_BYTES)
        pages = (8 << 20) // PAGE_BYTES + 1
        batch = make_extents(versions, [(b"a", 1, pages, 0), (b"a", 1, 3, pages)])
        out = rows(pages + 3)
        assert (await store.read(batch, out)).tolist() == [ABSENT, OK]
        np.testing.assert_array_equal(out[pages:], pages_of(b"a")[1:])

    @pytest.mark.parametrize("rewritten", [False, True])
    async def test_the_rest_of_an_answer_that_broke_off_is_of_the_same_version_or_none(
        self, proxy: Proxy, bucket: str, rewritten: bool
    ) -> None:
        backend = await open_s3(proxy.url, bucket, retries=2)
        pages = pages_of(b"a", 512)
        versions = await put_objects(backend, {b"a": pages}, PAGE_BYTES)

        async def break_off_once(request: Request, forward: Forward) -> bytes:
            proxy.meddle = leave_alone
            begun = (await forward())[: 100 * PAGE_BYTES]
            if rewritten:
                await put_objects(backend, {b"a": pages_of(b"a", 512, 1)}, PAGE_BYTES)
            return begun

        proxy.meddle = break_off_once
        out = rows(512)
        status = await backend.read(make_extents(versions, [(b"a", 0, 512, 0)]), out)
        assert status.tolist() == [FAILED if rewritten else OK]
        if not rewritten:
            np.testing.assert_array_equal(out, pages)
        await backend.close()

    async def test_an_answer_of_another_range_fails(self, proxy: Proxy, store: S3Backend) -> None:
        versions = await put_objects(store, {b"a": pages_of(b"a")}, PAGE_BYTES)

        async def ignore_the_range(request: Request, forward: Forward) -> bytes:
            whole = await forward()
            return whole.replace(b"206 PARTIAL CONTENT", b"200 OK")

        proxy.meddle = ignore_the_range
        batch = make_extents(versions, [(b"a", 1, 2, 0)])
        assert (await store.read(batch, rows(2))).tolist() == [FAILED]

    async def test_an_answer_that_does_not_come_in_time_fails(
        self, proxy: Proxy, bucket: str
    ) -> None:
        backend = await open_s3(proxy.url, bucket)
        versions = await put_objects(backend, {b"a": pages_of(b"a")}, PAGE_BYTES)
        await backend.close()
        over = asyncio.Event()

        async def stall(request: Request, forward: Forward) -> bytes:
            if "objects/a" in request.target:
                await over.wait()
            return await forward()

        proxy.meddle = stall
        backend = await open_s3(proxy.url, bucket, timeout_s=0.5)
        batch = make_extents(versions, [(b"a", 0, 4, 0)])
        assert (await backend.read(batch, rows(4))).tolist() == [FAILED]
        with pytest.raises(BackendError, match="no answer in time"):
            await backend.stat([b"a"])
        over.set()
        await backend.close()

    async def test_close_ends_what_waits(self, proxy: Proxy, store: S3Backend) -> None:
        versions = await put_objects(store, {b"a": pages_of(b"a")}, PAGE_BYTES)
        asked = asyncio.Event()

        async def stall(request: Request, forward: Forward) -> bytes:
            asked.set()
            await asyncio.Event().wait()
            return b""

        proxy.meddle = stall
        out = rows(4)
        batch = make_extents(versions, [(b"a", 0, 4, 0)])
        read = asyncio.ensure_future(store.read(batch, out))
        await asked.wait()
        await store.close()
        with pytest.raises(ClosedError):
            await read
        assert not out.any()


class TestVersions:
    async def test_an_object_rewritten_between_stat_and_read_is_absent(
        self, store: S3Backend, server: S3Server, bucket: str
    ) -> None:
        await put_objects(store, {b"a": pages_of(b"a")}, PAGE_BYTES)
        stats = await store.stat([b"a"])
        await put_objects(store, {b"a": pages_of(b"a")}, PAGE_BYTES)
        batch = make_extents({b"a": int(stats.versions[0])}, [(b"a", 0, 4, 0)])
        out = rows(4)
        assert (await store.read(batch, out)).tolist() == [ABSENT]
        assert not out.any()

    async def test_an_object_rewritten_between_two_requests_of_a_read_is_never_mixed(
        self, proxy: Proxy, store: S3Backend
    ) -> None:
        versions = await put_objects(store, {b"a": pages_of(b"a", 8)}, PAGE_BYTES)
        first_served = asyncio.Event()

        async def rewrite_before_the_second(request: Request, forward: Forward) -> bytes:
            if b"range: bytes=2048" in request.raw.lower():
                await first_served.wait()
                proxy.meddle = leave_alone
                await put_objects(store, {b"a": pages_of(b"a", 8, 1)}, PAGE_BYTES)
                return await forward()
            served = await forward()
            first_served.set()
            return served

        proxy.meddle = rewrite_before_the_second
        out = rows(4)
        batch = make_extents(versions, [(b"a", 0, 2, 0), (b"a", 4, 2, 2)])
        assert (await store.read(batch, out)).tolist() == [OK, ABSENT]
        np.testing.assert_array_equal(out[:2], pages_of(b"a", 8)[:2])
        assert not out[2:].any()

    async def test_what_something_else_rewrote_has_another_version(
        self, store: S3Backend, server: S3Server, bucket: str
    ) -> None:
        versions = [(await put_objects(store, {b"a": pages_of(b"a")}, PAGE_BYTES))[b"a"]]
        for generation in range(3):
            data = pages_of(b"a", 4, generation).tobytes()
            server.request("PUT", f"{bucket}/objects/a", data)
            stats = await store.stat([b"a"])
            versions.append(int(stats.versions[0]))
            batch = make_extents({b"a": versions[-1]}, [(b"a", 0, 4, 0)])
            out = rows(4)
            assert (await store.read(batch, out)).tolist() == [OK]
            np.testing.assert_array_equal(out, pages_of(b"a", 4, generation))
        assert len(set(versions)) == 4

    async def test_an_object_of_less_than_a_page_is_none(
        self, store: S3Backend, server: S3Server, bucket: str
    ) -> None:
        server.request("PUT", f"{bucket}/objects/a", b"x" * (PAGE_BYTES - 1))
        assert (await store.stat([b"a"])).pages.tolist() == [-1]
        batch = make_extents({b"a": 1}, [(b"a", 0, 1, 0)])
        assert (await store.read(batch, rows(1))).tolist() == [ABSENT]

    async def test_foreign_objects_are_not_listed(
        self, store: S3Backend, server: S3Server, bucket: str
    ) -> None:
        await put_objects(store, {b"a/b": pages_of(b"a")}, PAGE_BYTES)
        for name in ("objects/a.txt", "objects/=6", "objects/a/b", "elsewhere/c"):
            server.request("PUT", f"{bucket}/{name}", b"x" * PAGE_BYTES)
        assert await list_keys(store) == [b"a/b"]


class TestRequests:
    async def test_no_more_requests_are_in_flight_than_is_allowed(
        self, proxy: Proxy, bucket: str
    ) -> None:
        backend = await open_s3(proxy.url, bucket, requests=3)
        objects = {b"%d" % index: pages_of(b"%d" % index) for index in range(12)}
        await put_objects(backend, objects, PAGE_BYTES)
        found = await asyncio.gather(
            *(read_objects(backend, list(objects), PAGE_BYTES) for _ in range(3))
        )
        assert proxy.most_at_once == 3
        for one in found:
            np.testing.assert_array_equal(one[b"11"], objects[b"11"])
        await backend.close()

    @pytest.mark.parametrize(("gap", "gets"), [(0, 3), (1, 2), (100, 1)])
    async def test_extents_are_merged_over_gaps_as_wide_as_is_allowed(
        self, proxy: Proxy, bucket: str, gap: int, gets: int
    ) -> None:
        backend = await open_s3(proxy.url, bucket, merge_gap_pages=gap)
        pages = pages_of(b"a", 120)
        versions = await put_objects(backend, {b"a": pages}, PAGE_BYTES)
        picks = [0, 1, 2, 4, 100, 5]
        batch = make_extents(versions, [(b"a", page, 1, row) for row, page in enumerate(picks)])
        before, out = proxy.count("GET", "objects/a"), rows(len(picks))
        assert not (await backend.read(batch, out)).any()
        assert proxy.count("GET", "objects/a") - before == gets
        np.testing.assert_array_equal(out, pages[picks])
        await backend.close()


class TestLargeObjects:
    PAGES = make_pages(b"large", 0, 5, 4 << 20)
    """20 MiB: three parts, and three requests."""

    async def open_large(self, proxy: Proxy, bucket: str) -> S3Backend:
        return await open_s3(proxy.url, bucket, page_bytes=4 << 20)

    async def test_a_large_object_goes_in_parts_and_comes_in_ranges(
        self, proxy: Proxy, bucket: str
    ) -> None:
        backend = await self.open_large(proxy, bucket)
        versions = await put_objects(backend, {b"large": self.PAGES}, 4 << 20)
        assert proxy.count("PUT", "partNumber=") == 3
        out = np.zeros_like(self.PAGES)
        batch = make_extents(versions, [(b"large", 0, 5, 0)])
        assert (await backend.read(batch, out)).tolist() == [OK]
        assert proxy.count("GET", "large") == 3
        np.testing.assert_array_equal(out, self.PAGES)
        await backend.close()

    async def test_large_objects_go_one_after_the_other(self, proxy: Proxy, bucket: str) -> None:
        backend = await self.open_large(proxy, bucket)
        objects = dict.fromkeys((b"a", b"b"), self.PAGES[:3])
        await put_objects(backend, {**objects, b"small": self.PAGES[:1]}, 4 << 20)
        parts = [one.target for one in proxy.requests if "partNumber=" in one.target]
        assert ["objects/a" in target for target in parts] == [True, True, False, False]
        await backend.close()

    async def test_an_upload_with_a_failing_part_leaves_nothing_to_see(
        self, proxy: Proxy, server: S3Server, bucket: str
    ) -> None:
        async def fail_the_second(request: Request, forward: Forward) -> bytes:
            return answer("400 No") if "partNumber=2" in request.target else await forward()

        backend = await self.open_large(proxy, bucket)
        proxy.meddle = fail_the_second
        result = await backend.put(make_objects({b"large": self.PAGES}, 4 << 20))
        assert result.status.tolist() == [FAILED]
        assert server.request("GET", f"{bucket}/objects/{name_of(b'large')}") is None
        await backend.close()

    async def test_a_cancelled_upload_leaves_nothing_to_see(
        self, proxy: Proxy, server: S3Server, bucket: str
    ) -> None:
        asked, over = asyncio.Event(), asyncio.Event()

        async def stall_the_last(request: Request, forward: Forward) -> bytes:
            if "partNumber=3" in request.target:
                asked.set()
                await over.wait()
            return await forward()

        backend = await self.open_large(proxy, bucket)
        proxy.meddle = stall_the_last
        put = asyncio.ensure_future(backend.put(make_objects({b"large": self.PAGES}, 4 << 20)))
        await asked.wait()
        put.cancel()
        await asyncio.wait([put])
        assert put.cancelled()
        over.set()
        assert (await backend.stat([b"large"])).pages.tolist() == [-1]
        await put_objects(backend, {b"large": self.PAGES[:1]}, 4 << 20)
        assert (await backend.stat([b"large"])).pages.tolist() == [1]
        await backend.close()
