"""Records the page reads of a graph index on storage, searched by real queries.

    pip install '.[record]'
    python traces/recorders/hnsw.py --out traces/sample.parquet

faiss builds an HNSW graph over passages of real text; this program then searches that very graph
the way an index on storage is searched (DiskANN, Subramanya et al., NeurIPS 2019), and writes
down which pages it reads:

- On storage, a page of 4 KiB per node: its vector (768 x f32) and its neighbour lists of all
  levels. Node ``i`` is page ``i``, in the order of the text.
- In memory, every vector coded in 8 bits per dimension: enough to choose the next nodes, so a
  page is read only when its node is expanded.
- Upper levels: greedy descent, one page per step. Level 0: best-first search. A node is expanded
  in the order of faiss; where its page is not there yet, one hop reads it together with the pages
  of the next closest nodes (a beam, as DiskANN reads), and only their neighbours tell the next hop.
- A search keeps the pages it has read until it ends, and ranks its answer by their full vectors.

faiss steers by the same coded vectors, so its own search of the same index with the same
``efSearch`` must find the same nodes. Nothing is written unless it does.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from passages import Corpus, embed, read_corpus

from kvtier.pages import Purpose
from kvtier.trace import (
    READ,
    PageRequest,
    TraceMetadata,
    TraceObject,
    write_page_io,
)

PAGE_BYTES = 4096
DIMENSIONS = 768
NEIGHBOURS = 32
BUILD_EFFORT = 100
RESULTS = 10
AGREEMENT_MIN = 0.999
QUERY_SHARE = 0.1
# Time stamps are made up: this program is no vector database, its own speed would mean nothing.
QUERY_INTERVAL_NS = 1_000_000
HOP_INTERVAL_NS = 100_000

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Graph:
    """An HNSW graph, in faiss's own arrays."""

    entry: int
    top_level: int
    offsets: I64
    level_starts: I64
    neighbours: I64

    def neighbours_of(self, node: int, level: int) -> I64:
        start = self.offsets[node] + self.level_starts[level]
        stop = self.offsets[node] + self.level_starts[level + 1]
        listed = self.neighbours[start:stop]
        return listed[listed >= 0]


@dataclass(frozen=True, slots=True)
class Walk:
    """One search: the pages of each hop, and the nodes found by coded and by full vectors."""

    hops: list[I64]
    found: I64
    ranked: I64


def build_index(vectors: F32) -> Any:
    """A faiss HNSW index over vectors coded in 8 bits; one thread, so that it repeats."""
    faiss.omp_set_num_threads(1)
    coding = faiss.ScalarQuantizer.QT_8bit
    index = faiss.IndexHNSWSQ(vectors.shape[1], coding, NEIGHBOURS, faiss.METRIC_L2)
    index.hnsw.efConstruction = BUILD_EFFORT
    index.train(vectors)
    index.add(vectors)
    return index


def graph_of(index: Any) -> Graph:
    """The graph inside a faiss HNSW index."""
    hnsw = index.hnsw
    return Graph(
        entry=hnsw.entry_point,
        top_level=hnsw.max_level,
        offsets=faiss.vector_to_array(hnsw.offsets).astype(np.int64),
        level_starts=faiss.vector_to_array(hnsw.cum_nneighbor_per_level).astype(np.int64),
        neighbours=faiss.vector_to_array(hnsw.neighbors).astype(np.int64),
    )


def check_layout(graph: Graph) -> None:
    """Every node's record fits one page: vector, and a count and a list per level."""
    lists = 4 + 4 * 2 * NEIGHBOURS + graph.top_level * (4 + 4 * NEIGHBOURS)
    record_bytes = 4 * DIMENSIONS + lists
    if record_bytes > PAGE_BYTES:
        raise SystemExit(f"a record of {record_bytes} bytes does not fit a page; lower NEIGHBOURS")


