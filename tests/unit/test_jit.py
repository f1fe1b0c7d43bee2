from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from types import ModuleType

import pytest

from kvtier.jit import JIT_DISABLED

SOURCE = """
from kvtier.jit import jit

@jit
def double(value: int) -> int:
    return 2 * value
"""


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("compiled_here", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(JIT_DISABLED, reason="without the JIT nothing is cached")
def test_a_cache_that_names_types_that_are_gone_is_made_anew(tmp_path: Path) -> None:
    source = tmp_path / "compiled_here.py"
    source.write_text(SOURCE)
    assert load(source).double(21) == 42
    (index,) = (tmp_path / "__pycache__").glob("*.nbi")
    with index.open("rb") as file:
        version = pickle.load(file)
    # A class of a module that no longer has it, as an older version of the package may leave one.
    gone = b"\x80\x04c" + b"kvtier.jit\nTypeThatIsGone\n."
    index.write_bytes(pickle.dumps(version) + gone)
    assert load(source).double(4) == 8
    assert load(source).double(5) == 10
