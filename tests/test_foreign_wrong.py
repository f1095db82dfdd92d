"""Files that are wrong on purpose: each ends in a refusal or a warning that names the fault."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from apps import cli
from edge.artifact import read_manifest
from edge.errors import ArtifactError, DataError
from export.foreign.importing import ImportResult, import_model, parse_contract
from export.int8.quantize import write_half
from tests.support.foreign import DATA, FOLDERS
from tests.support.foreign_families import CLASSES, FAMILIES, HW, Family, write_graph, yolov8

ULTRALYTICS = {
    "author": "Ultralytics",
    "stride": "32",
    "task": "detect",
    "imgsz": f"[{HW[0]}, {HW[1]}]",
    "names": "{0: 'a', 1: 'b', 2: 'c', 3: 'd'}",
    "end2end": "False",
}


def names_file(tmp_path: Path, count: int = CLASSES) -> Path:
    path = tmp_path / "net.names"
    path.write_text("\n".join(f"class {number}" for number in range(count)))
    return path


def written(tmp_path: Path, family: Family | None = None, **metadata: str) -> Path:
    return write_graph(family or yolov8(), tmp_path / "net.onnx", metadata)


def imported(source: Path, tmp_path: Path, **options: Any) -> ImportResult:
    return import_model(source, output=tmp_path / "out", **options)


def warnings(found: ImportResult) -> str:
    return " ".join(each.says for each in found.evidence if each.says.startswith("warning"))


def plain(shape: list[int], *outputs: tuple[str, list[int]]) -> onnx.ModelProto:
    """A graph with outputs of those shapes."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0)]
    constants = []
    for name, dims in outputs:
        values = np.random.default_rng(1).uniform(0, 1, dims).astype(np.float32)
        constants.append(numpy_helper.from_array(values, f"{name}_c"))
        nodes.append(helper.make_node("Add", [f"{name}_c", "mean"], [name]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in outputs],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def saved(model: onnx.ModelProto, tmp_path: Path) -> Path:
    onnx.save(model, str(tmp_path / "net.onnx"))
    return tmp_path / "net.onnx"


# Other things than detectors.


@pytest.mark.parametrize(
    ("outputs", "named"),
    [
        ([("probabilities", [1, 1000])], "a classifier"),
        ([("mask", [1, 21, 224, 224])], "a segmenter"),
        ([("output0", [1, 116, 1029]), ("output1", [1, 32, 56, 56])], "a segmenter"),
        ([("depth", [1, 7, 3, 5, 2])], "no known detector"),
    ],
)
def test_other_networks_are_named_as_what_they_are(
    outputs: list[Any], named: str, tmp_path: Path
) -> None:
    source = saved(plain([1, 3, 224, 224], *outputs), tmp_path)
    with pytest.raises(ArtifactError, match=named):
        imported(source, tmp_path)


@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify"])
def test_another_task_in_the_metadata_is_refused(task: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"task '{task}'"):
        imported(written(tmp_path, **ULTRALYTICS | {"task": task}), tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path)
    data = source.read_bytes()
    for length in (0, 10, len(data) // 2, len(data) - 7):
        source.write_bytes(data[:length])
        with pytest.raises(ArtifactError, match=r"cut short|damaged|without a graph"):
            imported(source, tmp_path)


def test_a_checkpoint_says_how_to_get_the_onnx(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "best.pt").write_bytes(b"PK\x03\x04")
    for command in ("import", "export-engine"):
        assert cli.main([command, str(tmp_path / "best.pt"), "-o", str(tmp_path / "out")]) == 2
        assert "yolo export model=best.pt format=onnx" in capsys.readouterr().err


def test_an_engine_with_a_header_is_named_and_how_to_strip_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = json.dumps({"stride": 32, "task": "detect"}).encode()
    engine = tmp_path / "yolo11n.engine"
    engine.write_bytes(struct.pack("<i", len(header)) + header + b"ftrt plan")
    for command in ("import", "show"):
        assert cli.main([command, str(engine)]) == 2
        told = capsys.readouterr().err
        assert "ultralytics" in told and f"tail -c +{len(header) + 5}" in told


def test_a_file_of_edge_is_no_foreign_one(tmp_path: Path) -> None:
    found = imported(written(tmp_path), tmp_path, names=names_file(tmp_path))
    with pytest.raises(ArtifactError, match="already a file of edge"):
        imported(found.file, tmp_path)


@pytest.mark.parametrize("kind", ["DynamicQuantizeLinear", "ConvInteger"])
def test_dynamic_quantization_is_refused_with_the_way_back(kind: str, tmp_path: Path) -> None:
    model = plain([1, 3, 64, 64], ("y", [1, 84, 84]))
    made = {
        "DynamicQuantizeLinear": (["mean"], ["q", "s", "z"]),
        "ConvInteger": (["bytes", "kernel"], ["q"]),
    }
    model.graph.node.append(helper.make_node(kind, *made[kind]))
    if kind == "ConvInteger":
        model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["bytes"], to=TensorProto.UINT8))
        kernel = numpy_helper.from_array(np.ones((1, 3, 1, 1), np.uint8), "kernel")
        model.graph.initializer.append(kernel)
    with pytest.raises(ArtifactError, match=r"quantized dynamically.*import the float file"):
        imported(saved(model, tmp_path), tmp_path)


