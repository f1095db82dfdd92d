"""Pruned networks against the full ones with the same channels at zero."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge.compress.channels.plan import PrunePlan, read_plan
from edge.compress.channels.slicing import prune_channels
from edge.compress.channels.wiring import FIXED, read_wiring
from edge.errors import CompressionError
from edge.models.cfgs import CFGS, cfg_text
from edge.models.darknet import Darknet
from edge.models.darknet_cfg import parse_cfg, with_options
from edge.models.initialise import initialise
from edge.models.squeezedet import KITTI_CONFIG, SqueezeDet, scaled, squeezedet_spec, version_1_0
from edge.models.zoo import load_model
from edge.train.start import write_model
from tests.support.small_models import CFG, picture, small

torch.set_num_threads(1)

# All but tiny.cfg, which is a classifier.
SHARED_NAMES = (
    "tiny-yolo-voc",
    "tiny-yolo",
    "yolov2-tiny-voc",
    "yolov2-tiny",
    "yolov2-voc",
    "yolov2",
    "yolov3-tiny-prn",
    "yolov3-tiny",
    "yolov3-tiny_3l",
    "yolov3",
    "yolov4-tiny",
)
WEIGHT_NAMES = (
    "mbv2-yolo-fastest-voc-v1",
    "mbv2-yolov3-nano-coco",
    "yolo-fastest-1.1",
    "yololite-voc-trial3",
    "yololite-voc-trial3-noBatch",
    "yololite-voc-trial7",
    "yolov3-tiny-aix2022",
    "yolov4-tiny-aix2023",
)

# A group that is no single channel, a reorg, a squeeze and excitation, a shortcut that cuts.
ODD = """[net]
width=32
height=48
channels=3
[convolutional]
batch_normalize=1
filters=16
size=3
stride=1
pad=1
activation=leaky
[convolutional]
batch_normalize=1
filters=24
size=3
stride=2
pad=1
groups=4
activation=mish
[reorg]
stride=2
[convolutional]
batch_normalize=1
filters=16
size=1
stride=1
pad=1
activation=swish
[convolutional]
filters=12
size=1
stride=1
pad=1
activation=relu6
[shortcut]
from=-2
activation=leaky
[avgpool]
[convolutional]
filters=12
size=1
stride=1
pad=1
activation=logistic
[scale_channels]
from=5
activation=linear
[convolutional]
filters=21
size=1
stride=1
pad=1
activation=linear
[yolo]
mask=0,1,2
anchors=10,14, 23,27, 37,58
classes=2
num=3
"""


def draw_plan(model: nn.Module, seed: int = 0, share: float = 0.5) -> PrunePlan:
    """Some channels of every family, wherever they lie, down to a single one."""
    rng = np.random.default_rng(seed)
    wiring = read_wiring(model)
    removed: set[int] = set()
    for family in wiring.families:
        count = min(len(family.labels) - 1, round(share * len(family.labels)))
        removed |= set(rng.choice(family.labels, count, replace=False).tolist())
    kept, widths = {}, {}
    for path in wiring.ends:
        labels = wiring.leaves[path]
        keeps = np.flatnonzero(~np.isin(labels, list(removed)))
        if len(keeps) < len(labels):
            kept[path], widths[path] = tuple(keeps.tolist()), len(labels)
    return PrunePlan("drawn", kept, widths)


def silenced(model: nn.Module, plan: PrunePlan) -> nn.Module:
    """`model` with the pruned outputs of every convolution at zero, by its weights alone.

    After a sigmoid such a channel is a half; it only ever scales one that is zero itself.
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for path, kept in plan.kept.items():
            parent = model.get_submodule(path.rpartition(".")[0])
            gone = np.setdiff1d(np.arange(plan.widths[path]), kept)
            conv, norm = parent.conv, getattr(parent, "norm", None)
            for tensor in (conv.weight, conv.bias, *((norm.weight, norm.bias) if norm else ())):
                if tensor is not None:
                    tensor[gone] = 0
    return model


def assert_same(
    model: nn.Module, plan: PrunePlan, hw: tuple[int, int], gain: float = 1.0
) -> nn.Module:
    """The pruned network, once its outputs equal the silenced one's."""
    pruned = prune_channels(model, plan)
    images = gain * torch.from_numpy(picture(hw, seed=1))
    with torch.no_grad():
        wanted, found = silenced(model, plan)(images), pruned(images)
        whole = model(images)
    for full, want, got in zip(whole, wanted, found, strict=True):
        spread = float(want.std())
        assert float((want - got).abs().max()) < 1e-3 * spread
        assert float((full - want).abs().max()) > 1e-2 * spread
    count = [sum(p.numel() for p in net.parameters()) for net in (model, pruned)]
    assert count[1] < 0.75 * count[0]
    return pruned


