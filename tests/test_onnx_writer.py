"""The ONNX file says what the torch module computes, under the modules' names."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edge.errors import ArtifactError, EdgeError
from edge.models.initialise import initialise
from edge.models.squeezedet import KITTI_CONFIG, SqueezeDet, squeezedet_spec, version_1_0
from edge.models.zoo import load_model
from edge.onnx_metadata import read_manifest
from edge.spec import HeadSpec, InputContract, ModelSpec
from export.graph.writer import IMAGES, OPSET, attach_manifest, write_onnx
from tests.support.small_models import CFG, picture, run, small, write_small
from tests.support.tolerances import ONNX_ATOL

DATA_CFGS = [
    "mbv2-yolo-fastest-voc-v1",
    "mbv2-yolov3-nano-coco",
    "yolo-fastest-1.1",
    "yololite-voc-trial3",
    "yololite-voc-trial3-noBatch",
    "yololite-voc-trial7",
    "yolov3-tiny-aix2022",
    "yolov4-tiny-aix2023",
]
PUBLISHED = ["yolov2", "yolov2-voc", "yolov2-tiny-voc", "yolov3-tiny-prn", "yolov3-tiny_3l"]
PUBLISHED += ["yolov3-tiny", "yolov3", "yolov4-tiny"]


def assert_equals_torch(module: nn.Module, spec: ModelSpec, path: Path) -> onnx.ModelProto:
    manifest = write_onnx(module, spec, path)
    image = picture(spec.contract.hw)
    found = run(path, image, [head.tensor for head in spec.heads])
    with torch.no_grad():
        wanted = module(torch.from_numpy(image))
    assert len(found) == len(wanted) == len(spec.heads)
    for mine, reference, tensor in zip(found, wanted, manifest.outputs, strict=True):
        assert mine.shape == tuple(reference.shape) == tensor.shape
        scale = max(1.0, float(reference.abs().max()))
        assert float(reference.abs().max()) > 0.01
        np.testing.assert_allclose(mine, reference.numpy(), rtol=0, atol=ONNX_ATOL * scale)
    assert read_manifest(path) == manifest
    return onnx.load(str(path))


def operations(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def slim(text: str) -> str:
    """A cfg with a sixteenth of the filters; heads keep theirs, and so do depthwise layers."""
    if re.search(r"groups *= *[3-9]", text):
        return text
    body = re.sub(r"\nfilters *= *(\d+)", lambda m: f"\nfilters={max(8, int(m[1]) // 16)}", text)
    classes = int(re.search(r"classes *= *(\d+)", text)[1])
    anchors = 5 if "[region]" in text else 3
    head = f"\\1filters={anchors * (5 + classes)}\\2"
    return re.sub(r"(\[convolutional\][^\[]*?)filters=\d+([^\[]*\[(?:yolo|region)\])", head, body)


@pytest.mark.parametrize("name", [*DATA_CFGS, *PUBLISHED])
def test_darknet_equals_torch(edge_data: Path, tmp_path: Path, name: str) -> None:
    source = edge_data / ("weights" if name in DATA_CFGS else "cfg") / f"{name}.cfg"
    cfg = tmp_path / "a.cfg"
    cfg.write_text(slim(source.read_text()))
    loaded = load_model(cfg, random_weights=True, hw=(64, 96))
    model = assert_equals_torch(loaded.module, loaded.spec, tmp_path / "a.onnx")
    assert "BatchNormalization" not in operations(model)
    assert ("Transpose" in operations(model)) == (name in ("yolov2", "yolov2-voc"))
    assert ("Slice" in operations(model)) == (name.startswith("yolov4") or "prn" in name)


@pytest.mark.parametrize("hw", [(96, 128), (97, 131)])
@pytest.mark.parametrize("form", ["1.1", "1.0", "batch norm"])
def test_squeezedet_equals_torch(tmp_path: Path, form: str, hw: tuple[int, int]) -> None:
    config = replace(KITTI_CONFIG, hw=hw, batch_norm=form == "batch norm")
    if form == "1.0":
        config = version_1_0(config)
    module, spec = SqueezeDet(config).eval(), squeezedet_spec(config, "squeezedet")
    initialise(module, spec, 0)
    model = assert_equals_torch(module.eval(), spec, tmp_path / "a.onnx")
    assert "BatchNormalization" not in operations(model)


def test_every_activation_and_norm_equals_torch(tmp_path: Path) -> None:
    """A chain of what Darknet's cfgs hardly mix, with a batch norm that no convolution precedes."""
    module, spec = chain(
        nn.Conv2d(3, 8, 3, padding=1), nn.Mish(), nn.BatchNorm2d(8), nn.SiLU(),
        nn.Conv2d(8, 8, (3, 1), stride=(2, 1), padding=(1, 0), dilation=1, groups=4), nn.ReLU6(),
        nn.Dropout(), nn.Identity(), nn.MaxPool2d(3, 2, 1, dilation=2), nn.Sigmoid(),
        nn.Conv2d(8, 7, 1, bias=False)
    )  # fmt: skip
    model = assert_equals_torch(module, spec, tmp_path / "a.onnx")
    assert operations(model).count("BatchNormalization") == 1


