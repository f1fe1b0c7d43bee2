"""What is in a trace, as JSON-able facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from kvtier.pages import U64, Purpose
from kvtier.trace.footprint import page_ids_of
from kvtier.trace.metadata import TraceMetadata
from kvtier.trace.reader import PageTrace, RequestTrace, open_trace
from kvtier.trace.records import READ
from kvtier.trace.seen import SeenIds

_OBJECTS_SHOWN: Final = 16


def inspect_trace(path: str | Path, limit: int | None = None) -> Mapping[str, Any]:
    """Facts about the first ``limit`` requests (None: all) of a trace, in one streamed pass.

    Returns:
        Nested dicts, lists, texts and numbers. Of every kind: ``path``, ``file_bytes``,
        ``metadata``, ``requests`` (in the file), ``requests_read``, ``duration_s`` (first to last
        arrival), ``references`` and ``unique`` (blocks, or pages). Kind ``requests`` adds
        ``in_tokens``, ``out_tokens``, ``sessions``, ``models``, ``prefix_hits`` (blocks of leading
        runs that an endless cache would hold), ``prefix_hit_rate``, ``blocks_per_request``. Kind
        ``page_io`` adds ``read_pages``, ``written_pages``, ``purposes`` (pages read by purpose, of
        those that occur), ``extents``, ``referenced_bytes``, ``unique_bytes``, ``reuse`` (share of
        references to a page seen before), ``pages_per_batch``, ``batches_per_request`` (each
        depends on the one before) and ``pages_per_request``. A distribution is
        ``{mean, p50, p90, p99, max}``.

    Raises:
        TraceError: the trace is damaged or breaks a law of the schema.
    """
    trace = open_trace(path)
    facts: dict[str, Any] = {
        "path": str(trace.path),
        "file_bytes": trace.path.stat().st_size,
        "metadata": _metadata_facts(trace.metadata),
        "requests": trace.request_count,
    }
    if isinstance(trace, RequestTrace):
        return facts | _request_facts(trace, limit)
    return facts | _page_facts(trace, limit)


def _metadata_facts(metadata: TraceMetadata) -> dict[str, Any]:
    objects = metadata.objects[:_OBJECTS_SHOWN]
    return {
        "kind": metadata.kind,
        "block_tokens": metadata.block_tokens,
        "id_scope": metadata.id_scope,
        "page_bytes": metadata.page_bytes,
        "object_count": len(metadata.objects),
        "objects": [
            {"key": item.key.decode(errors="backslashreplace"), "pages": item.pages}
            for item in objects
        ],
        "licence": metadata.licence,
        "source": metadata.source,
        "source_sha256": metadata.source_sha256,
        "time_quantum_ns": metadata.time_quantum_ns,
        "synthetic": list(metadata.synthetic),
        "provenance": metadata.provenance,
    }


def _request_facts(trace: RequestTrace, limit: int | None) -> dict[str, Any]:
    seen, sessions = SeenIds(), SeenIds()
    models: set[str] = set()
    blocks: Counter[int] = Counter()
    references = prefix_hits = in_tokens = out_tokens = first_ns = last_ns = 0
    for request in trace.requests(limit):
        if not blocks:
            first_ns = request.t_ns
        last_ns = request.t_ns
        prefix_hits += _add_prefix(seen, request.block_ids)
        sessions.add(np.array([request.session], np.uint64))
        models.add(request.model)
        blocks[len(request.block_ids)] += 1
        references += len(request.block_ids)
        in_tokens += request.in_tokens
        out_tokens += request.out_tokens
    return {
        "requests_read": blocks.total(),
        "duration_s": (last_ns - first_ns) / 1e9,
        "references": references,
        "unique": len(seen),
        "in_tokens": in_tokens,
        "out_tokens": out_tokens,
        "sessions": len(sessions),
        "models": sorted(models - {""}),
        "prefix_hits": prefix_hits,
        "prefix_hit_rate": _share(prefix_hits, references),
        "blocks_per_request": _distribution(blocks),
    }


def _add_prefix(seen: SeenIds, block_ids: U64) -> int:
    """Remember a request's blocks; returns the length of its leading run of known ones."""
    fresh = seen.add(block_ids)
    first = int(np.argmax(fresh))
    return first if fresh[first] else len(block_ids)


def _page_facts(trace: PageTrace, limit: int | None) -> dict[str, Any]:
    seen = SeenIds()
    per_batch: Counter[int] = Counter()
    per_request: Counter[int] = Counter()
    hops: Counter[int] = Counter()
    purposes = np.zeros(len(Purpose), np.int64)
    references = extents = first_ns = last_ns = 0
    for request in trace.requests(limit):
        if not hops:
            first_ns = int(request.t_ns[0])
        last_ns = int(request.t_ns[0])
        for ids in page_ids_of(request):
            seen.add(ids)
        batch_pages = np.diff(request.page_ends(), prepend=0)
        pages = int(batch_pages.sum())
        reads = request.ops == READ
        np.add.at(purposes, request.purposes[reads], batch_pages[reads])
        references += pages
        extents += len(request.objects)
        per_batch.update(batch_pages.tolist())
        per_request[pages] += 1
        hops[len(request.ends)] += 1
    read_pages = int(purposes.sum())
    return {
        "requests_read": hops.total(),
        "duration_s": (last_ns - first_ns) / 1e9,
        "references": references,
        "unique": len(seen),
        "read_pages": read_pages,
        "written_pages": references - read_pages,
        "purposes": {
            purpose.word: int(purposes[purpose]) for purpose in Purpose if purposes[purpose]
        },
        "extents": extents,
        "referenced_bytes": references * trace.page_bytes,
        "unique_bytes": len(seen) * trace.page_bytes,
        "reuse": _share(references - len(seen), references),
        "pages_per_batch": _distribution(per_batch),
        "batches_per_request": _distribution(hops),
        "pages_per_request": _distribution(per_request),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _distribution(counts: Counter[int]) -> dict[str, float]:
    """Mean, nearest-rank percentiles and maximum of counted values; zeros where there are none."""
    if not counts:
        return {"mean": 0.0, "p50": 0, "p90": 0, "p99": 0, "max": 0}
    values = np.array(sorted(counts), np.int64)
    ranks = np.cumsum([counts[int(value)] for value in values])
    total = int(ranks[-1])
    percentiles = {
        f"p{percent}": int(values[np.searchsorted(ranks, total * percent / 100)])
        for percent in (50, 90, 99)
    }
    mean = sum(value * count for value, count in counts.items()) / total
    return {"mean": mean, **percentiles, "max": int(values[-1])}