class PageReads:
    """The pages that one search has read, hop by hop."""

    def __init__(self) -> None:
        self.hops: list[I64] = []
        self.held: set[int] = set()

    def fetch(self, nodes: I64) -> None:
        """Read, in one hop, the pages that are not held yet."""
        new = [node for node in nodes.tolist() if node not in self.held]
        if new:
            self.held.update(new)
            self.hops.append(np.array(new, np.int64))


def search(graph: Graph, coded: F32, full: F32, query: F32, effort: int, beam: int) -> Walk:
    """Search the graph; ``effort`` is faiss's ``efSearch``."""
    reads = PageReads()
    start = descend(graph, coded, query, reads)
    found = search_base(graph, coded, query, start, effort, beam, reads)
    read = np.array(sorted(reads.held), np.int64)
    order = np.argsort(_distances(full, read, query), kind="stable")
    return Walk(reads.hops, found[:RESULTS], read[order[:RESULTS]])


def descend(graph: Graph, coded: F32, query: F32, reads: PageReads) -> int:
    """Walk greedily through the upper levels; returns where level 0 is entered."""
    nearest = graph.entry
    distance = _distances(coded, np.array([nearest]), query)[0]
    for level in range(graph.top_level, 0, -1):
        while True:
            reads.fetch(np.array([nearest]))
            around = graph.neighbours_of(nearest, level)
            distances = _distances(coded, around, query)
            if not len(around) or distances.min() >= distance:
                break
            nearest, distance = int(around[distances.argmin()]), distances.min()
    return nearest


def search_base(
    graph: Graph, coded: F32, query: F32, start: int, effort: int, beam: int, reads: PageReads
) -> I64:
    """Expand, closest first, the ``effort`` closest nodes known; returns them, closest first."""
    met = np.zeros(len(coded), np.bool_)
    met[start] = True
    nodes = np.array([start])
    distances = _distances(coded, nodes, query)
    expanded = np.zeros(1, np.bool_)
    while not expanded.all():
        nearby = np.flatnonzero(~expanded)[:beam]
        closest = int(nodes[nearby[0]])
        if closest not in reads.held:
            reads.fetch(nodes[nearby])
        expanded[nearby[0]] = True
        around = graph.neighbours_of(closest, 0)
        around = np.unique(around[~met[around]])
        met[around] = True
        nodes = np.concatenate((nodes, around))
        distances = np.concatenate((distances, _distances(coded, around, query)))
        expanded = np.concatenate((expanded, np.zeros(len(around), np.bool_)))
        best = np.argsort(distances, kind="stable")[:effort]
        nodes, distances, expanded = nodes[best], distances[best], expanded[best]
    return nodes


def _distances(vectors: F32, nodes: I64, query: F32) -> F32:
    squares: F32 = ((vectors[nodes] - query) ** 2).sum(axis=1)
    return squares


def overlap(found: Sequence[I64], wanted: NDArray[np.integer]) -> float:
    """The mean share of the wanted results that was found."""
    shares = [np.isin(row, nodes).mean() for nodes, row in zip(found, wanted, strict=True)]
    return float(np.mean(shares))


def page_requests(walks: list[Walk]) -> Iterator[PageRequest]:
    """The walks as requests of the trace."""
    for number, walk in enumerate(walks):
        begun_ns = number * QUERY_INTERVAL_NS
        hops = len(walk.hops)
        pages = np.concatenate(walk.hops).astype(np.uint32)
        yield PageRequest(
            request=number,
            t_ns=begun_ns + HOP_INTERVAL_NS * np.arange(hops, dtype=np.int64),
            ops=np.full(hops, READ, np.uint8),
            ends=np.cumsum([len(nodes) for nodes in walk.hops], dtype=np.int64),
            objects=np.zeros_like(pages),
            pages=pages,
            counts=np.ones_like(pages),
            purposes=np.full(hops, Purpose.SPARSE, np.uint8),
        )


