"""Passages of real text that everyone with Python has, and their vectors.

The text is the source of Python's standard library: passages of eight lines, each beginning at
the last line of the one before. A vector counts the passage's character n-grams by signed feature
hashing (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009).
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LINES = 8
STEP = 7
GRAMS = (3, 4, 5)
# Not text, not installed everywhere, or not the standard library.
LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "encodings",
    "lib2to3",
    "__pycache__",
}


@dataclass(frozen=True, slots=True)
class Corpus:
    """Passages to index, passages to search for (of other files), and a hash of both."""

    indexed: list[str]
    queries: list[str]
    sha256: str


def read_corpus(query_count: int, query_share: float, seed: int) -> Corpus:
    """Split the standard library by files: most are indexed, a share is searched for.

    Query files follow one another in a seeded order; the passages of a file keep their order.
    """
    library = Path(sysconfig.get_path("stdlib"))
    names = sorted(
        path.relative_to(library).as_posix()
        for path in library.rglob("*.py")
        if not LEFT_OUT.intersection(path.relative_to(library).parts)
    )
    draws = {name: _draw(name, seed) for name in names}
    indexed = [
        passage
        for name in names
        if draws[name] >= query_share
        for passage in _passages(library / name)
    ]
    queries = [
        passage
        for name in sorted(names, key=draws.__getitem__)
        if draws[name] < query_share
        for passage in _passages(library / name)
    ][:query_count]
    text = "\0".join([*indexed, "", *queries])
    return Corpus(indexed, queries, hashlib.sha256(text.encode()).hexdigest())


def _draw(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on the name and the seed only."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def _passages(path: Path) -> list[str]:
    stripped = (line.strip() for line in path.read_text("utf-8", "replace").splitlines())
    lines = [line for line in stripped if line]
    return ["\n".join(lines[i : i + LINES]) for i in range(0, len(lines), STEP)]


def embed(passages: list[str], dimensions: int) -> NDArray[np.float32]:
    """Unit vectors f32[n, dimensions] of passages."""
    vectors = np.zeros((len(passages), dimensions), np.float32)
    for row, passage in enumerate(passages):
        text = np.frombuffer(passage.encode().ljust(max(GRAMS)), np.uint8).astype(np.uint64)
        for gram in GRAMS:
            codes = np.zeros(len(text) - gram + 1, np.uint64)
            for i in range(gram):
                codes = codes * np.uint64(257) + text[i : i + len(codes)]
            mixed = codes * np.uint64(0x9E37_79B9_7F4A_7C15)
            buckets = ((mixed >> np.uint64(40)) % np.uint64(dimensions)).astype(np.int64)
            signs = 1.0 - 2.0 * ((mixed >> np.uint64(39)) & np.uint64(1)).astype(np.float64)
            vectors[row] += np.bincount(buckets, signs, dimensions)
    damped = np.sign(vectors) * np.sqrt(np.abs(vectors))
    lengths = np.linalg.norm(damped, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (damped / np.maximum(lengths, 1e-9)).astype(np.float32)
    return unit
