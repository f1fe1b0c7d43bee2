"""PyArrow, loaded at its first use: `import kvtier` must not wait for it, nor need it."""

from __future__ import annotations

import importlib
from typing import Any


def load_pyarrow() -> Any:
    """The module ``pyarrow``."""
    return importlib.import_module("pyarrow")


def load_parquet() -> Any:
    """The module ``pyarrow.parquet``."""
    return importlib.import_module("pyarrow.parquet")
