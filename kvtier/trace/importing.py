"""Imports traces of foreign formats."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from kvtier.errors import TraceError
from kvtier.trace.mooncake import import_mooncake
from kvtier.trace.page_reads import import_page_reads
from kvtier.trace.sources import find_source
from kvtier.trace.writer import TraceSummary

FORMATS: Final[Mapping[str, Callable[..., TraceSummary]]] = MappingProxyType(
    {"mooncake": import_mooncake, "page-reads": import_page_reads}
)
"""Importers by format. Each takes a SourceFile, the target, and keyword options of its own."""


def import_trace(
    format_name: str,
    source: str | Path,
    target: str | Path,
    *,
    licence: str = "not stated",
    **options: int | str,
) -> TraceSummary:
    """Import a foreign trace; the target appears whole, or not at all.

    Args:
        format_name: one of :data:`FORMATS`.
        source: the foreign file.
        target: the trace to write; an existing file is replaced.
        licence: of what the source holds.
        **options: the importer's own, see :func:`format_options`.

    Raises:
        TraceError: the format or an option is unknown, the source is missing or malformed (the
            message names the line or row), or the target cannot be written.
    """
    known = format_options(format_name)
    for name in options:
        if name not in known:
            raise TraceError(f"format {format_name!r} has no option {name!r}; {_hint(name, known)}")
    source, target = Path(source), Path(target)
    if target.exists() and source.exists() and target.samefile(source):
        raise TraceError(f"{target}: source and target are the same file; name another target")
    return FORMATS[format_name](find_source(source, licence), target, **options)


def format_options(format_name: str) -> Mapping[str, Any]:
    """A format's options with their defaults. Raises :class:`TraceError` for an unknown format."""
    if format_name not in FORMATS:
        raise TraceError(f"no trace format {format_name!r}; {_hint(format_name, FORMATS)}")
    parameters = inspect.signature(FORMATS[format_name]).parameters.values()
    return MappingProxyType(
        {item.name: item.default for item in parameters if item.kind is item.KEYWORD_ONLY}
    )


def _hint(name: str, known: Mapping[str, Any]) -> str:
    nearest = get_close_matches(name.lower(), known, n=1, cutoff=0.4)
    suggestion = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{suggestion}there are {', '.join(known)}"
