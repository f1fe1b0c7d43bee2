"""TOML to settings, built from the dataclasses: a field is a key, a dataclass a table.

Keys are called as :mod:`kvtier.settings.keys` says.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from kvtier.errors import SettingsError
from kvtier.settings.checks import TIER_ORDER, find_problems
from kvtier.settings.compute import COMPUTE_PRESETS, ComputeSettings
from kvtier.settings.document import DEPTH_MAX, parse_document
from kvtier.settings.gpus import GPUS_MAX
from kvtier.settings.keys import toml_key
from kvtier.settings.presets import DEFAULT_TOML, MODEL_PRESETS, default_model, flash_model
from kvtier.settings.values import (
    Admit,
    DeviceModel,
    LinkSettings,
    Parts,
    Settings,
    TierSettings,
)
from kvtier.settings.ways import without_places
from kvtier.ssd import SsdModel
from kvtier.units import parse_bytes, parse_rate, parse_seconds

T = TypeVar("T")

_RATES: Final = frozenset({"latency", "iops", "bandwidth"})
"""Keys of a device model; a table that has one of them describes a device of its own."""
_UNIONS: Final = (types.UnionType, typing.Union)  # the second where one is a Literal
_SCALARS: Final[Mapping[type, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
}


def default_settings() -> Settings:
    """Two small tiers in memory, one in a temporary file, and an origin of files.

    A run keeps these in a temporary directory; ``open_cache`` needs ``origin.options.root``.
    """
    return load_settings(None)


def load_settings(path: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> Settings:
    """Read, override and check settings.

    Args:
        path: a TOML file; None starts from the defaults of :mod:`kvtier.settings.presets`.
        overrides: ``"KEY=VALUE"`` with a dotted key, e.g. ``"tiers.dram.capacity=1GiB"``.

    Raises:
        SettingsError: the file is missing or no TOML; a key is unknown; a value has a wrong type,
            unit or range, or does not fit another. One line that names the file and the key.
    """
    if isinstance(overrides, str):
        raise SettingsError(f"--set {overrides}: give overrides as a list, [{overrides!r}]")
    document = _read(None if path is None else Path(path))
    assigned: dict[str, Any] = dict(parse_assignment(text) for text in overrides)
    for key, value in assigned.items():
        _assign(document, key, value)
    return build_settings(document, str(path or "default settings"), frozenset(assigned))


def build_settings(
    document: Mapping[str, Any], file: str, assigned: frozenset[str] = frozenset()
) -> Settings:
    """Checked settings from a parsed TOML document.

    Args:
        document: its tables.
        file: what refusals name as the source of a key,
        assigned: but for these dotted keys, and those below them, which came by ``--set``.

    Raises:
        SettingsError: as in :func:`load_settings`.
    """
    root = _Place("", file, assigned)
    settings = _build(Settings, document, root)
    if settings.topology is not None:
        there = {tier.name for tier in settings.tiers}
        left_out = document.get("tiers", {}).keys() - there
        topology = without_places(settings.topology, left_out)
        settings = dataclasses.replace(settings, topology=topology)
    for problem in find_problems(settings):
        raise root.at(problem.key).refusal(problem.sentence)
    return settings


def parse_assignment(text: str, flag: str = "--set") -> tuple[str, Any]:
    """The key and the value of ``"KEY=VALUE"``.

    A value that reads as a TOML number, boolean, quoted text, array or inline table is one; any
    other is text.

    Args:
        text: what was given.
        flag: the option that it was given to, for the message.

    Raises:
        SettingsError: there is no ``=``, or no key before it.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise SettingsError(f"{flag} {text}: write {flag} KEY=VALUE")
    if key.count(".") > DEPTH_MAX:
        raise SettingsError(f"{flag} {key[:40]}…: no key has so many parts; write fewer")
    try:
        document = parse_document(f"value = {value}")
    except ValueError:
        return key, value.strip()
    # More than the one key: the text held a line of its own, so it was no single TOML value.
    parsed = document["value"] if len(document) == 1 else None
    is_one = isinstance(parsed, bool | int | float | str | list | dict)
    return key, parsed if is_one else value.strip()


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return parse_document(DEFAULT_TOML)
    try:
        return parse_document(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(f"{path}: there is no such file; name an existing TOML file") from error
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{path}: is no TOML: {error}") from error


def _assign(document: dict[str, Any], key: str, value: object) -> None:
    *tables, last = key.split(".")
    table = document
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise SettingsError(f"--set {key}: {name} is a value, it has no keys of its own")
    table[last] = value


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """A dotted key and where its value comes from: what a refusal must name."""

    key: str
    file: str
    assigned: frozenset[str]

    def at(self, name: str) -> _Place:
        return dataclasses.replace(self, key=f"{self.key}.{name}" if self.key else name)

    def refusal(self, sentence: str) -> SettingsError:
        by_hand = any(f"{self.key}.".startswith(f"{key}.") for key in self.assigned)
        return SettingsError(f"{'--set' if by_hand else self.file}: {sentence}")

    def wrong(self, value: object, wanted: str) -> SettingsError:
        return self.refusal(f"{self.key} is {value!r}: it must be {wanted}")

    def unknown(self, known: Collection[str]) -> SettingsError:
        parent, _, name = self.key.rpartition(".")
        near = difflib.get_close_matches(name, known, n=1)
        nearest = f"{parent}.{near[0]}" if near and parent else "".join(near)
        advice = f"did you mean {nearest}?" if near else f"known here: {', '.join(known)}"
        return self.refusal(f"unknown key {self.key}; {advice}")


def _build(
    kind: type[T], table: object, place: _Place, base: T | None = None, **given: object
) -> T:
    """An instance of the dataclass ``kind``, with the values of ``base`` where the table has none.

    Fields in ``given`` are no keys of the table.
    """
    if not isinstance(table, dict):
        raise place.wrong(table, "a table")
    assert dataclasses.is_dataclass(kind)
    fields = {toml_key(field.name): field for field in dataclasses.fields(kind)}
    known = {key: field for key, field in fields.items() if field.name not in given}
    hints = typing.get_type_hints(kind)
    values = dict(given)
    for key, value in table.items():
        if key not in known:
            raise place.at(key).unknown(known)
        name = known[key].name
        values[name] = _convert(hints[name], name, value, place.at(key))
    if base is None:
        for key, field in known.items():
            if key not in table and _is_required(field):
                raise place.refusal(f"{place.at(key).key} is missing: it has no default")
    try:
        if base is None:
            return typing.cast("T", kind(**values))
        return typing.cast("T", dataclasses.replace(typing.cast("Any", base), **values))
    except SettingsError as error:  # of the dataclass itself; it begins with the field
        name = str(error).partition(" ")[0]
        key = toml_key(name)
        # A field whose unit is in its name is shown too, for its figure has none.
        shown = "" if key == name else f"{key}: "
        raise place.refusal(f"{place.key}.{shown}{error}") from error


def _is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _convert(hint: Any, name: str, value: object, place: _Place) -> object:
    """``value`` as the type and the unit of the field ``name``."""
    if hint not in _BUILDERS and typing.get_origin(hint) in _UNIONS:
        hint = next(option for option in typing.get_args(hint) if option is not types.NoneType)
    if hint in _BUILDERS:
        return _BUILDERS[hint](value, place)
    if typing.get_origin(hint) is Literal:
        return _choose(typing.get_args(hint), value, place)
    if typing.get_origin(hint) is Mapping:
        if not isinstance(value, dict):
            raise place.wrong(value, "a table")
        if typing.get_args(hint)[1] == Parts:
            value = {key: _parts(item, place.at(key)) for key, item in value.items()}
        return types.MappingProxyType(value)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast("type", hint), value, place)
    parse = _parser_of(name)
    return _scalar(hint, value, place) if parse is None else _quantity(parse, value, place)


