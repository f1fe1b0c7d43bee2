"""The foreign file that an import reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvtier.errors import TraceError


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to import.

    Attributes:
        path: where it is.
        licence: of what it holds, as stated by who imports it.
        sha256: of its bytes, in hexadecimal.
    """

    path: Path
    licence: str
    sha256: str

    @property
    def name(self) -> str:
        """Its name without folders: what a trace may tell others."""
        return self.path.name


def find_source(path: Path, licence: str) -> SourceFile:
    """Read a file once for its hash. Raises :class:`TraceError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return SourceFile(path, licence, digest.hexdigest())


def check_option(name: str, value: object, least: int) -> None:
    """Raise :class:`TraceError` unless an import's option is a whole number, ``least`` or more."""
    if type(value) is not int or value < least:
        raise TraceError(f"option {name} is {value!r}; it must be a whole number, at least {least}")


def check_word(name: str, value: object, words: Sequence[str]) -> None:
    """Raise :class:`TraceError` unless an import's option is one of some words."""
    if value not in words:
        raise TraceError(f"option {name} is {value!r}; it must be one of {', '.join(words)}")
