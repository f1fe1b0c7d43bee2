"""Kernels written in CUDA C++, and what launches them.

Whoever uses kernels is written against :class:`Kernels`, so that the tests can run the very same
``.cu`` files, compiled for a CPU, on NumPy arrays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

THREADS_PER_BLOCK: Final = 256
"""Enough warps of one block to hide a memory latency, few enough registers to keep 8 blocks."""

Array = Any
"""An array of the kernels' own kind: CuPy's on a GPU, NumPy's in tests without one."""


class Kernels(Protocol):
    """The kernels of one ``.cu`` file, ready to be launched.

    Attributes:
        xp: the module of the arrays that they take: ``cupy``, or ``numpy`` in tests.
    """

    @property
    def xp(self) -> Any: ...

    def launch(self, name: str, threads: int, *arguments: Array | np.generic | None) -> None:
        """Enqueue a kernel on the current stream, with ``threads`` threads or up to a block more.

        Args:
            name: of the kernel.
            threads: none at all are launched for 0.
            arguments: arrays are passed by address, NumPy scalars and records by value, None as a
                null pointer. Their types must be those of the kernel: nothing converts them.
        """
        ...


class CudaKernels:
    """Kernels of a file, compiled by NVRTC for the current device and kept in CuPy's cache.

    Args:
        path: of the ``.cu`` file; what it includes lies beside it.
        defines: macros, by name.

    Raises:
        ImportError: CuPy is not installed.
        cupy.cuda.compiler.CompileException: the file cannot be compiled for this device.
    """

    def __init__(self, path: Path, defines: dict[str, int]) -> None:
        import cupy  # noqa: PLC0415 -- not a base dependency

        self.xp: Any = cupy
        self._module = cupy.RawModule(code=path.read_text(), options=compile_options(path, defines))
        self._functions: dict[str, Any] = {}
        self._module.compile()

    def launch(self, name: str, threads: int, *arguments: Array | np.generic | None) -> None:
        """See :meth:`Kernels.launch`."""
        if threads == 0:
            return
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = self._module.get_function(name)
        # CuPy takes a record by value only as an array of one.
        passed = tuple(
            np.array([one], one.dtype) if isinstance(one, np.void) else one for one in arguments
        )
        function((-(-threads // THREADS_PER_BLOCK),), (THREADS_PER_BLOCK,), passed)


def compile_options(path: Path, defines: dict[str, int]) -> tuple[str, ...]:
    """What NVRTC must be told to compile ``path``."""
    macros = (f"-D{name}={value}" for name, value in defines.items())
    return ("-std=c++17", f"-I{path.parent}", *macros)
