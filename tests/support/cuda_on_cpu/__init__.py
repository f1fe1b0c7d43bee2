"""CUDA kernels compiled by g++ and run on NumPy arrays: the very sources that a GPU gets."""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

_HEADER = Path(__file__).with_name("cuda_on_cpu.h")
_KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(\w+)')
_THREADS_PER_BLOCK = 64


class CpuKernels:
    """:class:`kvtier.gpu.Kernels` on a CPU.

    Args:
        path: of the ``.cu`` file.
        defines: macros, by name.
        build: where the compiled library is kept.
        flags: more options for g++.
        workers: warps that run at once.
    """

    xp = np

    def __init__(
        self,
        path: Path,
        defines: dict[str, int],
        build: Path,
        flags: tuple[str, ...] = (),
        workers: int = 1,
    ) -> None:
        self._library = ctypes.CDLL(str(_compiled(path, defines, build, flags)))
        self._workers = workers

    def launch(self, name: str, threads: int, *arguments: Any) -> None:
        if threads == 0:
            return
        values = [_by_address(argument) for argument in arguments]
        addresses = (ctypes.c_void_p * len(values))(*[value.ctypes.data for value in values])
        blocks = -(-threads // _THREADS_PER_BLOCK)
        getattr(self._library, f"launch_{name}")(
            ctypes.c_uint(blocks), ctypes.c_uint(_THREADS_PER_BLOCK), addresses, self._workers
        )

    def read(self, values: Any) -> Any:
        return values.copy()


def find_compiler() -> str | None:
    """g++, or None where there is none."""
    return shutil.which("g++")


def _by_address(argument: Any) -> Any:
    """A NumPy value to point at: an array's address, or a scalar as it is."""
    if argument is None:
        return np.array(0, np.uint64)
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return np.array(argument.ctypes.data, np.uint64)
    assert isinstance(argument, np.generic), f"{argument!r} has no type that a kernel could rely on"
    return np.array(argument, argument.dtype)


def _compiled(path: Path, defines: dict[str, int], build: Path, flags: tuple[str, ...]) -> Path:
    """The library of a source, made once for all that it depends on."""
    sources = [path, _HEADER, *sorted(path.parent.glob("*.cuh"))]
    kernels = _KERNEL.findall(path.read_text())
    options = [
        "-std=c++17", "-O2", "-g", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC",
        "-pthread", f"-I{path.parent}", *flags,
        *(f"-D{name}={value}" for name, value in defines.items()),
    ]  # fmt: skip
    seen = hashlib.sha256(repr(options).encode())
    for source in sources:
        seen.update(source.read_bytes())
    library = build / f"{path.stem}-{seen.hexdigest()[:16]}.so"
    if not library.exists():
        unit = [f'#include "{_HEADER}"', f'#include "{path}"']
        unit += [f"LAUNCHABLE({kernel})" for kernel in kernels]
        draft = library.with_suffix(".part")
        command = ["g++", *options, "-x", "c++", "-", "-o", str(draft)]
        subprocess.run(command, input="\n".join(unit) + "\n", text=True, check=True)
        draft.replace(library)
    return library
