"""Traces that are made up, and say so: what could a machine do under a load of some kind?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from kvtier.errors import TraceError
from kvtier.pages import OBJECT_PAGES_MAX, PAGE_BYTES_DEFAULT, U32, Purpose
from kvtier.trace.metadata import TraceMetadata, TraceObject
from kvtier.trace.records import READ, PageRequest
from kvtier.trace.schema import EXTENT_PAGES_MAX, ROWS_PER_REQUEST_MAX
from kvtier.trace.writer import TraceSummary, write_page_io

REQUESTS_MAX: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class RandomReads:
    """Threads that each read at random, and know the next address only after they saw the last.

    Attributes:
        threads: how many there are; each is a request.
        hops: dependent batches of each, one after the other.
        reads: extents of a batch, issued together.
        extent_pages: pages of an extent; a long one stands for bulk reads.
        object_pages: pages of the one object that is read.
        page_bytes: bytes of a page.
        popular_share: share of the reads that go to the popular pages; the others are uniform.
        popular_pages: how many these are.
    """

    threads: int
    hops: int = 8
    reads: int = 1
    extent_pages: int = 1
    object_pages: int = 1 << 24
    page_bytes: int = PAGE_BYTES_DEFAULT
    popular_share: float = 0.0
    popular_pages: int = 1


def write_random_reads(path: Path, load: RandomReads, seed: int = 1) -> TraceSummary:
    """Write a made-up trace of kind ``page_io``; the same seed makes the same file.

    Raises:
        TraceError: a figure is out of range, or the file cannot be written.
    """
    _check(load)
    name = f"random-{load.object_pages}"
    metadata = TraceMetadata(
        kind="page_io",
        page_bytes=load.page_bytes,
        objects=(TraceObject(name.encode(), load.object_pages),),
        licence="none: made up",
        source="kvtier.trace.generators",
        synthetic=("everything: random reads made by kvtier, no recording",),
        provenance=f"{load}, seed {seed}",
    )
    return write_page_io(path, metadata, _requests(load, np.random.default_rng(seed)))


def _check(load: RandomReads) -> None:
    ranges = {
        "threads": (1, REQUESTS_MAX),
        "hops": (1, ROWS_PER_REQUEST_MAX),
        "reads": (1, ROWS_PER_REQUEST_MAX // max(1, load.hops)),
        "extent_pages": (1, EXTENT_PAGES_MAX),
        "object_pages": (load.extent_pages, OBJECT_PAGES_MAX),
        "popular_share": (0, 1),
        "popular_pages": (1, load.object_pages),
    }
    for name, (least, most) in ranges.items():
        value = getattr(load, name)
        if not least <= value <= most:
            raise TraceError(f"random reads: {name} is {value}: it must be {least} to {most}")


def _requests(load: RandomReads, rng: np.random.Generator) -> Iterator[PageRequest]:
    rows = load.hops * load.reads
    ends = np.arange(load.reads, rows + 1, load.reads, dtype=np.int64)
    times = np.zeros(load.hops, np.int64)
    ops = np.full(load.hops, READ, np.uint8)
    purpose = Purpose.SPARSE if load.extent_pages == 1 else Purpose.PREFIX
    purposes = np.full(load.hops, purpose, np.uint8)
    objects = np.zeros(rows, np.uint32)
    counts = np.full(rows, load.extent_pages, np.uint32)
    for number in range(load.threads):
        pages = _pages(load, rows, rng)
        yield PageRequest(number, times, ops, ends, objects, pages, counts, purposes)


def _pages(load: RandomReads, rows: int, rng: np.random.Generator) -> U32:
    """First pages of extents; where they are long, each begins at a multiple of its length."""
    places = load.object_pages // load.extent_pages
    extents = rng.integers(0, places, rows)
    if load.popular_share:
        popular = rng.random(rows) < load.popular_share
        extents[popular] %= max(1, load.popular_pages // load.extent_pages)
    return (extents * load.extent_pages).astype(np.uint32)
