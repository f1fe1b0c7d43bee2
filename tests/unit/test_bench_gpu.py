"""The GPU benchmark runs whole on the GPU that a CPU plays: its answers, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cpu_gpu import CpuGpu

BENCH = Path(__file__).resolve().parents[2] / "bench"
CASES = {
    "hits copied out",
    "hits by graph",
    "hits in place",
    "probe",
    "misses planned",
    "misses told",
    "misses with payload",
}


@pytest.fixture(scope="module")
def bench() -> Any:
    sys.path.insert(0, str(BENCH))  # as for a script
    try:
        spec = importlib.util.spec_from_file_location("bench_gpu", BENCH / "gpu.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCH))
    return module


def tiny(bench: ModuleType) -> Any:
    return bench.Scale(
        page_bytes=(512, 4096),
        batches=(16, 64),
        arena_bytes=1 << 19,
        arena_pages=256,
        host_bytes=1 << 17,
        out_bytes=1 << 20,
        rounds=2,
        turn_bytes=1 << 17,
        samples=bench.SAMPLES,
    )


def run(bench: ModuleType, gpu: CpuGpu, path: Path) -> tuple[int, list[dict[str, Any]]]:
    code = bench.main(["--json", str(path)], gpu, tiny(bench))
    return code, json.loads(path.read_text())["rows"]


@pytest.mark.parametrize("order", ["lazy", 5])
def test_every_case_is_measured_beside_peer_and_limit(
    bench: ModuleType, tmp_path: Path, order: str | int, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = CpuGpu(order)
    code, rows = run(bench, gpu, tmp_path / "result.json")
    assert code == 0, [row["invalid"] for row in rows]
    assert {row["case"].partition(":")[0] for row in rows} == CASES
    assert {row["load"] for row in rows} == {
        "uniform", "zipf 0.99", "sample", "kv-sample", "new pages"
    }  # fmt: skip
    assert {row["page_bytes"] for row in rows} == {512, 4096}
    for row in rows:
        assert row["kvtier"] > 0
        assert row["ratio_peer"] == row["kvtier"] / row["peer"]
        assert row["ratio_limit"] == row["kvtier"] / row["limit"]
    assert gpu.pinned_bytes == 0
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


def test_what_is_faster_than_the_machine_is_refused(bench: ModuleType, tmp_path: Path) -> None:
    gpu = CpuGpu(cost_ns=lambda name, amount: amount if name == "array" else 1)
    code, rows = run(bench, gpu, tmp_path / "result.json")
    assert code == 1
    refused = {row["case"].partition(":")[0] for row in rows if row["invalid"]}
    assert refused >= {"hits in place", "hits copied out"}
    assert all("above the machine's" in row["invalid"] for row in rows if row["invalid"])


@pytest.mark.parametrize(
    ("kernel", "case"), [("copy_rows", "hits copied out"), ("sum_rows", "hits in place")]
)
def test_a_wrong_byte_is_refused(bench: ModuleType, tmp_path: Path, kernel: str, case: str) -> None:
    gpu = CpuGpu("eager")
    spoil_after(gpu, kernel)
    code, rows = run(bench, gpu, tmp_path / "result.json")
    assert code == 1
    wrong = [row for row in rows if row["invalid"]]
    assert any(row["case"].startswith(case) for row in wrong)
    assert all("pages are wrong" in row["invalid"] for row in wrong)


def spoil_after(gpu: CpuGpu, kernel: str) -> None:
    """One byte of what a kernel wrote last is another, now and then."""
    made = gpu.kernels

    def kernels(*arguments: Any) -> Any:
        kernels = made(*arguments)
        launch, count = kernels.launch, 0

        def spoiled(name: str, threads: int, *values: Any) -> None:
            nonlocal count
            launch(name, threads, *values)
            if name == kernel and threads:
                count += 1
                target = values[2]
                if count % 7 == 0:
                    target.held.reshape(-1).view(np.uint8)[3] ^= 1

        kernels.launch = spoiled
        return kernels

    gpu.kernels = kernels  # type: ignore[method-assign]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("late", [False, True])
def test_a_gpu_that_fails_ends_the_run_and_says_so(
    bench: ModuleType, tmp_path: Path, share: float, late: bool
) -> None:
    whole = CpuGpu()
    bench.main([], whole, tiny(bench))
    gpu = CpuGpu(fails_at=int(share * whole.calls), fails_late=late)
    code, rows = run(bench, gpu, tmp_path / "result.json")
    assert code == 1
    assert rows[-1]["invalid"].startswith("the GPU failed: CudaFailedError: illegal address")
    assert rows[-1]["kvtier"] is None
    assert all(row["invalid"] is None for row in rows[:-1])


def test_without_a_gpu_it_says_one_line(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert bench.main(["--quick"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "bench/gpu.py: no GPU can be used: CuPy is not installed; install kvtier[cuda12] or "
        "kvtier[cuda13]"
    ]


def test_too_little_memory_is_said_before_any_work(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = CpuGpu(memory_bytes=1 << 20)
    assert bench.main([], gpu, tiny(bench)) == 2
    assert "does not fit" in capsys.readouterr().err
    assert gpu.launched == []
