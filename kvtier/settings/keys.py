"""What a field of the settings is called in TOML.

A key is its field without the unit (``capacity_bytes`` is ``capacity = "64 GiB"``), for the value
carries the unit; ``bytes_per_s`` is ``bandwidth``, but of a limit it is nothing more, and
``page_bytes`` keeps its name.
"""

from __future__ import annotations

from typing import Final

_UNITS: Final = ("_bytes", "_s", "_us", "_ns")


def toml_key(field_name: str) -> str:
    """The key of a field in TOML."""
    if field_name == "page_bytes":
        return field_name
    if field_name.endswith("_limit_bytes_per_s"):
        return field_name.removesuffix("_bytes_per_s")
    if field_name.endswith("bytes_per_s"):
        return field_name.removesuffix("bytes_per_s") + "bandwidth"
    for unit in _UNITS:
        field_name = field_name.removesuffix(unit)
    return field_name
