"""Objects that come in parts, because they are larger than a frame."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from kvtier.backend import Backend, ObjectBatch, check_keys
from kvtier.errors import BackendError, LimitError, ProtocolError
from kvtier.pages import U8, PageStatus
from kvtier.server.spool import Spool, SpoolRoom
from kvtier.units import format_seconds
from kvtier.wire.messages import PutPart, PutPartReply

_LOG: Final = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Upload:
    key: bytes
    page_count: int
    pages: int = 0
    """Those that came."""
    spool: Spool | None = None
    """None before the first part, and where the upload failed."""
    has_failed: bool = False
    is_abandoned: bool = False
    quiet_ns: int | None = None
    """For how long one could have come and none did; None until that was looked at."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Fair, so that parts are taken in the order in which they came."""

    def fail(self) -> None:
        self.has_failed = True
        self.close()

    def close(self) -> None:
        if self.spool is not None:
            self.spool.close()
            self.spool = None


class Uploads:
    """The uploads of one connection: spooled part by part, then put in one call.

    Args:
        backend: where objects are put.
        page_bytes: its page size.
        object_pages_max: most pages of an object, and of all open uploads together.
        uploads_max: uploads that may be open at once.
        room: the disk for what is not complete.
    """

    def __init__(
        self,
        backend: Backend,
        page_bytes: int,
        object_pages_max: int,
        uploads_max: int,
        room: SpoolRoom,
    ) -> None:
        self._backend = backend
        self._page_bytes = page_bytes
        self._object_pages_max = object_pages_max
        self._uploads_max = uploads_max
        self._room = room
        self._uploads: dict[int, _Upload] = {}

    async def take(self, part: PutPart, payload: U8 | None) -> PutPartReply:
        """Take one part; with the last one the object is published.

        Raises:
            ProtocolError: it does not continue its upload.
            LimitError: it begins one that is larger, or one more, than there may be.
            KvtierError: the object could not be put.
        """
        pages = self._pages_of(payload)
        upload = self._uploads.get(part.upload) or self._begin(part)
        async with upload.turn:
            self._check_next(upload, part, len(pages))
            upload.pages += len(pages)
            upload.quiet_ns = None
            if upload.pages < upload.page_count:
                await self._spool(upload, pages)
                return _reply(upload)
            try:
                await self._spool(upload, pages)
                return await self._publish(upload)
            finally:
                self._forget(part.upload)

    async def abandon(self, number: int) -> None:
        """Forget an upload, if there is one."""
        upload = self._uploads.get(number)
        if upload is None:
            return
        upload.is_abandoned = True
        async with upload.turn:
            self._forget(number)

    def check(self, passed_ns: int, patience_s: float) -> None:
        """Give up what no part came for in ``patience_s``; the rest of it fails.

        Called again and again while a part could come.

        Args:
            passed_ns: since the client was last looked at.
            patience_s: how long a client may take.
        """
        for upload in self._uploads.values():
            if upload.quiet_ns is None or upload.turn.locked():
                upload.quiet_ns = 0
                continue
            upload.quiet_ns += passed_ns
            if upload.quiet_ns > patience_s * 1e9 and not upload.has_failed:
                shown = format_seconds(patience_s)
                _LOG.warning(
                    "an upload of %d pages is given up: no part came for %s",
                    upload.page_count,
                    shown,
                )
                upload.fail()

    async def close(self) -> None:
        """Forget every upload."""
        for number, upload in list(self._uploads.items()):
            async with upload.turn:  # a thread may still be writing
                self._forget(number)

    def _pages_of(self, payload: U8 | None) -> U8:
        if payload is None or payload.nbytes % self._page_bytes:
            have_bytes = 0 if payload is None else payload.nbytes
            raise ProtocolError(
                f"a PUT_PART has a payload of {have_bytes} bytes: "
                f"whole pages of {self._page_bytes} are needed"
            )
        return payload.reshape(-1, self._page_bytes)

    def _begin(self, part: PutPart) -> _Upload:
        if part.first_page != 0:
            raise ProtocolError(
                f"a PUT_PART begins an upload with page {part.first_page}, not with page 0"
            )
        if not self._backend.capability.writable:
            raise BackendError("the store behind the server is read-only")
        check_keys((part.key,), self._backend.capability)
        if part.page_count > self._object_pages_max:
            raise LimitError(
                f"an object of {part.page_count} pages: {self._object_pages_max} are possible"
            )
        # The spool of an abandoned one may still be in the hands of a thread.
        others = [one for one in self._uploads.values() if not one.is_abandoned]
        if len(others) >= self._uploads_max:
            raise LimitError(
                f"more than {self._uploads_max} uploads at once: end one, or take more connections"
            )
        held = sum(one.page_count for one in others if not one.has_failed)
        if held + part.page_count > self._object_pages_max:
            raise LimitError(
                f"an object of {part.page_count} pages beside uploads of {held}: "
                f"{self._object_pages_max} are possible together; end one"
            )
        upload = _Upload(part.key, part.page_count)
        self._uploads[part.upload] = upload
        return upload

    def _check_next(self, upload: _Upload, part: PutPart, pages: int) -> None:
        if self._uploads.get(part.upload) is not upload:
            raise ProtocolError("a PUT_PART came after the end of its upload")
        if (part.key, part.page_count) != (upload.key, upload.page_count):
            raise ProtocolError("a PUT_PART is of another object than its upload")
        if part.first_page != upload.pages or part.first_page + pages > upload.page_count:
            raise ProtocolError(
                f"a PUT_PART has {pages} pages from page {part.first_page} on: "
                f"at most {upload.page_count - upload.pages} from page {upload.pages} on must come"
            )

    async def _spool(self, upload: _Upload, pages: U8) -> None:
        """Write a part; where that fails, the rest of the upload is not written any more."""
        if upload.has_failed:
            return
        try:
            if upload.spool is None:
                size_bytes = upload.page_count * self._page_bytes
                upload.spool = await Spool.open(self._room, size_bytes)
            await upload.spool.append(pages)
        except OSError as error:
            _LOG.warning("an upload of %d pages failed: %s", upload.page_count, error)
            upload.fail()

    async def _publish(self, upload: _Upload) -> PutPartReply:
        if upload.spool is None:
            return _reply(upload)
        payload = upload.spool.pages(self._page_bytes)
        page_counts = np.array([upload.page_count], np.uint32)
        result = await self._backend.put(ObjectBatch((upload.key,), page_counts, payload))
        return PutPartReply(PageStatus(int(result.status[0])), int(result.versions[0]))

    def _forget(self, number: int) -> None:
        upload = self._uploads.pop(number, None)
        if upload is not None:
            upload.close()


def _reply(upload: _Upload) -> PutPartReply:
    return PutPartReply(PageStatus.FAILED if upload.has_failed else PageStatus.OK, 0)
