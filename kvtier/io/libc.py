"""Functions of the C library and words of memory, as compiled loops use them.

Each is a symbol that is found by name when cached code is loaded, or an instruction of LLVM; with
the JIT disabled it is plain Python. Addresses are i64: they fit, and mix with other integers.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import numba
from llvmlite import ir
from numba.extending import intrinsic

from kvtier.jit import JIT_DISABLED

read: Any
"""``read(fd, address, bytes)``: bytes read, or -1."""
pread: Any
"""``pread(fd, address, bytes, offset)``: bytes read, or -1."""
pwrite: Any
"""``pwrite(fd, address, bytes, offset)``: bytes written, or -1."""
writev: Any
"""``writev(fd, address, count)``: bytes written out of so many pairs of address and size, or -1."""
syscall: Any
"""``syscall(number, a, b, c, d, e, f)``: the answer, or -1."""
clock_gettime: Any
"""``clock_gettime(clock, address)``: its time to two i64 there, in s and ns; 0, or -1."""
errno_location: Any
"""``errno_location()[0]``: why the last of these calls failed, in this thread."""
load_acquire: Any
"""``load_acquire(address)``: the u32 there, before whatever is read after it."""
store_release: Any
"""``store_release(address, value)``: a u32, after whatever was written before it."""
load_word: Any
"""``load_word(address)``: the i64 there."""
store_word: Any
"""``store_word(address, value)``: an i64."""

if JIT_DISABLED:
    _library = ctypes.CDLL(None, use_errno=True)
    read, pread, pwrite = _library.read, _library.pread, _library.pwrite
    writev = _library.writev
    syscall = _library.syscall
    read.restype = ctypes.c_ssize_t
    read.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    writev.restype = ctypes.c_ssize_t
    writev.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int)
    for _function in (pread, pwrite):
        _function.restype = ctypes.c_ssize_t
        _function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
    clock_gettime = _library.clock_gettime
    clock_gettime.argtypes = (ctypes.c_int, ctypes.c_int64)
    syscall.restype = ctypes.c_long
    syscall.argtypes = (ctypes.c_long,) * 7

    def errno_location() -> tuple[int]:
        return (ctypes.get_errno(),)

    # The processor may order these as it likes; the system call between them does not let it.
    def load_acquire(address: int) -> int:
        return ctypes.c_uint32.from_address(int(address)).value

    def store_release(address: int, value: int) -> None:
        ctypes.c_uint32.from_address(int(address)).value = int(value)

    def load_word(address: int) -> int:
        return ctypes.c_int64.from_address(int(address)).value

    def store_word(address: int, value: int) -> None:
        ctypes.c_int64.from_address(int(address)).value = int(value)

else:
    _types: Any = numba.types
    _I64: Final = _types.int64
    _MOVE: Final = _I64(_types.int32, _I64, _I64, _I64)
    read = _types.ExternalFunction("read", _I64(_types.int32, _I64, _I64))
    pread = _types.ExternalFunction("pread", _MOVE)
    pwrite = _types.ExternalFunction("pwrite", _MOVE)
    writev = _types.ExternalFunction("writev", _I64(_types.int32, _I64, _types.int32))
    syscall = _types.ExternalFunction("syscall", _I64(*(_I64,) * 7))
    clock_gettime = _types.ExternalFunction("clock_gettime", _types.int32(_types.int32, _I64))
    errno_location = _types.ExternalFunction("__errno_location", _types.CPointer(_types.int32)())

    def _pointer(builder: Any, address: Any, bits: int) -> Any:
        return builder.inttoptr(address, ir.IntType(bits).as_pointer())

    @intrinsic
    def load_acquire(_context: Any, _address: Any) -> tuple[Any, Any]:
        def generate(_: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            word = builder.load_atomic(_pointer(builder, arguments[0], 32), "acquire", 4)
            return builder.zext(word, ir.IntType(64))

        return _I64(_I64), generate

    @intrinsic
    def store_release(_context: Any, _address: Any, _value: Any) -> tuple[Any, Any]:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            word = builder.trunc(arguments[1], ir.IntType(32))
            builder.store_atomic(word, _pointer(builder, arguments[0], 32), "release", 4)
            return context.get_dummy_value()

        return _types.void(_I64, _I64), generate

    @intrinsic
    def load_word(_context: Any, _address: Any) -> tuple[Any, Any]:
        def generate(_: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.load(_pointer(builder, arguments[0], 64))

        return _I64(_I64), generate

    @intrinsic
    def store_word(_context: Any, _address: Any, _value: Any) -> tuple[Any, Any]:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            builder.store(arguments[1], _pointer(builder, arguments[0], 64))
            return context.get_dummy_value()

        return _types.void(_I64, _I64), generate
