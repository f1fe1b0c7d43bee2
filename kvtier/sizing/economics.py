"""When a page is worth its place, and how long a drive lasts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from kvtier.settings import DeviceModel
from kvtier.settings.rates import reads_per_s
from kvtier.sizing.prices import Price
from kvtier.units import format_seconds

MIB: Final = 1 << 20
DAY_S: Final = 86_400
YEAR_DAYS: Final = 365
YEARS_MAX: Final = 1000.0
"""A drive that lasts longer, or is never written, is said to last so long."""


def break_even_s(
    *,
    pages_per_mib: float,
    accesses_per_s: float,
    dollars_per_device: float,
    dollars_per_mib: float,
) -> float:
    """The five-minute rule: a page that is read more often than this belongs into the upper tier.

    Keeping it there then costs less than the share of the lower device that its reads take.
    Gray and Putzolu, SIGMOD 1987; in this form Gray and Graefe, SIGMOD Record 26(4), 1997.

    Args:
        pages_per_mib: of the upper tier.
        accesses_per_s: of one device of the lower tier.
        dollars_per_device: of the lower tier.
        dollars_per_mib: of the upper tier.

    Returns:
        Seconds between two reads of a page.
    """
    return (pages_per_mib / accesses_per_s) * (dollars_per_device / dollars_per_mib)


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The five-minute rule between two neighbouring levels, with each number that it takes."""

    upper: str
    lower: str
    interval_s: float
    pages_per_mib: float
    accesses_per_s: float
    dollars_per_device: float
    dollars_per_mib: float


def between(
    upper: tuple[str, Price], lower: tuple[str, Price], model: DeviceModel, page_bytes: int
) -> BreakEven:
    """The break-even interval of two levels, each its name and price.

    Args:
        upper: where pages are kept.
        lower: where they are read otherwise.
        model: of the lower level; one device of it counts, at its slowest limit.
        page_bytes: of both.
    """
    numbers = {
        "pages_per_mib": MIB / page_bytes,
        "accesses_per_s": reads_per_s(replace(model, devices=1), page_bytes),
        "dollars_per_device": lower[1].dollars_per_device,
        "dollars_per_mib": upper[1].dollars_per_gib / 1024,
    }
    return BreakEven(upper[0], lower[0], break_even_s(**numbers), **numbers)


@dataclass(frozen=True, slots=True)
class Wear:
    """What writing does to a tier on drives.

    Attributes:
        written_bytes_per_day: by the host; ratings count these too.
        drive_writes_per_day: how often the tier's capacity is overwritten each day.
        rated_drive_writes_per_day: how often it may be, over the warranty.
        years: until the rated writes are used up, at most :data:`YEARS_MAX`.
    """

    written_bytes_per_day: float
    drive_writes_per_day: float
    rated_drive_writes_per_day: float
    years: float


def wear(price: Price, capacity_bytes: int, written_bytes: float, span_s: float) -> Wear | None:
    """The wear of a tier, None where its devices do not wear.

    The tier has the share of a drive's endurance that its capacity is of the drive's.

    Args:
        price: rates the endurance.
        capacity_bytes: of the tier.
        written_bytes: during the trace.
        span_s: how long the trace took when it was recorded, above 0.
    """
    if price.drive_writes_per_day is None or price.warranty_years is None:
        return None
    per_day = written_bytes * DAY_S / span_s
    rated_bytes = price.drive_writes_per_day * price.warranty_years * YEAR_DAYS * capacity_bytes
    years = rated_bytes / per_day / YEAR_DAYS if per_day else YEARS_MAX
    return Wear(
        per_day, per_day / capacity_bytes, price.drive_writes_per_day, min(years, YEARS_MAX)
    )


def format_years(years: float) -> str:
    """A life time: ``5 years``, ``2.6 days``, ``5 min``, ``1,000 years or more``."""
    if years >= YEARS_MAX:
        return f"{YEARS_MAX:,.0f} years or more"
    if years >= 1:
        return f"{years:.3g} years"
    days = years * YEAR_DAYS
    return f"{days:.3g} days" if days >= 1 else format_seconds(days * DAY_S)
