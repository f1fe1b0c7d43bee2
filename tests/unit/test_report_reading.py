"""Results read back from files, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_results

from kvtier.errors import SettingsError
from kvtier.report.json_file import write_json
from kvtier.report.reading import read_result
from kvtier.report.rows import find


def _written(path: Path, values: object) -> Path:
    path.write_text(json.dumps(values))
    return path


@pytest.fixture
def result() -> dict[str, Any]:
    return small_results.result()


def test_what_was_written_is_read(tmp_path: Path, result: dict[str, Any]) -> None:
    write_json(tmp_path / "result.json", result)
    assert read_result(tmp_path / "result.json") == result


def test_results_of_older_and_later_versions_are_read(
    tmp_path: Path, result: dict[str, Any]
) -> None:
    old = small_results.older(result)
    assert read_result(_written(tmp_path / "old.json", old)) == old
    requests = {"count": 3, "per_s": 1.5, "latency_us": result["demand"]["latency_us"]}
    requests |= {"in_flight_mean": 1.0, "stall_share": None}  # and no queue_us yet
    older = old | {"requests": requests}
    assert read_result(_written(tmp_path / "older.json", older)) == older
    later = result | {"schema_version": 2, "added": {"later": 1}}
    assert read_result(_written(tmp_path / "later.json", later)) == later


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is no JSON"),
        ("# Results", "is no JSON"),
        ('{"iops": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "is no JSON"),
        ("[]", r"is no result of kvtier: the whole is '\[\]'"),
        ("{}", "is no result of kvtier: schema_version is missing"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=rf"other\.json: .*{complaint}"):
        read_result(path)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("schema_version", 0, "schema_version is 0"),
        ("schema_version", True, "schema_version is 'True'"),
        ("mode", "dream", "mode is 'dream'"),
        ("complete", 1, "complete is '1'"),
        ("seed", "1", "seed is '1'"),
        ("seed", 10**30, "seed is '1000"),
        ("duration_s", None, "duration_s is 'None'"),
        ("tiers", {}, "tiers is '{}'"),
        ("tiers.0", None, "tiers.0 is 'None'"),
        ("tiers.1.hits", 1.5, "tiers.1.hits is '1.5'"),
        ("origin.latency_us.p99", "fast", "origin.latency_us.p99 is 'fast'"),
        ("series.hits.hbm", [1], "the columns of series are not equally long"),
        ("by_purpose.prefix.demand.reads", None, "by_purpose.prefix.demand.reads is 'None'"),
        ("models", [{}], "models.0.level is missing"),
    ],
)
def test_a_wrong_value_is_named(
    key: str, value: object, complaint: str, tmp_path: Path, result: dict[str, Any]
) -> None:
    parent, _, name = key.rpartition(".")
    table = find(result, parent) if parent else result
    table[int(name) if isinstance(table, list) else name] = value
    with pytest.raises(SettingsError, match="is no result of kvtier: ") as refusal:
        read_result(_written(tmp_path / "result.json", result))
    assert complaint in str(refusal.value)


@pytest.mark.parametrize("key", ["demand", "series", "tiers", "verify"])
def test_what_every_version_has_must_be_there(
    key: str, tmp_path: Path, result: dict[str, Any]
) -> None:
    del result[key]
    with pytest.raises(SettingsError, match=f"{key} is missing"):
        read_result(_written(tmp_path / "result.json", result))


def test_an_infinite_number_is_refused(tmp_path: Path, result: dict[str, Any]) -> None:
    text = json.dumps(result).replace('"duration_s": 1.5', '"duration_s": 1e999')
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(SettingsError, match="duration_s is inf"):
        read_result(tmp_path / "result.json")
    text = json.dumps(result).replace('"backend": "tcp"', '"backend": [1e999]')
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(SettingsError, match=r"config\.origin\.backend\.0 is inf"):
        read_result(tmp_path / "result.json")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.json: cannot be read: No such file"):
        read_result(tmp_path / "none.json")
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        read_result(tmp_path)
