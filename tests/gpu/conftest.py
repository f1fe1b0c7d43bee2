"""Tests that need an NVIDIA GPU and CuPy; elsewhere each is skipped, and says why."""

from __future__ import annotations

import pytest

from kvtier.tiers.hbm import find_cuda_trouble


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    trouble = find_cuda_trouble()
    if trouble is not None:
        pytest.skip(trouble)
