"""Any JSON mapping as tables, for what has no layout of its own: a trace's summary, say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvtier.report.rows import NOTHING


def print_mapping(title: str, values: Mapping[str, Any], console: Console) -> None:
    """Show a mapping: its plain values in one table, then a table for each part below it.

    Numbers that belong together, such as percentiles, stay on one line.
    """
    console.print(Text(title, "bold"))
    parts = {name: value for name, value in values.items() if _is_part(value)}
    plain = Table.grid(padding=(0, 2))
    plain.add_column()
    plain.add_column(overflow="fold")
    for name, value in values.items():
        if name not in parts:
            plain.add_row(Text(_label(name)), Text(_text(value)))
    console.print(plain)
    for name, value in parts.items():
        if isinstance(value, Mapping):
            print_mapping(_label(name), value, console)
        else:
            console.print(Text(_label(name), "bold"))
            console.print(_columns(value))


def _is_part(value: object) -> bool:
    if isinstance(value, Mapping):
        return not all(isinstance(item, int | float | None) for item in value.values())
    return isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value)


def _columns(items: Sequence[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for item in items for name in item))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(Text(_label(name)))
    for item in items:
        table.add_row(*(Text(_text(item.get(name))) for name in names))
    return table


def _label(name: str) -> str:
    return name.replace("_", " ")


def _text(value: object) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or NOTHING
    if isinstance(value, Mapping):
        return ", ".join(f"{_label(str(name))} {_text(item)}" for name, item in value.items())
    return str(value) or NOTHING