def test_two_pictures_or_unknown_inputs_are_refused(tmp_path: Path) -> None:
    family = replace(yolov8(), inputs=("prompt",))
    with pytest.raises(ArtifactError, match="beside the picture it takes prompt"):
        imported(written(tmp_path, family), tmp_path)


def test_an_open_size_is_fixed(tmp_path: Path) -> None:
    model = onnx.load(str(written(tmp_path)))
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim, "nchw", strict=True):
        if name != "c":
            dim.dim_param = name
    source, names = saved(model, tmp_path), names_file(tmp_path)
    with pytest.raises(ArtifactError, match="input of 640x640 are those of no known detector"):
        imported(source, tmp_path, names=names)
    assert imported(source, tmp_path, names=names, hw=HW).contract.hw == HW
    helper.set_model_props(model, ULTRALYTICS)
    assert imported(saved(model, tmp_path), tmp_path).contract.hw == HW


# Names and metadata that lie.


def test_a_wrong_number_of_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"--names name 7 classes.*fit 4 classes"):
        imported(written(tmp_path), tmp_path, names=names_file(tmp_path, 7))


def test_metadata_that_lie_about_names_are_refused(tmp_path: Path) -> None:
    lying = ULTRALYTICS | {"names": "['a', 'b']"}
    with pytest.raises(ArtifactError, match=r"the metadata name.* 2 classes.*fit 4 classes"):
        imported(written(tmp_path, **lying), tmp_path)
    found = imported(written(tmp_path, **lying), tmp_path, names=names_file(tmp_path))
    assert "the metadata name 2 classes" in warnings(found) and not found.sure


def test_metadata_that_lie_about_the_size_are_told(tmp_path: Path) -> None:
    found = imported(written(tmp_path, **ULTRALYTICS | {"imgsz": "[640, 640]"}), tmp_path)
    assert "metadata say 640x640, the input is 256x320" in warnings(found)
    assert found.contract.hw == HW and not found.sure


@pytest.mark.parametrize(
    "names", ["__import__('os').system('x')", "{0: open}", "[" * 5000, "{1: 'a', 7: 'b'}", ""]
)
def test_metadata_are_never_evaluated(names: str, tmp_path: Path) -> None:
    found = imported(written(tmp_path, **ULTRALYTICS | {"names": names}), tmp_path)
    assert found.classes == ("0", "1", "2", "3") and "names no classes" in warnings(found)


def test_a_contract_against_the_metadata_is_told(tmp_path: Path) -> None:
    source = written(tmp_path, **ULTRALYTICS)
    found = imported(source, tmp_path, contract=parse_contract("channel_order=BGR,scale=1"))
    assert found.contract.channel_order == "BGR" and found.contract.scale == (1.0, 1.0, 1.0)
    assert "ultralytics says RGB" in warnings(found) and "says scale" in warnings(found)
    assert not found.sure


@pytest.mark.parametrize(
    "text", ["chanels=BGR", "scale=x", "mean=1 2", "resize=crop", "pad_value=-1", "scale=1/0"]
)
def test_a_contract_that_means_nothing_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["import", str(written(tmp_path)), "--contract", text])
    assert "--contract" in capsys.readouterr().err


def test_contract_numbers_may_be_fractions_and_deviations() -> None:
    found = parse_contract("mean=104 117 123, std=58 57 50,placement=top left")
    assert found["mean"] == (104.0, 117.0, 123.0) and found["placement"] == "top left"
    assert found["scale"] == (1 / 58, 1 / 57, 1 / 50)
    assert parse_contract("scale=1/255")["scale"] == (1 / 255,) * 3


# Choices that are left.


