"""A trace made ready to be driven: its objects, its scale, and what the run will take."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from kvtier.cache import TieredCache
from kvtier.errors import LimitError, SettingsError
from kvtier.pages import U32
from kvtier.replay.active import ActiveRequest, PageIo, PrefixLoad
from kvtier.replay.spread import Share
from kvtier.settings import Settings
from kvtier.trace import PageTrace, Request, RequestTrace, footprint, geometry, open_trace
from kvtier.units import format_bytes, format_count

SCALED_PAGES_PER_BLOCK: Final = 4
SIMULATED_PAGES_MAX: Final = 1_000_000_000
"""Page reads and writes that a simulation takes on without being asked for less."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A trace and how it is driven.

    Attributes:
        trace: the open trace.
        limit: requests taken of it, None for all.
        pages_per_block: of a request trace; 0 for a page trace.
        full_pages_per_block: what the model's geometry gives.
        requests, references, unique: what the trace holds, in blocks or in pages.
    """

    trace: RequestTrace | PageTrace
    limit: int | None
    pages_per_block: int
    full_pages_per_block: int
    requests: int
    references: int
    unique: int

    @property
    def scaled(self) -> bool:
        """Blocks are smaller than the model's."""
        return self.pages_per_block != self.full_pages_per_block

    @property
    def pages(self) -> int:
        """Pages asked for or written, at most."""
        return self.references * max(1, self.pages_per_block)

    @property
    def unique_pages(self) -> int:
        """Distinct pages."""
        return self.unique * max(1, self.pages_per_block)

    @property
    def first_t_ns(self) -> int:
        """When the first request came, in ns from the trace's start; 0 where there is none."""
        for request in self.trace.requests(min(1, self.requests)):
            return request.t_ns if isinstance(request, Request) else int(request.t_ns[0])
        return 0

    async def active(self, cache: TieredCache[Any], share: Share) -> AsyncIterator[ActiveRequest]:
        """The requests of a share, one after the other; none has begun."""
        if isinstance(self.trace, RequestTrace):
            for number, request in enumerate(self.trace.requests(self.limit)):
                if share.has(number, request):
                    yield PrefixLoad(request, self.pages_per_block, cache)
            return
        object_ids = await self._open_objects(self.trace, cache)
        for number, page_request in enumerate(self.trace.requests(self.limit)):
            if share.has(number, page_request):
                yield PageIo(page_request, object_ids)

    async def _open_objects(self, trace: PageTrace, cache: TieredCache[Any]) -> U32:
        opened = await cache.open([one.key for one in trace.objects])
        missing = np.flatnonzero(opened.pages < np.array([one.pages for one in trace.objects]))
        if len(missing):
            one = trace.objects[int(missing[0])]
            raise SettingsError(
                f"the origin lacks object {one.key!r} of {one.pages} pages, and is read-only: "
                "store it there, or configure an origin that can be written"
            )
        return opened.object_ids

    def describe(self) -> dict[str, Any]:
        """The ``trace`` part of a result."""
        metadata = self.trace.metadata
        return {
            "path": str(self.trace.path),
            "kind": self.trace.kind,
            "requests": self.requests,
            "limit": self.limit,
            "references": self.references,
            "unique": self.unique,
            "scaled": self.scaled,
            "pages_per_block": self.pages_per_block or None,
            "full_pages_per_block": self.full_pages_per_block or None,
            "synthetic": list(metadata.synthetic),
        }

    def summary(self, settings: Settings) -> str:
        """One line: what the run will take."""
        page_bytes = settings.page_bytes
        unit = "page reads" if self.pages_per_block == 0 else "block references"
        scale = ""
        if self.scaled:
            scale = (
                f", scaled to {self.pages_per_block} of {self.full_pages_per_block} pages a block"
            )
        return (
            f"{Path(self.trace.path).name}: {format_count(self.requests)} requests, "
            f"{format_count(self.references)} {unit} ({format_count(self.unique)} unique){scale}: "
            f"up to {format_bytes(self.pages * page_bytes)} moved, "
            f"{format_bytes(self.unique_pages * page_bytes)} stored"
        )


def load_workload(path: Path, settings: Settings, limit: int | None, *, scaled: bool) -> Workload:
    """Open a trace and count what a run of it takes.

    Args:
        path: the trace.
        settings: page size, model and pages per block.
        limit: requests to take, None for all.
        scaled: blocks stand for themselves with few pages unless the settings say otherwise.

    Raises:
        TraceError: the trace is missing or broken.
        SettingsError: the settings do not fit it.
    """
    trace = open_trace(path)
    counts = footprint(trace, limit)
    pages_per_block = full = 0
    if isinstance(trace, RequestTrace):
        model = geometry(settings.replay.model)
        full = model.pages_per_block(trace.metadata.block_tokens, settings.page_bytes)
        pages_per_block = settings.replay.pages_per_block or (
            SCALED_PAGES_PER_BLOCK if scaled else full
        )
        if counts.largest > settings.chain.objects_max:
            raise SettingsError(
                f"{path}: a request has {counts.largest} blocks: raise chain.objects_max, now "
                f"{settings.chain.objects_max}"
            )
    else:
        _check_pages(trace, settings)
    return Workload(
        trace, limit, pages_per_block, full, counts.requests, counts.references, counts.unique
    )


def check_simulation(workload: Workload) -> None:
    """Refuse what would take hours, with the numbers that say so."""
    if workload.pages > SIMULATED_PAGES_MAX:
        raise LimitError(
            f"{workload.trace.path}: the full geometry of {workload.full_pages_per_block} pages a "
            f"block makes {workload.pages:,} page accesses over {workload.unique_pages:,} distinct "
            f"pages, more than the {SIMULATED_PAGES_MAX:,} that one run takes on: scale it with "
            "--pages-per-block N, or take fewer requests with --limit N"
        )


def _check_pages(trace: PageTrace, settings: Settings) -> None:
    if trace.page_bytes != settings.page_bytes:
        raise SettingsError(
            f"{trace.path}: its pages are {trace.page_bytes} bytes, page_bytes is "
            f"{settings.page_bytes}: set page_bytes = {trace.page_bytes}"
        )
    if settings.origin is None:
        raise SettingsError(
            f"{trace.path}: a page trace reads objects that exist: configure an [origin]"
        )
    if len(trace.objects) > settings.chain.objects_max:
        raise SettingsError(
            f"{trace.path}: it has {len(trace.objects)} objects: raise chain.objects_max, now "
            f"{settings.chain.objects_max}"
        )
