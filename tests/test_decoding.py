"""Strict JSON decoding, held against msgspec, which decodes the same dataclasses."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.decoding import decode_json, parse_json
from edge.errors import ArtifactError, DataError


@dataclass(frozen=True)
class Inner:
    name: str
    hw: tuple[int, int]
    scale: float = 1.0


@dataclass(frozen=True)
class Outer:
    kind: Literal["a", "b"]
    inner: Inner
    rows: tuple[Inner, ...] = ()
    table: dict[str, float] = field(default_factory=dict)
    note: str | None = None
    flag: bool = False

    def __post_init__(self) -> None:
        if self.note == "wrong":
            raise ValueError("the note is wrong")


GOOD: dict[str, Any] = {
    "kind": "a",
    "inner": {"name": "n", "hw": [1, 2]},
    "rows": [{"name": "m", "hw": [3, 4], "scale": 2}],
    "table": {"x": 1, "y": 2.5},
    "note": None,
    "flag": True,
    "unknown": [1],
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text("ab"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=2),
    max_leaves=4,
)


def mine(data: bytes) -> Outer:
    return decode_json(data, Outer, "f.json", "an outer")


def test_what_fits_is_read() -> None:
    assert mine(json.dumps(GOOD).encode()) == msgspec.json.decode(json.dumps(GOOD), type=Outer)


@given(st.sampled_from(sorted(GOOD)), st.sampled_from(["", "name", "hw", "scale"]), VALUES)
def test_every_other_value_in_a_field_is_judged_as_msgspec_judges_it(
    key: str, below: str, value: Any
) -> None:
    document = json.loads(json.dumps(GOOD))
    if below:
        document["inner"][below] = value
    else:
        document[key] = value
    text = json.dumps(document).encode()
    try:
        expected = msgspec.json.decode(text, type=Outer, strict=True)
    except msgspec.ValidationError:
        with pytest.raises(ArtifactError):
            mine(text)
        return
    assert mine(text) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "c"}, r'f.json: not an outer: kind: "c" is none of a, b'),
        ({"inner": {"hw": [1, 2]}}, "inner.name: is missing"),
        ({"inner": {"name": "n", "hw": [1, 2.5]}}, r"inner.hw\[1\]: takes a whole number, not 2.5"),
        ({"rows": [{"name": "m", "hw": [1]}]}, r"rows\[0\].hw: takes 2 values, not 1"),
        ({"flag": 1}, "flag: takes true or false, not 1"),
        ({"note": 5}, "note: takes .*, not 5"),
        ({"note": "wrong"}, "the note is wrong"),
        ({"table": {"x": "1"}}, 'table.x: takes a number, not "1"'),
        ({"table": []}, "table: takes an object"),
    ],
)
def test_the_field_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        mine(json.dumps({**GOOD, **change}).encode())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"nul",
        b"[NaN]",
        b"[Infinity]",
        b"[-Infinity]",
        b"[1e999]",
        b'{"a": 1, "a": 2}',
        b"[" * 65 + b"]" * 65,
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b"[" + b"9" * 5000 + b"]",
    ],
)
def test_what_is_no_finite_bounded_json_is_one_error(text: bytes) -> None:
    with pytest.raises(DataError, match=r"f\.json: not a thing"):
        parse_json(text, "f.json", "a thing", DataError)


def test_a_whole_number_beyond_a_floats_range_is_refused() -> None:
    document = {**GOOD, "table": {"x": int("9" * 400)}}
    with pytest.raises(ArtifactError, match=r"table\.x: .* out of a number's range"):
        mine(json.dumps(document).encode())
