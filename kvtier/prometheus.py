"""Text that Prometheus reads, of the exposition format 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]


def head(name: str, kind: Kind, about: str) -> list[str]:
    """The lines before the samples of a metric: ``about`` says what it is."""
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]


def family(
    name: str, kind: Kind, about: str, samples: Iterable[tuple[Mapping[str, str], float]]
) -> list[str]:
    """A metric with its samples: labels, and a value. Values of labels need no escape."""
    return [
        *head(name, kind, about),
        *(f"{name}{_labels(labels)} {value:.15g}" for labels, value in samples),
    ]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
