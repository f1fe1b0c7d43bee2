"""How a log is divided into segments."""

from __future__ import annotations

from typing import Any

import pytest

from kvtier.emulator.machine import geometry_of
from kvtier.index import log_geometry
from kvtier.settings import TierSettings
from kvtier.tiers import NvmeTier, open_tier

MIB = 1 << 20


def test_a_large_tier_has_segments_of_the_size_asked_for_and_a_sixteenth_to_spare() -> None:
    geometry = log_geometry(slots=1 << 18, page_bytes=4096, segment_bytes=4 * MIB)

    assert geometry.segment_pages == 1024
    assert geometry.spare_segments == 16
    assert geometry.segments == 256 + 16
    assert geometry.locations == (256 + 16) * 1024


def test_a_tier_too_small_for_eight_segments_takes_smaller_ones() -> None:
    geometry = log_geometry(slots=64, page_bytes=4096, segment_bytes=4 * MIB)

    assert geometry.segment_pages == 8
    assert geometry.segments == 8 + 4


@pytest.mark.parametrize("slots", [8, 9, 16, 17, 100, 1000, 65_537])
@pytest.mark.parametrize("page_bytes", [512, 4096, 4 * MIB])
def test_the_segments_that_are_not_spare_hold_the_capacity(slots: int, page_bytes: int) -> None:
    geometry = log_geometry(slots, page_bytes, 4 * MIB)

    held = (geometry.segments - geometry.spare_segments) * geometry.segment_pages
    assert slots <= held < slots + geometry.segment_pages
    assert geometry.segment_pages >= 2
    assert geometry.spare_segments >= 4


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "changes", [{}, {"ways": 32}, {"capacity_bytes": 3 * MIB + 5}, {"segment_bytes": MIB}]
)
async def test_a_modelled_drive_is_divided_like_a_real_one(changes: dict[str, Any]) -> None:
    settings = TierSettings(**{"name": "nvme", "capacity_bytes": 12 * MIB} | changes)
    tier = await open_tier(settings, 4096, seed=1)
    assert isinstance(tier, NvmeTier)
    await tier.close()
    assert tier.index.geometry == geometry_of(settings, 4096)
