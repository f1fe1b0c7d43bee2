"""The one place where the package meets Numba's compiler.

``jit`` keeps the annotated type of the function, releases the GIL while the compiled code runs and
keeps that code on disk. Two habits hold everywhere: a compiled call returns within 50 ms, so that
Ctrl-C works, and u64 is never mixed with i64 (Numba would make a float of them).

With ``NUMBA_DISABLE_JIT=1`` everything runs as plain Python, for a debugger.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar, cast

import numba
import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

JIT_DISABLED: Final = bool(getattr(numba.config, "DISABLE_JIT", 0))


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile ``function`` at its first call, without the GIL; cached on disk."""
    return _compiled(function)


def jit_in_place(function: Callable[P, R]) -> Callable[P, R]:
    """Like :func:`jit`, for a loop that works on the arrays it is given: it makes and returns none.

    So no references to them need be counted, which the caller has anyway. Numba counts some in
    inner loops, of arrays in tuples above all, and LLVM makes no vector instructions of such loops.
    """
    return _compiled(function, _nrt=False)


def jit_inline(function: Callable[P, R]) -> Callable[P, R]:
    """Like :func:`jit`, for a small function that is folded into the compiled caller."""
    if JIT_DISABLED:
        return _plain(function)
    compiled = numba.njit(nogil=True, inline="always", boundscheck=False)(function)
    return cast("Callable[P, R]", compiled)


def _compiled(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    if JIT_DISABLED:
        return _plain(function)
    compiled = numba.njit(nogil=True, cache=True, boundscheck=False, **options)(function)
    _forget_unreadable(compiled)
    return cast("Callable[P, R]", compiled)


def _forget_unreadable(compiled: Any) -> None:
    """Empty the disk cache of a function if it cannot be read.

    What another version of this package left may name types that are gone. Numba reads it before
    it looks whether it is out of date, and fails where it should compile anew.
    """
    cached = compiled._cache._cache_file
    try:
        cached._load_index()
    except Exception:  # unpickling raises whatever the missing type makes it raise
        cached.flush()


def _plain(function: Callable[P, R]) -> Callable[P, R]:
    """NumPy's scalars warn where compiled integers wrap; both wrap alike."""
    return np.errstate(over="ignore")(function)
