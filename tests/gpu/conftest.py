"""Each test runs on a GPU that a CPU plays, and on a real one where there is one.

``pytest -m gpu`` runs the second kind; elsewhere each is skipped, and says why.
"""

from __future__ import annotations

import pytest
from cpu_gpu import ORDERS, CpuGpu

from kvtier.gpu import CudaGpu, Gpu, find_cuda_trouble


@pytest.fixture(params=[*ORDERS, pytest.param("cuda", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest) -> Gpu:
    if request.param != "cuda":
        return CpuGpu(request.param)
    trouble = find_cuda_trouble()
    if trouble is not None:
        pytest.skip(trouble)
    return CudaGpu()
