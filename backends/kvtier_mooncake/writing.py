"""Payload into chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kvtier.pages import U8
from kvtier_mooncake.codes import NOT_READY
from kvtier_mooncake.layout import NamedHead, chunk_name
from kvtier_mooncake.limits import VALUES_AT_ONCE
from kvtier_mooncake.link import Link
from kvtier_mooncake.workers import Gate


class Part(NamedTuple):
    """Chunks that are put in one call.

    Attributes:
        names: of the chunks.
        objects: which object each belongs to.
        bounds: rows of the payload at which they begin, and the last ends.
    """

    names: list[str]
    objects: list[int]
    bounds: list[int]


def cut_parts(objects: Sequence[NamedHead], slot_pages: int) -> Iterator[Part]:
    """The chunks of all objects, in their order, as parts that each fit into one call."""
    part = Part([], [], [0])
    row = 0
    for item, (name, head) in enumerate(objects):
        last = row + head.pages
        for number in range(head.chunk_count()):
            end = min(row + head.chunk_pages, last)
            if end - part.bounds[0] > slot_pages or len(part.names) == VALUES_AT_ONCE:
                yield part
                part = Part([], [], [row])
            part.names.append(chunk_name(name, head.version, number))
            part.objects.append(item)
            part.bounds.append(end)
            row = end
    if part.names:
        yield part


def put_part(link: Link, part: Part, payload: U8, gate: Gate, slot: U8) -> list[int]:
    """Put the chunks of a part; a code for each, 0 where that worked.

    Args:
        link: to Mooncake.
        part: the chunks.
        payload: u8[rows, page_bytes] of the whole batch.
        gate: what it is read through; once it is shut, nothing is put.
        slot: u8[slot_bytes], registered memory to put from.
    """
    page_bytes = payload.shape[1]
    first, last = part.bounds[0], part.bounds[-1]
    pages = slot[: (last - first) * page_bytes].reshape(-1, page_bytes)
    if not gate.pass_through(lambda: pages.__setitem__(slice(None), payload[first:last])):
        return [NOT_READY] * len(part.names)
    starts = [slot.ctypes.data + (row - first) * page_bytes for row in part.bounds[:-1]]
    sizes = [
        (end - start) * page_bytes
        for start, end in zip(part.bounds[:-1], part.bounds[1:], strict=True)
    ]
    codes: list[int] = link.store.batch_put_from(part.names, starts, sizes, link.config)
    return codes
