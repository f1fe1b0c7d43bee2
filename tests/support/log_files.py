"""Logs made by hand, and opened without a cache, for tests of their parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from kvtier.io import FileEngine, open_engine
from kvtier.tiers.log_format import LogLayout

FILE_ID = np.array([0x1122_3344_5566_7788, 0x99AA_BBCC_DDEE_FF00], np.uint64)


@asynccontextmanager
async def log_file(path: Path, layout: LogLayout) -> AsyncIterator[FileEngine]:
    """The file of a log, with what it holds; made if it is not there."""
    file = open_engine(
        "threads",
        path,
        direct=False,
        queue_depth=2,
        size_bytes=layout.file_bytes,
        create=True,
        keep=path.exists(),
        page_bytes=layout.page_bytes,
    )
    try:
        yield file
    finally:
        await file.close()
