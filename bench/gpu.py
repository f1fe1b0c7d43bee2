"""The GPU tier's kernels beside what a user would write, and beside what the machine can do.

Cases: ``hits copied out`` (looked up, and copied to the caller), ``hits by graph`` (the same of
small batches, by one launch, and the host has been told), ``hits in place`` (looked up, and read
where they are), ``probe`` (looked up only), ``misses planned`` (looked up, slots reserved and
published: the control path), ``misses told`` (the same by way of the host), ``misses with payload``
(as planned, and the pages come from pinned host memory by the copy kernel). The index is at load
factor 1, and the pages are far more than the L2.

The peer keeps a dictionary on the host and calls ``take`` of CuPy. The limits are copies of as many
bytes: in the GPU's memory, or from pinned host memory; of cases that move no pages, the time in
which the memory takes the bytes that no index can do without. Contenders take turns; times are
those of CUDA events, medians. Before and after, an answer is compared with a pattern, by sums of
whole pages and a sample byte by byte. A row that is faster than the machine, that failed, or that
brought a wrong byte is marked invalid, and the exit status is 1. Without a GPU it is 2.

    python bench/gpu.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpu_cases import Bed, Case, Scale, hit_cases, loads, miss_cases

from kvtier.cuda import CudaGpu, find_cuda_trouble
from kvtier.environment import describe_environment
from kvtier.errors import DeviceError, KvtierError
from kvtier.gpu import Gpu

TRACES = Path(__file__).resolve().parents[1] / "traces"
SAMPLES = (TRACES / "sample.parquet", TRACES / "kv-sample.parquet")
QUICK = Scale(
    page_bytes=(4096,),
    batches=(1 << 10, 1 << 16),
    arena_bytes=2 << 30,
    arena_pages=1 << 19,
    host_bytes=1 << 30,
    out_bytes=1 << 29,
    rounds=5,
    turn_bytes=1 << 28,
    samples=SAMPLES[1:],
)
FULL = Scale(
    page_bytes=(512, 4096, 65536),
    batches=(1 << 10, 1 << 14, 1 << 18, 1 << 22),
    arena_bytes=32 << 30,
    arena_pages=1 << 23,
    host_bytes=8 << 30,
    out_bytes=16 << 30,
    rounds=15,
    turn_bytes=1 << 28,
    samples=SAMPLES,
)

TOLERANCE = 1.03
"""By how much clocks may flatter: above that, a result is faster than the machine."""


class Meter:
    """Times contenders by events, and knows the fastest copies seen.

    Attributes:
        memory_rate: bytes that the GPU's memory took in a second, read or written.
        bus_rate: bytes that came from pinned host memory in a second.
    """

    def __init__(self, gpu: Gpu, scale: Scale) -> None:
        self._gpu = gpu
        self._scale = scale
        self.memory_rate = 0.0
        self.bus_rate = 0.0

    def rates(self, case: Case, batch: int, page_bytes: int) -> tuple[float, float, float | None]:
        """Pages per second of ours, the peer and the limit, and learn from the limit."""
        batches = self._scale.turn_batches(batch, page_bytes)
        contenders: list[Callable[[int], object]] = [case.ours, case.peer]
        if case.limit is not None:
            contenders.append(case.limit)
        samples: list[list[float]] = [[] for _ in contenders]
        for turn in range(-1, self._scale.rounds):
            for contender, mine in zip(contenders, samples, strict=True):
                rate = self._turn(contender, batch, batches)
                if turn >= 0:  # the first one warms up
                    mine.append(rate)
        medians = [statistics.median(mine) for mine in samples]
        if case.limit is None:
            return medians[0], medians[1], None
        if case.by_bus:
            self.bus_rate = max(self.bus_rate, *(r * page_bytes for r in samples[2]))
        else:
            self.memory_rate = max(self.memory_rate, *(r * 2 * page_bytes for r in samples[2]))
        return medians[0], medians[1], medians[2]

    def _turn(self, contender: Callable[[int], object], batch: int, batches: int) -> float:
        stream = self._gpu.current_stream()
        served = 0
        start = stream.record()
        for number in range(batches):
            answer = contender(number)
            served += answer if isinstance(answer, int) else batch
        end = stream.record()
        end.synchronize()
        return served / (self._gpu.elapsed_ms(start, end) / 1e3)


def empty_row(case: str, unit: str, invalid: str | None = None) -> dict[str, Any]:
    values = dict.fromkeys(("kvtier", "peer", "limit"))
    ratios = dict.fromkeys(("ratio_peer", "ratio_limit"))
    return {"case": case, **values, "unit": unit, **ratios, "invalid": invalid}


def measure(bed: Bed, meter: Meter, case: Case, load: str, batch: int) -> dict[str, Any]:
    """One row, not yet compared with the rooflines."""
    row = empty_row(f"{case.name}: {batch} x {bed.page_bytes} B, {load}", case.unit) | {
        "page_bytes": bed.page_bytes,
        "batch": batch,
        "load": load,
        "least_bytes": case.least_bytes,
        "by_bus": case.by_bus,
    }
    try:
        case.ours(0)
        wrong = case.check(0)
        ours, peer, limit = meter.rates(case, batch, bed.page_bytes)
        case.ours(0)
        wrong = wrong or case.check(0)
    except bed.gpu.errors as error:
        return row | {"invalid": f"the GPU failed: {type(error).__name__}: {error}"}
    return row | {"kvtier": ours, "peer": peer, "limit": limit, "invalid": wrong or None}


def judge(row: dict[str, Any], meter: Meter) -> dict[str, Any]:
    """A row with its ratios; invalid if it beats the fastest copies of the whole run."""
    if row["kvtier"] is None:
        return row
    machine = meter.bus_rate if row["by_bus"] else meter.memory_rate
    roofline = machine / row["least_bytes"]
    limit = roofline if row["limit"] is None else row["limit"]
    judged = row | {
        "limit": limit,
        "roofline": roofline,
        "ratio_peer": row["kvtier"] / row["peer"],
        "ratio_limit": row["kvtier"] / limit,
    }
    if row["kvtier"] > TOLERANCE * roofline:
        excess = f"{row['kvtier']:.4g} {row['unit']} is above the machine's {roofline:.4g}"
        judged["invalid"] = row["invalid"] or excess
    return judged


def run(gpu: Gpu, scale: Scale, seed: int) -> dict[str, Any]:
    """All cases.

    Raises:
        DeviceError: the GPU has no room for the pages.
    """
    meter = Meter(gpu, scale)
    rows: list[dict[str, Any]] = []
    for page_bytes in scale.page_bytes:
        try:
            rows.extend(run_page_size(gpu, page_bytes, scale, meter, seed))
        except gpu.errors as error:
            failure = f"the GPU failed: {type(error).__name__}: {error}"
            rows.append(empty_row(f"{page_bytes} B", "pages/s", failure))
        if rows and rows[-1]["kvtier"] is None:
            break  # CUDA goes on after no error
    environment = describe_environment()
    if rows and rows[-1]["kvtier"] is not None:
        environment["device"] = dataclasses.asdict(gpu.facts())
    return {
        "environment": environment,
        "seed": seed,
        "memory_bytes_per_s": meter.memory_rate,
        "bus_bytes_per_s": meter.bus_rate,
        "rows": [judge(row, meter) for row in rows],
    }


def run_page_size(
    gpu: Gpu, page_bytes: int, scale: Scale, meter: Meter, seed: int
) -> Iterator[dict[str, Any]]:
    bed = Bed(gpu, page_bytes, scale)
    batches = [batch for batch in scale.batches if batch * page_bytes <= scale.out_bytes]
    for batch in batches:
        for load, picks in loads(scale, len(bed.ids), batch, page_bytes, seed):
            for case in hit_cases(bed, picks):
                row = measure(bed, meter, case, load, batch)
                yield row
                if row["kvtier"] is None:
                    return
    # Last, for they drive out the pages that the hits are made of.
    for batch in (batch for batch in batches if batch <= len(bed.arena) // 2):
        for case in miss_cases(bed, batch):
            row = measure(bed, meter, case, "new pages", batch)
            yield row
            if row["kvtier"] is None:
                return
    bed.close()


def print_row(row: dict[str, Any]) -> None:
    if row["kvtier"] is None:
        print(f"{row['case']}: INVALID, {row['invalid']}")
        return
    text = f"{row['case']}: {row['kvtier']:,.0f} {row['unit']}, {row['ratio_peer']:.2f} of the peer"
    note = f"; INVALID, {row['invalid']}" if row["invalid"] else ""
    print(f"{text}, {row['ratio_limit']:.2f} of the limit{note}")


def main(words: list[str] | None = None, gpu: Gpu | None = None, scale: Scale | None = None) -> int:
    """The exit status; ``gpu`` and ``scale`` in the place of what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(words)
    wanted = scale or (QUICK if arguments.quick else FULL)
    try:
        result = run(gpu or _need_gpu(), wanted, arguments.seed)
    except KvtierError as error:
        print(f"bench/gpu.py: {error}", file=sys.stderr)
        return 2
    for row in result["rows"]:
        print_row(row)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return int(any(row["invalid"] for row in result["rows"]))


def _need_gpu() -> Gpu:
    trouble = find_cuda_trouble()
    if trouble is not None:
        raise DeviceError(f"no GPU can be used: {trouble}")
    return CudaGpu()


if __name__ == "__main__":
    sys.exit(main())
