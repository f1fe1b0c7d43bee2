"""Forbid system calls to this process, for good: only for a process made for it."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_FILTER = 2
_LOAD_NUMBER = 0x20  # the first word of what a filter sees is the system call's number
_JUMP_IF_EQUAL = 0x15
_RETURN = 0x06
_ALLOW = 0x7FFF_0000
_FAIL = 0x0005_0000


def forbid(*numbers: int) -> None:
    """Have these system calls answer EPERM from now on (seccomp(2), classic BPF)."""
    program = [struct.pack("HBBI", _LOAD_NUMBER, 0, 0, 0)]
    for number in numbers:
        program.append(struct.pack("HBBI", _JUMP_IF_EQUAL, 0, 1, number))
        program.append(struct.pack("HBBI", _RETURN, 0, 0, _FAIL | errno.EPERM))
    program.append(struct.pack("HBBI", _RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(program))
    head = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0), (_PR_SET_SECCOMP, _FILTER, ctypes.byref(head))):
        if libc.prctl(*arguments, 0, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
