"""The GPUs that a test runs on: one that a CPU plays, in every order, and a real one.

``pytest -m gpu`` runs the last kind; where there is none it is skipped, and says why.
"""

from __future__ import annotations

from typing import Any

import pytest
from cpu_gpu import ORDERS, CpuGpu

from kvtier.cuda import CudaGpu, find_cuda_trouble
from kvtier.gpu import Gpu

GPUS = [*ORDERS, pytest.param("cuda", marks=pytest.mark.gpu)]


def open_test_gpu(kind: Any) -> Gpu:
    """The GPU of a parameter of :data:`GPUS`."""
    if kind != "cuda":
        return CpuGpu(kind)
    trouble = find_cuda_trouble()
    if trouble is not None:
        pytest.skip(trouble)
    return CudaGpu()
