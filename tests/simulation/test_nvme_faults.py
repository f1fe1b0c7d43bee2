"""Attacks on the pages of a drive, through a whole cache: no wrong byte is ever served.

What is on the medium is changed behind the tier's back, or by a drive that misbehaves. Every page
that was touched must come from the origin, and be counted as a miss with its reason.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from io_engines import engine_names
from kvtier_memory import MemoryBackend

from kvtier import Settings, TieredCache, open_cache
from kvtier.driver import AsyncDriver
from kvtier.errors import SettingsError
from kvtier.pages import I64, U8, U64
from kvtier.settings import (
    ChainSettings,
    FaultSettings,
    OriginSettings,
    ReadFaultSettings,
    TierSettings,
    WriteFaultSettings,
)
from kvtier.tiers import NvmeTier

PAGE_BYTES = 4096
OBJECT_PAGES = 16
OBJECTS = 32
SLOTS = 2 * OBJECTS * OBJECT_PAGES
VICTIMS = 350
"""Pages that one attack touches."""

ROUNDS = int(os.environ.get("KVTIER_ATTACK_ROUNDS", "1"))
"""Of each attack on each engine; ``make soak`` takes more."""

KEYS = [b"object-%d" % number for number in range(OBJECTS)]
COUNTS = np.full(OBJECTS, OBJECT_PAGES)

Cache = TieredCache[AsyncDriver]


def opened(
    path: Path,
    engine: Any,
    faults: FaultSettings | None = None,
    origin: MemoryBackend | None = None,
) -> AbstractAsyncContextManager[Cache]:
    """A cache of a drive and the origin behind it; each page is an operation of its own."""
    tier = TierSettings(
        "nvme",
        SLOTS * PAGE_BYTES,
        path=path,
        engine=engine,
        queue_depth=16,
        extent_pages_max=1,
        faults=faults,
    )
    settings = Settings(
        page_bytes=PAGE_BYTES,
        tiers=(tier,),
        origin=OriginSettings("memory", extent_pages_max=1),
        chain=ChainSettings(
            batch_pages_max=4096,
            inflight_pages_max=4096,
            device_batch_pages=64,
            staging_bytes=16 * 64 * PAGE_BYTES,
            objects_max=4 * OBJECTS,
        ),
    )
    return open_cache(settings, origin=origin or MemoryBackend(PAGE_BYTES, None))


def nvme(cache: Cache) -> NvmeTier:
    (tier,) = cache.driver.tiers
    assert isinstance(tier, NvmeTier)
    return tier


class Medium:
    """What the file of a cache holds, page by page: read and changed behind the cache's back."""

    def __init__(self, cache: Cache, path: Path) -> None:
        self._tier = nvme(cache)
        self._path = path

    def offsets(self, page_ids: U64) -> I64:
        """Where each page lies in the file, -1 if it is not in the tier."""
        locations = self._tier.index.peek(page_ids)
        return np.where(locations < 0, -1, self._tier.layout.page_offsets(locations))

    def read(self, offsets: I64) -> U8:
        """u8[n, PAGE_BYTES], what lies there."""
        fd = os.open(self._path, os.O_RDONLY)
        try:
            parts = [os.pread(fd, PAGE_BYTES, offset) for offset in offsets.tolist()]
        finally:
            os.close(fd)
        return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, PAGE_BYTES)

    def write(self, offsets: I64, pages: U8) -> None:
        fd = os.open(self._path, os.O_WRONLY)
        try:
            for offset, page in zip(offsets.tolist(), pages, strict=True):
                assert os.pwrite(fd, page.tobytes(), offset) == PAGE_BYTES
        finally:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class Scene:
    """A medium before an attack on the pages ``page_ids[victims]``.

    Attributes:
        now: u8[n, PAGE_BYTES], what each page is, and what the medium holds of it.
        before: u8[v, PAGE_BYTES], what the places of the victims held before those were written.
        stale: u8[n, PAGE_BYTES], what each page was before its key was rewritten.
        victims: i64[v].
    """

    rng: np.random.Generator
    now: U8
    before: U8
    stale: U8
    victims: I64


Attack = Callable[[Scene], U8]
"""What to put at the places of the victims: u8[v, PAGE_BYTES]."""


