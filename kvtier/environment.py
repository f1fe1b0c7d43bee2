"""What this machine is, and which versions run on it: read, never assumed.

Files that a system lacks (``/proc`` outside Linux, control groups) read as unknown, None.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path("/")

_PACKAGES: Final = ("kvtier", "numpy", "numba", "pyarrow", "uvloop", "aiofiles")


def describe_environment() -> dict[str, Any]:
    """The machine and the versions, as JSON: a result means nothing without them.

    ``loop`` names the running event loop's package, None outside of one.
    """
    return {
        "python": platform.python_version(),
        **{name: package_version(name) for name in _PACKAGES},
        "kernel": f"{platform.system()} {platform.release()}",
        "cpu": cpu_model(),
        "cores": core_count(),
        "memory_bytes": memory_total_bytes(),
        "gpu": ", ".join(gpu_names()) or None,
        "loop": _loop_name(),
    }


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes uvloop's event loops where it is installed; None: take asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415  # it may be missing
    except ImportError:
        return None
    return uvloop.new_event_loop


def package_version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def core_count() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model(root: Path = ROOT) -> str:
    """The processor's name, or its architecture where the system does not say."""
    return _cpuinfo(root).get("model name") or platform.machine()


def cpu_flags(root: Path = ROOT) -> frozenset[str]:
    """Instruction-set extensions of the processor (``flags`` of x86, ``Features`` of Arm)."""
    fields = _cpuinfo(root)
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def gpu_names(root: Path = ROOT) -> list[str]:
    """Names of the GPUs that the NVIDIA kernel driver has, without touching them."""
    reports = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    fields = [_fields(read_text(report)) for report in reports]
    return [field["Model"] for field in fields if "Model" in field]


def memory_total_bytes(root: Path = ROOT) -> int | None:
    """Memory of the machine, or the limit of this process's control group if that is less."""
    limits = [limit for limit, _ in _cgroup_memory(root)]
    return min(
        (size for size in (_meminfo(root, "MemTotal"), *limits) if size is not None), default=None
    )


def memory_available_bytes(root: Path = ROOT) -> int | None:
    """Memory that can still be taken without swapping, control group limits included."""
    rooms = [max(0, limit - used) for limit, used in _cgroup_memory(root)]
    return min(
        (size for size in (_meminfo(root, "MemAvailable"), *rooms) if size is not None),
        default=None,
    )


def read_text(path: Path) -> str:
    """The text of a system file; empty where the system has none, or does not show it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cgroup_memory(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of every control group that this process lives in, v1 and v2."""
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = (
                "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        base, limit_name, used_name, cache_name = names
        # In a container the path may be the host's and absent here; the base is then the group.
        group = Path(path.lstrip("/"))
        for level in (group, *group.parents):
            directory = root / base / level
            limit, used = read_text(directory / limit_name), read_text(directory / used_name)
            if limit.strip().isdecimal() and used.strip().isdecimal():
                cache = _stat(read_text(directory / "memory.stat")).get(cache_name, 0)
                yield int(limit), int(used) - cache


def _stat(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _meminfo(root: Path, name: str) -> int | None:
    value = _fields(read_text(root / "proc/meminfo")).get(name)
    return int(value.split()[0]) * 1024 if value else None


def _cpuinfo(root: Path) -> dict[str, str]:
    """Fields of the first processor."""
    return _fields(read_text(root / "proc/cpuinfo").split("\n\n", 1)[0])


def _fields(text: str) -> dict[str, str]:
    """``name: value`` lines."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _loop_name() -> str | None:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return type(loop).__module__.split(".", 1)[0]
