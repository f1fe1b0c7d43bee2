"""Opening a store: whatever is wrong with the place or the rights to it is found here.

``PREFIX/format.json`` says that this is a store, and the size of its pages;
``PREFIX/objects/NAME`` are the objects.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError

from kvtier.errors import BackendError, SettingsError
from kvtier_s3.faults import StoreError, is_absent, reason, status_of
from kvtier_s3.options import S3Options

if TYPE_CHECKING:
    from obstore.store import S3Store

OBJECTS: Final = "objects/"
_MARKER: Final = "format.json"
_FORMAT: Final = "kvtier-s3"
_FORMAT_VERSION: Final = 1
_NOT_IMPLEMENTED: Final = 501


async def check_store(store: S3Store, options: S3Options, page_bytes: int) -> None:
    """Make sure that a store is there and may be used, and make it if its place is empty.

    Three or four requests, one after the other, so that the first thing wrong is what is told.

    Raises:
        SettingsError: it holds pages of another size, or something else.
        BackendError: it cannot be reached, or refuses.
    """
    await _check_listing(store, options)
    marker = await _read_marker(store, options)
    if marker is not None:
        _check_marker(marker, options, page_bytes)
    if options.read_only:
        return
    await _write_marker(store, options, page_bytes)
    if marker is None:
        # What another process made meanwhile is what counts.
        _check_marker(await _read_marker(store, options) or b"", options, page_bytes)


async def _check_listing(store: S3Store, options: S3Options) -> None:
    """The first request, which is refused if the place is wrong or the credentials are.

    Without the right to list, S3 answers a read of what is not there with 403, not 404, and a
    miss would look like a failure.
    """
    try:
        async for _ in obstore.list(store, options.folder + OBJECTS, chunk_size=1):
            break
    except StoreError as error:
        raise _refused(options, error, "list the bucket (s3:ListBucket)") from error


async def _read_marker(store: S3Store, options: S3Options) -> bytes | None:
    try:
        result = await obstore.get_async(store, options.folder + _MARKER)
        return bytes(await result.bytes_async())
    except StoreError as error:
        if is_absent(error):
            return None
        raise _refused(options, error, "read objects (s3:GetObject)") from error


async def _write_marker(store: S3Store, options: S3Options, page_bytes: int) -> None:
    """Put the marker if there is none; where there is one, this shows the right to put."""
    name = options.folder + _MARKER
    text = json.dumps(
        {"format": _FORMAT, "version": _FORMAT_VERSION, "page_bytes": page_bytes}, indent=2
    )
    try:
        try:
            await obstore.put_async(store, name, text.encode(), mode="create")
        except AlreadyExistsError:
            return
        except (BaseError, NotImplementedError) as error:
            if not isinstance(error, NotSupportedError | NotImplementedError) and (
                status_of(error) != _NOT_IMPLEMENTED
            ):
                raise
            # A store without If-None-Match. A marker that is there was found to be the same.
            await obstore.put_async(store, name, text.encode())
    except StoreError as error:
        raise _refused(options, error, "put objects (s3:PutObject)") from error


def _check_marker(text: bytes, options: S3Options, page_bytes: int) -> None:
    name = f"{_MARKER} in {options.place}"
    try:
        found: Any = json.loads(text)
        kind, version, held = found["format"], found["version"], found["page_bytes"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SettingsError(
            f"{name} is no description of a store: take another 'prefix'"
        ) from error
    if (kind, version) != (_FORMAT, _FORMAT_VERSION):
        raise SettingsError(
            f"{name} describes a {kind!r} of version {version}: "
            f"this kvtier reads {_FORMAT!r} of version {_FORMAT_VERSION}"
        )
    if held != page_bytes:
        raise SettingsError(
            f"{options.place} holds pages of {held} bytes, not {page_bytes}: "
            f"set page_bytes to {held}, or take another 'prefix'"
        )


def _refused(options: S3Options, error: Exception, right: str) -> BackendError:
    return BackendError(f"origin {options.place}: {reason(error, right)}")
