"""Several results on a terminal: one table per trace, one column per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvtier.report.comparison import Run, agreements, groups_of, lines_of
from kvtier.report.rows import NOTHING
from kvtier.report.sections import headline
from kvtier.report.terminal import labels_of, print_broken_sums
from kvtier.units import format_bytes


def print_side_by_side(results: Sequence[Mapping[str, Any]], console: Console) -> None:
    """A table for each trace; below it, which runs decided alike, or on what they differ."""
    for runs in groups_of(results):
        console.print(_title(runs[0].result))
        console.print(_table(runs))
        for agreement in agreements(runs):
            style = "bold red" if agreement.differing else "green"
            console.print(Text(agreement.sentence, style))
        for run in runs:
            print_broken_sums(run.result, console)
        console.print()


def _title(result: Mapping[str, Any]) -> Text:
    trace = result["trace"]
    facts = f"{trace['kind']}, {trace['requests']:,} requests, pages of "
    return Text.assemble(
        (Path(trace["path"]).name, "bold"), f"  {facts}{format_bytes(trace['page_bytes'])}"
    )


def _table(runs: Sequence[Run]) -> Table:
    differing = {line.title for one in agreements(runs) for line in one.differing}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for run in runs:
        table.add_column(Text(run.name), justify="right")
    labels = (Text("\n".join(labels_of(run.result))) for run in runs)
    table.add_row("labels", "", *labels)
    for section, lines in groupby(lines_of(runs, headline), key=lambda line: line.section):
        table.add_section()
        for index, line in enumerate(lines):
            style = "bold red" if line.title in differing else ""
            cells = (
                NOTHING if row is None else row.show(run.result)
                for row, run in zip(line.rows, runs, strict=True)
            )
            name = section if index == 0 else ""
            table.add_row(name, line.label, *(Text(cell, style) for cell in cells))
    return table