def flipped(scene: Scene) -> U8:
    pages = scene.now[scene.victims].copy()
    bits = scene.rng.integers(0, 8 * PAGE_BYTES, len(pages))
    pages[np.arange(len(pages)), bits // 8] ^= np.left_shift(1, bits % 8).astype(np.uint8)
    return pages


def torn(scene: Scene) -> U8:
    pages = scene.now[scene.victims].copy()
    written = 512 * scene.rng.integers(1, PAGE_BYTES // 512, len(pages))
    behind = np.arange(PAGE_BYTES) >= written[:, None]
    pages[behind] = scene.before[behind]
    return pages


def lost(scene: Scene) -> U8:
    return scene.before


def misdirected(scene: Scene) -> U8:
    """Another page's right bytes."""
    return scene.now[(scene.victims + scene.rng.integers(1, len(scene.now))) % len(scene.now)]


def stale(scene: Scene) -> U8:
    return scene.stale[scene.victims]


ATTACKS: dict[str, Attack] = {
    attack.__name__: attack for attack in (flipped, torn, lost, misdirected, stale)
}


def version(number: int) -> U8:
    """All pages of all objects, as they are in one version."""
    rng = np.random.default_rng([9, number])
    return rng.integers(0, 256, (OBJECTS * OBJECT_PAGES, PAGE_BYTES), np.uint8)


async def rewrite(cache: Cache, pages: U8) -> U64:
    """Write every object anew; the ids of its pages."""
    assert not (await cache.write(KEYS, COUNTS, pages)).any()
    await cache.drain()
    return (await cache.open(KEYS)).page_ids()


async def on_the_medium(cache: Cache, medium: Medium, page_ids: U64, pages: U8) -> I64:
    """Have the tier write out what it has; the offset of each page, -1 if it has it not."""
    await nvme(cache).flush()
    offsets = medium.offsets(page_ids)
    there = offsets >= 0
    np.testing.assert_array_equal(medium.read(offsets[there]), pages[there])
    return offsets


async def read_right(cache: Cache, page_ids: U64, pages: U8) -> None:
    """Every page is there, and right."""
    result = await cache.read(page_ids)
    assert result.ok
    np.testing.assert_array_equal(result.pages, pages)
    await cache.drain()


def reasons(cache: Cache) -> tuple[int, int, int, int]:
    """Corrupt pages, I/O errors, the tier's failures, and pages that the origin brought."""
    tier, (level, origin) = nvme(cache), cache.driver.chain.counters.levels
    return tier.corrupt_pages, tier.io_errors, level.failures, origin.hits


def check_sums(cache: Cache) -> None:
    counters = cache.driver.chain.counters
    hits = sum(level.hits for level in counters.levels)
    assert counters.reads == counters.unique + counters.folded
    assert counters.unique == hits + counters.joined + counters.failed + counters.absent
    assert counters.failed == counters.absent == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("engine", engine_names())
@pytest.mark.parametrize("name", ATTACKS)
async def test_no_attack_on_the_medium_is_served(tmp_path: Path, name: str, engine: str) -> None:
    path = tmp_path / "pages"
    rng = np.random.default_rng(5)
    async with opened(path, engine) as cache:
        medium = Medium(cache, path)
        pages = version(0)
        await on_the_medium(cache, medium, await rewrite(cache, pages), pages)
        for number in range(1, ROUNDS + 1):
            content = path.read_bytes()
            old, pages = pages, version(number)
            page_ids = await rewrite(cache, pages)
            offsets = await on_the_medium(cache, medium, page_ids, pages)
            there = np.flatnonzero(offsets >= 0)
            victims = np.sort(rng.choice(there, VICTIMS, replace=False))
            before = b"".join(content[at : at + PAGE_BYTES] for at in offsets[victims].tolist())
            scene = Scene(
                rng, pages, np.frombuffer(before, np.uint8).reshape(-1, PAGE_BYTES), old, victims
            )
            medium.write(offsets[victims], ATTACKS[name](scene))
            corrupt, io_errors, failures, brought = reasons(cache)
            await read_right(cache, page_ids, pages)
            assert reasons(cache) == (
                corrupt + VICTIMS,
                io_errors,
                failures + VICTIMS,
                brought + VICTIMS + len(page_ids) - len(there),
            )
        check_sums(cache)


@pytest.mark.asyncio
@pytest.mark.parametrize("engine", engine_names())
async def test_reads_of_a_drive_that_misbehaves_are_misses_with_their_reason(
    tmp_path: Path, engine: str
) -> None:
    reads = ReadFaultSettings(
        fail_share=0.05, short_share=0.05, misdirected_share=0.05, flipped_share=0.05
    )
    path = tmp_path / "pages"
    async with opened(path, engine, FaultSettings(reads=reads)) as cache:
        pages = version(0)
        page_ids = await rewrite(cache, pages)
        await on_the_medium(cache, Medium(cache, path), page_ids, pages)
        for _ in range(3):  # few enough that the log has room: nothing is moved in it
            await read_right(cache, page_ids, pages)
            await nvme(cache).flush()  # what lies in memory would let extents be joined
        counts = nvme(cache).fault_counts
        assert counts is not None
        broken = counts["read_fail"] + counts["read_short"]
        wrong = counts["read_misdirected"] + counts["read_flipped"]
        assert min(broken, wrong) > 50
        assert reasons(cache)[:3] == (wrong, broken, wrong + broken)
        check_sums(cache)


async def rewrite_and_read(cache: Cache, seed: int) -> None:
    """Some versions of all objects, written out and read in part, again and again."""
    rng = np.random.default_rng(seed)
    for number in range(4 * ROUNDS):
        pages = version(number)
        page_ids = await rewrite(cache, pages)
        await nvme(cache).flush()
        await read_right(cache, page_ids, pages)
        for _ in range(2):
            some = rng.permutation(len(page_ids))[: len(page_ids) // 2]
            await read_right(cache, page_ids[some], pages[some])
    await nvme(cache).flush()


@pytest.mark.asyncio
@pytest.mark.parametrize("engine", engine_names())
async def test_writes_of_a_drive_that_misbehaves_are_never_served_wrong(
    tmp_path: Path, engine: str
) -> None:
    kinds = ("fail", "full", "short", "torn", "lost", "misdirected", "flipped")
    writes = WriteFaultSettings(**{f"{kind}_share": 0.1 for kind in kinds})
    async with opened(tmp_path / "pages", engine, FaultSettings(writes=writes)) as cache:
        await rewrite_and_read(cache, 6)
        corrupt, io_errors, failures, _ = reasons(cache)
        assert io_errors > 0
        assert failures >= corrupt > 0
        check_sums(cache)


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["torn", "lost", "misdirected", "flipped"])
async def test_a_write_that_lies_makes_corrupt_pages(tmp_path: Path, kind: str) -> None:
    writes = WriteFaultSettings(**{f"{kind}_share": 0.5})
    async with opened(tmp_path / "pages", "threads", FaultSettings(writes=writes)) as cache:
        await rewrite_and_read(cache, 7)
        counts = nvme(cache).fault_counts
        assert counts is not None
        assert counts[f"write_{kind}"] > 0
        assert reasons(cache)[0] > 0
        assert reasons(cache)[1] == 0
        check_sums(cache)


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["fail", "full", "short"])
async def test_a_write_that_fails_makes_no_corrupt_page(tmp_path: Path, kind: str) -> None:
    writes = WriteFaultSettings(**{f"{kind}_share": 0.5})
    async with opened(tmp_path / "pages", "threads", FaultSettings(writes=writes)) as cache:
        await rewrite_and_read(cache, 8)
        corrupt, io_errors, failures, _ = reasons(cache)
        counts = nvme(cache).fault_counts
        assert counts is not None
        assert io_errors == counts[f"write_{kind}"] > 0
        assert failures > 0
        assert corrupt == 0
        check_sums(cache)


@pytest.mark.asyncio
async def test_segments_of_an_earlier_life_are_not_believed_after_a_restart(
    tmp_path: Path,
) -> None:
    """Whole segments, with the metadata that described them, put back while the cache is away."""
    path = tmp_path / "pages"
    rng = np.random.default_rng(10)
    origin = MemoryBackend(PAGE_BYTES, None)
    lives: deque[bytes] = deque(maxlen=8)
    hits = 0
    for number in range(6 * ROUNDS):
        pages = version(number)
        async with opened(path, "threads", origin=origin) as cache:
            layout = nvme(cache).layout
            await rewrite(cache, pages)
        lives.append(path.read_bytes())
        with path.open("r+b") as file:
            for segment in np.flatnonzero(rng.random(layout.segments) < 0.5).tolist():
                start = layout.data_offset + segment * layout.segment_bytes
                end = start + layout.segment_bytes
                file.seek(start)
                file.write(lives[rng.integers(len(lives))][start:end])
        async with opened(path, "threads", origin=origin) as cache:
            await read_right(cache, (await cache.open(KEYS)).page_ids(), pages)
            hits += cache.driver.chain.counters.levels[0].hits
            check_sums(cache)
    assert hits > 0


@pytest.mark.asyncio
async def test_a_log_that_a_bad_drive_wrote_is_right_or_missed_after_a_restart(
    tmp_path: Path,
) -> None:
    kinds = ("torn", "lost", "misdirected", "flipped")
    writes = WriteFaultSettings(**{f"{kind}_share": 0.1 for kind in kinds})
    path = tmp_path / "pages"
    origin = MemoryBackend(PAGE_BYTES, None)
    for number in range(8 * ROUNDS):
        pages = version(number)
        faults = FaultSettings(seed=number, writes=writes)
        try:
            async with opened(path, "threads", faults, origin) as cache:
                before = (await cache.open(KEYS)).page_ids()
                if number:
                    await read_right(cache, before, version(number - 1))
                page_ids = await rewrite(cache, pages)
                await read_right(cache, page_ids, pages)
                check_sums(cache)
        except SettingsError:
            # What identifies the file was hit: it is refused, not guessed at.
            assert number
            path.unlink()


@pytest.mark.asyncio
async def test_a_drive_that_loses_everything_costs_hits_and_no_bytes(tmp_path: Path) -> None:
    lost_share = FaultSettings(writes=WriteFaultSettings(lost_share=1.0))
    async with opened(tmp_path / "pages", "threads", lost_share) as cache:
        pages = version(0)
        page_ids = await rewrite(cache, pages)
        for _ in range(3):
            await read_right(cache, page_ids, pages)
        counts = nvme(cache).fault_counts
        assert counts is not None
        assert counts["write_lost"] == counts["writes"] > 0
        check_sums(cache)
