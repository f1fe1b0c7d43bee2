"""The origin as the chain's last level: extents of PageIds become reads of named objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from kvtier.backend import Backend, ExtentBatch
from kvtier.chain import Extents
from kvtier.directory import ObjectDirectory, ObjectEntry
from kvtier.errors import BackendError
from kvtier.pages import I64, U8, PageStatus, page_indices_of


class Origin:
    """Reads pages of a backend by PageId.

    Args:
        backend: holds the objects; closed by whoever opened it.
        directory: says which object an id names.
        forget: called with the objects that the backend no longer has in the version known here.
    """

    def __init__(
        self,
        backend: Backend,
        directory: ObjectDirectory,
        forget: Callable[[Sequence[ObjectEntry]], None],
    ) -> None:
        self._backend = backend
        self._directory = directory
        self._forget = forget

    @property
    def available(self) -> bool:
        """Whether the backend would be asked at all."""
        return self._backend.available

    async def read(self, extents: Extents, page_rows: I64, out: U8) -> tuple[U8, Extents]:
        """Read extents into rows of ``out``.

        Returns:
            A ``PageStatus`` per page of ``page_rows`` (i64[m]), and the extents that the backend
            was asked for. Pages of unknown objects and pages past an object's end are ABSENT.
        """
        entries, entry_of, existing = self._directory.clip(extents.first, extents.count)
        asked = np.flatnonzero(existing > 0)
        issued = extents.clipped(existing)
        status = np.full(len(extents), PageStatus.ABSENT, np.uint8)
        if len(asked):
            batch = ExtentBatch(
                keys=tuple(entry.key for entry in entries),
                versions=np.array([entry.version for entry in entries], np.uint64),
                key_index=entry_of[asked],
                first_page=page_indices_of(issued.first),
                page_count=issued.count.astype(np.uint32),
                row=issued.row.astype(np.uint32),
            )
            status[asked] = _checked(await self._backend.read(batch, out), len(batch))
            gone = np.unique(entry_of[asked[status[asked] == PageStatus.ABSENT]])
            if len(gone):
                self._forget([entries[number] for number in gone])
        return extents.page_status(status, existing, page_rows), issued


def _checked(status: U8, extents: int) -> U8:
    """Believe no plugin: an answer of another shape or value says nothing of any extent."""
    if status.shape != (extents,) or status.dtype != np.uint8:
        raise BackendError(
            f"the origin answered {status.dtype}{list(status.shape)} for {extents} extents: "
            f"Backend.read must return uint8[{extents}]"
        )
    allowed = (status == PageStatus.OK) | (status == PageStatus.ABSENT)
    return np.where(allowed, status, np.uint8(PageStatus.FAILED))
