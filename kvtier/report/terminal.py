"""One result as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kvtier.report.rows import (
    COALESCING_ROWS,
    LATENCY_ROWS,
    NODE_ROWS,
    READS_PER_ORIGIN_READ,
    REQUEST_ROWS,
    SERVING_ROWS,
    UNCACHED_ROWS,
    VERIFY_ROWS,
    WEAR_ROWS,
    Row,
    Values,
    demand_rows,
    exact,
    factor,
    gpus_of,
    level_rows,
    levels_of,
    parts_of,
    percent,
)
from kvtier.report.sections import part_headline
from kvtier.report.soundness import check_figures, check_sums, sum_rules
from kvtier.units import format_bytes, format_count, format_seconds

_GPUS_SHOWN: Final = 16
"""Lines of the table of GPUs; there may be hundreds."""

_CROSSINGS_SHOWN: Final = 8
"""Stations of which a summary says from which hit rate on they keep up."""

_STATIONS_SHOWN: Final = 16
"""Devices and links of which a summary says how busy they were."""


def print_report(result: Mapping[str, Any], console: Console) -> None:
    """Show a result: what ran, every level, demand and coalescing, and the sums that must hold."""
    console.print(_headline(result))
    console.print(_level_table(result))
    if parts_of(result):
        console.print(_part_table(result))
    if gpus_of(result):
        console.print(_gpu_table(result))
    console.print(_summary_table(result))
    print_broken_sums(result, console)


def print_broken_sums(result: Mapping[str, Any], console: Console) -> None:
    """Say loudly which sums of a result do not hold, and what cannot be; of a sound one nothing."""
    broken = check_sums(result)
    if broken:
        text = "\n".join([*broken, "These numbers cannot be trusted: this is a bug in kvtier."])
        console.print(Panel(Text(text), title="SUMS BROKEN", border_style="bold red"))
    wrong = check_figures(result)
    if wrong:
        console.print(Panel(Text("\n".join(wrong)), title="IMPOSSIBLE", border_style="bold red"))


def labels_of(result: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside every number: scaled, synthetic, modelled, interrupted."""
    trace = result["trace"]
    labels = []
    if result["mode"] == "simulate":
        labels.append("modelled")
    if trace["scaled"]:
        whole = trace["full_pages_per_block"]
        labels.append(f"scaled: {trace['pages_per_block']} of {whole} pages per block")
    if trace["synthetic"]:
        # Each entry names a part, and after a colon how it was made: that is in the JSON.
        parts = (entry.partition(":")[0] for entry in trace["synthetic"])
        labels.append(f"synthetic: {', '.join(parts)}")
    if not result["complete"]:
        labels.append("interrupted: measured until then")
    return labels


def _headline(result: Values) -> Text:
    trace = result["trace"]
    name = result.get("name") or result["mode"]
    headline = Text.assemble(
        (f"kvtier {result['mode']}", "bold"),
        "" if name == result["mode"] else f"  {name}",
        f"  {trace['path']} ({trace['kind']}, {trace['requests']:,} requests), "
        f"pages of {format_bytes(trace['page_bytes'])}, seed {result['seed']}, "
        f"{format_seconds(result['duration_s'])}",
    )
    for label in labels_of(result):
        headline.append("  ").append(f"*{label}*", "yellow")
    return headline


def _level_table(result: Values) -> Table:
    levels = levels_of(result)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name, level in levels:
        backend = f" ({level['name']})" if name != level["name"] else ""
        table.add_column(Text(name + backend), justify="right", no_wrap=True)
    for row in level_rows(result["trace"]["page_bytes"]):
        table.add_row(row.label, *(Text(row.show(level)) for _, level in levels))
    return table


def _part_table(result: Values) -> Table:
    """The headline numbers of the reads for each purpose."""
    parts = parts_of(result)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for purpose in parts:
        table.add_column(Text(purpose), justify="right", no_wrap=True)
    columns = [part_headline(part, result["trace"]["page_bytes"]) for part in parts.values()]
    for rows in zip(*columns, strict=True):
        shown = (Text(row.show(part)) for row, part in zip(rows, parts.values(), strict=True))
        table.add_row(rows[0].label, *shown)
    return table


def _gpu_table(result: Values) -> Table:
    """A line for each GPU: its requests, and the headline numbers of its reads."""
    gpus = gpus_of(result)
    ended = Row("requests", "requests.count", exact)
    headline = part_headline(gpus[0], result["trace"]["page_bytes"])
    rows = (ended, *(row for row in headline if row is not READS_PER_ORIGIN_READ))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for row in rows:
        table.add_column(Text(row.label), justify="right")
    for gpu in gpus[:_GPUS_SHOWN]:
        table.add_row(Text(gpu["name"]), *(Text(row.show(gpu)) for row in rows))
    if len(gpus) > _GPUS_SHOWN:
        table.caption = f"and {len(gpus) - _GPUS_SHOWN} more: --json has them all"
    return table


