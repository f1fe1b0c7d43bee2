"""Several GPUs in one topology: what each is called, where its levels are, whom it shares with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kvtier.settings.problems import Problem
from kvtier.settings.values import IssuedBy, LinkSettings, Parts, Settings, TopologySettings

GPUS_MAX: Final = 256
"""Each has indexes and histograms of its own, and goes through the trace by itself."""

_ISSUED_BY: Final[dict[str, IssuedBy]] = {"gpu-sm": "gpu", "host-core": "host"}
"""Where that is, of which a preset gives the figures."""


def gpus_of(topology: TopologySettings | None) -> tuple[str, ...]:
    """The parts that need pages, each with a cache of its own; one at least."""
    topology = topology or TopologySettings()
    return topology.gpus or (topology.gpu,)


def place_of(topology: TopologySettings, level: str, gpu: int) -> str:
    """The part at which a level is for one GPU, given by its number."""
    place = topology.places.get(level, gpus_of(topology)[gpu])
    return place if isinstance(place, str) else place[gpu]


def pairs_of(link: LinkSettings) -> list[tuple[str, str]]:
    """The two parts of each link that a table of links stands for."""
    ones, others = map(listed, link.between)
    return [(one, other) for one in ones for other in others]


def device_names(settings: Settings, level: str) -> tuple[str, ...]:
    """What the device of a level is called, per GPU; those of one name are one device.

    It is called as the level where all GPUs share it, else by its part as well: ``nvme (drives0)``.
    """
    gpus = gpus_of(settings.topology)
    places: Parts = () if settings.topology is None else settings.topology.places.get(level, ())
    if level == "hbm" and not places:
        places = gpus
    if isinstance(places, str) or len(set(places)) < 2:
        return (level,) * len(gpus)
    return tuple(f"{level} ({place})" for place in places)


def issued_by(topology: TopologySettings) -> IssuedBy:
    """Whether what issues operations is in each GPU, or in the host that they share."""
    assert topology.issue is not None
    return topology.issue_by or _ISSUED_BY.get(topology.issue.preset, "host")


def gpu_problems(topology: TopologySettings) -> Iterator[Problem]:
    """What is wrong with GPUs, and with what there is one of for each."""
    key = "topology.gpus"
    if topology.gpus and topology.gpu != TopologySettings().gpu:
        yield Problem(
            "topology.gpu", f"topology.gpu and {key} are both there: leave one of them out"
        )
    if len(topology.gpus) > GPUS_MAX:
        yield Problem(key, f"{key} are {len(topology.gpus)}: at most {GPUS_MAX} can be simulated")
    if len(set(topology.gpus)) < len(topology.gpus):
        yield Problem(key, f"{key}: there are two of one name; each GPU needs its own")
    if not all(name.strip() for name in topology.gpus):
        yield Problem(key, f"{key}: a GPU has no name; give it one")
    yield from _place_problems(topology)
    for link in topology.links:
        yield from _end_problems(link)
    yield from _issue_problems(topology)


def _place_problems(topology: TopologySettings) -> Iterator[Problem]:
    gpus = gpus_of(topology)
    for level, place in topology.places.items():
        key = f"topology.places.{level}"
        if not isinstance(place, str) and len(place) != len(gpus):
            yield Problem(
                key,
                f"{key} has {_counted(len(place), 'part')} for {_counted(len(gpus), 'GPU')}: give "
                "one for each, or one part that all share, as a text",
            )
        elif level == "hbm" and len(gpus) > 1:
            yield Problem(
                key, f"{key}: each of several GPUs has its own hbm beside it; leave it out"
            )


def _end_problems(link: LinkSettings) -> Iterator[Problem]:
    key = f"topology.links.{link.name}.between"
    ones, others = map(listed, link.between)
    if len(ones) != 1 and len(others) != 1:
        yield Problem(key, f"{key}: both ends are several parts; one end must be a single part")
    several = max(ones, others, key=len)
    if len(set(several)) < len(several):
        yield Problem(
            key, f"{key}: an end names a part twice; a second link needs a name of its own"
        )


def _issue_problems(topology: TopologySettings) -> Iterator[Problem]:
    key = "topology.issue_by"
    if topology.issue is None:
        if topology.issue_by is not None:
            yield Problem(key, f"{key} is of what issues operations: give topology.issue too")
    elif len(topology.gpus) > 1 and not (topology.issue_by or topology.issue.preset in _ISSUED_BY):
        yield Problem(
            key,
            f"{key} is missing: say whether each GPU has its own of topology.issue ('gpu'), or all "
            "share those of the host ('host')",
        )


def listed(parts: Parts) -> tuple[str, ...]:
    """The parts that one end of a link, or a place, names."""
    return (parts,) if isinstance(parts, str) else parts


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
