"""The contract suite, run over the backend as a user installed it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kvtier.backend import Backend
from kvtier.registry import open_backend
from kvtier.testing.contract import BackendContract


class TestSqliteBackend(BackendContract):
    @pytest.fixture(autouse=True)
    def _path(self, tmp_path: Path) -> None:
        self.options = {"path": str(tmp_path / "objects.db")}

    @pytest_asyncio.fixture
    async def backend(self) -> AsyncIterator[Backend]:
        backend = await open_backend("sqlite", self.options, self.page_bytes)
        yield backend
        await backend.close()

    async def reopen(self, backend: Backend) -> Backend:  # noqa: ARG002 - it is closed
        return await open_backend("sqlite", self.options, self.page_bytes)
