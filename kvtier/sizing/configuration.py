"""The answer as a settings file: what the user gave, with the capacities that were found."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Final

from kvtier.settings import parse_assignment
from kvtier.settings.document import parse_document
from kvtier.settings.presets import DEFAULT_TOML
from kvtier.sizing.grid import describe
from kvtier.sizing.targets import Target

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


def configuration_toml(
    config: Path | None, overrides: Sequence[str], result: Mapping[str, Any]
) -> str:
    """A TOML file that says all that was given, with the capacities of the answer.

    Args:
        config: the file that was given, None for the default settings; known to be right.
        overrides: ``"KEY=VALUE"`` as ``--set`` takes them.
        result: of :func:`kvtier.sizing.size_trace`.
    """
    text = DEFAULT_TOML if config is None else config.read_text(encoding="utf-8")
    document = parse_document(text)
    for key, value in map(parse_assignment, [*overrides, *result["answer"]["settings"]]):
        *tables, last = key.split(".")
        table = document
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = value
    comments = (f"# {line}" for line in _comments(result))
    return "\n".join([*comments, "", *_lines(document, ())])


def confirming_command(
    result: Mapping[str, Any], config: Path | None, overrides: Sequence[str], out: Path | None
) -> str:
    """The ``kvtier simulate`` that comes to the numbers of the answer.

    Args:
        result: of :func:`kvtier.sizing.size_trace`.
        config: the file that was given.
        overrides: those that were given.
        out: where :func:`configuration_toml` was written, None if it was not.
    """
    trace = result["trace"]
    words = ["kvtier", "simulate", trace["path"]]
    if trace["limit"] is not None:
        words += ["--limit", str(trace["limit"])]
    if out is not None:
        return shlex.join([*words, "--config", str(out)])
    if config is not None:
        words += ["--config", str(config)]
    for assignment in [*overrides, *result["answer"]["settings"]]:
        words += ["--set", assignment]
    return shlex.join(words)


def _comments(result: Mapping[str, Any]) -> Iterator[str]:
    answer = result["answer"]
    yield f"Found by kvtier {result['environment']['kvtier']} size for {result['trace']['path']}:"
    for one in result["targets"]:
        target = Target(one["name"], one["bound"])
        yield f"{target}, reached {target.show(one['value'])}."
    if result["trace"]["scaled"]:
        full = {level["name"]: level["full_bytes"] for level in answer["levels"]}
        full.pop("origin", None)
        yield f"Scaled down by {result['scale']:g}: at the full geometry {describe(full)}."


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Plain values first, for whatever follows a table's head belongs to that table."""
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if path and (plain or not table):
        yield f"[{'.'.join(map(_key, path))}]"
    for key, value in plain.items():
        yield f"{_key(key)} = {_literal(value)}"
    if plain or (path and not table):
        yield ""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _lines(value, (*path, key))


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name)


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # TOML's basic strings escape as JSON does, but for DEL, which JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, Mapping):
        pairs = (f"{_key(key)} = {_literal(item)}" for key, item in value.items())
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return repr(value)