def describe(walks: list[Walk], corpus: Corpus, checks: str, options: argparse.Namespace) -> str:
    """What the trace is, in words and numbers."""
    hops = [len(walk.hops) for walk in walks]
    pages = np.concatenate([nodes for walk in walks for nodes in walk.hops])
    return (
        f"traces/recorders/hnsw.py: {len(walks)} searches in an HNSW graph (M {NEIGHBOURS}, "
        f"efConstruction {BUILD_EFFORT}) of {len(corpus.indexed)} nodes, "
        f"efSearch {options.effort}, beam {options.beam}, seed {options.seed}; "
        f"one node per {PAGE_BYTES}-byte page. {len(pages)} page reads, "
        f"{len(pages) / len(walks):.1f} per search in {np.mean(hops):.1f} dependent hops, "
        f"{len(np.unique(pages))} distinct pages. {checks}. Python {platform.python_version()}, "
        f"faiss {faiss.__version__}, NumPy {np.__version__}"
    )


def check_walks(index: Any, full: F32, queries: F32, walks: list[Walk]) -> str:
    """Compare with faiss's own search and with the truth; exits where the walk is not faiss's."""
    theirs = index.search(queries, RESULTS)[1]
    exact = faiss.IndexFlatL2(full.shape[1])
    exact.add(full)
    truth = exact.search(queries, RESULTS)[1]
    agreement = overlap([walk.found for walk in walks], theirs)
    recall = overlap([walk.ranked for walk in walks], truth)
    text = (
        f"{agreement:.2%} of faiss's own results are found; "
        f"recall@{RESULTS} is {recall:.3f}, faiss's {overlap(list(theirs), truth):.3f}"
    )
    if agreement < AGREEMENT_MIN:
        raise SystemExit(f"not recorded, the walk is not faiss's: {text}")
    return text


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Record the page reads of an HNSW search.")
    parser.add_argument("--out", type=Path, required=True, help="the trace to write")
    parser.add_argument("--queries", type=int, default=1500, help="searches to record")
    parser.add_argument("--effort", type=int, default=64, help="faiss's efSearch")
    parser.add_argument("--beam", type=int, default=4, help="most pages of a hop")
    parser.add_argument("--seed", type=int, default=1, help="chooses the files that are queries")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    corpus = read_corpus(options.queries, QUERY_SHARE, options.seed)
    print(f"{len(corpus.indexed)} passages to index, {len(corpus.queries)} to search for")
    vectors, queries = embed(corpus.indexed, DIMENSIONS), embed(corpus.queries, DIMENSIONS)
    print("building the graph, which takes about a minute")
    index = build_index(vectors)
    index.hnsw.efSearch = options.effort
    graph = graph_of(index)
    check_layout(graph)
    coded = faiss.downcast_index(index.storage).reconstruct_n(0, len(vectors))
    print("searching it")
    walks = [
        search(graph, coded, vectors, query, options.effort, options.beam) for query in queries
    ]
    checks = check_walks(index, vectors, queries, walks)
    metadata = TraceMetadata(
        kind="page_io",
        page_bytes=PAGE_BYTES,
        objects=(TraceObject(b"hnsw-index", len(vectors)),),
        licence="Apache-2.0",
        source=f"source text of the standard library of Python {platform.python_version()}",
        source_sha256=corpus.sha256,
        time_quantum_ns=HOP_INTERVAL_NS,
        synthetic=(
            f"t_ns: searches begin {QUERY_INTERVAL_NS // 1000} us apart and their hops are "
            f"{HOP_INTERVAL_NS // 1000} us apart; the order and the dependence of reads are real",
        ),
        provenance=describe(walks, corpus, checks, options),
    )
    summary = write_page_io(options.out, metadata, page_requests(walks))
    print(metadata.provenance)
    print(f"{summary.path}: {summary.file_bytes} bytes, SHA-256 of the text {corpus.sha256}")


if __name__ == "__main__":
    main()
