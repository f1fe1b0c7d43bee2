"""fio, which several benchmarks run beside kvtier as the limit."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any


def fio_version() -> str | None:
    """What it calls itself; None where it is not on the PATH."""
    if shutil.which("fio") is None:
        return None
    return subprocess.run(
        ["fio", "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()


def fio_jobs(*options: str) -> list[dict[str, Any]]:
    """Run it with options; what it says of each of its jobs."""
    command = ["fio", "--output-format=json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"fio failed: {done.stderr.strip()}; take it off the PATH to run without")
    jobs: list[dict[str, Any]] = json.loads(done.stdout)["jobs"]
    return jobs