def _summary_table(result: Values) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, text in _summary(result):
        table.add_row(Text(name, "bold"), Text(text))
    for name, (sentence, holds) in zip(("sums", ""), sum_rules(result), strict=True):
        style = "green" if holds else "bold red"
        table.add_row(Text(name, "bold"), Text(sentence + ("" if holds else "  BROKEN"), style))
    return table


def _summary(result: Values) -> Iterator[tuple[str, str]]:
    yield "demand", _listed(demand_rows(result["trace"]["page_bytes"]), result["demand"])
    yield "latency", _percentiles(result["demand"])
    yield "batches", f"{result['batches']['count']:,}; {_percentiles(result['batches'])}"
    if "drive" in result and "requests" in result:  # an older version drove in waves only
        yield "requests", f"{_driven(result['drive'])}; {_listed(REQUEST_ROWS, result['requests'])}"
    yield from _served(result.get("serving"))
    yield "coalescing", _listed(COALESCING_ROWS, result["coalescing"])
    writes = result["writes"]
    if writes["objects"]:
        size = format_bytes(writes["bytes"])
        yield "writes", f"{writes['objects']:,} objects, {writes['pages']:,} pages, {size}"
    for tier in result["tiers"]:
        if tier.get("written_bytes") or tier.get("write_capped_pages"):
            yield f"{tier['name']} wear", _listed(WEAR_ROWS, tier)
    if result["utilisation"]:
        shares = _busiest(result["utilisation"])
        yield "utilisation", f"{shares}; bottleneck: {result['bottleneck'] or 'none'}"
    yield from _crossings(result.get("crossover"))
    yield "verify", _verified(result["verify"])


def _crossings(crossover: Values | None) -> Iterator[tuple[str, str]]:
    """A line for each station below the first tier; an older version did not say.

    Of many stations, those that are the farthest from what they need.
    """
    stations = crossover["stations"] if crossover else []
    farthest = sorted(stations, key=lambda one: one["hit_rate"] - one["hit_rate_needed"])
    for number, one in enumerate(stations if len(stations) <= _CROSSINGS_SHOWN else farthest):
        if number == _CROSSINGS_SHOWN:
            yield "", f"and {len(stations) - number} stations that are nearer to it"
            break
        bound = "binds" if one["binds"] else "does not bind"
        needed, there_was = percent(one["hit_rate_needed"]), percent(one["hit_rate"])
        yield (
            "" if number else "crossover",
            f"{one['station']}, {format_count(one['pages_per_s'])} pages/s: keeps up from a hit "
            f"rate of {needed} on, it was {there_was}: {bound}",
        )


def _busiest(utilisation: Mapping[str, float]) -> str:
    """Devices and links in their order, as far as they are among the busiest."""
    kept = sorted(utilisation, key=lambda name: -utilisation[name])[:_STATIONS_SHOWN]
    shares = ", ".join(f"{name} {used:.0%}" for name, used in utilisation.items() if name in kept)
    left = len(utilisation) - len(kept)
    return f"{shares}, and {left} less busy" if left else shares


def _driven(drive: Values) -> str:
    """The kind of drive, and what it was given."""
    several = (drive.get("gpus") or 1) > 1
    rows = (
        *((Row("GPUs", "gpus", exact), Row("spread", "spread", str)) if several else ()),
        Row("at once on each" if several else "at once", "concurrency", exact),
        Row("compute", "compute_s", format_seconds),
        Row("tick", "tick_s", format_seconds),
        Row("speed", "speed", factor),
        Row("event log", "events.path", str),
    )
    known = tuple(row for row in rows if row.value(drive) is not None)
    return f"{drive['kind']}, {_listed(known, drive)}"


def _served(serving: Values | None) -> Iterator[tuple[str, str]]:
    """What a model server did, if there was one."""
    if serving is None:
        return
    model, compute = serving["model"]["name"], serving["compute"]
    gpus = f"{compute['devices']} x {compute['preset']}"
    yield "serving", f"{model} on {gpus}; {_listed(SERVING_ROWS, serving)}"
    if serving["uncached"] is not None:
        yield "uncached", _listed(UNCACHED_ROWS, serving)
    for node in serving["nodes"]:
        yield f"node {node['name']}", _listed(NODE_ROWS, node)


def _percentiles(values: Values) -> str:
    known = [row for row in LATENCY_ROWS if row.value(values) is not None]
    shown = (f"{row.label.removeprefix('latency ')} {row.show(values)}" for row in known)
    return ", ".join(shown) or "nothing measured"


def _listed(rows: tuple[Row, ...], values: Values) -> str:
    return ", ".join(f"{row.label} {row.show(values)}" for row in rows)


def _verified(verify: Values | None) -> str:
    if verify is None:
        return "no bytes moved, none to check"
    return ", ".join(f"{row.show(verify)} {row.label}" for row in VERIFY_ROWS)
