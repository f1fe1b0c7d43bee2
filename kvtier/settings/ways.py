"""Whether the links of a topology can lead pages where its places say; asked before any work."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from kvtier.settings.values import DeviceModel, TopologySettings

_DEVICES: Final = ("nvme", "origin")
"""Levels whose pages pass the host where the route is ``host``."""

Finding = tuple[str, str]
"""A dotted key, and a sentence that begins with it."""


def way_problems(topology: TopologySettings, levels: Collection[str]) -> Iterator[Finding]:
    """What is wrong with the links, the places and the parts, the simplest first.

    That there is a way from each place to the GPU is found out where ways are made.

    Args:
        topology: of the settings.
        levels: names of the tiers that there are, and of the origin.
    """
    yield from _name_problems(topology)
    yield from _link_problems(topology)
    yield from _place_problems(topology, levels)
    yield from _part_problems(topology, levels)
    if topology.issue is not None:
        yield from _flash_problems("topology.issue", topology.issue)


def without_places(topology: TopologySettings, levels: Collection[str]) -> TopologySettings:
    """The topology after these levels were left out."""
    kept = {name: part for name, part in topology.places.items() if name not in levels}
    return replace(topology, places=MappingProxyType(kept))


def _name_problems(topology: TopologySettings) -> Iterator[Finding]:
    names = [("topology.gpu", topology.gpu), ("topology.host", topology.host)]
    names += ((f"topology.places.{level}", part) for level, part in topology.places.items())
    for link in topology.links:
        if not link.name.strip():
            yield "topology.links", "topology.links has a link without a name; give it one"
        names += ((f"topology.links.{link.name}.between", part) for part in link.between)
    for key, name in names:
        if not name.strip():
            yield key, f"{key}: a part is called {name!r}; give it a name"


def _link_problems(topology: TopologySettings) -> Iterator[Finding]:
    seen: dict[frozenset[str], str] = {}
    for link in topology.links:
        key = f"topology.links.{link.name}"
        yield from _flash_problems(f"{key}.model", link.model)
        one, other = link.between
        if one == other:
            yield (
                f"{key}.between",
                f"{key}.between: the link ends at {one}, where it begins",
            )
            continue
        first = seen.setdefault(frozenset(link.between), link.name)
        if first != link.name:
            yield (
                f"{key}.between",
                f"{key}.between: {first} links {one} and {other} already, and a way takes one "
                f"link; leave one out, and count both in topology.links.{first}.model.devices",
            )


def _flash_problems(key: str, model: DeviceModel) -> Iterator[Finding]:
    if model.flash is not None:
        yield (
            key,
            f"{key} is a flash drive, which stores pages: give latency, iops and bandwidth, or "
            "another preset",
        )


def _place_problems(topology: TopologySettings, levels: Collection[str]) -> Iterator[Finding]:
    parts = _parts(topology)
    for level, part in topology.places.items():
        key = f"topology.places.{level}"
        if level not in levels:
            yield key, f"{key}: there is no level {level} here; leave it out, or add the level"
        elif part not in parts and part != topology.gpu:
            yield key, f"{key} is {part}, where no link ends; {_advice(part, parts)}"


def _part_problems(topology: TopologySettings, levels: Collection[str]) -> Iterator[Finding]:
    """The GPU and the host are parts like others, where a way needs them."""
    parts, gpu, host = _parts(topology), topology.gpu, topology.host
    places = {level: topology.places.get(level, gpu) for level in levels}
    if gpu not in parts and any(part != gpu for part in places.values()):
        yield (
            "topology.gpu",
            f"topology.gpu is {gpu}, where no link ends, so no page gets there; "
            f"{_advice(gpu, parts)}",
        )
    passing = [level for level in _DEVICES if places.get(level, host) != host]
    if topology.route == "host" and passing and host not in parts:
        yield (
            "topology.host",
            f"topology.host is {host}, where no link ends, and topology.route leads pages of "
            f"{passing[0]} through it; {_advice(host, parts)}",
        )


def _parts(topology: TopologySettings) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for link in topology.links for part in link.between))


def _advice(part: str, parts: Collection[str]) -> str:
    near = difflib.get_close_matches(part, parts, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(parts) or 'no links'}"
