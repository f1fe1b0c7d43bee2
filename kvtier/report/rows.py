"""The lines of every table: what a quantity is called, where it stands, how it is shown.

The terminal, the side-by-side table and the HTML page name and show a quantity by these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from kvtier.units import format_bytes, format_count, format_rate, format_seconds

Values: TypeAlias = Mapping[str, Any]

NOTHING: Final = "-"
QUOTIENT: Final = " / "


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        label: what the reader sees.
        key: where the value stands in the result, dotted: ``tiers.0.latency_us.p99``. Of a derived
            value two keys, the second of what the first is divided by:
            ``demand.reads / origin.device_reads``.
        form: the value as text.
        is_decision: it does not depend on time, so ``replay`` and ``simulate`` agree on it.
    """

    label: str
    key: str
    form: Callable[[Any], str]
    is_decision: bool = False

    def under(self, path: str) -> Row:
        """The same row of the part that stands at ``path``; an empty path is the whole."""
        if not path:
            return self
        keys = (f"{path}.{key}" for key in self.key.split(QUOTIENT))
        return self._replace(key=QUOTIENT.join(keys))

    def value(self, values: Values) -> Any:
        """The value in ``values``, None where there is none."""
        first, *divisors = (find(values, key) for key in self.key.split(QUOTIENT))
        for divisor in divisors:
            first = first / divisor if first is not None and divisor else None
        return first

    def show(self, values: Values) -> str:
        """The value as text, a dash where there is none."""
        value = self.value(values)
        return NOTHING if value is None else self.form(value)


def find(values: Values, key: str) -> Any:
    """What stands at a dotted key, None where there is nothing; a number counts list items."""
    value: Any = values
    for name in key.split("."):
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def exact(count: int) -> str:
    return f"{count:,}"


def percent(share: float) -> str:
    return f"{share:.1%}"


def factor(value: float) -> str:
    return f"{value:.2f}"


def _latency(us: float) -> str:
    return format_seconds(us * 1e-6)


def _signed_latency(us: float) -> str:
    return f"-{_latency(-us)}" if us < 0 else _latency(us)


LATENCY_ROWS: Final = (
    Row("latency p50", "latency_us.p50", _latency),
    Row("latency p90", "latency_us.p90", _latency),
    Row("latency p99", "latency_us.p99", _latency),
    Row("latency p99.9", "latency_us.p999", _latency),
    Row("latency max", "latency_us.max", _latency),
)
P50, P90, P99, P999, MAX = LATENCY_ROWS

ENGINE: Final = Row("engine", "engine", str)
HIT_RATE: Final = Row("hit rate", "hit_rate", percent)
DEVICE_READS: Final = Row("device reads", "device_reads", exact, is_decision=True)
BYTES_READ: Final = Row("bytes read", "read_bytes", format_bytes, is_decision=True)
FACTOR: Final = Row("coalescing factor", "coalescing_factor", factor)
READS: Final = Row("reads", "reads", exact, is_decision=True)
BYTES_DELIVERED: Final = Row("bytes delivered", "bytes", format_bytes, is_decision=True)
READS_PER_ORIGIN_READ: Final = Row(
    "reads per origin read", "demand.reads / origin.device_reads", factor
)


REQUEST_ROWS: Final = (
    Row("ended", "count", exact),
    Row("per second", "per_s", format_count),
    P50,
    P99,
    Row("in flight", "in_flight_mean", factor),
    Row("stalled", "stall_share", percent),
)


TTFT_SAVED: Final = Row("TTFT saved", "ttft_saved.mean_us", _signed_latency)
SERVING_ROWS: Final = (
    Row("output tokens/s", "output_tokens_per_s", format_count),
    Row("TTFT mean", "ttft_us.mean", _latency),
    Row("TTFT p50", "ttft_us.p50", _latency),
    Row("TTFT p99", "ttft_us.p99", _latency),
    Row("time per token p50", "tpot_us.p50", _latency),
    Row("time per token p99", "tpot_us.p99", _latency),
    Row("prompt tokens loaded", "loaded_tokens / prompt_tokens", percent),
)
UNCACHED_ROWS: Final = (
    Row("TTFT mean uncached", "uncached.ttft_us.mean", _latency),
    TTFT_SAVED,
    Row("share of TTFT saved", "ttft_saved.share", percent),
    Row("slower than uncached", "ttft_saved.slower_share", percent),
    Row("output tokens/s uncached", "uncached.output_tokens_per_s", format_count),
    Row("recomputing avoided", "recompute_s", format_seconds),
)
NODE_ROWS: Final = (
    Row("steps", "steps", exact),
    Row("sequences per step", "batch_mean", factor),
    Row("step p50", "step_us.p50", _latency),
    Row("step p99", "step_us.p99", _latency),
    Row("stalled", "stall_share", percent),
    Row("stall per step", "stall_per_step_us", _latency),
    Row("queue p50", "queue_us.p50", _latency),
    Row("queue p99", "queue_us.p99", _latency),
    Row("load p50", "load_us.p50", _latency),
    Row("load p99", "load_us.p99", _latency),
    Row("tokens loaded", "loaded_tokens", exact),
    Row("tokens computed", "computed_tokens", exact),
    Row("KV cache at most", "kv_peak_bytes", format_bytes),
)


