"""What holds of every result: sums that add up, and figures that can be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

SHARE_TOLERANCE: Final = 1e-6
"""By how much a quotient of rounded times may be above 1."""


def sum_rules(result: Mapping[str, Any]) -> tuple[tuple[str, bool], ...]:
    """The two sums of a result, or of a part of one: each as a sentence, and whether it holds."""
    demand, coalescing = result["demand"], result["coalescing"]
    origin = result["origin"] or {"hits": 0, "failures": 0}
    hits = sum(tier["hits"] for tier in result["tiers"])
    reads, unique, absent = demand["reads"], demand["unique"], demand["absent"]
    folded, joined = coalescing["folded"], coalescing["joined"]
    parts = (hits, joined, origin["hits"], origin["failures"], absent)
    return (
        (f"{reads:,} reads = {unique:,} unique + {folded:,} folded", reads == unique + folded),
        (
            "{:,} unique = {:,} tier hits + {:,} joined + {:,} origin hits + {:,} failed + "
            "{:,} absent".format(unique, *parts),
            unique == sum(parts),
        ),
    )


def check_sums(result: Mapping[str, Any]) -> list[str]:
    """The rules that a result breaks, each as a sentence with its numbers; empty for a sound one.

    ``demand.reads = demand.unique + coalescing.folded``, and ``demand.unique`` = all tier hits +
    ``coalescing.joined`` + origin hits + origin failures + ``demand.absent``. The same for the
    reads of each purpose, and for those of each GPU, whose counts add up to those of the whole.
    """
    rules = list(sum_rules(result))
    by_purpose: Mapping[str, Mapping[str, Any]] | None = result.get("by_purpose")
    by_gpu = {gpu["name"]: gpu for gpu in result.get("gpus") or ()}
    for parts in (by_purpose, by_gpu or None):
        if parts is None:  # of one GPU, or of an older version, which did not count by purpose
            continue
        for name, part in parts.items():
            rules += ((f"{name}: {sentence}", holds) for sentence, holds in sum_rules(part))
        rules += _part_rules(result, parts)
    return [f"not so: {sentence}" for sentence, holds in rules if not holds]


def check_figures(result: Mapping[str, Any]) -> list[str]:
    """What no run can come to, each as a sentence with its key and number; empty for a sound one.

    No count, rate or time is negative; a share is 0 to 1; the bottleneck is a part that was busy.
    """
    flaws = [
        f"{key} is {number:g}, and nothing can be below 0" for key, number in _negative(result)
    ]
    shares = {
        f"tiers.{number}.hit_rate": tier["hit_rate"] for number, tier in enumerate(result["tiers"])
    }
    shares["requests.stall_share"] = result.get("requests", {}).get("stall_share")
    used = result["utilisation"] or {}
    shares |= {f"utilisation.{name}": share for name, share in used.items()}
    flaws += [
        f"{key} is {share:g}, and a share cannot be above 1"
        for key, share in shares.items()
        if share is not None and share > 1 + SHARE_TOLERANCE
    ]
    if result["bottleneck"] is not None and result["bottleneck"] not in used:
        flaws.append(f"bottleneck is {result['bottleneck']!r}, which is no part of utilisation")
    return flaws


def _negative(value: object, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number below 0, but for differences, and those that kvtier did not come to itself."""
    if key in ("config", "environment", "serving.ttft_saved"):
        return
    if isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, item in items:
            yield from _negative(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, int | float) and value < 0:
        yield key, value


def _part_rules(
    result: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, bool]]:
    """Each count that is kept by purpose is the sum of its parts."""
    counts = [_counts(part) for part in parts.values()]
    for name, whole in _counts(result).items():
        shares = [part.get(name, 0) for part in counts]
        terms = (f"{share:,} {part}" for share, part in zip(shares, parts, strict=True))
        yield f"{whole:,} {name} = {' + '.join(terms) or 0}", whole == sum(shares)


def _counts(part: Mapping[str, Any]) -> dict[str, int]:
    """The counts that add up over purposes and over GPUs, by what they are called."""
    levels = {tier["name"]: tier for tier in part["tiers"]}
    if part["origin"] is not None:
        levels["origin"] = part["origin"]
    return {
        "reads": part["demand"]["reads"],
        "unique": part["demand"]["unique"],
        "folded": part["coalescing"]["folded"],
        "joined": part["coalescing"]["joined"],
        **{f"{name} hits": level["hits"] for name, level in levels.items()},
        **{f"{name} device reads": level["device_reads"] for name, level in levels.items()},
    }
