"""What this machine can do for kvtier, what it lacks, and the command that gets it.

Each check tries the thing itself where that is harmless: opens a file with O_DIRECT, asks the
kernel for an io_uring, imports the backends.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Final

from kvtier import environment
from kvtier.cuda import CudaGpu
from kvtier.gpu import Gpu
from kvtier.io.ring import Ring, explain
from kvtier.registry import GROUP, available, remedy
from kvtier.units import format_bytes

PYTHON_MIN: Final = (3, 11)

_SIMD_FLAGS: Final = ("avx512f", "avx2", "asimd")
_IO_URING_REMEDIES: Final = {
    errno.EPERM: "sudo sysctl kernel.io_uring_disabled=0; in a container allow io_uring_setup, "
    "io_uring_enter and io_uring_register",
    errno.ENOSYS: "use Linux 5.7 or newer, built with io_uring",
    errno.ENOMEM: "raise the limit of locked memory (ulimit -l)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
_PAGE_BYTES: Final = 4096


class State(StrEnum):
    OK = "ok"
    DEGRADED = "degraded"
    """It works without, slower."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        state: how it is.
        what: what was found, in a few words.
        remedy: the command or the change that helps; empty where nothing needs to.
        needed: kvtier cannot run without.
    """

    name: str
    state: State
    what: str
    remedy: str = ""
    needed: bool = False


def diagnose(directory: Path | None = None) -> list[Check]:
    """Look at everything that kvtier uses.

    Args:
        directory: where an ``nvme`` tier would have its file; the current one by default.
    """
    probes: tuple[Callable[[], Check], ...] = (
        _check_python,
        _check_packages,
        _check_simd,
        _check_memory,
        _check_huge_pages,
        lambda: _check_direct_io(directory or Path.cwd()),
        _check_io_uring,
        _check_uvloop,
        _check_compile_cache,
        _check_driver,
        _check_gpu,
    )
    return [*(probe() for probe in probes), *_check_backends()]


def is_fit(checks: list[Check]) -> bool:
    """Whether everything is there that kvtier cannot run without."""
    return not any(check.needed and check.state is State.MISSING for check in checks)


def _check_python() -> Check:
    version = platform.python_version()
    if sys.version_info < PYTHON_MIN:
        wanted = ".".join(map(str, PYTHON_MIN))
        return Check("Python", State.MISSING, version, f"install Python {wanted} or newer", True)
    return Check("Python", State.OK, version, needed=True)


def _check_packages() -> Check:
    names = ("numpy", "numba", "pyarrow", "aiofiles", "rich")
    versions = {name: environment.package_version(name) for name in names}
    absent = [name for name, version in versions.items() if version is None]
    if absent:
        remedy = f"pip install {' '.join(absent)}"
        return Check("packages", State.MISSING, f"no {', '.join(absent)}", remedy, True)
    what = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Check("packages", State.OK, what, needed=True)


def _check_simd() -> Check:
    flags = environment.cpu_flags()
    found = [flag for flag in _SIMD_FLAGS if flag in flags]
    what = f"{environment.cpu_model()}, {environment.core_count()} cores, "
    if not found:
        return Check("CPU", State.DEGRADED, what + "no AVX2 or NEON: copies and probes are slower")
    return Check("CPU", State.OK, what + " ".join(found))


def _check_memory() -> Check:
    total, free = environment.memory_total_bytes(), environment.memory_available_bytes()
    if total is None or free is None:
        return Check("memory", State.DEGRADED, "the system does not say: tiers go unchecked")
    return Check("memory", State.OK, f"{format_bytes(free)} of {format_bytes(total)} available")


def _check_huge_pages() -> Check:
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    setting = environment.read_text(path).partition("[")[2].partition("]")[0]
    if setting in ("always", "madvise"):
        return Check("huge pages", State.OK, f"transparent, {setting}")
    what = f"transparent, {setting}" if setting else "not offered by this system"
    remedy = f"echo madvise | sudo tee {path}" if setting else ""
    return Check("huge pages", State.DEGRADED, f"{what}: large tiers miss the TLB more", remedy)


def _check_direct_io(directory: Path) -> Check:
    try:
        _write_direct(directory)
    except OSError as error:
        reason = error.strerror or str(error)
        return Check(
            "O_DIRECT",
            State.DEGRADED,
            f"{directory}: {reason}: an nvme tier here goes through the page cache",
            "name a tiers.nvme.path on ext4 or xfs",
        )
    return Check("O_DIRECT", State.OK, f"works in {directory}")


def _write_direct(directory: Path) -> None:
    """Write one page past the page cache, in a file that goes again at once."""
    if not hasattr(os, "O_DIRECT"):
        raise OSError(errno.ENOTSUP, "this system has no O_DIRECT")
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".kvtier-doctor-") as file:
        descriptor = os.open(file.name, os.O_RDWR | os.O_DIRECT)
        try:
            # An anonymous mapping begins on a page, as O_DIRECT wants its buffers.
            with mmap.mmap(-1, _PAGE_BYTES) as page:
                os.pwritev(descriptor, [page], 0)
        finally:
            os.close(descriptor)


def _check_io_uring() -> Check:
    try:
        Ring(1).close()
    except OSError as error:
        remedy = _IO_URING_REMEDIES.get(error.errno or 0, "")
        what = f"{explain(error)}: nvme tiers use threads"
        return Check("io_uring", State.DEGRADED, what, remedy)
    return Check("io_uring", State.OK, "works: nvme tiers use it")


def _check_uvloop() -> Check:
    version = environment.package_version("uvloop")
    if version is None:
        return Check("uvloop", State.DEGRADED, "none: asyncio's loop is used", "pip install uvloop")
    return Check("uvloop", State.OK, version)


def _check_compile_cache() -> Check:
    """Numba keeps compiled code in ``NUMBA_CACHE_DIR``, beside the source, or in the user's cache.

    https://numba.readthedocs.io/en/stable/developer/caching.html
    """
    named = os.environ.get("NUMBA_CACHE_DIR")
    places = [Path(named)] if named else [Path(__file__).parent, Path.home() / ".cache"]
    writable = [place for place in places if os.access(place, os.W_OK)]
    if writable:
        return Check("compile cache", State.OK, f"in {writable[0]}")
    return Check(
        "compile cache",
        State.DEGRADED,
        f"{', '.join(map(str, places))}: not writable: every process compiles anew",
        "export NUMBA_CACHE_DIR=DIR to a directory that is writable",
    )


def _check_backends() -> list[Check]:
    found = available()
    if not found:
        remedy = "pip install --force-reinstall kvtier"
        return [Check("backends", State.MISSING, "none are declared", remedy, needed=True)]
    return [_check_backend(name, value) for name, value in found.items()]


def _check_backend(name: str, value: str) -> Check:
    try:
        EntryPoint(name, value, GROUP).load()
    except Exception as error:  # a foreign module may raise anything while it is imported
        return Check(f"backend {name}", State.MISSING, _first_line(error), remedy(name, value))
    return Check(f"backend {name}", State.OK, value)


def _check_driver() -> Check:
    """The driver's library answers for the driver: it knows whether there is a device."""
    try:
        version, devices = _ask_driver()
    except OSError as error:
        what = ", ".join(environment.gpu_names()) or "no NVIDIA GPU"
        return Check(
            "NVIDIA driver",
            State.MISSING,
            f"{what}; {_first_line(error)}: the hbm tier runs on the CPU",
            "with a GPU: install NVIDIA's driver, then try nvidia-smi",
        )
    names = ", ".join(environment.gpu_names()) or f"{devices} devices"
    return Check("NVIDIA driver", State.OK, f"CUDA {version // 1000}, {names}")


