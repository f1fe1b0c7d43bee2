import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NAMES = (
    "index_laws",
    "index_epochs",
    "hashing",
    "rows",
    "checksum",
    "pattern",
    "inflight",
    "emulator_flash",
    "identities",
    "log_format",
)


@pytest.mark.skipif(bool(os.environ.get("NUMBA_DISABLE_JIT")), reason="the JIT is disabled already")
def test_the_array_kernels_work_without_the_jit() -> None:
    """Their tests pass as plain Python too, as a debugger or a coverage tool needs it."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x"]
    done = subprocess.run(
        command + [str(HERE / f"test_{name}.py") for name in NAMES],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