def darknet(text: str, hw: tuple[int, int], seed: int = 0) -> Darknet:
    cfg = parse_cfg(text, "test.cfg")
    lines = cfg.text.splitlines()
    lines[cfg.net.line : cfg.net.line] = [f"height={hw[0]}", f"width={hw[1]}"]
    model = Darknet(parse_cfg("\n".join(lines) + "\n", "test.cfg"))
    spec = model.spec("test", [f"class {i}" for i in range(model.classes)])
    initialise(model, spec, seed)
    return model.eval()


@pytest.mark.parametrize("name", sorted(CFGS))
def test_the_zoo_pruned_is_the_full_network_with_those_channels_at_zero(name: str) -> None:
    narrow = name in ("yolov2", "yolov2-voc", "yolov3")
    text = cfg_text(name, (64, 64), classes=2)
    model = darknet(thinned(text) if narrow else text, (64, 64))
    assert_same(model, draw_plan(model), (64, 64))


def thinned(text: str, most: int = 128) -> str:
    """Wide layers made narrow: the wiring stays and the test is fast."""
    cfg = parse_cfg(text, "thin.cfg")
    changes = {
        section.index: {"filters": most}
        for section in cfg.layers
        if section.type == "convolutional"
        and section.integer("filters") > most
        and "batch_normalize" in section.options
        and "groups" not in section.options
    }
    return with_options(cfg, changes).text


@pytest.mark.parametrize("name", SHARED_NAMES)
def test_published_cfgs_pruned_are_the_full_networks_with_zeros(edge_data: Path, name: str) -> None:
    model = darknet(thinned((edge_data / "cfg" / f"{name}.cfg").read_text()), (64, 64))
    assert_same(model, draw_plan(model), (64, 64))


@pytest.mark.parametrize("name", WEIGHT_NAMES)
def test_trained_cfgs_pruned_are_the_full_networks_with_zeros(edge_data: Path, name: str) -> None:
    model = darknet((edge_data / "weights" / f"{name}.cfg").read_text(), (64, 64))
    assert_same(model, draw_plan(model), (64, 64))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("text", [CFG, ODD], ids=["small", "odd"])
def test_every_kind_of_layer_pruned_is_the_full_network_with_zeros(text: str, seed: int) -> None:
    model, spec = small(text, seed)
    assert_same(model, draw_plan(model, seed, share=0.4), spec.contract.hw)


def squeezedets() -> list[SqueezeDet]:
    config = scaled(replace(KITTI_CONFIG, hw=(96, 128), mean=(0.0, 0.0, 0.0)), 0.5)
    models = []
    pyramid = replace(
        version_1_0(config),
        hw=(128, 128),
        anchors=tuple((8.0 * n, 8.0 * n) for n in range(1, 7)),
        pyramid=((16, 32, 48), (16, 32, 32), (16, 24, 24)),
    )
    for one in (config, replace(config, batch_norm=True), version_1_0(config), pyramid):
        models.append(SqueezeDet(one).eval())
        initialise(models[-1], squeezedet_spec(one, "squeezedet"), 0)
    return models


@pytest.mark.parametrize("model", squeezedets(), ids=["plain", "batch norm", "1.0", "pyramid"])
def test_squeezedet_pruned_is_the_full_network_with_zeros(model: SqueezeDet) -> None:
    pruned = assert_same(model, draw_plan(model, share=0.4), model.config.hw, gain=255)
    assert isinstance(pruned, SqueezeDet) and pruned.config.fires != model.config.fires
    assert_widths_are_the_configs(pruned)


def assert_widths_are_the_configs(model: SqueezeDet) -> None:
    again = SqueezeDet(model.config)
    again.load_state_dict(model.state_dict())


def test_a_pruned_darknet_read_back_from_its_files_computes_the_same(tmp_path: Path) -> None:
    model, spec = small(ODD)
    pruned = prune_channels(model, draw_plan(model))
    _, cfg, _ = write_model(pruned, spec, tmp_path, "pruned")
    again = load_model(cfg)
    images = torch.from_numpy(picture(spec.contract.hw))
    with torch.no_grad():
        for mine, theirs in zip(pruned(images), again.module(images), strict=True):
            assert torch.equal(mine, theirs)


def test_opencv_computes_the_pruned_darknet_alike(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    model = darknet(cfg_text("yolov4-tiny", (64, 64), classes=2), (64, 64))
    spec = model.spec("test", ("a", "b"))
    pruned = prune_channels(model, draw_plan(model, share=0.6))
    _, cfg, weights = write_model(pruned, spec, tmp_path, "pruned")
    net = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    image = picture((64, 64))
    net.setInput(image)
    # The convolutions before the heads; OpenCV's own head layers decode.
    found = net.forward(["conv_29", "conv_36"])
    with torch.no_grad():
        for mine, theirs in zip(pruned(torch.from_numpy(image)), found, strict=True):
            np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-3)


