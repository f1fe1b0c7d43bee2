"""A software prefetch for compiled loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from kvtier.jit import JIT_DISABLED


def _prefetch_in_python(array: NDArray[Any], index: int) -> None:
    """Nothing: a prefetch changes no value."""


def _prefetch_typed(_context: Any, array: Any, _index: Any) -> tuple[Any, Any]:
    """LLVM's ``llvm.prefetch`` of the element's address: for reading, into all cache levels."""
    signature = numba.types.void(array, numba.types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte_pointer = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [byte_pointer],
            ir.FunctionType(ir.VoidType(), [byte_pointer, word, word, word]),
        )
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte_pointer)
        builder.call(function, [address, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return signature, generate


prefetch = cast(
    "Callable[[NDArray[Any], int | np.uint64], None]",
    _prefetch_in_python if JIT_DISABLED else intrinsic(_prefetch_typed),
)
"""``prefetch(array, index)``: start loading the cache line of ``array[index]`` (1-D, in bounds)."""
