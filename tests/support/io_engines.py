"""The I/O engines that this system allows."""

from __future__ import annotations

import os

import pytest

from kvtier.io import ENGINE_NAMES
from kvtier.io.ring import Ring, explain


def io_uring_refusal() -> str | None:
    """Why this process gets no io_uring; None if it does."""
    try:
        Ring(1).close()
    except OSError as error:
        return explain(error)
    return None


def needs_io_uring() -> pytest.MarkDecorator:
    """Skips where io_uring is forbidden, as in many containers; not with KVTIER_REQUIRE_URING=1."""
    refusal = None if os.environ.get("KVTIER_REQUIRE_URING") == "1" else io_uring_refusal()
    return pytest.mark.skipif(refusal is not None, reason=f"no io_uring: {refusal}")


def engine_names(*names: str, prefix: str = "") -> list[object]:
    """Parameters for a test of engines; all of them by default."""
    marks = {"uring": [needs_io_uring()]}
    return [
        pytest.param(prefix + name, marks=marks.get(name, ())) for name in names or ENGINE_NAMES
    ]
