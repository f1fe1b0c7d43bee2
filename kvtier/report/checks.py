"""What the doctor found, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Finding(Protocol):
    """A :class:`kvtier.doctor.Check`."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def what(self) -> str: ...
    @property
    def remedy(self) -> str: ...
    @property
    def needed(self) -> bool: ...


_STYLES = {"ok": "green", "degraded": "yellow", "missing": "yellow"}


def print_checks(checks: Sequence[Finding], console: Console) -> None:
    """One line per finding, with its remedy below; what is needed and missing stands out."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    for check in checks:
        lost = check.needed and check.state == "missing"
        style = "bold red" if lost else _STYLES[check.state]
        what = Text(check.what)
        if check.remedy:
            what.append(f"\n→ {check.remedy}", "cyan")
        table.add_row(Text(check.name, "bold"), Text(check.state, style), what)
    console.print(table)
