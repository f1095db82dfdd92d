"""Spec and manifest: JSON there and back, digests, and refusals."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ArtifactError
from edge.files import plain_text
from edge.spec import (
    PRECISIONS,
    BoxCoding,
    Columns,
    HeadSpec,
    InputContract,
    Layout,
    Level,
    Manifest,
    ModelSpec,
    ScoreCoding,
    TensorSpec,
)

side = st.integers(1, 4096)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
triple = st.tuples(finite, finite, finite)
text = st.text(max_size=12)
plain = text.filter(lambda found: found == plain_text(found))
file_name = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,9}", fullmatch=True)
pairs = st.lists(st.tuples(text, text), max_size=3).map(tuple)
contracts = st.builds(
    InputContract,
    hw=st.tuples(side, side),
    resize=st.sampled_from(("letterbox", "stretch")),
    pad_value=st.integers(0, 255),
    channel_order=st.sampled_from(("RGB", "BGR")),
    mean=triple,
    scale=st.tuples(positive, positive, positive),
    placement=st.sampled_from(("centre", "top left")),
    rounding=st.sampled_from(("down", "nearest")),
    scaling=st.sampled_from(("sides", "ratio")),
)
own_heads = st.builds(
    HeadSpec.of_grid,
    tensor=text,
    kind=st.sampled_from(("region", "yolo", "convdet")),
    grid_hw=st.tuples(side, side),
    anchors=st.lists(st.tuples(positive, positive), min_size=1, max_size=4).map(tuple),
    class_activation=st.sampled_from(("softmax", "sigmoid", "linear")),
    scale_xy=positive,
)
levels = st.builds(
    Level,
    grid_hw=st.tuples(side, side),
    anchors=st.lists(st.tuples(positive, positive), min_size=1, max_size=4).map(tuple),
    stride=st.none() | st.floats(1, 128),
)
foreign_heads = st.builds(
    HeadSpec,
    st.builds(
        Layout,
        tensors=st.just((Columns("boxes", ("other", "box")), Columns("scores", ("classes",)))),
        axis=st.sampled_from(("first", "last")),
        anchors=st.sampled_from(("outer", "inner")),
        shared_classes=st.booleans(),
        suppressed=st.booleans(),
    ),
    st.builds(
        BoxCoding,
        form=st.sampled_from(("grid", "priors", "distances")),
        levels=st.lists(levels, min_size=1, max_size=3).map(tuple),
        activation=st.sampled_from(("sigmoid", "tanh", "none")),
        stretch=positive,
        shift=finite,
        margin=st.integers(0, 1),
        size=st.sampled_from(("exp", "sigmoid", "none")),
        squared=st.booleans(),
        variances=st.tuples(positive, positive),
        clip_priors=st.booleans(),
        clip_boxes=st.booleans(),
        unit=st.sampled_from(("cells", "pixels", "input")),
        order=st.sampled_from(("xy", "yx")),
    ),
    st.builds(
        ScoreCoding,
        classes=st.sampled_from(("sigmoid", "softmax", "none")),
        objectness=st.sampled_from(("sigmoid", "none")),
        powers=st.tuples(st.floats(0.1, 2), st.floats(0.1, 2)),
        background=st.sampled_from(("first", "last", None)),
        first_label=st.integers(0, 1),
        exclusive=st.booleans(),
    ),
)
heads = own_heads | foreign_heads
specs = st.builds(
    ModelSpec,
    name=file_name,
    family=plain,
    classes=st.lists(plain, min_size=1, max_size=4).map(tuple),
    contract=contracts,
    heads=st.lists(heads, min_size=1, max_size=3).map(tuple),
)
tensors = st.lists(
    st.builds(TensorSpec, name=text, shape=st.lists(side, max_size=4).map(tuple), dtype=text),
    max_size=3,
).map(tuple)
manifests = st.builds(
    Manifest,
    spec=specs,
    precision=st.sampled_from(PRECISIONS),
    inputs=tensors,
    outputs=tensors,
    sha256=text,
    parent_sha256=text,
    made_by=pairs,
    arguments=pairs,
    labels=st.lists(text, max_size=2).map(tuple),
)

CONTRACT = InputContract((416, 320))
HEAD = HeadSpec.of_grid("head", "yolo", (13, 10), ((10.0, 14.0), (23.0, 27.0)))
SPEC = ModelSpec("net", "darknet", ("cat", "dog"), CONTRACT, (HEAD,))
MANIFEST = Manifest(
    SPEC,
    "fp32",
    (TensorSpec("images", (1, 3, 416, 320)),),
    (TensorSpec("head", (1, 14, 13, 10)),),
    made_by=(("edge", "0.1"),),
    labels=("random weights",),
)


@given(manifests)
def test_manifest_survives_json_whole(manifest: Manifest) -> None:
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert hash(again) == hash(manifest)
    assert again.spec.contract.digest == manifest.spec.contract.digest


@pytest.mark.parametrize(
    "change",
    [
        {"hw": (320, 416)},
        {"resize": "stretch"},
        {"pad_value": 127},
        {"channel_order": "BGR"},
        {"mean": (0.0, 0.0, 1e-9)},
        {"scale": (1 / 255, 1 / 255, 1 / 256)},
        {"placement": "top left"},
        {"rounding": "nearest"},
        {"scaling": "ratio"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_digest_changes_with_every_field(change: dict[str, Any]) -> None:
    assert replace(CONTRACT, **change).digest != CONTRACT.digest


def test_every_field_of_the_contract_goes_into_the_digest() -> None:
    # `interpolation` has only one value yet; it must be in the digest before it gets a second.
    other = InputContract((416, 320))
    object.__setattr__(other, "interpolation", "cubic")
    assert other.digest != CONTRACT.digest
    tested = {"hw", "resize", "pad_value", "channel_order", "mean", "scale", "interpolation"}
    later = {"placement", "rounding", "scaling"}
    assert {field.name for field in fields(InputContract)} == tested | later


def test_equal_contracts_have_one_digest() -> None:
    whole = InputContract((416, 320), mean=(0, 0, 0))
    assert whole == CONTRACT
    assert whole.digest == CONTRACT.digest


def test_digest_is_stable_between_processes_and_versions() -> None:
    fields_of_then = asdict(CONTRACT)
    for later in ("placement", "rounding", "scaling"):
        del fields_of_then[later]
    canonical = json.dumps(fields_of_then, sort_keys=True, separators=(",", ":"))
    assert CONTRACT.digest == sha256(canonical.encode()).hexdigest()
    assert '"mean":[0.0,0.0,0.0]' in canonical
    assert InputContract((416, 320)).digest == CONTRACT.digest
    assert CONTRACT.digest == "7d6533d812869405e1e72c25021fe859aaa13d7fe08a01b0d0a72d64182b2bfb"


def test_unknown_keys_are_ignored_at_every_depth() -> None:
    data = json.loads(MANIFEST.to_json())
    for part in (
        data,
        data["spec"],
        data["spec"]["contract"],
        data["spec"]["heads"][0],
        data["inputs"][0],
    ):
        part["from_the_future"] = [1, {"a": 2}]
    assert Manifest.from_json(json.dumps(data)) == MANIFEST


def test_newer_schema_is_refused_by_number() -> None:
    data = json.loads(MANIFEST.to_json()) | {"schema": 99}
    with pytest.raises(ArtifactError, match=r"^x\.onnx: .*schema 99 is newer"):
        Manifest.from_json(json.dumps(data), "x.onnx")


@pytest.mark.parametrize(
    "junk",
    ["", "{", "null", "[]", "3", '"text"', "{}", '{"spec": 3}', '{"schema": "x"}', "\x00\xff"],
)
def test_junk_is_an_artifact_error_that_names_its_source(junk: str) -> None:
    with pytest.raises(ArtifactError, match=r"^some\.json: not a manifest"):
        Manifest.from_json(junk, "some.json")


def _without(path: tuple[Any, ...], value: object = None) -> str:
    data = json.loads(MANIFEST.to_json())
    at = data
    for key in path[:-1]:
        at = at[key]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec",), None),
        (("precision",), None),
        (("precision",), "int4"),
        (("inputs",), 5),
        (("spec", "heads"), []),
        (("spec", "heads", 0, "layout"), None),
        (("spec", "heads", 0, "layout", "axis"), "middle"),
        (("spec", "heads", 0, "layout", "anchors"), "beside"),
        (("spec", "heads", 0, "layout", "tensors"), []),
        (("spec", "heads", 0, "layout", "tensors", 0, "holds"), []),
        (("spec", "heads", 0, "layout", "tensors", 0, "holds"), ["box", "box", "classes"]),
        (("spec", "heads", 0, "layout", "tensors", 0, "holds"), ["box", "angle"]),
        (("spec", "heads", 0, "box", "form"), "polar"),
        (("spec", "heads", 0, "box", "activation"), "relu"),
        (("spec", "heads", 0, "box", "levels"), []),
        (("spec", "heads", 0, "box", "levels", 0, "anchors"), []),
        (("spec", "heads", 0, "box", "levels", 0, "anchors"), [[1.0, [2.0]]]),
        (("spec", "heads", 0, "box", "levels", 0, "anchors"), [[1.0]]),
        (("spec", "heads", 0, "box", "levels", 0, "anchors"), [[1.0, float("nan")]]),
        (("spec", "heads", 0, "box", "levels", 0, "grid_hw"), [0, 4]),
        (("spec", "heads", 0, "box", "levels", 0, "stride"), 0),
        (("spec", "heads", 0, "score", "classes"), "relu"),
        (("spec", "heads", 0, "score", "powers"), [0, 1]),
        (("spec", "classes"), []),
        (("spec", "contract", "hw"), [0, 4]),
        (("spec", "contract", "hw"), ["a", "b"]),
        (("spec", "contract", "hw"), None),
        (("spec", "contract", "resize"), "crop"),
        (("spec", "contract", "mean"), [0.0]),
        (("spec", "contract", "pad_value"), 256),
    ],
)
def test_missing_and_wrong_fields_are_refused(path: tuple[Any, ...], value: object) -> None:
    with pytest.raises(ArtifactError, match="not a manifest"):
        Manifest.from_json(_without(path, value))


def old_head(**changed: Any) -> dict[str, Any]:
    """A head as manifests of schema 1 have it."""
    return {
        "tensor": "head",
        "kind": "yolo",
        "grid_hw": [13, 10],
        "anchors": [[10.0, 14.0], [23.0, 27.0]],
        "class_activation": "sigmoid",
        "scale_xy": 1.0,
        **changed,
    }


def of_schema_1(**changed: Any) -> str:
    data = json.loads(MANIFEST.to_json()) | {"schema": 1}
    data["spec"]["heads"] = [old_head(**changed)]
    for later in ("placement", "rounding", "scaling"):
        del data["spec"]["contract"][later]
    return json.dumps(data)


def test_manifests_of_schema_1_are_read() -> None:
    assert replace(Manifest.from_json(of_schema_1()), schema=MANIFEST.schema) == MANIFEST
    head = Manifest.from_json(of_schema_1(kind="convdet", class_activation="softmax")).spec.heads[0]
    assert head.kind == "convdet" and head.score.classes == "softmax"
    head = Manifest.from_json(of_schema_1(kind="region", class_activation="linear")).spec.heads[0]
    assert head.score.classes == "none"
    head = Manifest.from_json(of_schema_1(scale_xy=1.05)).spec.heads[0]
    assert head.kind == "yolo" and head.scale_xy == head.box.stretch == 1.05


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "ssd"},
        {"anchors": []},
        {"anchors": [[1.0, [2.0]]]},
        {"anchors": [[1.0]]},
        {"anchors": [[1.0, float("nan")]]},
        {"grid_hw": [0, 4]},
        {"class_activation": "relu"},
    ],
)
def test_wrong_fields_of_schema_1_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="not a manifest"):
        Manifest.from_json(of_schema_1(**wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        {"hw": (416,)},
        {"hw": (0, 416)},
        {"resize": "crop"},
        {"interpolation": "cubic"},
        {"channel_order": "GBR"},
        {"pad_value": -1},
        {"mean": (0.0,)},
        {"scale": (1.0, 1.0)},
    ],
)
def test_contract_refuses_what_it_cannot_mean(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        InputContract(**{"hw": (416, 416), **wrong})


def test_head_counts_its_channels() -> None:
    assert HEAD.channels(80) == 2 * 85


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../../etc/cron.d/x"),
        ("name", "/tmp/x"),
        ("name", ".hidden"),
        ("name", "a\nb"),
        ("name", "n" * 101),
        ("name", ""),
        ("classes", ["cat", "\x1b[2Jdog"]),
        ("classes", ["cat", "dog\x00"]),
        ("classes", ["cat", "\ud800"]),
        ("classes", ["cat", 3]),
    ],
)
def test_a_name_that_could_do_harm_is_refused_with_its_file_and_field(
    field: str, value: object
) -> None:
    data = json.loads(MANIFEST.to_json())
    data["spec"][field] = value
    with pytest.raises(ArtifactError, match=r"^some\.json: not a manifest") as caught:
        Manifest.from_json(json.dumps(data), "some.json")
    assert plain_text(str(caught.value)) == str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"score": "nonsense"}, "score"),
        ({"score": "[1]"}, "score"),
        ({"score": "NaN"}, "score"),
        ({"score": "1.5"}, "between 0 and 1"),
        ({"iou": "-1"}, "between 0 and 1"),
    ],
)
def test_an_argument_that_decoding_reads_is_checked_when_it_is_read(
    arguments: dict[str, str], words: str
) -> None:
    data = json.loads(MANIFEST.to_json()) | {"arguments": list(arguments.items())}
    with pytest.raises(ArtifactError, match=words):
        Manifest.from_json(json.dumps(data))


def test_an_argument_has_the_kind_that_is_asked_for() -> None:
    manifest = replace(MANIFEST, arguments=(("seed", "3"), ("keep", '["a"]')))
    assert manifest.argument("seed", int) == 3
    assert manifest.argument("keep", list[str]) == ["a"]
    assert manifest.argument("other", int) is None
    with pytest.raises(ArtifactError, match=r"its argument keep: takes a whole number"):
        manifest.argument("keep", int)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale", (0.0, 1.0, 1.0)),
        ("scale", (float("nan"), 1.0, 1.0)),
        ("mean", (float("inf"), 0.0, 0.0)),
        ("hw", (1 << 20, 1 << 20)),
        ("hw", (0, 4)),
    ],
)
def test_a_contract_that_makes_no_sense_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        replace(CONTRACT, **{field: value})
