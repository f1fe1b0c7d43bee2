"""A calibration from its path to its result."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from kvtier.calibration.fitting import Fit, compare, fit_model
from kvtier.calibration.host import HostCost, measure_host, median_of
from kvtier.calibration.load import Operations
from kvtier.calibration.measuring import (
    Progress,
    measure_loads,
    plan_loads,
    probe_throttle,
    summarise,
)
from kvtier.calibration.running import LoadEngine
from kvtier.calibration.target import open_target
from kvtier.environment import describe_environment
from kvtier.settings import DeviceModel

_PROBE_SHARE: Final = 0.1
_HOST_SHARE: Final = 0.4


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured, and the model that repeats it.

    Attributes:
        model: of the device.
        fits: what the model predicts, beside what was measured, for each load.
        host: what the software takes beyond the device, and an origin of files beside it; None:
            nothing could be written beside the file.
        device: the file system and what it is mounted from.
        direct: O_DIRECT was in use.
        engine: that moved the loads on the device.
        size_bytes: of the file.
        page_bytes: of the smallest operations.
        seconds: how long it was measured for.
        finished: date and time, UTC.
        environment: the machine and the versions.
        notes: why the figures may not be those of a device.
    """

    model: DeviceModel
    fits: tuple[Fit, ...]
    host: HostCost | None
    device: str
    direct: bool
    engine: LoadEngine
    size_bytes: int
    page_bytes: int
    seconds: float
    finished: str
    environment: dict[str, Any]
    notes: tuple[str, ...]


def calibrate(
    path: Path,
    *,
    seconds: float = 20,
    rounds: int = 1,
    size_bytes: int = 1 << 30,
    page_bytes: int = 4096,
    write: bool = False,
    seed: int = 1,
    progress: Progress = lambda done, total: None,  # noqa: ARG005
    notify: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> Calibration:
    """Measure the device below ``path`` and fit a model to it.

    Args:
        path: a directory, where a temporary file is made; or a file, which is only read.
        seconds: how long to measure in a round; filling the file and fitting come on top.
        rounds: measure device and host so often in turn, at least once, and take the medians.
        size_bytes: of the temporary file; of a file that is there, at most so much is used.
        page_bytes: of the smallest operations.
        write: measure writes to a file that is there too, which overwrites it.
        seed: of every random choice.
        progress: told how many turns of how many are over.
        notify: told, before anything is measured, why the figures may not be those of a device.

    Raises:
        SettingsError: there is nothing at ``path``, or not the room, or too little of it.
        DeviceError: the file cannot be made, opened, read or written.
    """
    rng = np.random.default_rng(seed)
    with open_target(path, size_bytes, page_bytes, write=write, rng=rng) as target:
        directory, notes = target.file.path.absolute().parent, target.notes
        if not os.access(directory, os.W_OK):
            notes += (f"{directory} cannot be written: the host is not measured",)
        for note in notes:
            notify(note)
        throttle = probe_throttle(target, page_bytes, _PROBE_SHARE * seconds, rng)
        loads = plan_loads(page_bytes, writes=target.file.writable)
        load_s = (1 - _PROBE_SHARE - _HOST_SHARE) * seconds
        turns: list[list[Operations]] = [[] for _ in loads]
        costs: list[HostCost] = []
        for number in range(rounds):
            tell = partial(_tell, progress, number, rounds)
            found = measure_loads(target, loads, load_s, rng, tell)
            for each, new in zip(turns, found, strict=True):
                each.extend(new)
            measured = [summarise(load, done) for load, done in zip(loads, turns, strict=True)]
            model = fit_model(measured, throttle)
            if os.access(directory, os.W_OK):
                host_s = _HOST_SHARE * seconds
                costs.append(measure_host(directory, model, page_bytes, host_s, rng))
    return Calibration(
        model=model,
        fits=tuple(compare(model, measured)),
        host=median_of(costs) if costs else None,
        device=target.device,
        direct=target.file.direct,
        engine=target.engine,
        size_bytes=target.size_bytes,
        page_bytes=page_bytes,
        seconds=rounds * seconds,
        finished=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        environment=describe_environment(),
        notes=notes,
    )


def _tell(progress: Progress, number: int, rounds: int, done: int, total: int | None) -> None:
    """Of the turns of all rounds, how many are over."""
    progress(number * (total or 0) + done, rounds * (total or 0))
