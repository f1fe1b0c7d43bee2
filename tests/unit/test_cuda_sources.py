"""Every kernel compiles for the GPUs that are in use, without a warning; it needs no GPU."""

import os
from pathlib import Path

import pytest
from nvrtc import PACKAGE, compile_cubin, find_library

from kvtier.cuda import compile_options
from kvtier.index.cuda import SOURCE as INDEX
from kvtier.tiers.cuda_rows import SOURCE as ROWS

KERNELS = [
    *((INDEX, {"WAYS": ways}) for ways in (8, 16, 32)),
    (ROWS, {}),
]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize(("source", "defines"), KERNELS)
def test_kernels_compile_for_each_architecture(
    source: Path, defines: dict[str, int], architecture: str
) -> None:
    if find_library() is None and "KVTIER_REQUIRE_NVRTC" not in os.environ:
        pytest.skip(f"{PACKAGE} is not installed")
    cubin = compile_cubin(source, defines, architecture)
    assert cubin.startswith(b"\x7fELF")


def test_every_source_is_compiled_here() -> None:
    package = INDEX.parents[1]
    assert set(package.rglob("*.cu")) == {source for source, _ in KERNELS}


def test_options_name_the_macros_and_the_place_of_headers() -> None:
    assert compile_options(Path("/a/b.cu"), {"WAYS": 8}) == ("-std=c++17", "-I/a", "-DWAYS=8")
