"""A calibrated model beside the device that it describes, and beside whole replays.

A file on the device is calibrated. Before and after that, fio reads it at random, at several
depths, with O_DIRECT and io_uring, and the vector sample is replayed through all tiers on that
device; it is also simulated with what the calibration wrote. All of it several times, because a
shared machine is not the same for long, and after pauses, because it is slower after work. A ratio
is the median of those of the rounds: what the models predict, over the mean of what fio or the
replay finds before and after. One of IOPS is *within* at 10 %, of a whole replay at 15 %; one of a
99th percentile at 25 %, or at what fio's own repetitions differ by if that is more. The replay's
origin is files that the system has cached, and it checks no bytes. fio must be on the PATH.

    python bench/calibration.py [--quick] [--json FILE] [--directory DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fio import fio_jobs, fio_version

from kvtier.calibration import Calibration, Load, calibrate, predict, to_mapping, to_toml
from kvtier.environment import event_loop_factory
from kvtier.replay import replay_trace, simulate_trace
from kvtier.settings import load_settings

PAGE_BYTES = 4096
DEPTHS = (1, 4, 16, 64, 128)
IOPS_TOLERANCE = 0.10
REPLAY_TOLERANCE = 0.15
P99_TOLERANCE = 0.25
CHUNK_BYTES = 4 << 20
PAUSE_S = 2
TRACE = Path(__file__).resolve().parents[1] / "traces" / "sample.parquet"
DRIVES = ("waves", "closed")
SETTINGS = (
    "device=cpu",
    "tiers.hbm.capacity=4MiB",
    "tiers.dram.capacity=16MiB",
    "tiers.nvme.capacity=64MiB",
    "replay.verify_share=0",
)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        file_bytes: of the file that both read.
        rounds: calibrations, each between two findings.
        calibration_s: seconds of one.
        fio_s: seconds of fio at each depth.
        requests: of the trace that are replayed; None for all.
    """

    file_bytes: int
    rounds: int
    calibration_s: float
    fio_s: float
    requests: int | None


@dataclass(frozen=True, slots=True)
class Turn:
    """What fio found in one turn; the latency from submission on, as the model has it."""

    iops: float
    p99_us: float


@dataclass(frozen=True, slots=True)
class Found:
    """What the device did.

    Attributes:
        fio: under fio, by depth.
        replayed: IOPS of the whole trace, by drive.
    """

    fio: dict[int, Turn]
    replayed: dict[str, float]


@dataclass(frozen=True, slots=True)
class Round:
    """A calibration, and what it is held against.

    Attributes:
        calibration: of the device.
        simulated: IOPS of the whole trace, by drive.
        found: the mean of what was found before it and after it.
    """

    calibration: Calibration
    simulated: dict[str, float]
    found: Found


QUICK = Scale(file_bytes=256 << 20, rounds=2, calibration_s=4, fio_s=0.5, requests=400)
FULL = Scale(file_bytes=1 << 30, rounds=7, calibration_s=12, fio_s=1, requests=None)


def main(scale: Scale, directory: Path | None, seed: int) -> dict[str, Any]:
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-", dir=directory) as name:
        path = Path(name) / "pages"
        fill(path, scale.file_bytes, seed)
        replay(Path(name), scale, DRIVES[0])  # stores the objects, and compiles
        rounds = []
        before = measure(Path(name), path, scale)
        for _ in range(scale.rounds):
            time.sleep(PAUSE_S)
            calibration = calibrate(path, seconds=scale.calibration_s, write=True, seed=seed)
            time.sleep(PAUSE_S)
            after = measure(Path(name), path, scale)
            simulated = simulate(calibration, Path(name), scale)
            rounds.append(Round(calibration, simulated, mean(before, after)))
            before = after
    last = rounds[-1].calibration
    environment = last.environment | {
        "fio": fio_version(),
        "device": last.device,
        "direct": last.direct,
        "load_average_before": load_before,
        "load_average_after": os.getloadavg(),
    }
    rows = [row for depth in DEPTHS for row in compare(rounds, depth)]
    rows += [compare_replays(rounds, drive) for drive in DRIVES]
    found = [to_mapping(each.calibration) for each in rounds]
    models = [{key: each[key] for key in ("model", "host", "origin")} for each in found]
    return {"environment": environment, "seed": seed, "rows": rows, "models": models}


def measure(directory: Path, path: Path, scale: Scale) -> Found:
    """What the device does now."""
    return Found(
        {depth: fio(path, depth, scale.fio_s) for depth in DEPTHS},
        {drive: replay(directory, scale, drive) for drive in DRIVES},
    )


def mean(before: Found, after: Found) -> Found:
    """What the device did between the two."""
    return Found(
        {
            depth: Turn((one.iops + other.iops) / 2, (one.p99_us + other.p99_us) / 2)
            for depth in DEPTHS
            for one, other in [(before.fio[depth], after.fio[depth])]
        },
        {drive: (before.replayed[drive] + after.replayed[drive]) / 2 for drive in DRIVES},
    )