def chain(*layers: nn.Module, hw: tuple[int, int] = (48, 32)) -> Any:
    """Layers 0.. in a row, as a detector of two classes with one anchor."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(*layers)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.body(images),)

    net = Net()
    for each in net.modules():
        if isinstance(each, nn.BatchNorm2d):
            with torch.no_grad():
                each.running_mean.uniform_(-1, 1)
                each.running_var.uniform_(0.5, 2)
                if each.affine:
                    each.weight.uniform_(0.5, 2)
                    each.bias.uniform_(-1, 1)
    with torch.no_grad():
        shape = net.eval()(torch.zeros(1, 3, *hw))[0].shape
    name = f"body.{len(layers) - 1}"
    head = HeadSpec.of_grid(name, "yolo", (shape[2], shape[3]), ((9.0, 9.0),))
    return net, ModelSpec("net", "darknet", ("a", "b"), InputContract(hw), (head,))


def test_batch_norm_without_its_own_weights_is_folded(tmp_path: Path) -> None:
    module, spec = chain(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7, affine=False), nn.Conv2d(7, 7, 1))
    model = assert_equals_torch(module, spec, tmp_path / "a.onnx")
    assert operations(model) == ["Conv", "Conv"]


def test_a_norm_is_not_folded_where_its_convolution_is_read_twice(tmp_path: Path) -> None:
    from edge.models.blocks import Add

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.add = nn.Conv2d(3, 7, 1), nn.BatchNorm2d(7), Add()

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            found = self.conv(images)
            return (self.add(found, self.norm(found)),)

    torch.manual_seed(0)
    head = HeadSpec.of_grid("add", "yolo", (8, 8), ((9.0, 9.0),))
    spec = ModelSpec("net", "darknet", ("a", "b"), InputContract((8, 8)), (head,))
    model = assert_equals_torch(Net().eval(), spec, tmp_path / "a.onnx")
    assert sorted(operations(model)) == ["Add", "BatchNormalization", "Conv"]


def test_tensors_have_the_names_of_their_modules(tmp_path: Path) -> None:
    module, spec = small()
    write_onnx(module, spec, tmp_path / "a.onnx")
    model = onnx.load(str(tmp_path / "a.onnx"))
    paths = {path for path, _ in module.named_modules()}
    produced = [output for node in model.graph.node for output in node.output]
    assert len(set(produced)) == len(produced)
    assert set(produced) <= paths
    for node in model.graph.node:
        assert node.name == node.output[0]
        if node.op_type == "Conv":
            assert isinstance(module.get_submodule(node.name), nn.Conv2d)
            assert list(node.input[1:]) == [f"{node.name}.weight", f"{node.name}.bias"]
    assert [value.name for value in model.graph.input] == [IMAGES]
    assert [value.name for value in model.graph.output] == [head.tensor for head in spec.heads]
    named = {name for node in model.graph.node if node.op_type == "Conv" for name in node.input[:1]}
    assert named <= {IMAGES, *paths}


def test_the_values_of_named_tensors_are_the_modules_outputs(tmp_path: Path) -> None:
    module, spec = small()
    write_onnx(module, spec, tmp_path / "a.onnx")
    model = onnx.load(str(tmp_path / "a.onnx"))
    seen: dict[str, np.ndarray] = {}
    for path, part in module.named_modules():
        part.register_forward_hook(
            lambda _, __, out, path=path: seen.update({path: out}) if torch.is_tensor(out) else None
        )
    image = picture(spec.contract.hw)
    with torch.no_grad():
        module(torch.from_numpy(image))
    folded = {node.output[0] for node in model.graph.node if node.op_type == "Conv"} - {
        head.tensor for head in spec.heads
    }
    names = [node.output[0] for node in model.graph.node if node.output[0] not in folded]
    assert len(names) > 10
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    for name, found in zip(names, run(model, image), strict=True):
        np.testing.assert_allclose(found, seen[name].numpy(), atol=ONNX_ATOL)


def test_the_manifest_tells_all_that_is_known(tmp_path: Path) -> None:
    module, spec = small()
    manifest = write_onnx(
        module,
        spec,
        tmp_path / "a.onnx",
        parent_sha256="ab" * 32,
        labels=("random weights",),
        arguments={"resize": "stretch", "hw": [48, 64]},
    )
    assert read_manifest(tmp_path / "a.onnx") == manifest
    assert (manifest.spec, manifest.precision, manifest.sha256) == (spec, "fp32", "")
    assert manifest.parent_sha256 == "ab" * 32
    assert manifest.labels == ("random weights",)
    assert dict(manifest.arguments) == {"resize": '"stretch"', "hw": "[48, 64]"}
    assert {name for name, _ in manifest.made_by} >= {"edge", "onnx"}
    assert [(t.name, t.shape) for t in manifest.inputs] == [(IMAGES, (1, 3, 48, 64))]


def test_a_manifest_is_replaced_and_other_metadata_stays(tmp_path: Path) -> None:
    manifest = write_small(tmp_path / "a.onnx")
    model = onnx.load(str(tmp_path / "a.onnx"))
    model.metadata_props.add(key="author", value="me")
    attach_manifest(model, replace(manifest, precision="int8"))
    onnx.save(model, str(tmp_path / "b.onnx"))
    assert read_manifest(tmp_path / "b.onnx").precision == "int8"
    keys = [prop.key for prop in model.metadata_props]
    assert sorted(keys) == ["author", "edge.manifest"]


def test_the_file_is_a_checked_opset_19_model_of_batch_one(tmp_path: Path) -> None:
    write_small(tmp_path / "a.onnx")
    model = onnx.load(str(tmp_path / "a.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
    assert OPSET == 19
    shapes = [d.dim_value for v in model.graph.input for d in v.type.tensor_type.shape.dim]
    assert shapes == [1, 3, 48, 64]


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write_small(tmp_path / "a.onnx")
    write_small(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def refused(module: nn.Module, spec: ModelSpec, folder: Path, text: str) -> None:
    """One line, and nothing written."""
    with pytest.raises(ArtifactError, match=text) as caught:
        write_onnx(module, spec, folder / "a.onnx")
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["conv.weight", "norm.running_mean", "norm.running_var"])
def test_nan_weights_are_refused(tmp_path: Path, part: str, value: float) -> None:
    module, spec = small()
    tensor = module.state_dict()[f"layers.2.{part}"]
    if part == "norm.running_var":
        value = -1.0
    tensor.view(-1)[0] = value
    refused(module, spec, tmp_path, "layers.2.conv.* NaN or infinity")


def test_nan_in_a_norm_of_its_own_is_refused(tmp_path: Path) -> None:
    module, spec = chain(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 7, 1))
    module.body[1].running_mean[0] = np.nan
    refused(module, spec, tmp_path, "body.1.*NaN or infinity")


def test_heads_that_are_not_the_outputs_are_refused(tmp_path: Path) -> None:
    module, spec = small()
    one, two = spec.heads
    refused(module, replace(spec, heads=(two, one)), tmp_path, "the spec decodes")
    refused(module, replace(spec, heads=(one,)), tmp_path, "the spec decodes")
    layout = replace(one.layout, tensors=(replace(one.layout.tensors[0], tensor="x"),))
    gone = replace(one, layout=layout)
    refused(module, replace(spec, heads=(gone, two)), tmp_path, "spec decodes")
    wrong = one.at_grid((one.grid_hw[0] + 1, one.grid_hw[1]))
    refused(module, replace(spec, heads=(wrong, two)), tmp_path, "do not fit the spec")
    refused(module, replace(spec, classes=("a", "b", "c")), tmp_path, "do not fit the spec")


@pytest.mark.parametrize(
    "layer",
    [
        nn.Hardtanh(),
        nn.ConvTranspose2d(3, 3, 1),
        nn.Conv2d(3, 3, 3, padding="same"),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(size=(96, 64)),
        nn.Softmax(dim=1),
    ],
    ids=lambda layer: str(layer).replace("/", " "),
)
def test_layers_without_an_onnx_form_are_refused_by_name(tmp_path: Path, layer: nn.Module) -> None:
    module, spec = chain(layer, nn.Conv2d(3, 7, 1))
    refused(module, spec, tmp_path, r"body\.0")


def test_a_module_that_computes_outside_of_modules_is_refused(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 7, 1)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.conv(images * 2),)

    head = HeadSpec.of_grid("conv", "yolo", (8, 8), ((9.0, 9.0),))
    spec = ModelSpec("net", "darknet", ("a", "b"), InputContract((8, 8)), (head,))
    with pytest.raises((EdgeError, ValueError), match="mul"):
        write_onnx(Net(), spec, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_an_error_in_one_line(tmp_path: Path) -> None:
    module, spec = small()
    with pytest.raises(ArtifactError, match=r"a\.onnx: cannot be written"):
        write_onnx(module, spec, tmp_path / "gone" / "a.onnx")


def test_the_module_is_left_as_it_was(tmp_path: Path) -> None:
    module, spec = small(CFG)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    write_onnx(module, spec, tmp_path / "a.onnx")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert isinstance(OrderedDict(module.named_modules())["layers.0.norm"], nn.BatchNorm2d)
