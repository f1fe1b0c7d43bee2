"""A load put on a file: by an io_uring where the system has it, by threads elsewhere."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np

from kvtier.calibration.load import Load, Operations
from kvtier.calibration.ring_load import run_ring
from kvtier.calibration.thread_load import run_threads
from kvtier.io.file import OpenFile
from kvtier.io.ring import Ring

LoadEngine = Literal["uring", "threads"]
"""What moves the operations, named after the I/O engine that does it in the same way."""

_RUN: Final = {"uring": run_ring, "threads": run_threads}


def choose_engine() -> LoadEngine:
    """What ``engine = "auto"`` of a tier comes to on this system."""
    try:
        Ring(1).close()
    except OSError:
        return "threads"
    return "uring"


def run_load(
    file: OpenFile,
    size_bytes: int,
    load: Load,
    seconds: float,
    rng: np.random.Generator,
    engine: LoadEngine,
) -> Operations:
    """Put a closed-loop load on the first ``size_bytes`` of a file for so long.

    As many operations as ``load.depth`` are under way all the time, and each place has one at
    least. Ctrl-C ends it within some ms, once no operation is under way.

    Raises:
        DeviceError: an operation failed.
    """
    return _RUN[engine](file, size_bytes, load, seconds, rng)
