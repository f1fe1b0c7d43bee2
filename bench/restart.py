"""Restart of a large ``nvme`` log: how long until its directory and its index are there again.

The file has full metadata and hardly any pages (it is sparse), but for a sample, which is read and
verified after the restart. Rows tell seconds, and beside them what reading the same metadata alone
takes (limit): the same large reads, by the same engine. There is no peer: no cache of this kind
that is known to us restores its directory from the drive.

    python bench/restart.py [--quick] [--json FILE] [--directory DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from kvtier import PageStatus, Settings, open_cache
from kvtier.checksum import xxh64_rows
from kvtier.environment import describe_environment, event_loop_factory
from kvtier.identities import Identities, fingerprint_of
from kvtier.index import log_geometry
from kvtier.io import open_engine
from kvtier.pattern import check_pattern, fill_pattern
from kvtier.rows import aligned_rows
from kvtier.settings import ChainSettings, TierSettings
from kvtier.tiers import slots_of
from kvtier.tiers.log_format import BLOCK_BYTES, LogLayout, layout_of, new_superblock
from kvtier.tiers.log_mirror import LogMirror, metadata_memory
from kvtier.tiers.log_reading import NAMED, STORED
from kvtier.tiers.log_retired import new_table

PAGE_BYTES = 4096
OBJECT_PAGES = 16
SAMPLES = 64
"""Segments whose pages are really there."""

FOUND_MIN = 0.97
"""Share of the sample that must be found: a set of the index may have no room for the rest."""

FULL_PAGES = 1 << 24
QUICK_PAGES = 1 << 20
FULL_ROUNDS, QUICK_ROUNDS = 5, 3
SEED = 1


def settings_of(path: Path, pages: int) -> Settings:
    tier = TierSettings("nvme", pages * PAGE_BYTES, path=path)
    chain = ChainSettings(objects_max=pages // OBJECT_PAGES + 1)
    return Settings(page_bytes=PAGE_BYTES, seed=SEED, tiers=(tier,), chain=chain)


def make_log(path: Path, settings: Settings) -> tuple[LogLayout, int]:
    """A log that is as full as it gets; its layout, and how many objects there are."""
    (tier,) = settings.tiers
    geometry = log_geometry(slots_of(tier, PAGE_BYTES), PAGE_BYTES, tier.segment_bytes)
    layout = layout_of(geometry, PAGE_BYTES)
    full = geometry.segments - geometry.spare_segments
    objects = full * layout.segment_pages // OBJECT_PAGES
    identities = Identities(objects)
    identities.reserve(objects)
    for number in range(objects):
        key = fingerprint_of(key_of(number))
        identities.put(number, key, number + 1, OBJECT_PAGES, local=True)
    file_id = np.array([3, 4], np.uint64)
    mirror = LogMirror(layout, identities, file_id)
    locations = np.arange(objects * OBJECT_PAGES)
    mirror.page_ids[locations] = (locations // OBJECT_PAGES << 32) | locations % OBJECT_PAGES
    mirror.states[locations] = STORED | NAMED
    mirror.generations[:full] = np.arange(1, full + 1)
    memory = metadata_memory(layout.metadata_blocks)
    pages = aligned_rows(layout.segment_pages, PAGE_BYTES)
    with path.open("wb") as file:
        file.write(new_superblock(layout, SEED, file_id))
        file.write(new_table(layout, file_id).tobytes())
        file.truncate(layout.file_bytes)
        for segment in range(full):
            if segment % max(1, full // SAMPLES) == 0:
                first = segment * layout.segment_pages
                here = locations[first : first + layout.segment_pages]
                fill_object_pages(pages, here)
                file.seek(int(layout.page_offsets(here[:1])[0]))
                file.write(pages[: len(here)].data)
                seeds, _ = mirror.seeds(mirror.page_ids[here], here, mirror.generations)
                mirror.checksums[here] = xxh64_rows(pages, None, seeds)
            mirror.compose(segment, np.arange(layout.metadata_blocks), memory)
            file.seek(layout.metadata_offset(segment))
            file.write(memory.data)
    return layout, objects


def key_of(number: int) -> bytes:
    return b"object %d" % number


def fill_object_pages(pages: np.ndarray[Any, np.dtype[np.uint8]], locations: Any) -> None:
    objects = (locations // OBJECT_PAGES).astype(np.uint64)
    fill_pattern(pages, objects, (locations % OBJECT_PAGES).astype(np.uint32))


async def restart(settings: Settings, layout: LogLayout, objects: int) -> float:
    """Seconds until the cache is open; then the sample is read."""
    asked = found = 0
    start = time.perf_counter()
    async with open_cache(settings) as cache:
        seconds = time.perf_counter() - start
        if len(cache.catalogue.directory) != objects:
            raise SystemExit(f"bench/restart.py: {len(cache.catalogue.directory)} objects found")
        full = objects * OBJECT_PAGES // layout.segment_pages
        for segment in range(0, full, max(1, full // SAMPLES)):
            first = -(-segment * layout.segment_pages // OBJECT_PAGES)
            numbers = np.arange(first, first + layout.segment_pages // OBJECT_PAGES - 1)
            opened = await cache.open([key_of(number) for number in numbers.tolist()])
            result = await cache.read(opened.page_ids())
            expected = np.repeat(numbers.astype(np.uint64), OBJECT_PAGES)
            pages = np.tile(np.arange(OBJECT_PAGES, dtype=np.uint32), len(numbers))
            good = np.flatnonzero(result.status == PageStatus.OK)
            if not check_pattern(result.pages, good, expected[good], pages[good]).all():
                raise SystemExit(f"bench/restart.py: segment {segment} holds something else")
            asked, found = asked + len(expected), found + len(good)
    if found < FOUND_MIN * asked:
        raise SystemExit(f"bench/restart.py: only {found} of {asked} pages were found")
    return seconds


async def read_alone(path: Path, layout: LogLayout) -> float:
    """Seconds to read the metadata of all segments, a hundred segments in one batch."""
    engine = open_engine(
        "auto",
        path,
        direct=True,
        queue_depth=128,
        size_bytes=None,
        create=False,
        page_bytes=PAGE_BYTES,
    )
    memory = aligned_rows(100 * layout.metadata_blocks, BLOCK_BYTES)
    start = time.perf_counter()
    for first in range(0, layout.segments, 100):
        segments = np.arange(first, min(first + 100, layout.segments))
        lengths = np.full(len(segments), layout.metadata_blocks * BLOCK_BYTES)
        offsets = layout.metadata_offset(0) + segments * layout.segment_bytes
        rows = np.arange(len(segments)) * layout.metadata_blocks
        if (await engine.read(offsets, lengths, memory, rows) != lengths).any():
            raise SystemExit("bench/restart.py: the metadata cannot be read")
    seconds = time.perf_counter() - start
    await engine.close()
    return seconds


async def main(pages: int, rounds: int, directory: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-", dir=directory) as name:
        path = Path(name) / "log"
        settings = settings_of(path, pages)
        layout, objects = make_log(path, settings)
        ours, limit = [], []
        for _ in range(rounds):
            limit.append(await read_alone(path, layout))
            ours.append(await restart(settings, layout, objects))
    seconds, reading = statistics.median(ours), statistics.median(limit)
    row = {
        "case": f"restart of {objects * OBJECT_PAGES:,} pages of 4 KiB, {objects:,} objects",
        "kvtier": seconds,
        "peer": None,
        "limit": reading,
        "unit": "s",
        "ratio_peer": None,
        "ratio_limit": seconds / reading,
    }
    return {"environment": describe_environment(), "seed": SEED, "rows": [row]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a million pages")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--directory", type=Path, help="where the file lies (default: $TMPDIR)")
    arguments = parser.parse_args()
    size = (QUICK_PAGES, QUICK_ROUNDS) if arguments.quick else (FULL_PAGES, FULL_ROUNDS)
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        result = runner.run(main(*size, arguments.directory))
    for one in result["rows"]:
        print(f"{one['case']}: {one['kvtier']:.2f} s, {one['limit']:.2f} s of it reading alone")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
