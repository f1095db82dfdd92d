"""The calibration table: JSON there and back, bound to its graph and contract."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibration.table import CalibrationTable, read_table, write_table
from edge.errors import CalibrationError

TABLE = CalibrationTable(
    amax=(("images", 1.0), ("layers.0.act", 0.1 + 0.2), ("layers.1.act", 1e-30)),
    method="mse",
    graph_sha256="a" * 64,
    contract_digest="b" * 64,
    images=("1" * 64, "2" * 64),
)


def test_table_survives_json_whole(tmp_path: Path) -> None:
    write_table(TABLE, tmp_path / "x.calib.json")
    assert read_table(tmp_path / "x.calib.json") == TABLE
    assert [path.name for path in tmp_path.iterdir()] == ["x.calib.json"]


def test_table_can_be_diffed(tmp_path: Path) -> None:
    write_table(TABLE, tmp_path / "x.json")
    text = (tmp_path / "x.json").read_text()
    assert len(text.splitlines()) > len(TABLE.amax)
    assert json.loads(text)["amax"]["layers.0.act"] == 0.1 + 0.2


def test_its_own_graph_and_contract_are_accepted() -> None:
    TABLE.check("a" * 64, "b" * 64)


@pytest.mark.parametrize(
    ("graph", "contract", "what"),
    [("c", "b", "another graph"), ("a", "c", "another input contract")],
)
def test_another_graph_or_contract_is_refused(graph: str, contract: str, what: str) -> None:
    with pytest.raises(CalibrationError, match=rf"^x\.onnx: .*{what} .*calibrate again"):
        TABLE.check(graph * 64, contract * 64, "x.onnx")


def changed(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "x.json"
    write_table(TABLE, path)
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    return path


@pytest.mark.parametrize("amax", [-1.0, 0.0, float("nan"), float("inf"), "x", [1]])
def test_a_threshold_that_is_no_positive_number_is_refused(tmp_path: Path, amax: Any) -> None:
    with pytest.raises(CalibrationError, match=r"x\.json: not a calibration table"):
        read_table(changed(tmp_path, amax={"images": 1.0, "bad": amax}))


@pytest.mark.parametrize(
    "changes",
    [
        {"gains": {"images": [1.0, -2.0]}},
        {"bias": {"layers.0.conv": [float("nan")]}},
        {"bias": {"layers.0.conv": [1e39]}},
    ],
)
def test_gains_and_biases_that_no_weight_can_take_are_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(
        CalibrationError, match=r"x\.json: not a calibration table: .*(gains|bias|NaN)"
    ):
        read_table(changed(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"low": {"images": "x"}}, r"low\.images: takes a number"),
        ({"low": {"images": 1e999}}, "not a number of JSON|out of a number's range"),
        ({"noise_db": {"images": [1]}}, r"noise_db\.images: takes a number"),
        ({"method": 1}, "method: takes text"),
        ({"graph_sha256": True}, "graph_sha256: takes text"),
        ({"images": "abc"}, "images: takes a list"),
        ({"images": [1]}, r"images\[0\]: takes text"),
        ({"gains": {"images": 1.0}}, r"gains\.images: takes a list"),
        ({"rounding": {"a": 3}}, r"rounding\.a: takes text"),
        ({"amax": [["images", 1.0]]}, "amax: takes an object"),
        ({"amax": {"images": 1e39}}, "threshold of images is 1e\\+39"),
        ({"amax": {"images": True}}, r"amax\.images: takes a number"),
        ({"schema": "1"}, "schema: takes a whole number"),
        ({"asked": 1.5}, "asked: takes a whole number"),
    ],
)
def test_a_field_of_another_kind_is_named(
    tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    with pytest.raises(CalibrationError, match=rf"x\.json: not a calibration table: .*({what})"):
        read_table(changed(tmp_path, **changes))


def test_no_hostile_table_is_read(edge_data: Path) -> None:
    files = sorted((edge_data / "hostile" / "calib-json").iterdir())
    assert files
    for path in files:
        with pytest.raises(CalibrationError, match="not a calibration table"):
            read_table(path)


@pytest.mark.parametrize("key", ["amax", "method", "graph_sha256", "contract_digest", "images"])
def test_a_missing_field_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(CalibrationError, match=key):
        read_table(changed(tmp_path, **{key: None}))


def test_unknown_keys_are_ignored_and_newer_schemas_refused(tmp_path: Path) -> None:
    assert read_table(changed(tmp_path, future=[1])) == TABLE
    with pytest.raises(CalibrationError, match="schema 2 is newer"):
        read_table(changed(tmp_path, schema=2))


@pytest.mark.parametrize(
    "junk", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b'{"schema": "x"}', b"[" * 99999]
)
def test_junk_is_refused(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(junk)
    with pytest.raises(CalibrationError, match="not a calibration table"):
        read_table(path)


def test_no_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"gone\.json"):
        read_table(tmp_path / "gone.json")


def test_a_table_of_another_method_differs() -> None:
    assert replace(TABLE, method="minmax") != TABLE
