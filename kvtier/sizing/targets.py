"""What a configuration has to reach: ``hit_rate=0.5``, ``p99=2ms``, ``iops=1M``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple

from kvtier.errors import SettingsError
from kvtier.sizing.economics import YEARS_MAX, Wear, format_years
from kvtier.units import format_count, format_seconds, parse_seconds

Result = Mapping[str, Any]
Metrics = Mapping[str, float | None]

_COUNT: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([kMG]?)")
_COUNTS: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


class Metric(NamedTuple):
    """A quantity of a result that a target can bound.

    Attributes:
        meaning: one sentence for the report.
        at_least: the target is a lower bound, else an upper one.
        measure: its value in the result of a run with such wear, None where there is none.
        parse: of the text of a target; the second argument is its name.
        form: a value as text.
    """

    meaning: str
    at_least: bool
    measure: Callable[[Result, Sequence[Wear]], float | None]
    parse: Callable[[str, str], float]
    form: Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Target:
    """A bound of one metric.

    Attributes:
        name: of the metric.
        bound: a share, a count per second, or seconds.
    """

    name: str
    bound: float

    @property
    def metric(self) -> Metric:
        return METRICS[self.name]

    def is_met(self, value: float | None) -> bool:
        """Whether a measured value reaches the bound; what was not measured does not."""
        if value is None:
            return False
        return value >= self.bound if self.metric.at_least else value <= self.bound

    def show(self, value: float | None) -> str:
        """A value of the metric as text."""
        return "-" if value is None else self.metric.form(value)

    def __str__(self) -> str:
        sign = ">=" if self.metric.at_least else "<="
        return f"{self.name} {sign} {self.metric.form(self.bound)}"


def parse_target(text: str) -> Target:
    """The target of ``"NAME=VALUE"``.

    Raises:
        SettingsError: the name is unknown, or the value is none of that metric.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise SettingsError(f"--target {text}: write --target NAME=VALUE, e.g. hit_rate=0.5")
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(METRICS)}"
        raise SettingsError(f"--target {text}: unknown target {name}; {advice}")
    return Target(name, METRICS[name].parse(value, f"--target {name}"))


def _parse_share(text: str, name: str) -> float:
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,18})?)\s*(%?)", text)
    share = Decimal(match[1]) / (100 if match[2] else 1) if match else Decimal(-1)
    if not 0 <= share <= 1:
        raise SettingsError(f"{name}: {text!r} is no share; write 0 to 1, e.g. 0.5 or 50%")
    return float(share)


def _parse_count(text: str, name: str) -> float:
    match = _COUNT.fullmatch(text)
    if match is None:
        raise SettingsError(f"{name}: {text!r} is no count per second; write e.g. 500k or 1M")
    return float(Decimal(match[1]) * _COUNTS[match[2]])


def _hit_rate(result: Result, _: Sequence[Wear]) -> float | None:
    unique = result["demand"]["unique"]
    return sum(tier["hits"] for tier in result["tiers"]) / unique if unique else None


def _origin_iops(result: Result, _: Sequence[Wear]) -> float | None:
    duration_s = result["duration_s"]
    return float(result["origin"]["device_reads"] / duration_s) if duration_s else None


def _latency(percentile: str) -> Callable[[Result, Sequence[Wear]], float | None]:
    def measure(result: Result, _: Sequence[Wear]) -> float | None:
        value_us = result["demand"]["latency_us"][percentile]
        return None if value_us is None else float(value_us) * 1e-6

    return measure


def _iops(result: Result, _: Sequence[Wear]) -> float | None:
    value: float | None = result["demand"]["iops"]
    return value


def _tokens_per_s(result: Result, _: Sequence[Wear]) -> float | None:
    serving = result["serving"]
    return None if serving is None else serving["output_tokens_per_s"]


def _ttft_p99(result: Result, _: Sequence[Wear]) -> float | None:
    serving = result["serving"]
    value_us = None if serving is None else serving["ttft_us"]["p99"]
    return None if value_us is None else float(value_us) * 1e-6


def _years(_: Result, wears: Sequence[Wear]) -> float | None:
    return min((worn.years for worn in wears), default=YEARS_MAX)


def _parse_years(text: str, name: str) -> float:
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,18})?)( ?years?)?", text)
    if match is None:
        raise SettingsError(f"{name}: {text!r} is no number of years; write e.g. 5")
    return float(match[1])


def _share(value: float) -> str:
    return f"{value:.2%}"


METRICS: Final[Mapping[str, Metric]] = {
    "hit_rate": Metric(
        "share of the unique demand reads that a tier serves, before the origin",
        True,
        _hit_rate,
        _parse_share,
        _share,
    ),
    "origin_iops": Metric(
        "device reads at the origin per second of virtual time",
        False,
        _origin_iops,
        _parse_count,
        format_count,
    ),
    "p50": Metric(
        "median latency of a demand read",
        False,
        _latency("p50"),
        parse_seconds,
        format_seconds,
    ),
    "p99": Metric(
        "99th percentile of the latency of a demand read",
        False,
        _latency("p99"),
        parse_seconds,
        format_seconds,
    ),
    "iops": Metric(
        "pages delivered per second of virtual time",
        True,
        _iops,
        _parse_count,
        format_count,
    ),
    "tokens_per_s": Metric(
        "tokens of answers per second of virtual time (replay.drive = 'serving')",
        True,
        _tokens_per_s,
        _parse_count,
        format_count,
    ),
    "ttft_p99": Metric(
        "99th percentile of the time to the first token (replay.drive = 'serving')",
        False,
        _ttft_p99,
        parse_seconds,
        format_seconds,
    ),
    "years": Metric(
        "how long every drive lasts at its rating, with the writes of this trace day after day",
        True,
        _years,
        _parse_years,
        format_years,
    ),
}
"""By name, as ``--target`` has it."""
