from __future__ import annotations

import asyncio
import io
import json
import sys
from pathlib import Path

import pytest
from cpu_gpu import CpuGpu
from rich.console import Console

from kvtier import doctor, environment
from kvtier.doctor import Check, State, diagnose, is_fit
from kvtier.report.checks import print_checks


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Check]:
    return {check.name: check for check in diagnose(tmp_path_factory.mktemp("here"))}


def test_this_machine_can_run_kvtier(checks: dict[str, Check]) -> None:
    assert is_fit(list(checks.values()))
    assert checks["Python"].state is State.OK
    assert checks["packages"].state is State.OK


def test_every_finding_is_there_whatever_the_machine(checks: dict[str, Check]) -> None:
    expected = {"CPU", "memory", "huge pages", "O_DIRECT", "io_uring", "uvloop", "compile cache"}
    assert expected | {"NVIDIA driver", "GPU", "backend memory", "backend file"} <= set(checks)


def test_a_missing_gpu_is_no_failure_and_names_the_command_that_helps() -> None:
    check = Check("GPU", State.MISSING, "No module named 'cupy'", doctor._cupy_remedy())
    assert is_fit([check])
    assert "pip install 'kvtier[cuda1" in check.remedy


def test_a_gpu_says_what_it_is_and_what_is_free() -> None:
    check = doctor._check_gpu(lambda: CpuGpu(memory_bytes=3 << 30))
    assert check.state is State.OK
    assert check.what == (
        "a CPU, compute capability 9.0, driver for CUDA 13.0, NumPy, 3 GiB of 3 GiB free"
    )


def test_a_gpu_that_fails_says_why_and_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ask_driver", lambda: (13_000, 1))
    check = doctor._check_gpu(lambda: CpuGpu(fails_at=1))
    assert check.state is State.MISSING
    assert check.what == "CudaFailedError: illegal address at call 1"
    assert check.remedy == "pip install 'kvtier[cuda13]'"


def test_without_cupy_the_gpu_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    check = doctor._check_gpu()
    assert check.state is State.MISSING
    assert "cupy" in check.what
    assert is_fit([check])


def test_what_is_needed_and_missing_is_a_failure() -> None:
    assert not is_fit([Check("packages", State.MISSING, "no numba", needed=True)])


def test_a_directory_that_is_not_there_has_no_direct_io(tmp_path: Path) -> None:
    check = doctor._check_direct_io(tmp_path / "none")
    assert check.state is State.DEGRADED
    assert "No such file or directory" in check.what
    assert check.remedy


def test_trying_direct_io_leaves_nothing_behind(tmp_path: Path) -> None:
    doctor._check_direct_io(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_backend_that_cannot_be_imported_says_why() -> None:
    check = doctor._check_backend("mine", "no_such_package:Backend")
    assert check.state is State.MISSING
    assert "No module named 'no_such_package'" in check.what
    assert is_fit([check])


def test_an_unwritable_compile_cache_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/none")
    check = doctor._check_compile_cache()
    assert check.state is State.DEGRADED
    assert check.what.startswith("/proc/none: not writable")


def test_findings_are_shown_with_their_remedies() -> None:
    console = Console(file=io.StringIO(), width=100)
    print_checks([Check("CuPy", State.MISSING, "[none]", "pip install 'kvtier[cuda12]'")], console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "[none]" in text
    assert "→ pip install 'kvtier[cuda12]'" in text


def test_the_environment_is_json_with_versions_and_machine() -> None:
    described = json.loads(json.dumps(environment.describe_environment()))
    assert described["kvtier"] is not None
    assert described["numba"] is not None
    assert described["cores"] >= 1
    assert described["loop"] is None


def test_the_environment_names_the_running_loop() -> None:
    async def describe() -> object:
        return environment.describe_environment()["loop"]

    assert asyncio.run(describe()) == "asyncio"


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = "MemTotal:       1000 kB\nMemFree:         10 kB\nMemAvailable:    800 kB\n"


def test_available_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    _write(tmp_path, {"proc/meminfo": MEMINFO})
    assert environment.memory_available_bytes(tmp_path) == 800 * 1024
    assert environment.memory_total_bytes(tmp_path) == 1000 * 1024


def test_a_control_group_limits_memory(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/jobs/mine\n",
            "sys/fs/cgroup/jobs/mine/memory.max": "max\n",
            "sys/fs/cgroup/jobs/mine/memory.current": "5000\n",
            "sys/fs/cgroup/jobs/memory.max": "90000\n",
            "sys/fs/cgroup/jobs/memory.current": "50000\n",
            "sys/fs/cgroup/jobs/memory.stat": "anon 30000\ninactive_file 20000\n",
        },
    )
    assert environment.memory_available_bytes(tmp_path) == 60_000
    assert environment.memory_total_bytes(tmp_path) == 90_000


def test_a_control_group_of_the_first_version_limits_memory(tmp_path: Path) -> None:
    base = "sys/fs/cgroup/memory"
    _write(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "4:memory:/host/only\n3:cpu:/\n",
            f"{base}/memory.limit_in_bytes": "70000\n",
            f"{base}/memory.usage_in_bytes": "80000\n",
        },
    )
    assert environment.memory_available_bytes(tmp_path) == 0


def test_a_system_without_proc_leaves_memory_unknown(tmp_path: Path) -> None:
    assert environment.memory_available_bytes(tmp_path) is None
    assert environment.memory_total_bytes(tmp_path) is None
    assert environment.gpu_names(tmp_path) == []
    assert environment.cpu_flags(tmp_path) == frozenset()
    assert environment.cpu_model(tmp_path)


def test_gpus_are_named_by_their_driver(tmp_path: Path) -> None:
    report = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 11\n"
    _write(tmp_path, {"proc/driver/nvidia/gpus/0000:01:00.0/information": report})
    assert environment.gpu_names(tmp_path) == ["NVIDIA H200"]


def test_the_processor_is_named_with_its_extensions(tmp_path: Path) -> None:
    one = "processor : 0\nmodel name : A CPU\nflags : fpu avx2\n"
    _write(tmp_path, {"proc/cpuinfo": f"{one}\n{one.replace('A CPU', 'another')}"})
    assert environment.cpu_model(tmp_path) == "A CPU"
    assert "avx2" in environment.cpu_flags(tmp_path)
