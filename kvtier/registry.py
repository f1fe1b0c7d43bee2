"""Finds backends by the entry-point group ``kvtier.backends``.

A package declares a backend in its own metadata, so nothing in kvtier imports one by name::

    [project.entry-points."kvtier.backends"]
    mystore = "mystore.kvtier:MyBackend"
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from kvtier.backend import API_VERSION, Backend, Capability
from kvtier.errors import BackendError, UnknownBackendError
from kvtier.extents import compile_all
from kvtier.pages import check_page_bytes

GROUP: Final = "kvtier.backends"


def available() -> Mapping[str, str]:
    """The installed backends: name to ``module:attribute``. Imports none of them."""
    return {name: _entry_point(name).value for name in _names()}


def remedy(name: str, value: str) -> str:
    """What to do about a backend that is declared as ``value`` and cannot be imported."""
    for package in (point.dist for point in entry_points(group=GROUP, name=name)):
        if package and name in (package.metadata.get_all("Provides-Extra") or ()):
            return f"pip install '{package.name}[{name}]'"
    return f"install what {value.partition(':')[0]} needs"


async def open_backend(name: str, options: Mapping[str, Any], page_bytes: int) -> Backend:
    """Find, import and open a backend.

    Args:
        name: its name in the entry-point group.
        options: what its ``open`` gets.
        page_bytes: the page size it shall serve.

    Raises:
        UnknownBackendError: no installed package declares that name.
        BackendError: it cannot be imported, is no backend, was written for another version of
            the interface, or could not be opened.
        SettingsError: an option, or the page size, is wrong.
    """
    check_page_bytes(page_bytes)
    compile_all()
    backend = await _load(name).open(options, page_bytes)
    try:
        _check_version(name, backend.capability)
    except BackendError:
        await backend.close()
        raise
    return backend


def _names() -> list[str]:
    return sorted({point.name for point in entry_points(group=GROUP)})


def _entry_point(name: str) -> EntryPoint:
    """The one declaration of ``name``; the same one, seen twice on ``sys.path``, counts once."""
    points = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if not points:
        raise UnknownBackendError(_unknown(name))
    if len(points) > 1:
        raise BackendError(
            f"backend {name!r} is declared by several packages ({', '.join(sorted(points))}): "
            "uninstall all but one"
        )
    return next(iter(points.values()))


def _unknown(name: str) -> str:
    names = _names()
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"no backend {name!r} is installed: {hint}there are {', '.join(names) or 'none'}"


def _load(name: str) -> type[Backend]:
    point = _entry_point(name)
    try:
        loaded = point.load()
    except Exception as error:  # a foreign module may raise anything while it is imported
        raise BackendError(
            f"backend {name!r} ({point.value}) cannot be imported: "
            f"{type(error).__name__}: {error}: {remedy(name, point.value)}"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Backend)):
        raise BackendError(f"backend {name!r}: {point.value} is no kvtier.backend.Backend")
    _check_version(name, getattr(loaded, "capability", None))
    return loaded


def _check_version(name: str, capability: Capability | None) -> None:
    """Refuse another interface; a class that knows its capability only once open gives None."""
    if capability is not None and capability.api_version != API_VERSION:
        raise BackendError(
            f"backend {name!r} was written for version {capability.api_version} of the backend "
            f"interface, this kvtier has {API_VERSION}: install versions that fit"
        )