def replay(directory: Path, scale: Scale, drive: str) -> float:
    """IOPS of the trace through all tiers, the last ones in ``directory``."""
    places = (
        f"tiers.nvme.path={directory / 'tier'}",
        "origin.backend=file",
        f"origin.options.root={directory / 'origin'}",
        "origin.options.sync=false",
    )
    settings = load_settings(None, (*SETTINGS, *places, f"replay.drive={drive}"))
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        result = runner.run(
            replay_trace(TRACE, settings, limit=scale.requests, progress=quiet, notify=quiet)
        )
    return float(result["demand"]["iops"])


def simulate(calibration: Calibration, directory: Path, scale: Scale) -> dict[str, float]:
    """The same with what was calibrated, by drive."""
    config = directory / "calibrated.toml"
    config.write_text(to_toml(calibration))
    found = {}
    for drive in DRIVES:
        settings = load_settings(config, (*SETTINGS, f"replay.drive={drive}"))
        result = simulate_trace(TRACE, settings, limit=scale.requests, progress=quiet, notify=quiet)
        found[drive] = float(result["demand"]["iops"])
    return found


def quiet(*_: object) -> None:
    """No progress, no notices."""


def fill(path: Path, size_bytes: int, seed: int) -> None:
    """Random bytes, written through to the device."""
    rng = np.random.default_rng(seed)
    with path.open("wb") as file:
        for _ in range(0, size_bytes, CHUNK_BYTES):
            file.write(rng.bytes(CHUNK_BYTES))
        file.flush()
        os.fsync(file.fileno())


def fio(path: Path, depth: int, seconds: float) -> Turn:
    job, *_ = fio_jobs(
        *("--name=device", f"--filename={path}", "--rw=randread", f"--bs={PAGE_BYTES}"),
        *("--direct=1", "--ioengine=io_uring", f"--iodepth={depth}", "--randrepeat=0"),
        *("--time_based", f"--runtime={seconds:g}s", f"--ramp_time={seconds / 4:g}s"),
        *("--lat_percentiles=1", "--clat_percentiles=0"),
    )
    read = job["read"]
    return Turn(read["iops"], read["lat_ns"]["percentile"]["99.000000"] / 1e3)


def compare(rounds: list[Round], depth: int) -> list[dict[str, Any]]:
    """Rows of one depth: IOPS and 99th percentile, predicted beside measured."""
    load = Load(depth, PAGE_BYTES)
    predicted = [predict(each.calibration.model, load) for each in rounds]
    measured = [each.found.fio[depth] for each in rounds]
    name = f"random {PAGE_BYTES} B reads, depth {depth}"
    tails = [turn.p99_us for turn in measured]
    return [
        row(
            name,
            "IOPS",
            [done.iops for done in predicted],
            [turn.iops for turn in measured],
            IOPS_TOLERANCE,
        ),
        row(
            f"{name}, p99",
            "us",
            [done.latency_s(0.99) * 1e6 for done in predicted],
            tails,
            max(P99_TOLERANCE, spread(tails)),
        ),
    ]


def compare_replays(rounds: list[Round], drive: str) -> dict[str, Any]:
    """The row of whole replays."""
    return row(
        f"replay of the vector sample, {drive}",
        "IOPS",
        [each.simulated[drive] for each in rounds],
        [each.found.replayed[drive] for each in rounds],
        REPLAY_TOLERANCE,
    )


def row(
    case: str, unit: str, predicted: list[float], measured: list[float], tolerance: float
) -> dict[str, Any]:
    ours, limit = statistics.median(predicted), statistics.median(measured)
    ratios = [one / other for one, other in zip(predicted, measured, strict=True)]
    ratio = statistics.median(ratios)
    return {
        "case": case,
        "kvtier": ours,
        "peer": None,
        "limit": limit,
        "unit": unit,
        "ratio_peer": None,
        "ratio_limit": ratio,
        "predicted": predicted,
        "measured": measured,
        "spread": spread(measured),
        "tolerance": tolerance,
        "within": abs(ratio - 1) <= tolerance,
    }


def spread(measured: list[float]) -> float:
    """How far the repetition that is furthest from the median is from it, as a share."""
    median = statistics.median(measured)
    return max(abs(each / median - 1) for each in measured)


def print_row(row: dict[str, Any]) -> None:
    verdict = "within" if row["within"] else "OUTSIDE"
    print(
        f"{row['case']:36} predicted {row['kvtier']:9,.0f} {row['unit']:4} "
        f"found {row['limit']:9,.0f}  {row['ratio_limit'] - 1:+5.0%} "
        f"(its own spread {row['spread']:.0%})  {verdict} {row['tolerance']:.0%}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--directory", type=Path, help="on the device (default: $TMPDIR)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if fio_version() is None:
        raise SystemExit("bench/calibration.py: fio is not on the PATH; install it")
    scale = QUICK if arguments.quick else FULL
    result = main(scale, arguments.directory, arguments.seed)
    for each in result["rows"]:
        print_row(each)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
