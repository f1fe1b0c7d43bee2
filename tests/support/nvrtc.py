"""NVIDIA's run-time compiler by itself: it needs neither a GPU nor a driver."""

from __future__ import annotations

import ctypes
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from kvtier.cuda import compile_options

PACKAGE = "nvidia-cuda-nvrtc"


def find_library() -> Path | None:
    """The library of the installed package, or None."""
    try:
        inside = files(PACKAGE) or []
    except PackageNotFoundError:
        return None
    found = [Path(str(one.locate())) for one in inside if one.name.startswith("libnvrtc.so")]
    return found[0] if found else None


def compile_cubin(path: Path, defines: dict[str, int], architecture: str) -> bytes:
    """A ``.cu`` file as machine code of an architecture (``sm_90``).

    Raises:
        AssertionError: it does not compile; the message is the compiler's.
    """
    library = find_library()
    assert library is not None, f"{PACKAGE} is not installed"
    nvrtc = ctypes.CDLL(str(library))
    program = ctypes.c_void_p()
    source = path.read_bytes()
    name = path.name.encode()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, name, 0, None, None))
    options = [*compile_options(path, defines), f"--gpu-architecture={architecture}"]
    encoded = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    failed = nvrtc.nvrtcCompileProgram(program, len(options), encoded)
    size = ctypes.c_size_t()
    _check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
    log = ctypes.create_string_buffer(size.value)
    _check(nvrtc.nvrtcGetProgramLog(program, log))
    assert not failed, log.value.decode()
    assert not log.value.strip(), log.value.decode()
    _check(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
    cubin = ctypes.create_string_buffer(size.value)
    _check(nvrtc.nvrtcGetCUBIN(program, cubin))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin.raw


def _check(code: int) -> None:
    assert code == 0, f"NVRTC answers {code}"
