"""The result of ``kvtier size`` as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvtier.sizing.economics import format_years
from kvtier.sizing.grid import describe
from kvtier.sizing.targets import Target
from kvtier.units import format_bytes, format_count, format_seconds

Values = Mapping[str, Any]

_NOTHING: Final = "-"
_HOUR_S: Final = 3600
_DAY_S: Final = 24 * _HOUR_S


def print_sizing(result: Values, console: Console) -> None:
    """Show the answer, its levels, the break-even intervals, what is cheaper, and assumptions."""
    console.print(_headline(result))
    console.print(_target_table(result))
    console.print(_level_table(result))
    console.print(_break_even_table(result))
    if result["cheaper"]:
        console.print(_cheaper_table(result))
    console.print(_notes(result))


def statement(search: Values) -> str:
    """How sure the answer is, in one sentence."""
    counts = f"{search['simulated']} of {search['configurations']} configurations simulated"
    if search["ended"] == "interrupted":
        return f"{counts}, then interrupted: the cheapest found until then, not proven"
    if search["ended"] == "budget":
        return (
            f"{counts}, which is the whole --budget: the cheapest found, not proven to be the "
            "cheapest"
        )
    if not search["cheaper_not_simulated"]:
        return f"{counts}: every cheaper one was simulated, and misses"
    surprise = (
        f"; this failed {search['surprises']} time(s), so run again with --exhaustive"
        if search["surprises"]
        else "; its cheaper neighbours were simulated, and miss"
    )
    return (
        f"{counts}; {search['cheaper_not_simulated']} cheaper ones are ruled out by the assumption "
        f"that, with the same tiers, more capacity never misses what less meets{surprise}"
    )


def _headline(result: Values) -> Text:
    trace = result["trace"]
    headline = Text.assemble(
        ("kvtier size", "bold"),
        f"  {trace['path']} ({trace['requests']:,} requests), "
        f"pages of {format_bytes(trace['page_bytes'])}, seed {result['seed']}",
    )
    labels = ["modelled"]
    if trace["scaled"]:
        whole = trace["full_pages_per_block"]
        labels.append(f"scaled: {trace['pages_per_block']} of {whole} pages per block")
    if trace["synthetic"]:
        parts = (entry.partition(":")[0] for entry in trace["synthetic"])
        labels.append(f"synthetic: {', '.join(parts)}")
    if not result["complete"]:
        labels.append("interrupted")
    for label in labels:
        headline.append("  ").append(f"*{label}*", "yellow")
    return headline


def _target_table(result: Values) -> Table:
    table = _table("target", "reached", "meaning", right=1)
    for one in result["targets"]:
        target = Target(one["name"], one["bound"])
        table.add_row(str(target), target.show(one["value"]), one["meaning"])
    return table


def _level_table(result: Values) -> Table:
    answer, levels = result["answer"], result["answer"]["levels"]
    table = _table("", *(level["name"] for level in levels), "tiers", right=len(levels) + 1)
    scaled = result["trace"]["scaled"]
    if scaled:
        table.add_row(
            "simulated capacity", *(format_bytes(one["simulated_bytes"]) for one in levels), ""
        )
    table.add_row(
        "capacity at full geometry" if scaled else "capacity",
        *(format_bytes(one["full_bytes"]) for one in levels),
        "",
    )
    table.add_row("devices", *(_short(one["devices"]) for one in levels), "")
    prices = (dollars(one["dollars"]) for one in levels)
    table.add_row("price", *prices, Text(dollars(answer["dollars"]), "bold"))
    rates = (_share(one["hit_rate"]) for one in levels)
    table.add_row("hit rate", *rates, _share(answer["metrics"]["hit_rate"]))
    table.add_row("hits/s", *(_count(one["hits_per_s"]) for one in levels), "")
    if any(level["wear"] for level in levels):
        _add_wear(table, levels)
    return table


def _add_wear(table: Table, levels: Sequence[Values]) -> None:
    for label, key, form in (
        ("written per day", "written_bytes_per_day", format_bytes),
        ("drive writes per day", "drive_writes_per_day", _short),
        ("rated for", "rated_drive_writes_per_day", _short),
        ("worn after", "years", format_years),
    ):
        cells = (_NOTHING if one["wear"] is None else form(one["wear"][key]) for one in levels)
        table.add_row(label, *cells, "")


def _break_even_table(result: Values) -> Table:
    table = _table(
        "break-even", "interval", "pages/MiB", "accesses/s", "$/device", "$/MiB", right=5
    )
    for one in result["break_even"]:
        table.add_row(
            f"{one['upper']} over {one['lower']}",
            interval(one["interval_s"]),
            _short(one["pages_per_mib"]),
            f"{format_count(one['accesses_per_s'])} ({one['lower']})",
            f"{dollars(one['dollars_per_device'])} ({one['lower']})",
            f"{dollars(one['dollars_per_mib'])} ({one['upper']})",
        )
    return table


def _cheaper_table(result: Values) -> Table:
    table = _table("cheaper, and misses", "price", "reached", right=1, skip=1)
    for one in result["cheaper"]:
        missed = (
            Target(target["name"], target["bound"])
            for target in result["targets"]
            if target["name"] in one["missed"]
        )
        reached = ", ".join(
            f"{each.name} {each.show(one['metrics'][each.name])}" for each in missed
        )
        table.add_row(describe(one["full_bytes"]), dollars(one["dollars"]), reached)
    return table


def _notes(result: Values) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, text in _note_lines(result):
        table.add_row(Text(name, "bold"), Text(text))
    return table


def _note_lines(result: Values) -> Iterator[tuple[str, str]]:
    yield "search", statement(result["search"])
    if result["trace"]["scaled"]:
        yield (
            "scale",
            f"prices and wear are of the full geometry, {result['scale']:g} times what "
            "is simulated; latencies and rates are those of the scaled trace",
        )
    there = [level["name"] for level in result["answer"]["levels"]]
    for name in there:
        yield f"{name} price", result["prices"][name]["source"]
    yield (
        "price",
        "of capacity alone: a tier pays for its share of a device, and has all of its accesses; "
        "every configuration needs the origin, so its price is no part of the sum",
    )
    yield from _wear_lines(result)
    yield (
        "break-even",
        "pages/MiB / accesses/s * $/device / $/MiB, the five-minute rule of Gray and Putzolu: a "
        "page read more often than once in this time belongs into the upper level",
    )
    for model in result["models"]:
        yield f"{model['level']} model", f"{model['preset']}: {model['source']}"


def _wear_lines(result: Values) -> Iterator[tuple[str, str]]:
    pace = result["pace"]
    for level in result["answer"]["levels"]:
        if level["wear"] is None:
            continue
        name, years = level["name"], level["wear"]["years"]
        yield (
            f"{name} wear",
            f"writes of {format_seconds(pace['span_s'])} ({pace['source']}), as the host sees "
            "them, against the share of the rating that the capacity buys",
        )
        warranty_years = result["prices"][name]["warranty_years"]
        if years < warranty_years:
            yield (
                "",
                f"WORN after {format_years(years)}, before its warranty of "
                f"{format_years(warranty_years)} ends: ask for --target years={warranty_years:g}, "
                f"or write less there (tiers.{name}.write, tiers.{name}.admit)",
            )


def dollars(value: float) -> str:
    """A price, with the digits that matter: ``$12,345``, ``$12.30``, ``$0.00012``."""
    if value >= 1000:
        return f"${value:,.0f}"
    return f"${value:.2f}" if value >= 1 or not value else f"${_short(value)}"


def interval(seconds: float) -> str:
    """A time up to years: ``400 us``, ``5 min``, ``3.2 h``, ``12.5 days``."""
    if seconds < 2 * _HOUR_S:
        return format_seconds(seconds)
    if seconds < 2 * _DAY_S:
        return f"{seconds / _HOUR_S:.1f} h"
    return f"{seconds / _DAY_S:,.1f} days"


def _short(value: float) -> str:
    """Three significant digits, without an exponent where that is still readable."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _share(share: float | None) -> str:
    return _NOTHING if share is None else f"{share:.1%}"


def _count(value: float | None) -> str:
    return _NOTHING if value is None else format_count(value)


def _table(*heads: str, right: int, skip: int = 1) -> Table:
    """A table whose columns after the first ``skip`` are aligned right, ``right`` of them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if skip <= number < skip + right else "left")
    return table
