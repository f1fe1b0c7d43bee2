"""A chain from settings; the same for every driver, so that decisions are the same too."""

from __future__ import annotations

from collections.abc import Callable

from kvtier.chain.admission import AdmissionRule
from kvtier.chain.extents import ExtentRules
from kvtier.chain.level import Level
from kvtier.chain.machine import Chain
from kvtier.chain.second_touch import SecondTouch
from kvtier.chain.write_limit import WriteLimit
from kvtier.settings import ChainSettings, OriginSettings, Settings, TierSettings

UNBOUNDED = 1 << 32


def build_chain(
    settings: Settings,
    *,
    origin_extent_pages_max: int = UNBOUNDED,
    origin_batch_extents_max: int = UNBOUNDED,
    make: Callable[..., Chain] = Chain,
) -> Chain:
    """The chain of ``settings``, its origin's reads bounded by what the backend can do.

    ``make`` takes what :class:`Chain` takes.
    """
    tiers = [
        Level(
            name=tier.name,
            in_memory=tier.name != "nvme",
            admit=_admission(tier, settings),
            writes=tier.write == "through",
            rules=_rules(tier, settings.chain, UNBOUNDED, UNBOUNDED),
            write_limit=_write_limit(tier),
        )
        for tier in settings.tiers
    ]
    origin = None
    if settings.origin is not None:
        rules = _rules(
            settings.origin, settings.chain, origin_extent_pages_max, origin_batch_extents_max
        )
        origin = Level("origin", in_memory=False, admit=0.0, writes=False, rules=rules)
    return make(tiers, origin, settings.chain, settings.page_bytes)


def _admission(tier: TierSettings, settings: Settings) -> AdmissionRule:
    if tier.admit == "second touch":
        return SecondTouch(tier.capacity_bytes // settings.page_bytes, settings.seed)
    return tier.admit


def _write_limit(tier: TierSettings) -> WriteLimit | None:
    if tier.write_limit_bytes_per_s is None:
        return None
    return WriteLimit(tier.write_limit_bytes_per_s)


def _rules(
    level: TierSettings | OriginSettings, chain: ChainSettings, extent_pages: int, extents: int
) -> ExtentRules:
    batch_pages = chain.device_batch_pages
    longest = min(level.extent_pages_max, extent_pages, batch_pages)
    return ExtentRules(
        merge_gap_pages=level.merge_gap_pages,
        extent_pages_max=longest if chain.coalesce else 1,
        batch_pages=batch_pages,
        batch_extents=min(batch_pages, extents),
    )
