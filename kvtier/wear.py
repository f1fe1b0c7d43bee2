"""What was written to the device of a tier, and how fast that wears it out."""

from __future__ import annotations

from typing import Any

from kvtier.chain import LevelCounters
from kvtier.settings import TierSettings

_DAY_S = 86_400


def wear(
    tier: TierSettings,
    level: LevelCounters,
    *,
    page_bytes: int,
    extra_bytes: int,
    caches: int,
    duration_s: float,
) -> dict[str, Any]:
    """The keys of ``tiers[]`` of a result that are about writing.

    This is the one place where all that is written to a device is added up.

    Args:
        tier: which one; memory does not wear.
        level: its counts.
        page_bytes: bytes of a page.
        extra_bytes: written to the device beside the pages that callers and fills gave it.
        caches: whose tiers of this capacity the counts are of, all together.
        duration_s: how long that took.
    """
    payload_bytes = (level.device_writes - level.moved_pages) * page_bytes
    written_bytes = level.device_writes * page_bytes + extra_bytes
    capacity_bytes = caches * tier.capacity_bytes
    per_day = None
    if tier.name == "nvme" and duration_s > 0:
        per_day = written_bytes / duration_s * _DAY_S / capacity_bytes
    return {
        "written_bytes": written_bytes,
        "write_amplification": written_bytes / payload_bytes if payload_bytes else None,
        "drive_writes_per_day": per_day,
        "write_capped_pages": level.write_capped_pages,
    }
