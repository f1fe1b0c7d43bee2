"""The binary batch protocol between a server and its clients, without any I/O.

``frames`` cuts a stream of bytes into frames and lets payload land where it belongs;
``messages`` are the values that frames carry, ``codec`` their encoding. Both sides use all three.
The format is described, byte by byte, in ``docs/wire.md``.
"""