def level_rows(page_bytes: int) -> tuple[Row, ...]:
    """The lines of one level, tier or origin."""
    return (
        ENGINE,
        Row("lookups", "lookups", exact, is_decision=True),
        Row("hits", "hits", exact, is_decision=True),
        HIT_RATE,
        DEVICE_READS,
        Row("device writes", "device_writes", exact, is_decision=True),
        Row("pages moved", "moved_pages", exact, is_decision=True),
        BYTES_READ,
        Row("evictions", "evictions", exact, is_decision=True),
        Row("bypasses", "bypasses", exact, is_decision=True),
        Row("failures", "failures", exact, is_decision=True),
        FACTOR,
        iops_row(page_bytes),
        *LATENCY_ROWS,
    )


def demand_rows(page_bytes: int) -> tuple[Row, ...]:
    """The lines of what was asked for; its latencies are apart."""
    return (
        READS,
        Row("delivered", "delivered", exact, is_decision=True),
        Row("unique", "unique", exact, is_decision=True),
        Row("absent", "absent", exact, is_decision=True),
        Row("late", "late", exact),
        BYTES_DELIVERED,
        iops_row(page_bytes),
    )


COALESCING_ROWS: Final = (
    Row("folded", "folded", exact, is_decision=True),
    Row("joined", "joined", exact, is_decision=True),
    Row("merged extents", "merged_extents", exact, is_decision=True),
    Row("factor", "factor", factor),
)

WEAR_ROWS: Final = (
    Row("written", "written_bytes", format_bytes),
    Row("write amplification", "write_amplification", factor),
    Row("drive writes per day", "drive_writes_per_day", factor),
    Row("pages over the write limit", "write_capped_pages", exact),
)

VERIFY_ROWS: Final = (
    Row("pages checked", "checked_pages", exact),
    Row("corrupt", "corrupt_pages", exact),
)

MODEL_ROWS: Final = (
    Row("preset", "preset", str),
    Row("devices", "devices", exact),
    Row("latency", "latency_us", _latency),
    Row("IOPS", "iops", format_count),
    Row("bandwidth", "bytes_per_s", format_rate),
    Row("source", "source", str),
)
"""The columns of a device model; the figures are of all its devices together."""


def levels_of(part: Values) -> list[tuple[str, Values]]:
    """The tiers by name and then the origin, as far as there are any.

    An origin is called just that: in ``simulate`` it stands for whatever backend is modelled.
    """
    levels = [(tier["name"], tier) for tier in part["tiers"]]
    return levels if part["origin"] is None else [*levels, ("origin", part["origin"])]


def level_keys(part: Values) -> dict[str, str]:
    """Where each level stands: ``{"hbm": "tiers.0", …, "origin": "origin"}``."""
    keys = {tier["name"]: f"tiers.{number}" for number, tier in enumerate(part["tiers"])}
    return keys if part["origin"] is None else {**keys, "origin": "origin"}


def parts_of(result: Values) -> dict[str, Values]:
    """What was read for each purpose, if that says more than the whole: for two or more."""
    parts: dict[str, Values] = result.get("by_purpose") or {}
    return parts if len(parts) > 1 else {}


def gpus_of(result: Values) -> list[Values]:
    """The GPUs of a result, if there are several."""
    return result.get("gpus") or []


def iops_row(page_bytes: int) -> Row:
    """IOPS never stand without their page size."""
    return Row(f"IOPS ({format_bytes(page_bytes)})", "iops", format_count)
