"""The contract against an S3 server in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count

import numpy as np
import pytest
import pytest_asyncio
from kvtier_s3 import S3Backend
from kvtier_s3.names import name_of
from s3_server import S3Server, s3_server

from kvtier.backend import Backend
from kvtier.pages import U8
from kvtier.testing.contract import BackendContract

BUCKETS = count()


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


class TestS3Backend(BackendContract):
    @pytest_asyncio.fixture
    async def backend(self, server: S3Server) -> AsyncIterator[Backend]:
        self.server, self.bucket = server, f"bucket-{next(BUCKETS)}"
        server.make_bucket(self.bucket)
        backend = await self.open_store()
        yield backend
        await backend.close()

    async def open_store(self) -> S3Backend:
        options = {
            "bucket": self.bucket,
            "prefix": "some/where",
            "endpoint": self.server.url,
            "allow_http": True,
            "access_key_id": "id",
            "secret_access_key": "secret",
            # moto answers 500 where one of its threads replaces what another has just stored.
            "retries": 10,
        }
        return await S3Backend.open(options, self.page_bytes)

    def path_of(self, key: bytes) -> str:
        return f"{self.bucket}/some/where/objects/{name_of(key)}"

    async def raw_get(self, backend: Backend, key: bytes) -> U8 | None:
        data = await asyncio.to_thread(self.server.request, "GET", self.path_of(key))
        return None if data is None else np.frombuffer(data, np.uint8).reshape(-1, self.page_bytes)

    async def raw_set(self, backend: Backend, key: bytes, pages: U8) -> None:
        await asyncio.to_thread(self.server.request, "PUT", self.path_of(key), pages.tobytes())

    async def reopen(self, backend: Backend) -> Backend:
        return await self.open_store()
