"""Results as one HTML page with plots: a file that needs nothing else, and asks no network."""

# Jinja2 and Plotly come with the extra kvtier[report]: they are imported where a page is made.
# ruff: noqa: PLC0415

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

from kvtier.errors import SettingsError
from kvtier.report import plots
from kvtier.report.comparison import Agreement, Line, Run, agreements, groups_of, lines_of
from kvtier.report.drawing import Plot
from kvtier.report.json_file import STDOUT, check_target
from kvtier.report.rows import MODEL_ROWS, NOTHING, Row, Values, find
from kvtier.report.sections import Section, every_number, headline, setup
from kvtier.report.soundness import check_figures, check_sums
from kvtier.report.terminal import labels_of
from kvtier.units import format_bytes

_NEEDED: Final = ("jinja2", "plotly")


class Cell(NamedTuple):
    """One number or word of a table.

    Attributes:
        run: the place of its result in the page's data.
        key: where it stands there, as in :class:`~kvtier.report.rows.Row`.
        value: its exact value, as JSON; None where there is none.
        text: as people read it.
    """

    run: int
    key: str
    value: str | None
    text: str


class TableRow(NamedTuple):
    section: str
    label: str
    cells: tuple[Cell | None, ...]
    differs: bool


class ModelRow(NamedTuple):
    """What stood for a level, in one run or in several alike."""

    level: str
    runs: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Group:
    """The runs of one trace, as the template shows them."""

    number: int
    runs: list[Run]

    @property
    def trace(self) -> Values:
        trace: Values = self.runs[0].result["trace"]
        return trace

    @property
    def title(self) -> str:
        return Path(self.trace["path"]).name

    @property
    def page_size(self) -> str:
        sizes = dict.fromkeys(run.result["trace"]["page_bytes"] for run in self.runs)
        return ", ".join(map(format_bytes, sizes))

    @property
    def setup(self) -> list[TableRow]:
        return self._table(setup)

    @property
    def headline(self) -> list[TableRow]:
        return self._table(headline)

    @property
    def every_number(self) -> list[TableRow]:
        return self._table(every_number)

    @property
    def agreements(self) -> list[Agreement]:
        return agreements(self.runs)

    @property
    def flaws(self) -> list[str]:
        """Sums that do not hold, and figures that cannot be."""
        found = ((run, (*check_sums(run.result), *check_figures(run.result))) for run in self.runs)
        return [f"{run.name}: {text}" for run, texts in found for text in texts]

    @property
    def corrupt(self) -> list[Run]:
        """Runs that delivered wrong bytes."""
        checked = (run for run in self.runs if run.result["verify"])
        return [run for run in checked if run.result["verify"]["corrupt_pages"]]

    @property
    def models(self) -> list[ModelRow]:
        rows: dict[str, tuple[Run, str, list[str]]] = {}
        # The run of most levels first, so that levels stand in their order.
        for run in sorted(self.runs, key=lambda run: -len(_models(run))):
            for number, model in enumerate(_models(run)):
                alike = rows.setdefault(json.dumps(model), (run, f"models.{number}", []))
                alike[2].append(run.name)
        return [
            ModelRow(
                find(run.result, f"{key}.level"),
                ", ".join(names),
                tuple(_cell(run, row.under(key)) for row in MODEL_ROWS),
            )
            for run, key, names in rows.values()
        ]

    @property
    def summaries(self) -> list[Plot]:
        """The plots that show all runs together."""
        found = (
            plots.served(self.runs),
            plots.served_by_purpose(self.runs),
            plots.latency(self.runs),
            plots.coalescing(self.runs),
            plots.utilisation(self.runs),
        )
        return [plot for plot in found if plot is not None]

    @property
    def over_time(self) -> list[list[Plot]]:
        """The plots that have a time axis for each run: one list per kind."""
        kinds = (plots.hit_rates, plots.delivered)
        drawn = ([plot(run) for run in self.runs] for plot in kinds)
        known = ([plot for plot in one if plot is not None] for one in drawn)
        return [one for one in known if one]

    @property
    def notes(self) -> dict[str, list[str]]:
        """What a reader must know of the numbers, each with the names of the runs it holds for."""
        notes: dict[str, list[str]] = {}
        for run in self.runs:
            for note in _notes(run.result):
                notes.setdefault(note, []).append(run.name)
        return notes

    def _table(self, sections: Callable[[Values], Iterator[Section]]) -> list[TableRow]:
        differing = {line.title for one in self.agreements for line in one.differing}
        return [
            TableRow(line.section, line.label, _cells(line, self.runs), line.title in differing)
            for line in lines_of(self.runs, sections)
        ]


def check_page(path: Path) -> None:
    """Make sure, before any work starts, that a page can be made and written to ``path``.

    Raises:
        SettingsError: a package is missing, or the file could not be written.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"--html needs {' and '.join(missing)}: install them with pip install 'kvtier[report]'"
        )
    if path == STDOUT:
        raise SettingsError("--html -: a page is a file; name one")
    check_target(path)


def render_page(results: Sequence[Mapping[str, Any]]) -> str:
    """The page of one or several results: a section per trace, its runs side by side.

    Every number in a table carries the place of its result (``data-run``), its key there
    (``data-key``) and its exact value (``data-value``); the results themselves are in the page.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("kvtier.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["by_section"] = _by_section
    environment.filters["labels"] = lambda run: labels_of(run.result)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment.get_template("page.html").render(
        groups=[Group(number, runs) for number, runs in enumerate(groups_of(results))],
        results=results,
        plotly=get_plotlyjs(),
        nothing=NOTHING,
    )


def _models(run: Run) -> Sequence[Values]:
    models: Sequence[Values] | None = run.result.get("models")
    return models or ()


def _notes(result: Values) -> Iterator[str]:
    trace, verify = result["trace"], result["verify"]
    if result["mode"] == "simulate":
        yield "Modelled: every time and rate; what hits, folds, joins and merges is really decided."
    else:
        yield "Measured: every time and rate, on the machine named above, with bytes that moved."
    if trace["scaled"]:
        yield (
            f"Scaled: {trace['pages_per_block']} of {trace['full_pages_per_block']} pages stand "
            "for each block."
        )
    yield from (f"Synthetic: {sentence}." for sentence in trace["synthetic"])
    if not result["complete"]:
        yield "Interrupted: this is what was measured until then."
    if verify is None:
        yield "No bytes moved, so there were none to verify."
    else:
        yield (
            f"{verify['checked_pages']:,} delivered pages were compared with what was stored: "
            f"{verify['corrupt_pages']:,} differed."
        )


def _by_section(rows: Iterable[TableRow]) -> list[tuple[str, list[TableRow]]]:
    sections = groupby(rows, key=lambda row: row.section)
    return [(title, list(lines)) for title, lines in sections]


def _cells(line: Line, runs: Sequence[Run]) -> tuple[Cell | None, ...]:
    rows = zip(line.rows, runs, strict=True)
    return tuple(None if row is None else _cell(run, row) for row, run in rows)


def _cell(run: Run, row: Row) -> Cell:
    value = row.value(run.result)
    exact = None if value is None else json.dumps(value)
    return Cell(run.number, row.key, exact, row.show(run.result))