def _build_tiers(table: object, place: _Place) -> tuple[TierSettings, ...]:
    """The tiers in their order, whatever the order of their tables; capacity 0 leaves one out."""
    if not isinstance(table, dict):
        raise place.wrong(table, "a table")
    for name in table:
        if name not in TIER_ORDER:
            raise place.at(name).unknown(TIER_ORDER)
    tiers = (
        _build(TierSettings, table[name], place.at(name), name=name)
        for name in TIER_ORDER
        if name in table
    )
    return tuple(tier for tier in tiers if tier.capacity_bytes)


def _build_links(table: object, place: _Place) -> tuple[LinkSettings, ...]:
    if not isinstance(table, dict):
        raise place.wrong(table, "a table")
    return tuple(
        _build(LinkSettings, link, place.at(name), name=name) for name, link in table.items()
    )


def _admit(value: object, place: _Place) -> Admit:
    if value == "all":
        return 1.0
    if value == "second touch":
        return "second touch"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return typing.cast("float", _scalar(float, value, place))
    raise place.wrong(value, "'all', 'second touch', or a share from 0 to 1")


def _ends(value: object, place: _Place) -> tuple[Parts, Parts]:
    wanted = "the two parts that it links, as ['gpu', 'switch'] or [['gpu0', 'gpu1'], 'switch']"
    match value:
        case [str() | list() as one, str() | list() as other]:
            return _parts(one, place, wanted), _parts(other, place, wanted)
    raise place.wrong(value, wanted)


