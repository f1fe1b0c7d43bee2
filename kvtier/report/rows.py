"""The lines of a report's tables: what a quantity is called, where it stands, how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from kvtier.units import format_bytes, format_count, format_seconds

Values: TypeAlias = Mapping[str, Any]

NOTHING: Final = "-"


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        label: what the reader sees.
        key: where the value stands in the mapping, dotted: ``latency_us.p99``.
        form: the value as text.
        is_decision: it does not depend on time, so ``replay`` and ``simulate`` agree on it.
    """

    label: str
    key: str
    form: Callable[[Any], str]
    is_decision: bool = False

    def value(self, values: Values) -> Any:
        """The value in ``values``, None where there is none."""
        value: Any = values
        for name in self.key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def show(self, values: Values) -> str:
        """The value as text, a dash where there is none."""
        value = self.value(values)
        return NOTHING if value is None else self.form(value)


def _exact(count: int) -> str:
    return f"{count:,}"


def _latency(us: float) -> str:
    return format_seconds(us * 1e-6)


LATENCY_ROWS: Final = (
    Row("latency p50", "latency_us.p50", _latency),
    Row("latency p99", "latency_us.p99", _latency),
    Row("latency p99.9", "latency_us.p999", _latency),
)


def level_rows(page_bytes: int) -> tuple[Row, ...]:
    """The lines of one level, tier or origin."""
    return (
        Row("engine", "engine", str),
        Row("lookups", "lookups", _exact, is_decision=True),
        Row("hits", "hits", _exact, is_decision=True),
        Row("hit rate", "hit_rate", "{:.1%}".format),
        Row("device reads", "device_reads", _exact, is_decision=True),
        Row("device writes", "device_writes", _exact, is_decision=True),
        Row("read", "read_bytes", format_bytes, is_decision=True),
        Row("evictions", "evictions", _exact, is_decision=True),
        Row("bypasses", "bypasses", _exact, is_decision=True),
        Row("failures", "failures", _exact, is_decision=True),
        Row("coalescing factor", "coalescing_factor", "{:.2f}".format),
        _iops(page_bytes),
        *LATENCY_ROWS,
    )


def demand_rows(page_bytes: int) -> tuple[Row, ...]:
    """The lines of what a whole run asked for; its latencies are apart."""
    return (
        Row("reads", "reads", _exact, is_decision=True),
        Row("delivered", "delivered", _exact, is_decision=True),
        Row("unique", "unique", _exact, is_decision=True),
        Row("absent", "absent", _exact, is_decision=True),
        Row("late", "late", _exact),
        Row("read", "bytes", format_bytes, is_decision=True),
        _iops(page_bytes),
    )


COALESCING_ROWS: Final = (
    Row("folded", "folded", _exact, is_decision=True),
    Row("joined", "joined", _exact, is_decision=True),
    Row("merged extents", "merged_extents", _exact, is_decision=True),
    Row("factor", "factor", "{:.2f}".format),
)


def levels_of(result: Values) -> list[tuple[str, Values]]:
    """The tiers by name and then the origin, as far as there are any.

    An origin is called just that: in ``simulate`` it stands for whatever backend is modelled.
    """
    levels = [(tier["name"], tier) for tier in result["tiers"]]
    return levels if result["origin"] is None else [*levels, ("origin", result["origin"])]


def _iops(page_bytes: int) -> Row:
    """IOPS never stand without their page size."""
    return Row(f"IOPS ({format_bytes(page_bytes)})", "iops", format_count)
