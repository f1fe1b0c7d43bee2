"""Settings as JSON, for the report: complete enough to run again, and without secrets."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kvtier.settings.values import DeviceModel, Settings

MASK: Final = "***"

_CONFIDENTIAL: Final = (
    r"[\w-]*(?:token|passw|secret|credential|(?:access|api|private)[_-]?key)[\w-]*"
)
_CONFIDENTIAL_KEY: Final = re.compile(_CONFIDENTIAL, re.IGNORECASE)
_URL_PASSWORD: Final = re.compile(r"(://[^:/?#@\s]*):\S*@")
_URL_PARAMETER: Final = re.compile(rf"([?&]{_CONFIDENTIAL}=)[^&#\s]*", re.IGNORECASE)


def to_dict(settings: Settings) -> dict[str, Any]:
    """The settings under the names of their fields, in bytes and seconds.

    What a device model leaves out is left out here too.
    Options named like a secret (token, password, …) and passwords inside URLs read ``***``.
    """
    described = _plain(settings)
    assert isinstance(described, dict)
    return described


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if isinstance(value, DeviceModel):
            fields = {name: item for name, item in fields.items() if item is not None}
        return {name: _plain(item) for name, item in fields.items()}
    if isinstance(value, Mapping):
        return {
            str(key): MASK if _CONFIDENTIAL_KEY.fullmatch(str(key)) else _plain(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    # Paths, the dates and times that TOML knows, and infinities, which JSON has no number for.
    return _without_password(str(value) if not isinstance(value, Path) else value.as_posix())


def _without_password(text: str) -> str:
    return _URL_PARAMETER.sub(rf"\1{MASK}", _URL_PASSWORD.sub(rf"\1:{MASK}@", text))
