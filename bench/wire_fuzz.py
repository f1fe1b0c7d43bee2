"""Fuzzes the parser of the wire protocol: it must take or refuse every input, in bounded memory.

    python bench/wire_fuzz.py [--inputs N] [--seed N] [--json F] [--quick]

Where Atheris is installed (extra ``fuzz``), it keeps what reaches new lines of ``kvtier.wire`` and
damages that further; else valid frames are damaged again and again. An input is up to three frames.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kvtier.environment import describe_environment, package_version

INPUTS = 1_000_000
QUICK_INPUTS = 10_000
WARM_UP = 5_000
GROWTH_BYTES_MAX = 64 << 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.inputs = QUICK_INPUTS
    if arguments.worker is not None:
        fuzz_with_coverage(arguments.inputs, arguments.seed, arguments.worker)
        return 1  # never reached: libFuzzer ends the process
    row = measured(arguments.inputs, arguments.seed)
    print(
        f"{row['inputs']} inputs, {row['frames']} frames taken, "
        f"{row['inputs_per_s']:.0f} inputs/s, memory grew by {row['growth_bytes']} bytes "
        f"({row['engine']})"
    )
    if arguments.json is not None:
        environment = {**describe_environment(), "atheris": package_version("atheris")}
        result = {"environment": environment, "seed": arguments.seed, "rows": [row]}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if row["growth_bytes"] > GROWTH_BYTES_MAX:
        print(f"that is more than {GROWTH_BYTES_MAX} bytes")
        return 1
    return 0


def measured(inputs: int, seed: int) -> dict[str, Any]:
    """Fuzz, and say what was done; an input that breaks the parser ends the process."""
    if importlib.util.find_spec("atheris") is None:
        return fuzz_blindly(inputs, seed)
    # libFuzzer ends its process when it is done.
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "row.json"
        command = [sys.executable, __file__, "--worker", str(found)]
        done = subprocess.run(
            [*command, "--inputs", str(inputs), "--seed", str(seed)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not found.exists():
            raise SystemExit(f"an input broke the parser:\n{done.stderr[-4000:]}")
        row: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        return row


def fuzz_blindly(inputs: int, seed: int) -> dict[str, Any]:
    """Damage valid frames."""
    from kvtier.testing.fuzz import mutated, parse, valid_frames  # noqa: PLC0415

    rng = random.Random(seed)  # noqa: S311 - it must repeat
    frames, counting = valid_frames(), Counting("mutations", inputs)
    while not counting.took(parse(mutated(rng, frames))):
        pass
    return counting.row()


def fuzz_with_coverage(inputs: int, seed: int, target: Path) -> None:
    """Let libFuzzer choose; it never returns."""
    import atheris  # noqa: PLC0415

    # Before the parser that calls it: Numba cannot compile what Atheris has added to.
    import kvtier.extents  # noqa: F401, PLC0415

    with atheris.instrument_imports(include=["kvtier.wire"]):
        from kvtier.testing.fuzz import (  # noqa: PLC0415
            INPUT_BYTES_MAX,
            mutated,
            parse,
            valid_frames,
        )
    frames, counting = valid_frames(), Counting("atheris", inputs)
    Path("corpus").mkdir()
    for number, frame in enumerate(frames):
        Path("corpus", str(number)).write_bytes(frame)

    def one_input(data: bytes) -> None:
        if counting.took(parse(data)):
            target.write_text(json.dumps(counting.row()), encoding="utf-8")

    def mutate(data: bytes, size_max: int, number: int) -> bytes:
        rng = random.Random(number)  # noqa: S311 - it must repeat
        if number % 2:  # what libFuzzer does by itself, guided by comparisons
            return bytes(atheris.Mutate(data, size_max))
        return mutated(rng, (data, rng.choice(frames)))[:size_max]

    flags = [f"-runs={inputs + 1000}", f"-seed={seed}", f"-max_len={INPUT_BYTES_MAX}"]
    atheris.Setup([sys.argv[0], *flags, "corpus"], one_input, custom_mutator=mutate)
    atheris.Fuzz()


class Counting:
    """What was tried so far, and how much memory it took beyond that of the first inputs."""

    def __init__(self, engine: str, inputs: int) -> None:
        self._engine = engine
        self._wanted = inputs
        self._inputs = self._frames = self._warm_bytes = 0
        self._begun_ns = time.perf_counter_ns()

    def took(self, frames: int) -> bool:
        """Count an input, and say whether it was the last that is wanted."""
        self._inputs += 1
        self._frames += frames
        if self._inputs == min(WARM_UP, self._wanted):
            self._warm_bytes = peak_bytes()
        return self._inputs == self._wanted

    def row(self) -> dict[str, Any]:
        seconds = (time.perf_counter_ns() - self._begun_ns) / 1e9
        return {
            "case": "frames of the wire protocol",
            "engine": self._engine,
            "inputs": self._inputs,
            "frames": self._frames,
            "inputs_per_s": self._inputs / seconds,
            "growth_bytes": peak_bytes() - self._warm_bytes,
        }


def peak_bytes() -> int:
    """Most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    sys.exit(main())