def test_maps_of_two_families_are_left_to_the_user(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    outputs = {}
    for stride in (8, 16, 32):
        rows, columns = -(-HW[0] // stride), -(-HW[1] // stride)
        values = rng.normal(0, 0.5, (1, 3, 9, rows, columns))
        values[:, :, 4] = -6
        outputs[f"map{stride}"] = values.reshape(1, 27, rows, columns)
    source = written(tmp_path, replace(yolov8(), outputs=outputs))
    names = names_file(tmp_path)
    with pytest.raises(ArtifactError, match=r"yolov5-maps, yolov7-maps, yolov3-maps.*--head KIND"):
        imported(source, tmp_path, names=names)
    for head in ("yolov5-maps", "yolov3-maps"):
        assert imported(source, tmp_path, names=names, head=head).head == head
    with pytest.raises(ArtifactError, match=r"--head yolox does not fit.*what fits: yolov3-maps"):
        imported(source, tmp_path, names=names, head="yolox")
    with pytest.raises(ArtifactError, match="--head yolo: known: yolov8"):
        imported(source, tmp_path, names=names, head="yolo")


def test_the_manifest_keeps_the_evidence_and_show_prints_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = written(tmp_path, **ULTRALYTICS)
    assert (
        cli.main(["import", str(source), "-o", str(tmp_path), "--json", str(tmp_path / "r.json")])
        == 0
    )
    told = json.loads((tmp_path / "r.json").read_text())
    keys = {"model", "file", "head", "contract", "classes", "sure", "evidence", "candidates"}
    assert set(told) == keys and told["head"] == "yolov8" and told["classes"] == list("abcd")
    assert all(set(each) == {"from", "says"} for each in told["evidence"])
    manifest = read_manifest(told["file"])
    kept = json.loads(dict(manifest.arguments)["evidence"])
    assert kept == [f"{each['from']}: {each['says']}" for each in told["evidence"]]
    capsys.readouterr()
    assert cli.main(["show", told["file"]]) == 0
    assert "recognised by" in capsys.readouterr().out


def test_export_engine_imports_on_the_way(tmp_path: Path) -> None:
    source = written(tmp_path, **ULTRALYTICS)
    out = tmp_path / "out"
    command = ["export-engine", str(source), "--fp32", "--builder", "none", "-o", str(out)]
    assert cli.main([*command, "--json", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["import"]["head"] == "yolov8"
    assert read_manifest(out / "net.fp32.onnx").spec.family == "yolov8"


# Weights and pixels, on trained networks.

needs_files = pytest.mark.skipif(not FOLDERS, reason="EDGE_DATA has no foreign detectors")


def trained(name: str) -> tuple[onnx.ModelProto, Path | None]:
    (folder,) = (each for each in FOLDERS if each.path.name == name)
    return onnx.load(str(folder.onnx)), folder.names


def shuffled(model: onnx.ModelProto) -> None:
    rng = np.random.default_rng(0)
    for constant in model.graph.initializer:
        values = numpy_helper.to_array(constant)
        if values.ndim == 4:
            mixed = rng.permutation(values.ravel()).reshape(values.shape)
            constant.CopyFrom(numpy_helper.from_array(mixed, constant.name))


@needs_files
@pytest.mark.parametrize("name", ["yunet-n-face", "yolo11n-coco-320", "yolox-nano-coco"])
def test_untrained_weights_are_refused_or_told(name: str, tmp_path: Path) -> None:
    model, names = trained(name)
    shuffled(model)
    source = saved(model, tmp_path)
    try:
        found = imported(source, tmp_path, names=names)
    except ArtifactError as error:
        assert "contradict every reading" in str(error)
    else:
        assert "not trained" in warnings(found) and not found.sure


def _first_convolution(model: onnx.ModelProto, change: Callable[[Any], Any]) -> None:
    name = next(node.input[1] for node in model.graph.node if node.op_type == "Conv")
    (constant,) = (each for each in model.graph.initializer if each.name == name)
    values = numpy_helper.to_array(constant)
    constant.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(values)), name))


@needs_files
@pytest.mark.slow
def test_swapped_channels_are_found_by_labels(tmp_path: Path) -> None:
    model, names = trained("yolo11n-coco-320")
    _first_convolution(model, lambda values: values[:, ::-1])
    found = imported(saved(model, tmp_path), tmp_path, names=names, data=DATA / "coco" / "val")
    assert found.contract.channel_order == "BGR"
    assert "labels contradict what ultralytics states" in warnings(found) and not found.sure


@needs_files
@pytest.mark.slow
def test_another_scale_is_found_by_labels(tmp_path: Path) -> None:
    model, names = trained("yolo-fastestv2-coco")
    _first_convolution(model, lambda values: values / 255)
    found = imported(saved(model, tmp_path), tmp_path, names=names, data=DATA / "coco" / "val")
    assert found.contract.scale == (1.0, 1.0, 1.0) and found.sure


def test_names_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.names"):
        imported(written(tmp_path), tmp_path, names=tmp_path / "no.names")


def test_every_family_takes_any_opset(tmp_path: Path) -> None:
    for opset in (11, 17, 21):
        source = write_graph(FAMILIES["yolox decoded"](), tmp_path / "net.onnx", opset=opset)
        assert imported(source, tmp_path, names=names_file(tmp_path)).head == "yolox"


@needs_files
def test_what_was_recognised_stays_with_the_half_precision_file(tmp_path: Path) -> None:
    model, names = trained("yunet-n-face")
    found = imported(saved(model, tmp_path), tmp_path, names=names)
    half = tmp_path / "half.onnx"
    write_half(found.file, half)
    kept, own = read_manifest(half), read_manifest(found.file)
    assert kept.iou == own.iou == 0.45
    evidence = own.argument("evidence", list[str])
    assert evidence and kept.argument("evidence", list[str]) == evidence


@pytest.mark.parametrize(
    "command", ["prune {} --target-ms 50%", "train {}", "dissect {} --classes a"]
)
def test_what_changes_layers_asks_for_the_torch_network(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = imported(written(tmp_path, **ULTRALYTICS), tmp_path)
    words = command.format(found.file).split()
    assert cli.main([*words, "--data", "scenes", "-o", str(tmp_path / "new")]) == 2
    assert "takes the network of torch" in capsys.readouterr().err
