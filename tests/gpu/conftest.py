from __future__ import annotations

import pytest
from gpus import GPUS, open_test_gpu

from kvtier.gpu import Gpu


@pytest.fixture(params=GPUS)
def gpu(request: pytest.FixtureRequest) -> Gpu:
    return open_test_gpu(request.param)
