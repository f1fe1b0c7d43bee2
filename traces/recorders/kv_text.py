"""Text that everyone with Python has, as tokens: the source of Python's standard library.

The tokenizer is made here, from that text: words, runs of line ends and indentation, and single
characters; the commonest are tokens, others are spelled by the longest tokens that fit.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from passages import LEFT_OUT

_PIECES = re.compile(r"[A-Za-z]+|\n+ *| +|.", re.DOTALL)
_CHARACTERS = [chr(code) for code in range(256)]

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Library:
    """Source files to train on and source files to serve, both in order, and a hash of all."""

    trained: list[str]
    served: list[str]
    sha256: str


def read_library(served_share: float, seed: int) -> Library:
    """Split the standard library by files, in an order that the seed gives."""
    library = Path(sysconfig.get_path("stdlib"))
    names = [
        path.relative_to(library).as_posix()
        for path in library.rglob("*.py")
        if not LEFT_OUT.intersection(path.relative_to(library).parts)
    ]
    names.sort(key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    # Characters beyond Latin-1 are few; each becomes one question mark.
    texts = [
        (library / name)
        .read_text("utf-8", "replace")
        .encode("latin-1", "replace")
        .decode("latin-1")
        for name in names
    ]
    first_trained = round(served_share * len(texts))
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return Library(texts[first_trained:], texts[:first_trained], digest)


class Tokenizer:
    """Text as token numbers.

    Args:
        texts: what the vocabulary is made from.
        size: of the vocabulary, at least 256: every Latin-1 character is a token.
    """

    def __init__(self, texts: list[str], size: int) -> None:
        counts = Counter(piece for text in texts for piece in _PIECES.findall(text))
        common = [piece for piece, _ in counts.most_common(size) if len(piece) > 1]
        self.pieces = (_CHARACTERS + common)[:size]
        self._numbers = {piece: number for number, piece in enumerate(self.pieces)}
        self._spelled: dict[str, list[int]] = {}

    def encode(self, text: str) -> I64:
        """Tokens i64[n] of a text."""
        spelled = (self._spell(piece) for piece in _PIECES.findall(text))
        return np.array([number for numbers in spelled for number in numbers], np.int64)

    def _spell(self, piece: str) -> list[int]:
        if piece not in self._spelled:
            length = len(piece)
            while piece[:length] not in self._numbers:
                length -= 1
            rest = self._spell(piece[length:]) if length < len(piece) else []
            self._spelled[piece] = [self._numbers[piece[:length]], *rest]
        return self._spelled[piece]
