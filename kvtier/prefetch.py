"""Software prefetches for compiled loops."""

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


def _prefetch_at_in_python(address: int) -> None:
    """Nothing, too."""


def _load_early(builder: Any, address: Any) -> None:
    """LLVM's ``llvm.prefetch``: for reading, into all cache levels."""
    byte_pointer = ir.IntType(8).as_pointer()
    word = ir.IntType(32)
    function = builder.module.declare_intrinsic(
        "llvm.prefetch",
        [byte_pointer],
        ir.FunctionType(ir.VoidType(), [byte_pointer, word, word, word]),
    )
    builder.call(function, [address, word(0), word(3), word(1)])


def _prefetch_typed(_context: Any, array: Any, _index: Any) -> tuple[Any, Any]:
    signature = numba.types.void(array, numba.types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte_pointer = ir.IntType(8).as_pointer()
        _load_early(builder, builder.bitcast(builder.gep(data, [arguments[1]]), byte_pointer))
        return context.get_dummy_value()

    return signature, generate


def _prefetch_at_typed(_context: Any, _address: Any) -> tuple[Any, Any]:
    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        _load_early(builder, builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return numba.types.void(numba.types.int64), generate


prefetch = cast(
    "Callable[[NDArray[Any], int | np.uint64], None]",
    _prefetch_in_python if JIT_DISABLED else intrinsic(_prefetch_typed),
)
"""``prefetch(array, index)``: start loading the cache line of ``array[index]`` (in bounds; where an
array has more dimensions, the element which is so in C order)."""

prefetch_at = cast(
    "Callable[[int], None]",
    _prefetch_at_in_python if JIT_DISABLED else intrinsic(_prefetch_at_typed),
)
"""``prefetch_at(address)``: start loading the cache line there."""
