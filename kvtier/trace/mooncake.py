"""Reads Mooncake's request traces: JSON lines of hash ids per prompt.

One request a line, ``{"timestamp": ms, "input_length": tokens, "output_length": tokens,
"hash_ids": [...]}``, as published with "Mooncake: Trading More Storage for Less Computation"
(FAST '25), https://github.com/kvcache-ai/Mooncake/tree/main/FAST25-release. An id stands for a
block of 512 tokens and all before it, so equal ids are equal prefixes.

The published time stamps are quantised: requests that arrived within 3 s carry the same stamp, and
replayed so they would arrive at once. Requests with equal stamps are therefore spread evenly over
the quantum (up to the next stamp, if that comes sooner), in file order. What is made so is
labelled in the trace.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np

from kvtier.errors import TraceError
from kvtier.pages import U64
from kvtier.trace.metadata import TraceMetadata
from kvtier.trace.records import NO_PARENT, Request
from kvtier.trace.sources import SourceFile, check_option
from kvtier.trace.writer import TraceSummary, write_requests

BLOCK_TOKENS: Final = 512
QUANTUM_MS: Final = 3000

_LINE_BYTES_MAX: Final = 64 << 20
_REQUESTS_PER_STAMP_MAX: Final = 1 << 16
"""Requests of one stamp are held in memory, to know over how many the quantum is spread."""
_NS_PER_MS: Final = 1_000_000
_TOKENS_MAX: Final = (1 << 32) - 1
_TIME_MS_MAX: Final = (1 << 62) // _NS_PER_MS


def import_mooncake(
    source: SourceFile,
    target: Path,
    *,
    block_tokens: int = BLOCK_TOKENS,
    quantum_ms: int = QUANTUM_MS,
) -> TraceSummary:
    """Write the requests of a Mooncake trace as kind ``requests``.

    Args:
        source: the JSON lines.
        target: the trace to write.
        block_tokens: tokens of a block.
        quantum_ms: resolution of the time stamps; 0 leaves equal stamps equal.

    Raises:
        TraceError: a line is malformed, time goes backwards, or the target cannot be written.
    """
    check_option("block_tokens", block_tokens, 1)
    check_option("quantum_ms", quantum_ms, 0)
    synthetic = ["sessions: the source has none, so each request is a session of its own"]
    if quantum_ms:
        synthetic.append(
            f"t_ns: the source's time stamps are quantised to {quantum_ms / 1000:g} s; "
            "arrivals with equal stamps are spread evenly over the quantum"
        )
    metadata = TraceMetadata(
        kind="requests",
        block_tokens=block_tokens,
        id_scope="global",
        licence=source.licence,
        source=source.name,
        source_sha256=source.sha256,
        time_quantum_ns=max(quantum_ms, 1) * _NS_PER_MS,
        synthetic=tuple(synthetic),
        provenance="imported by kvtier from a Mooncake request trace (JSON lines)",
    )
    lines = _read_lines(source.path, block_tokens)
    if not quantum_ms:
        return write_requests(target, metadata, (line.request for line in lines))
    return write_requests(target, metadata, _spread(source.path, lines, quantum_ms * _NS_PER_MS))


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    request: Request


def _read_lines(path: Path, block_tokens: int) -> Iterator[_Line]:
    last_ns = 0
    with path.open("rb") as file:
        number = session = 0
        while text := file.readline(_LINE_BYTES_MAX):
            number += 1
            if not text.strip():
                continue
            try:
                request = _parse_line(text, session, block_tokens)
            except TraceError as error:
                raise TraceError(f"{path}: line {number}: {error}") from error
            if request.t_ns < last_ns:
                what = "timestamp is less than the line before's; sort the lines by timestamp"
                raise TraceError(f"{path}: line {number}: {what}")
            last_ns = request.t_ns
            yield _Line(number, request)
            session += 1


def _parse_line(text: bytes, session: int, block_tokens: int) -> Request:
    if len(text) == _LINE_BYTES_MAX:
        raise TraceError(f"longer than {_LINE_BYTES_MAX >> 20} MiB; this is no Mooncake trace")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"no JSON ({error}); this is no Mooncake trace, or is damaged") from None
    if not isinstance(fields, dict):
        raise TraceError("no JSON object; this is no Mooncake trace")
    in_tokens = _whole(fields, "input_length")
    block_ids = _block_ids(fields)
    if not in_tokens // block_tokens <= len(block_ids) <= -(-in_tokens // block_tokens):
        raise TraceError(
            f"{len(block_ids)} hash_ids do not fit input_length {in_tokens} in blocks of "
            f"{block_tokens} tokens; give the right block_tokens"
        )
    return Request(
        t_ns=_time_ns(fields),
        session=session,
        parent=NO_PARENT,
        turn=0,
        model="",
        in_tokens=in_tokens,
        out_tokens=_whole(fields, "output_length"),
        block_ids=block_ids,
    )


def _value(fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise TraceError(f"{name} is missing; this is no Mooncake trace, or is damaged")
    return fields[name]


def _whole(fields: dict[str, Any], name: str) -> int:
    value = _value(fields, name)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not 0 <= value <= _TOKENS_MAX:
        raise TraceError(f"{name} is {value!r:.40}; it must be a whole number from 0 to 2**32 - 1")
    return int(value)


def _time_ns(fields: dict[str, Any]) -> int:
    value: int | float = _value(fields, "timestamp")
    number = type(value) is int or (type(value) is float and math.isfinite(value))
    if not number or not 0 <= value <= _TIME_MS_MAX:
        raise TraceError(f"timestamp is {value!r:.40}; it must be milliseconds, 0 or more")
    return round(value * _NS_PER_MS)


def _block_ids(fields: dict[str, Any]) -> U64:
    value = _value(fields, "hash_ids")
    if not isinstance(value, list) or not value:
        raise TraceError("hash_ids is no list, or is empty; a request has at least one block")
    if any(type(item) is not int for item in value) or min(value) < 0 or max(value) >= 1 << 64:
        raise TraceError("hash_ids has an item that is no whole number from 0 to 2**64 - 1")
    return np.array(value, np.uint64)


def _spread(path: Path, lines: Iterator[_Line], quantum_ns: int) -> Iterator[Request]:
    """Requests with equal time stamps, spread over the quantum or up to the next stamp."""
    groups = groupby(lines, key=lambda line: line.request.t_ns)
    held: list[Request] = []
    for t_ns, group in groups:
        if held:
            yield from _spread_evenly(held, min(quantum_ns, t_ns - held[0].t_ns))
        held = []
        for line in group:
            if len(held) == _REQUESTS_PER_STAMP_MAX:
                what = f"more than {_REQUESTS_PER_STAMP_MAX} requests with one timestamp"
                raise TraceError(f"{path}: line {line.number}: {what}; give quantum_ms 0")
            held.append(line.request)
    yield from _spread_evenly(held, quantum_ns)


def _spread_evenly(requests: list[Request], room_ns: int) -> Iterator[Request]:
    for i, request in enumerate(requests):
        yield replace(request, t_ns=request.t_ns + i * room_ns // len(requests))