def test_rewriting_a_cfg_keeps_its_other_text_and_drops_doubled_keys() -> None:
    text = "[net]\nwidth=8\n# hello\n[maxpool]\nsize=2\n size = 3 # twice\n; bye\nstride=2\n"
    new = with_options(parse_cfg(text, "a.cfg"), {0: {"size": 4, "padding": 1}})
    assert new.text == "[net]\nwidth=8\n# hello\n[maxpool]\nsize=4\npadding=1\n; bye\nstride=2\n"


def test_heads_and_pictures_are_fixed_and_the_rest_may_go() -> None:
    model, spec = small()
    wiring = read_wiring(model)
    for head in spec.heads:
        assert (wiring.leaves[head.tensor] == FIXED).all()
    free = {path for path in wiring.ends if (wiring.leaves[path] != FIXED).all()}
    assert free == set(wiring.ends) - {head.tensor for head in spec.heads}
    # Layers 2 and 3 are added, and cut in two groups, of which a depthwise layer takes one.
    family = next(f for f in wiring.families if "layers.2.conv" in f.members)
    assert family.members == {"layers.2.conv": 2, "layers.3.conv": 2, "layers.6.conv": 1}
    assert len(family.labels) == 8


@pytest.mark.parametrize(
    ("kept", "widths", "words"),
    [
        ({"layers.0.conv": ()}, {"layers.0.conv": 8}, "empties layers.0.conv"),
        ({"layers.0.conv": (1, 8)}, {"layers.0.conv": 8}, "from 0 to 7"),
        ({"layers.0.conv": (1, 1)}, {"layers.0.conv": 8}, "different channels"),
        ({"layers.0.conv": (1,)}, {"layers.0.conv": 9}, "made for another network"),
        ({"layers.1.conv": (1,)}, {"layers.1.conv": 9}, "is not there"),
        ({"layers.2.conv": (1,)}, {"layers.2.conv": 16}, "is bound to one that is removed"),
        ({"layers.9.conv": (0,)}, {"layers.9.conv": 21}, "feeds a head"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused_in_one_line(
    kept: dict[str, tuple[int, ...]], widths: dict[str, int], words: str
) -> None:
    model, _ = small()
    with pytest.raises(CompressionError, match=words) as caught:
        prune_channels(model, PrunePlan("small", kept, widths))
    assert "\n" not in str(caught.value)


def test_a_plan_survives_its_json(tmp_path: Path) -> None:
    model, _ = small()
    plan = draw_plan(model)
    (tmp_path / "plan.json").write_text(plan.to_json_text())
    assert read_plan(tmp_path / "plan.json") == plan
    assert plan.rows()[0][1:] == ("8", "4")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema": 2, "model": "a", "kept": {}, "widths": {}}',
        '{"schema": 1, "model": "a", "kept": {"x": []}, "widths": {"x": 2}}',
        '{"schema": 1, "model": "a", "kept": {"x": [1.5]}, "widths": {"x": 2}}',
        '{"schema": 1, "model": "a", "kept": {"x": [1]}, "widths": {}}',
        "[" * 100_000,
    ],
)
def test_a_foreign_or_empty_plan_is_refused_with_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(CompressionError, match=r"plan\.json: not a pruning plan"):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": True}, "schema: takes a whole number"),
        ({"schema": 0}, "schema is 0"),
        ({"model": None}, "model: takes text"),
        ({"widths": {"x": 2.0}}, "widths.x: takes a whole number"),
        ({"widths": {"x": "2"}}, "widths.x: takes a whole number"),
        ({"widths": {"x": True}}, "widths.x: takes a whole number"),
        ({"widths": {"x": 10**9}}, "widths.x is 1000000000"),
        ({"kept": {"x": ["0"]}}, r"kept.x\[0\]: takes a whole number"),
        ({"kept": {"x": [True]}}, r"kept.x\[0\]: takes a whole number"),
        ({"kept": {"x": [1, 0]}}, "kept.x takes different channels in ascending order"),
        ({"kept": {"x": "01"}}, "kept.x: takes a list"),
        ({"kept": [[0]]}, "kept: takes an object"),
    ],
)
def test_a_wrong_plan_is_refused_by_file_and_field(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    plan = {"schema": 1, "model": "small", "widths": {"x": 2}, "kept": {"x": [0]}, **changes}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(
        CompressionError, match=r"plan\.json: not a pruning plan of edge: .*" + words
    ):
        read_plan(tmp_path / "plan.json")
