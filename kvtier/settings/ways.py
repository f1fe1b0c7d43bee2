"""Whether the links of a topology can lead pages where its places say; asked before any work."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from kvtier.settings.gpus import gpus_of, listed, pairs_of, place_of
from kvtier.settings.problems import Problem
from kvtier.settings.values import DeviceModel, TopologySettings

_DEVICES: Final = ("nvme", "origin")
"""Levels whose pages pass the host where the route is ``host``."""


def way_problems(topology: TopologySettings, levels: Collection[str]) -> Iterator[Problem]:
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


def _name_problems(topology: TopologySettings) -> Iterator[Problem]:
    names = [("topology.gpu", topology.gpu), ("topology.host", topology.host)]
    for level, place in topology.places.items():
        names += ((f"topology.places.{level}", part) for part in listed(place))
    for link in topology.links:
        if not link.name.strip():
            yield Problem("topology.links", "topology.links has a link without a name; give it one")
        ends = (part for end in link.between for part in listed(end))
        names += ((f"topology.links.{link.name}.between", part) for part in ends)
    for key, name in names:
        if not name.strip():
            yield Problem(key, f"{key}: a part is called {name!r}; give it a name")


def _link_problems(topology: TopologySettings) -> Iterator[Problem]:
    seen: dict[frozenset[str], str] = {}
    for link in topology.links:
        key = f"topology.links.{link.name}"
        yield from _flash_problems(f"{key}.model", link.model)
        for one, other in pairs_of(link):
            if one == other:
                yield Problem(
                    f"{key}.between",
                    f"{key}.between: the link ends at {one}, where it begins",
                )
                continue
            first = seen.setdefault(frozenset((one, other)), link.name)
            if first != link.name:
                yield Problem(
                    f"{key}.between",
                    f"{key}.between: {first} links {one} and {other} already, and a way takes one "
                    f"link; leave one out, and count both in topology.links.{first}.model.devices",
                )


def _flash_problems(key: str, model: DeviceModel) -> Iterator[Problem]:
    if model.flash is not None:
        yield Problem(
            key,
            f"{key} is a flash drive, which stores pages: give latency, iops and bandwidth, or "
            "another preset",
        )


def _place_problems(topology: TopologySettings, levels: Collection[str]) -> Iterator[Problem]:
    parts = _parts(topology)
    for level, place in topology.places.items():
        key = f"topology.places.{level}"
        if level not in levels:
            yield Problem(
                key, f"{key}: there is no level {level} here; leave it out, or add the level"
            )
            continue
        for part in listed(place):
            if part not in parts and part not in gpus_of(topology):
                yield Problem(key, f"{key} is {part}, where no link ends; {_advice(part, parts)}")


def _part_problems(topology: TopologySettings, levels: Collection[str]) -> Iterator[Problem]:
    """A GPU and the host are parts like others, where a way needs them."""
    parts, host = _parts(topology), topology.host
    passing = []
    for number, gpu in enumerate(gpus_of(topology)):
        places = {level: place_of(topology, level, number) for level in levels}
        if gpu not in parts and any(part != gpu for part in places.values()):
            key = "topology.gpus" if topology.gpus else "topology.gpu"
            yield Problem(
                key,
                f"{key} {'has' if topology.gpus else 'is'} {gpu}, where no link ends, so no page "
                f"gets there; {_advice(gpu, parts)}",
            )
        passing += [level for level in _DEVICES if places.get(level, host) != host]
    if topology.route == "host" and passing and host not in parts:
        yield Problem(
            "topology.host",
            f"topology.host is {host}, where no link ends, and topology.route leads pages of "
            f"{passing[0]} through it; {_advice(host, parts)}",
        )


def _parts(topology: TopologySettings) -> tuple[str, ...]:
    ends = (listed(end) for link in topology.links for end in link.between)
    return tuple(dict.fromkeys(part for end in ends for part in end))


def _advice(part: str, parts: Collection[str]) -> str:
    near = difflib.get_close_matches(part, parts, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(parts) or 'no links'}"
