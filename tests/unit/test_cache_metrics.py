"""What a cache says of itself to Prometheus."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kept_cache import PAGE, kept_settings, nvme_of

from kvtier import exposition, open_cache
from kvtier.clock import VirtualClock
from kvtier.pages import PageStatus
from kvtier.settings import FaultSettings, ReadFaultSettings

pytestmark = pytest.mark.asyncio

DAY_NS = 86_400 * 10**9
PAGES = 200


def samples_of(text: str) -> dict[str, float]:
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


async def test_hits_and_wear_are_told_by_level(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with open_cache(kept_settings(tmp_path / "log"), clock=clock) as cache:
        payload = np.ones((PAGES, PAGE), np.uint8)
        await cache.write([b"a"], [PAGES], payload)
        await nvme_of(cache).flush()
        await cache.read((await cache.open([b"a"])).page_ids())
        clock.advance_to(DAY_NS)
        found = samples_of(exposition(cache))
        metadata_bytes = nvme_of(cache).metadata_bytes
    assert found["kvtier_cache_reads_total"] == PAGES
    assert found['kvtier_cache_hits_total{level="nvme"}'] == PAGES
    written = PAGES * PAGE + metadata_bytes
    assert found['kvtier_cache_written_bytes_total{level="nvme"}'] == written
    amplification = found['kvtier_cache_write_amplification{level="nvme"}']
    assert amplification == pytest.approx(written / (PAGES * PAGE))
    per_day = found['kvtier_cache_drive_writes_per_day{level="nvme"}']
    assert per_day == pytest.approx(written / (256 * PAGE))
    assert found['kvtier_cache_bad_pages_total{level="nvme",reason="corrupt"}'] == 0


async def test_what_a_drive_does_not_bring_back_is_told_by_its_reason(tmp_path: Path) -> None:
    settings = kept_settings(tmp_path / "log")
    flipping = FaultSettings(reads=ReadFaultSettings(flipped_share=1))
    tiers = (replace(settings.tiers[0], faults=flipping),)
    async with open_cache(replace(settings, tiers=tiers)) as cache:
        await cache.write([b"a"], [PAGES], np.ones((PAGES, PAGE), np.uint8))
        await nvme_of(cache).flush()
        result = await cache.read((await cache.open([b"a"])).page_ids())
        found = samples_of(exposition(cache))
    bad = int(np.count_nonzero(result.status != PageStatus.OK))
    assert bad > 0
    assert found['kvtier_cache_bad_pages_total{level="nvme",reason="corrupt"}'] == bad
    assert found['kvtier_cache_failures_total{level="nvme"}'] == bad


async def test_the_text_is_of_prometheus_format_and_documented(tmp_path: Path) -> None:
    async with open_cache(kept_settings(tmp_path / "log")) as cache:
        text = exposition(cache)
    sample = re.compile(r'[a-z_]+(\{level="[a-z]+"(,reason="[a-z]+")?\})? [0-9.e+-]+')
    heads = [line.split()[2] for line in text.splitlines() if line.startswith("# HELP ")]
    assert len(heads) == len(set(heads))
    for line in text.splitlines():
        assert line.startswith("# ") or sample.fullmatch(line), line
    names = {name.partition("{")[0] for name in samples_of(text)}
    assert names <= set(heads)
