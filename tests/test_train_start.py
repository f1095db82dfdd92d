"""Where training begins: transfer from the input upwards, pictures and their bad boxes, weights."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from edge.built_in import BUILT_IN
from edge.data.datasets import open_dataset
from edge.data.items import make_item
from edge.data.world.world import render
from edge.errors import ArtifactError, DataError, MissingDependency
from edge.letterbox import Letterbox
from edge.models.builtin import NAMES
from edge.models.checkpoint import save_safetensors
from edge.models.darknet import Darknet
from edge.models.darknet_cfg import parse_cfg
from edge.models.darknet_weights import save_weights
from edge.models.initialise import initialise
from edge.runtime.backend import open_backend
from edge.runtime.ops_cpu import preprocess
from edge.spec import HeadSpec, InputContract, ModelSpec
from edge.train.batches import BatchMaker, make_batch
from edge.train.journal import activations, dead_units, open_board
from edge.train.options import TrainOptions
from edge.train.pictures import read_pictures
from edge.train.session import class_weights, count_classes
from edge.train.start import shipped_start, start_from
from edge.train.transfer import load_from_input, transfer

BODY = """[net]
width=32
height=32
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=relu
[maxpool]
size=2
stride=2
[convolutional]
batch_normalize=1
filters=12
size=3
pad=1
activation=relu
"""
HEAD = """[convolutional]
filters={filters}
size=1
activation=linear
[yolo]
mask=0
anchors=8,8
num=1
classes={classes}
"""


def net(classes, seed, body=BODY):
    model = Darknet(parse_cfg(body + HEAD.format(filters=5 + classes, classes=classes), "n.cfg"))
    initialise(model, model.spec("n", [str(i) for i in range(classes)]), seed)
    return model


def equal_layers(a, b):
    return [
        name
        for name, layer in a.layers.items()
        if layer.state_dict()
        and all(
            value.shape == b.layers[name].state_dict()[key].shape
            and torch.equal(value, b.layers[name].state_dict()[key])
            for key, value in layer.state_dict().items()
        )
    ]


def test_transfer_stops_at_the_first_layer_that_does_not_fit():
    mine, theirs = net(3, seed=1), net(7, seed=2)
    before = mine.layers["3"].conv.weight.clone()
    done = load_from_input(mine, theirs.state_dict(), "theirs")
    assert done.loaded == ["layers.0", "layers.2"]
    assert "layers.3.conv.weight is (12, 12, 1, 1), not (8, 12, 1, 1)" in done.stopped
    assert equal_layers(mine, theirs) == ["0", "2"]
    assert torch.equal(mine.layers["3"].conv.weight, before)


def test_a_gap_is_refused_with_the_reason_and_nothing_is_copied():
    mine, theirs = net(3, seed=1), net(3, seed=2)
    weights = {k: v for k, v in theirs.state_dict().items() if not k.startswith("layers.2.")}
    with pytest.raises(
        ArtifactError, match=r"layers\.2 is missing while layers\.3 is there, a gap"
    ):
        load_from_input(mine, weights, "theirs")
    assert equal_layers(mine, theirs) == []


def test_weights_of_another_network_are_refused():
    with pytest.raises(ArtifactError, match="already the first layer does not fit"):
        load_from_input(
            net(3, 1), net(3, 2, BODY.replace("filters=8", "filters=16")).state_dict(), "x"
        )
    with pytest.raises(ArtifactError, match="first layer"):
        load_from_input(net(3, 1), {}, "x")


def test_all_of_a_network_of_the_same_form_is_taken():
    mine, theirs = net(3, 1), net(3, 2)
    assert load_from_input(mine, theirs.state_dict(), "x") == (
        ["layers.0", "layers.2", "layers.3"],
        None,
    )
    assert len(equal_layers(mine, theirs)) == 3


def test_darknet_weights_are_read_by_their_own_cfg_or_cut_off_after_a_layer(tmp_path):
    theirs = net(7, 2)
    (tmp_path / "full.cfg").write_text(theirs.cfg.text)
    save_weights(theirs, tmp_path / "full.weights")
    mine = net(3, 1)
    assert transfer(mine, tmp_path / "full.weights").loaded == ["layers.0", "layers.2"]
    assert equal_layers(mine, theirs) == ["0", "2"]
    whole = (tmp_path / "full.weights").read_bytes()
    floats = 8 * 4 + 8 * 27 + 12 * 4 + 12 * 72
    (tmp_path / "partial.weights").write_bytes(whole[: 20 + 4 * floats])
    mine = net(3, 1)
    done = transfer(mine, tmp_path / "partial.weights")
    assert done == (["layers.0", "layers.2"], "layers.3 is not in the file")
    assert equal_layers(mine, theirs) == ["0", "2"]
    (tmp_path / "alone.weights").write_bytes(whole)
    with pytest.raises(ArtifactError, match=r"end inside a layer of n\.cfg; put the cfg"):
        transfer(net(3, 1), tmp_path / "alone.weights")
    with pytest.raises(ArtifactError, match="no such file"):
        transfer(net(3, 1), tmp_path / "absent.weights")


def test_a_start_says_where_its_weights_come_from(tmp_path):
    cfg = tmp_path / "n.cfg"
    cfg.write_text(net(3, 1).cfg.text)
    (tmp_path / "n.names").write_text("a\nb\nc\n")
    drawn = start_from(cfg, TrainOptions(names=tmp_path / "n.names", seed=4))
    assert drawn.notes == ("random weights, seed 4",) and drawn.spec.classes == ("a", "b", "c")
    theirs = net(7, 2)
    save_safetensors(theirs, tmp_path / "t.safetensors")
    begun = start_from(
        cfg, TrainOptions(names=tmp_path / "n.names", weights=tmp_path / "t.safetensors")
    )
    assert equal_layers(begun.module, theirs) == ["0", "2"]
    assert "2 layers begin as in" in begun.notes[1] and "stopped there" in begun.notes[2]
    save_weights(net(3, 5), tmp_path / "n.weights")
    assert equal_layers(
        start_from(cfg, TrainOptions(names=tmp_path / "n.names")).module, net(3, 5)
    ) == ["0", "2", "3"]


def test_squeezedet_begins_from_the_original_deep_compression_file(edge_data, tmp_path):
    fields = {
        "hw": [64, 64],
        "classes": ["person"],
        "anchors": [[16, 16]],
        "conv1": [96, 7],
        "fires": [[16, 64, 64], [16, 64, 64]],
        "pools": [],
    }
    (tmp_path / "s.json").write_text(json.dumps(fields))
    source = edge_data / "weights" / "squeezenet_v10_deepcompression" / "compressed_SqueezeNet.net"
    begun = start_from(tmp_path / "s.json", TrainOptions(weights=source))
    assert "3 layers begin as in" in begun.notes[1] and "convdet is not" in begun.notes[2]


def test_a_json_that_is_no_squeezedet_is_refused(tmp_path):
    path = tmp_path / "s.json"
    for text in ("{", "[]", '{"hw": [64, 64]}', '{"width": 3}'):
        path.write_text(text)
        with pytest.raises(ArtifactError, match="not the JSON of a SqueezeDet"):
            start_from(path)


def kitti(folder, lines):
    """One KITTI picture of 100x80 pixels, whose labels do not state that size."""
    for name in ("image_2", "label_2"):
        (folder / "training" / name).mkdir(parents=True)
    image = np.zeros((80, 100, 3), np.uint8)
    image[20:60, 10:50] = 255
    cv2.imwrite(str(folder / "training" / "image_2" / "a.png"), image)
    rest = "0 0 0 0 0 0 0"
    text = "".join(f"{name} 0 0 0 {box} {rest}\n" for name, box in lines)
    (folder / "training" / "label_2" / "a.txt").write_text(text)
    return folder


def car_spec(resize="letterbox", hw=(40, 40)):
    head = HeadSpec.of_grid("h", "yolo", (5, 5), ((8.0, 8.0),))
    return ModelSpec("cars", "darknet", ("car", "bus"), InputContract(hw, resize), (head,))


def test_bad_boxes_are_clipped_or_skipped_and_every_one_is_named(tmp_path):
    lines = [
        ("Car", "10 20 50 60"),
        ("Car", "60 40 140 70"),
        ("Car", "200 10 220 30"),
        ("Car", "30 30 30 50"),
        ("Tram", "1 1 30 30"),
        ("DontCare", "0 0 20 20"),
    ]
    pictures, problems, items = read_pictures(open_dataset(kitti(tmp_path, lines)), car_spec())
    told = [(problem.reason, problem.where.rpartition("/")[2]) for problem in problems]
    assert ("box without area", "a.txt:4") in told
    assert sorted(reason for reason, _ in told) == [
        "box clipped to the image",
        "box outside the image",
        "box without area",
    ]
    assert all("a.png: box" in where for reason, where in told if reason != "box without area")
    boxes = pictures[0].boxes
    scale = pictures[0].image.shape[1] / 100
    assert boxes[:, 0].tolist() == [0, 0, -1]
    assert np.allclose(boxes[1, 1:], np.array([60, 40, 100, 70]) * scale)
    assert len(items) == 1 and len(items[0]) == 4


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_unchanged_pictures_are_resized_and_labelled_as_the_contract_says(tmp_path, resize):
    spec = car_spec(resize)
    pictures, _, _ = read_pictures(open_dataset(kitti(tmp_path, [("Car", "10 20 50 60")])), spec)
    images, targets = make_batch(BatchMaker(pictures, spec, 1, seed=0), 0)
    fit = Letterbox.fit((80, 100), spec.contract)
    x1, y1, x2, y2 = fit.to_input(np.array([[10, 20, 50, 60]]))[0]
    wanted = [0, 0, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
    assert np.allclose(targets.numpy(), [wanted], atol=0.5)
    inside = images[0, :, round(y1) + 2 : round(y2) - 2, round(x1) + 2 : round(x2) - 2]
    assert (inside > 0.98).all()


def test_pictures_beyond_the_memory_are_read_again(tmp_path):
    dataset = open_dataset(kitti(tmp_path, [("Car", "10 20 50 60")]))
    kept, _, _ = read_pictures(dataset, car_spec())
    again, _, _ = read_pictures(dataset, car_spec(), keep_mib=0)
    assert np.array_equal(kept[0].image, again[0].image)
    assert np.array_equal(kept[0].boxes, again[0].boxes)


def test_pictures_that_cannot_be_read_are_left_out_and_data_without_boxes_is_refused(tmp_path):
    folder = kitti(tmp_path, [("Car", "10 20 50 60")])
    (folder / "training" / "image_2" / "b.png").write_bytes(b"not a picture")
    (folder / "training" / "label_2" / "b.txt").write_text("")
    pictures, problems, _ = read_pictures(open_dataset(folder), car_spec())
    assert len(pictures) == 1 and [p.reason for p in problems] == ["image left out"]
    assert "b.png" in problems[0].where
    (folder / "training" / "label_2" / "a.txt").write_text("")
    with pytest.raises(DataError, match="no box of a class of cars"):
        read_pictures(open_dataset(folder), car_spec())


@pytest.mark.parametrize("name", ["coco/val", "bccd", "aix", "kitti"])
def test_every_format_of_labels_gives_batches(edge_data, name):
    dataset = open_dataset(edge_data / name, limit=3)
    head = HeadSpec.of_grid("h", "yolo", (8, 8), ((16.0, 16.0),))
    spec = ModelSpec("any", "darknet", dataset.classes, InputContract((64, 64)), (head,))
    pictures, _, items = read_pictures(dataset, spec)
    images, targets = make_batch(BatchMaker(pictures, spec, len(pictures), seed=0), 0)
    assert images.shape == (len(items), 3, 64, 64) and len(targets)
    assert targets[:, 2:4].min() >= 0 and targets[:, 2:4].max() <= 64
    assert int(targets[:, 1].max()) < len(dataset.classes)


def test_rare_classes_weigh_more_and_the_mean_object_weighs_one():
    item, _ = make_item("a", [])
    item = type(item)(
        item.image,
        np.zeros((5, 4), np.float32),
        np.array([0, 0, 0, 1, 0], np.int32),
        np.array([False] * 4 + [True]),
        np.zeros(5, bool),
        np.ones(5, np.float32),
    )
    assert count_classes([item], 3) == [3, 1, 0]
    weights = class_weights([3, 1, 0], power=0.5, limit=4.0)
    assert weights[1] / weights[0] == pytest.approx(3**0.5) and weights[2] == 4
    assert (3 * weights[0] + weights[1]) / 4 == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no objects"):
        class_weights([0, 0])


def test_dead_channels_are_those_that_answer_to_nothing():
    model = net(3, 1)
    images = torch.rand(2, 3, 32, 32)
    assert dead_units(model, images) == {}
    with torch.no_grad():
        model.layers["2"].norm.bias[:5] = -1000.0
    model.train()
    assert dead_units(model, images) == {"layers.2.act": (5, 12)}
    assert model.training and model.layers["0"].norm.training
    assert set(activations(model, images)) == {"layers.0.act", "layers.2.act"}
    leaky = nn.Sequential(nn.LeakyReLU(0.1))
    assert dead_units(leaky, -images) == {}


def test_without_tensorboard_the_extra_to_install_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(MissingDependency, match="pip install"):
        open_board(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_detector_begins_as_it_was_shipped_and_can_learn(name):
    begun = shipped_start(name)
    tensor, _ = preprocess(render(5).image, begun.spec.contract)
    with open_backend(BUILT_IN[name]) as backend, torch.no_grad():
        wanted = backend.run(tensor)
        found = begun.module.eval()(torch.from_numpy(tensor.copy()))
    for ours, theirs in zip(found, wanted, strict=True):
        # Batch norms that undo themselves: a division and a product more for each value.
        assert np.allclose(ours.numpy(), theirs, atol=2e-3 * np.abs(theirs).max())
    assert any(isinstance(m, nn.BatchNorm2d) for m in begun.module.modules())