def _ask_driver() -> tuple[int, int]:
    """Version of CUDA that the driver speaks (12040 is 12.4), and its devices.

    Raises:
        OSError: there is no driver, or it has no device for us.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    code = driver.cuInit(0)
    if code != 0:
        raise OSError(f"cuInit answers {code}")
    version, devices = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGetCount(ctypes.byref(devices))
    return version.value, devices.value


def _check_gpu(open_gpu: Callable[[], Gpu] = CudaGpu) -> Check:
    try:
        facts = open_gpu().facts()
    except Exception as error:  # CuPy fails in many ways without a device; each is an answer
        return Check("GPU", State.MISSING, _first_line(error), _cupy_remedy())
    memory = f"{format_bytes(facts.free_bytes)} of {format_bytes(facts.total_bytes)} free"
    what = f"{facts.name}, compute capability {facts.capability}, driver for CUDA {facts.driver}"
    return Check("GPU", State.OK, f"{what}, {facts.library}, {memory}")


def _cupy_remedy() -> str:
    try:
        version, _ = _ask_driver()
    except OSError:
        return "with a GPU: pip install 'kvtier[cuda12]' or 'kvtier[cuda13]'"
    extra = "cuda13" if version >= 13_000 else "cuda12"
    return f"pip install 'kvtier[{extra}]'"


def _first_line(error: Exception) -> str:
    """The error in one line, with its type where the message alone says little."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
