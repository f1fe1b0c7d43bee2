"""Several results in one table, and where their decisions differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvtier.report.rows import (
    COALESCING_ROWS,
    LATENCY_ROWS,
    Row,
    Values,
    demand_rows,
    level_rows,
    levels_of,
)
from kvtier.report.terminal import labels_of
from kvtier.units import format_seconds


class _Line(NamedTuple):
    section: str
    row: Row
    levels: list[Values]

    @property
    def texts(self) -> list[str]:
        return [self.row.show(level) for level in self.levels]

    @property
    def differs(self) -> bool:
        first, *others = (self.row.value(level) for level in self.levels)
        return self.row.is_decision and any(other != first for other in others)


def print_side_by_side(results: Sequence[Mapping[str, Any]], console: Console) -> None:
    """One column per result; decisions on which the results differ are marked.

    Compare results of one trace, seed and configuration: in waves their decisions are the same.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("")
    for result in results:
        table.add_column(Text(result["mode"]), justify="right", no_wrap=True)
    table.add_row("run", "duration", *(format_seconds(result["duration_s"]) for result in results))
    table.add_row("", "labels", *(Text("\n".join(labels_of(result))) for result in results))
    for section, lines in groupby(_lines(results), key=lambda line: line.section):
        table.add_section()
        for index, line in enumerate(lines):
            name = section if index == 0 else ""
            style = "bold red" if line.differs else ""
            table.add_row(name, line.row.label, *(Text(text, style) for text in line.texts))
    console.print(table)
    differing = differing_decisions(results)
    if differing:
        console.print(Text(f"decisions differ: {', '.join(differing)}", "bold red"))
    else:
        console.print(Text("all decisions are the same", "green"))


def differing_decisions(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the counts that do not depend on time, and yet are not the same in all results.

    These are lookups, hits, device reads and writes, evictions, bypasses and failures per level,
    and what was read, absent, folded, joined and merged.
    """
    return [f"{line.section} {line.row.label}" for line in _lines(results) if line.differs]


def _lines(results: Sequence[Values]) -> Iterator[_Line]:
    """Every quantity that at least one of the results has."""
    page_bytes = results[0]["trace"]["page_bytes"]
    by_name = [dict(levels_of(result)) for result in results]
    names = dict.fromkeys(name for levels in by_name for name in levels)
    sections: list[tuple[str, tuple[Row, ...], list[Values]]] = [
        (
            "demand",
            (*demand_rows(page_bytes), *LATENCY_ROWS),
            [result["demand"] for result in results],
        ),
        ("coalescing", COALESCING_ROWS, [result["coalescing"] for result in results]),
        *(
            (name, level_rows(page_bytes), [levels.get(name, {}) for levels in by_name])
            for name in names
        ),
    ]
    for section, rows, levels in sections:
        for row in rows:
            if any(row.value(level) is not None for level in levels):
                yield _Line(section, row, levels)