def _parts(
    value: object, place: _Place, wanted: str = "a part, or a list with one of each GPU"
) -> Parts:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise place.wrong(value, wanted)


def _paths(value: object, place: _Place) -> tuple[Path, ...]:
    if not isinstance(value, list) or not value:
        raise place.wrong(value, "a list of paths")
    return tuple(typing.cast("Path", _scalar(Path, path, place)) for path in value)


def _gpus(value: object, place: _Place) -> tuple[str, ...]:
    """The names of GPUs; of a number ``n``, ``gpu0`` to ``gpu{n-1}``."""
    if type(value) is int and 1 <= value <= GPUS_MAX:
        return tuple(f"gpu{number}" for number in range(value))
    parts = value if isinstance(value, list) and 1 <= len(value) <= GPUS_MAX else None
    if parts is None or not all(isinstance(name, str) for name in parts):
        raise place.wrong(value, f"names, as ['gpu0', 'gpu1'], or how many, from 1 to {GPUS_MAX}")
    return tuple(parts)


def _build_model(table: object, place: _Place) -> DeviceModel:
    """A device model; its preset, or how its flash is built, gives what it leaves out."""
    base = None
    if isinstance(table, dict) and "preset" in table:
        name = _choose(tuple(MODEL_PRESETS), table["preset"], place.at("preset"))
        base = MODEL_PRESETS[name].model
    if isinstance(table, dict) and "flash" in table:
        base = _build_flash(table["flash"], place, base)
        table = {key: value for key, value in table.items() if key != "flash"}
    elif base is None and isinstance(table, dict) and not _RATES & table.keys():
        base = _default_of(place.key)
    return _build(DeviceModel, table, place, base=base)


def _build_flash(table: object, place: _Place, base: DeviceModel | None) -> DeviceModel:
    """A flash drive; a preset that is one, too, gives what its table leaves out."""
    if base is None:
        return flash_model(_build(SsdModel, table, place.at("flash")))
    if base.flash is None:
        raise place.at("preset").refusal(
            f"{place.at('preset').key} is {base.preset}, which is no flash drive, beside "
            f"{place.at('flash').key}: leave one of the two out"
        )
    flash = _build(SsdModel, table, place.at("flash"), base=base.flash)
    return dataclasses.replace(flash_model(flash), preset=base.preset)


def _default_of(key: str) -> DeviceModel | None:
    """The model that a level has without a table; None of what has none."""
    match key.split("."):
        case ["tiers", ("hbm" | "dram" | "nvme") as level, "model"]:
            return default_model(level)
        case ["origin", "model"]:
            return default_model("origin")
    return None


def _build_compute(table: object, place: _Place) -> ComputeSettings:
    """The GPUs of a model; their preset gives what the table leaves out."""
    name = ComputeSettings().preset
    if isinstance(table, dict) and "preset" in table:
        name = _choose(tuple(COMPUTE_PRESETS), table["preset"], place.at("preset"))
    return _build(ComputeSettings, table, place, base=COMPUTE_PRESETS[name].compute)


_BUILDERS: Final[Mapping[Any, Callable[[object, _Place], object]]] = {
    Admit: _admit,
    tuple[TierSettings, ...]: _build_tiers,
    tuple[LinkSettings, ...]: _build_links,
    tuple[Parts, Parts]: _ends,
    tuple[str, ...]: _gpus,
    tuple[Path, ...]: _paths,
    DeviceModel: _build_model,
    ComputeSettings: _build_compute,
}


def _parser_of(field_name: str) -> Callable[[object, str], int | float] | None:
    if field_name.endswith("_bytes"):
        return parse_bytes
    if field_name.endswith("bytes_per_s"):
        return parse_rate
    for unit, per_s in (("_us", 1e6), ("_ns", 1e9)):
        if field_name.endswith(unit):
            return lambda value, key: parse_seconds(value, key) * per_s
    return parse_seconds if field_name.endswith("_s") else None


def _quantity(
    parse: Callable[[object, str], int | float], value: object, place: _Place
) -> int | float:
    try:
        return parse(value, place.key)
    except SettingsError as error:
        raise place.refusal(str(error)) from error


def _choose(options: Sequence[str], value: object, place: _Place) -> str:
    for option in options:
        if value == option:
            return option
    near = difflib.get_close_matches(str(value), options, n=1)
    advice = f"; did you mean {near[0]}?" if near else ""
    raise place.wrong(value, f"one of {', '.join(options)}{advice}")


def _scalar(hint: type, value: object, place: _Place) -> object:
    """A bool is no number here, though Python has it so; a whole number is a float as well."""
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:
            return float(value)
    elif hint is Path and isinstance(value, str) and value:
        return Path(value).expanduser()
    elif type(value) is hint:
        return value
    raise place.wrong(value, _SCALARS[hint])
