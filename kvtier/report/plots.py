"""The plots of the page, as figures for Plotly: plain JSON, and a sentence that reads each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from kvtier.report.comparison import Run
from kvtier.report.drawing import (
    AXES_PX,
    BAR_PX,
    DEVICE_READS,
    Figure,
    Key,
    Plot,
    axis_of,
    categories_axis,
    colour_of,
    in_order,
    keys_of,
    layout_of,
    plain,
)
from kvtier.report.rows import Row, Values, exact, factor, find, level_keys, parts_of, percent
from kvtier.report.sections import shares
from kvtier.units import format_bytes, format_count, format_seconds

POINTS_MAX: Final = 128
"""Intervals in a plot over time; of a longer series, neighbours are counted together."""

_PERCENTILES: Final = (
    # The name, its key in latency_us, Plotly's symbol, the same symbol as text.
    ("p50", "p50", "circle", "●"),
    ("p90", "p90", "diamond", "◆"),
    ("p99", "p99", "square", "■"),
    ("p99.9", "p999", "triangle-up", "▲"),
    ("max", "max", "line-ns-open", "|"),
)
_LABELS_MAX: Final = 5


def served(runs: Sequence[Run]) -> Plot:
    """Where the demand reads of each run were served."""
    bars = [(run.name, run.result, shares(run.result)) for run in runs]
    return _served("Where each read was served", runs, bars)


def served_by_purpose(runs: Sequence[Run]) -> Plot | None:
    """The same for each purpose; None where all reads had one."""
    bars = [
        (f"{purpose} ({run.name})", run.result, shares(part, f"by_purpose.{purpose}"))
        for purpose in dict.fromkeys(name for run in runs for name in parts_of(run.result))
        for run in runs
        for part in [parts_of(run.result).get(purpose)]
        if part is not None
    ]
    return _served("Where reads were served, by purpose", runs, bars) if bars else None


def hit_rates(run: Run) -> Plot | None:
    """The hit rate of each tier over time; None where the series lacks lookups."""
    series = run.result["series"]
    if not series.get("lookups") or not series["t_s"] or not run.result["tiers"]:
        return None
    names = [tier["name"] for tier in run.result["tiers"]]
    columns = [series[kind][name] for name in names for kind in ("hits", "lookups")]
    times, merged = _merged(series["t_s"], columns)
    data: list[Figure] = []
    for name, hits, lookups in zip(names, merged[::2], merged[1::2], strict=True):
        rates = [_ratio(100 * hit, all_) for hit, all_ in zip(hits, lookups, strict=True)]
        data.append(_steps(name, times, rates, run) | {"mode": "lines"})
    whole = (
        f"{tier['name']} {percent(tier['hit_rate'])}"
        for tier in run.result["tiers"]
        if tier["hit_rate"] is not None
    )
    reading = f"Over the whole run: {', '.join(whole) or 'no lookups'} of the lookups there."
    layout = layout_of(300, _time_axis(run), axis_of("hit rate (% of lookups)", range=[0, 101]))
    return Plot(
        "Hit rate of each tier over time",
        (run,),
        reading,
        keys_of(names),
        data,
        layout,
    )


def delivered(run: Run) -> Plot | None:
    """Pages delivered per second by each level over time; None where the series lacks them."""
    series, page_bytes = run.result["series"], run.result["trace"]["page_bytes"]
    if not series.get("delivered") or not series["t_s"]:
        return None
    names = list(series["delivered"])
    times, merged = _merged(series["t_s"], list(series["delivered"].values()))
    lengths = [end - start for start, end in pairwise((0.0, *times))]
    rates = [
        [_ratio(count, length) or 0.0 for count, length in zip(column, lengths, strict=True)]
        for column in merged
    ]
    data: list[Figure] = [
        _steps(name, times, rate, run)
        | {"mode": "lines", "stackgroup": "levels", "fillcolor": colour_of(name)}
        for name, rate in zip(names, rates, strict=True)
    ]
    peak = max(map(sum, zip(*rates, strict=True)))
    size = format_bytes(page_bytes)
    mean = run.result["demand"]["iops"]
    reading = (
        f"{format_count(mean or 0)} pages of {size} per second over the whole run, "
        f"{format_count(peak)} in its best interval."
    )
    axis = axis_of(f"IOPS (pages of {size} per second)", tickformat="~s", rangemode="tozero")
    layout = layout_of(300, _time_axis(run), axis)
    return Plot(
        "IOPS of each level over time",
        (run,),
        reading,
        keys_of(names),
        data,
        layout,
    )


def latency(runs: Sequence[Run]) -> Plot | None:
    """Percentiles of the latency of a page, of all reads and of those each level served."""
    rows = list(_latency_rows(runs))
    if not rows:
        return None
    names = [name for name, _, _ in rows]
    data: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [one["p50"], one["max"]],
            "y": [name, name],
            "line": {"color": colour_of(level), "width": 2},
            "hoverinfo": "skip",
        }
        for name, level, one in rows
    ]
    data += [
        {
            "type": "scatter",
            "mode": "markers",
            "name": title,
            "x": [one[key] for _, _, one in rows],
            "y": names,
            "marker": {
                "symbol": symbol,
                "size": 11 if key == "max" else 9,
                "color": [colour_of(level) for _, level, _ in rows],
                "line": {"width": 2 if key == "max" else 0},
            },
            "customdata": [format_seconds(one[key] * 1e-6) for _, _, one in rows],
            "hovertemplate": f"{title} %{{customdata}}<extra></extra>",
        }
        for title, key, symbol, _ in _PERCENTILES
    ]
    axis = axis_of("latency of a page (log scale)", type="log", **_decades(rows))
    layout = layout_of(AXES_PX + BAR_PX * len(rows), axis, categories_axis(names))
    marks = tuple(Key(mark, "", title) for title, _, _, mark in _PERCENTILES)
    reading = " ".join(
        f"{run.name}: half of the pages within {format_seconds(one['p50'] * 1e-6)}, 99% within "
        f"{format_seconds(one['p99'] * 1e-6)}."
        for run in runs
        for one in [run.result["demand"]["latency_us"]]
        if one["p50"] is not None
    )
    return Plot("Latency by level", tuple(runs), reading, marks, data, layout)


def coalescing(runs: Sequence[Run]) -> Plot:
    """Demand reads, unique reads, and the device reads that were left of them."""
    stages: dict[str, dict[str, int]] = {}
    for run in runs:
        for stage, count in _stages(run.result):
            stages.setdefault(stage, {})[run.name] = count
    stages = {stage: stages[stage] for stage in in_order(stages)}
    data: list[Figure] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": stage,
            "x": list(counts.values()),
            "y": list(counts),
            "text": [format_count(count) for count in counts.values()],
            "customdata": [exact(count) for count in counts.values()],
            "textposition": "outside",
            "cliponaxis": False,
            "marker": {"color": colour_of(stage)},
            "hovertemplate": "%{customdata} %{fullData.name}<extra></extra>",
        }
        for stage, counts in stages.items()
    ]
    most = max((count for counts in stages.values() for count in counts.values()), default=0)
    axis = axis_of("operations", range=[0, max(1, most) * 1.3], tickformat="~s", nticks=6)
    height = AXES_PX + (BAR_PX - 6) * sum(map(len, stages.values()))
    layout = layout_of(height, axis, categories_axis([run.name for run in runs])) | {
        "barmode": "group"
    }
    said: dict[str, list[str]] = {}
    for run in runs:
        said.setdefault(_coalesced(run.result), []).append(run.name)
    reading = " ".join(f"{', '.join(names)}: {sentence}" for sentence, names in said.items())
    return Plot(
        "From demand reads to device reads",
        tuple(runs),
        reading,
        keys_of(stages),
        data,
        layout,
    )


def utilisation(runs: Sequence[Run]) -> Plot | None:
    """How busy each modelled device was; None where nothing was simulated."""
    modelled = [run for run in runs if run.result["utilisation"]]
    if not modelled:
        return None
    names = in_order(name for run in modelled for name in run.result["utilisation"])
    data: list[Figure] = []
    for name in names:
        used = {r.name: r.result["utilisation"].get(name) for r in modelled}
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "x": [None if share is None else 100 * share for share in used.values()],
                "y": list(used),
                "text": [None if share is None else percent(share) for share in used.values()],
                "textposition": "outside",
                "cliponaxis": False,
                "marker": {"color": colour_of(name)},
                "hovertemplate": "%{fullData.name} %{text}<extra></extra>",
            }
        )
    axis = axis_of("share of time busy (%)", range=[0, 125], tickvals=[0, 25, 50, 75, 100])
    height = AXES_PX + (BAR_PX - 6) * len(names) * len(modelled)
    order = categories_axis([run.name for run in modelled])
    layout = layout_of(height, axis, order) | {"barmode": "group"}
    reading = " ".join(
        f"{run.name}: {run.result['bottleneck']} is the bottleneck, busy "
        f"{percent(run.result['utilisation'][run.result['bottleneck']])} of the time."
        for run in modelled
        if run.result["bottleneck"] in run.result["utilisation"]
    )
    return Plot(
        "Utilisation of the modelled devices",
        tuple(modelled),
        reading,
        keys_of(names),
        data,
        layout,
    )


def _served(
    title: str, runs: Sequence[Run], bars: Sequence[tuple[str, Values, tuple[Row, ...]]]
) -> Plot:
    values: dict[str, dict[str, float]] = {}
    said: dict[str, list[str]] = {}
    for name, result, rows in bars:
        known = {row.label: row.value(result) or 0.0 for row in rows}
        for label, share in known.items():
            values.setdefault(label, {})[name] = share
        most = sorted((one for one in known.items() if one[1]), key=lambda one: -one[1])
        sentence = ", ".join(f"{label} {percent(share)}" for label, share in most)
        said.setdefault(sentence or "no reads", []).append(name)
    values = {name: values[name] for name in in_order(values) if any(values[name].values())}
    data: list[Figure] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": label,
            "x": [100 * share for share in counts.values()],
            "y": list(counts),
            "text": [percent(share) if share >= 0.05 else "" for share in counts.values()],
            "textposition": "inside",
            "insidetextanchor": "middle",
            "textangle": 0,
            "insidetextfont": {"color": "#ffffff"},
            "marker": {"color": colour_of(label)},
            "hovertemplate": "%{fullData.name} %{x:.2f}%<extra></extra>",
        }
        for label, counts in values.items()
    ]
    names = [name for name, _, _ in bars]
    axis = axis_of("share of demand reads (%)", range=[0, 100])
    layout = layout_of(AXES_PX + (BAR_PX + 8) * len(names), axis, categories_axis(names))
    layout |= {"barmode": "stack", "uniformtext": {"mode": "hide", "minsize": 9}}
    reading = " ".join(f"{', '.join(names)}: {sentence}." for sentence, names in said.items())
    return Plot(title, tuple(runs), reading, keys_of(values), data, layout)


def _latency_rows(runs: Sequence[Run]) -> Iterator[tuple[str, str, Values]]:
    """Per level and run: its line in the plot, the level, and the latencies there."""
    keys = {run.number: {"all": "demand", **level_keys(run.result)} for run in runs}
    for level in in_order(level for one in keys.values() for level in one):
        for run in runs:
            if level in keys[run.number]:
                one = find(run.result, f"{keys[run.number][level]}.latency_us")
                if one["p50"]:  # a log scale has no place for 0 or nothing
                    yield f"{level} ({run.name})", level, one


def _stages(result: Values) -> Iterator[tuple[str, int]]:
    yield "demand reads", result["demand"]["reads"]
    yield "unique reads", result["demand"]["unique"]
    for name, key in level_keys(result).items():
        reads = find(result, f"{key}.device_reads")
        if reads or name == "origin":
            yield name + DEVICE_READS, reads


def _coalesced(result: Values) -> str:
    (_, reads), _, *devices = _stages(result)
    left = ", ".join(f"{count:,} {stage}" for stage, count in devices) or "no device reads"
    sentence = f"{reads:,} demand reads became {left}"
    origin = result["origin"]
    if origin is None or not origin["device_reads"]:
        return f"{sentence}."
    served = factor(reads / origin["device_reads"])
    return f"{sentence}; one read of the origin serves {served} demand reads."


def _merged(
    times: Sequence[float], columns: Sequence[Sequence[int]]
) -> tuple[list[float], list[list[int]]]:
    """Intervals counted together, so that at most ``POINTS_MAX`` are left: their ends, and sums."""
    step = math.ceil(len(times) / POINTS_MAX)
    starts = range(0, len(times), step)
    ends = [times[min(start + step, len(times)) - 1] for start in starts]
    return ends, [[sum(column[start : start + step]) for start in starts] for column in columns]


def _steps(
    name: str, times: Sequence[float], values: Sequence[float | None], run: Run
) -> dict[str, Any]:
    """A line that is level throughout each interval, from its start to its end."""
    scale, _ = _time_unit(run)
    return {
        "type": "scatter",
        "name": plain(name),
        "x": [0.0, *(time * scale for time in times)],
        "y": [values[0], *values],
        "line": {"shape": "vh", "width": 1.5, "color": colour_of(name)},
        "hovertemplate": "%{fullData.name} %{y:.3~s}<extra></extra>",
    }


def _time_unit(run: Run) -> tuple[float, str]:
    end = run.result["series"]["t_s"][-1]
    return (1, "s") if end >= 1 else (1e3, "ms") if end >= 1e-3 else (1e6, "us")


def _time_axis(run: Run) -> Figure:
    scale, unit = _time_unit(run)
    time = "virtual time" if run.result["mode"] == "simulate" else "time"
    return axis_of(
        f"{time} since the start ({unit})", range=[0, run.result["series"]["t_s"][-1] * scale]
    )


def _decades(rows: Sequence[tuple[str, str, Values]]) -> Figure:
    """Ticks at powers of ten, as times with their units; on a log scale, a range is in powers."""
    known = [value for _, _, one in rows for value in one.values() if value]
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    ticks = [10.0**power for power in range(low, high + 1)]
    labelled = math.ceil(len(ticks) / _LABELS_MAX)
    return {
        "range": [low - 0.1, high + 0.1],
        "tickvals": ticks,
        "ticktext": [
            format_seconds(tick * 1e-6) if number % labelled == 0 else ""
            for number, tick in enumerate(ticks)
        ],
    }


def _ratio(count: float, of: float) -> float | None:
    return count / of if of else None
