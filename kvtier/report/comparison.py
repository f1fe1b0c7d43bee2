"""Several results: which belong together, which must decide alike, and their rows side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any, NamedTuple

from kvtier.report.rows import Row, Values, find
from kvtier.report.sections import Section, every_number


class Run(NamedTuple):
    """One result of several.

    Attributes:
        number: its place among those that were given.
        name: what it is called; no two runs of one trace have the same.
        result: the result.
    """

    number: int
    name: str
    result: Values


class Line(NamedTuple):
    """One quantity of several runs: per run its row, None where the run has no such thing."""

    section: str
    label: str
    rows: tuple[Row | None, ...]

    def values(self, runs: Sequence[Run]) -> list[Any]:
        return [
            None if row is None else row.value(run.result)
            for row, run in zip(self.rows, runs, strict=True)
        ]

    @property
    def title(self) -> str:
        return f"{self.section} {self.label}"


class Agreement(NamedTuple):
    """Runs that must decide alike, and the decisions on which they do not."""

    runs: tuple[Run, ...]
    differing: tuple[Line, ...]

    @property
    def sentence(self) -> str:
        if self.differing:
            names = ", ".join(run.name for run in self.runs)
            return f"{names}: decisions differ: {', '.join(line.title for line in self.differing)}"
        return f"{' = '.join(run.name for run in self.runs)}: every decision is the same"


def groups_of(results: Sequence[Values]) -> list[list[Run]]:
    """The runs of the same requests together, in the order in which they were given.

    In a group, names tell runs apart: a second ``replay`` is ``replay (2)``.
    """
    runs = [
        Run(number, result.get("name") or result["mode"], result)
        for number, result in enumerate(results)
    ]
    return [_told_apart(group) for group in _grouped(runs, _trace_of)]


def agreements(runs: Sequence[Run]) -> list[Agreement]:
    """What became of all decisions, for every two or more runs that must decide alike.

    Those are complete runs of one trace, seed, page size, chain and concurrency, with the same
    tiers and the same way to read and write the origin, in waves: in any other drive decisions
    depend on time, unless it repeats the event log of the other run. Engines, devices and models
    may differ. Several GPUs are as many in all of them, with requests spread alike.
    """
    complete = [run for run in runs if run.result["complete"] and _is_decided(run.result)]
    return [
        Agreement(tuple(alike), tuple(_differing(alike)))
        for alike in _grouped(complete, _decided_by)
        if len(alike) > 1
    ]


def is_timeless(result: Values) -> bool:
    """Its decisions depend on no time: it was driven in waves, as all of older versions were.

    Several GPUs that write find what another has written, or do not yet: that depends on time, and
    so does what a write limit leaves out.
    """
    is_shared = bool(result.get("gpus")) and result["writes"]["objects"] > 0
    tiers = find(result, "config.tiers") or ()
    is_limited = any(tier.get("write_limit_bytes_per_s") is not None for tier in tiers)
    return find(result, "drive.kind") in (None, "waves") and not is_shared and not is_limited


def _is_decided(result: Values) -> bool:
    """Its decisions depend on nothing that a result does not say."""
    return is_timeless(result) or find(result, "drive.events.id") is not None


def differing_decisions(results: Sequence[Values]) -> list[str]:
    """Names of the counts that do not depend on time, and yet differ among runs that must agree.

    These are lookups, hits, device reads and writes, evictions, bypasses and failures per level,
    and what was read, absent, folded, joined and merged: of the whole, and for each purpose.
    """
    found = (one for group in groups_of(results) for one in agreements(group))
    return list(dict.fromkeys(line.title for one in found for line in one.differing))


def lines_of(runs: Sequence[Run], sections_of: Callable[[Values], Iterator[Section]]) -> list[Line]:
    """Every row that at least one of the runs has, sections and rows in the order of the richest.

    Args:
        runs: of one trace.
        sections_of: the sections of one result.
    """
    tables = [{one.title: one.rows for one in sections_of(run.result)} for run in runs]
    richest = sorted(tables, key=len, reverse=True)
    lines = []
    for title in dict.fromkeys(title for table in richest for title in table):
        rows = [{row.label: row for row in table.get(title, ())} for table in tables]
        for label in dict.fromkeys(row.label for one in richest for row in one.get(title, ())):
            line = Line(title, label, tuple(one.get(label) for one in rows))
            if any(value is not None for value in line.values(runs)):
                lines.append(line)
    return lines


def _differing(runs: Sequence[Run]) -> Iterator[Line]:
    for line in lines_of(runs, every_number):
        row = next(row for row in line.rows if row is not None)
        if not row.is_decision:
            continue
        values = line.values(runs)
        if row.key.startswith("by_purpose."):
            # An older version did not count by purpose, which is no difference.
            counted = ("by_purpose" in run.result for run in runs)
            values = list(compress(values, counted))
        if any(value != values[0] for value in values):
            yield line


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    seen: dict[str, int] = {}
    told = []
    for run in runs:
        count = seen[run.name] = seen.get(run.name, 0) + 1
        told.append(run if count == 1 else run._replace(name=f"{run.name} ({count})"))
    return told


def _grouped(runs: Sequence[Run], key: Callable[[Values], object]) -> list[list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(key(run.result), sort_keys=True), []).append(run)
    return list(groups.values())


def _trace_of(result: Values) -> object:
    keys = ("path", "limit", "requests", "pages_per_block")
    return [result["trace"].get(key) for key in keys]


def _decided_by(result: Values) -> object:
    """All that decisions depend on."""
    extents = ("write", "merge_gap_pages", "extent_pages_max")
    keys = ["trace.page_bytes", "seed", "config.chain", "config.replay.concurrency"]
    keys.append("drive.events.id")
    for number in range(len(result["tiers"])):
        fields = ("name", "capacity_bytes", "ways", "admit", "segment_bytes", *extents)
        keys += [f"config.tiers.{number}.{field}" for field in fields]
    if result["origin"] is not None:
        keys += [f"config.origin.{field}" for field in extents]
    if result.get("gpus"):
        keys += ["drive.gpus", "drive.spread"]
    return [[key, find(result, key)] for key in keys]
