"""A cfg takes other classes and anchors: edge anchors --write, edge train --classes-from-data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from apps.cli import main
from edge.errors import ArtifactError, DataError
from edge.models.adapt import adapt_cfg, anchor_count
from edge.models.cfgs import CFGS, cfg_text
from edge.models.checkpoint import load_safetensors
from edge.models.darknet import Darknet
from edge.models.darknet_cfg import parse_cfg, read_cfg
from edge.models.darknet_weights import count_floats, save_weights
from edge.names import read_names
from edge.train.options import TrainOptions
from edge.train.start import start_from
from tests.test_train_command import folder  # noqa: F401
from tests.test_train_session import CFG, darknet

REGION = (
    CFG.replace("[yolo]\nmask=0,1", "[region]")
    .replace("8,8, 20,16", "1,1, 2.5,2")
    .replace("classes=3", "classes=3\nsoftmax=1")
)


def outline(cfg) -> Darknet:
    with torch.device("meta"):
        return Darknet(cfg)


@pytest.mark.parametrize("name", sorted(CFGS))
def test_an_adapted_cfg_is_the_official_one_for_that_number_of_classes(name: str) -> None:
    adapted = outline(adapt_cfg(parse_cfg(cfg_text(name), name), 7))
    wanted = outline(parse_cfg(cfg_text(name, classes=7), name))
    names = tuple("abcdefg")
    assert adapted.spec(name, names) == wanted.spec(name, names)
    assert count_floats(adapted) == count_floats(wanted)


def test_anchors_of_yolo_are_pixels_and_those_of_region_cells() -> None:
    sizes = ((6.0, 7.5), (21.0, 18.25))
    for text in (CFG, REGION):
        cfg = adapt_cfg(parse_cfg(text, "a.cfg"), 2, sizes)
        (head,) = outline(cfg).spec("a", ("x", "y")).heads
        assert head.anchors == sizes and anchor_count(cfg) == 2
    # The input is 48 x 32 and the grid 6 x 4: a cell has 8 pixels.
    assert cfg.layers[-1].text("anchors") == "0.75,0.9375,2.625,2.28125"


def test_all_other_text_of_the_cfg_stays() -> None:
    text = CFG.replace("[maxpool]", "# halve\n[maxpool]")
    lines, found = text.splitlines(), adapt_cfg(parse_cfg(text, "a.cfg"), 2).text.splitlines()
    assert [line for line in lines if line not in found] == ["filters=16", "classes=3"]
    assert sorted(set(found) - set(lines)) == ["classes=2", "filters=14"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CFG.replace("[yolo]", "[dropout]\n[yolo]"), "right behind its convolution"),
        (CFG[: CFG.index("[yolo]")], "not a detector"),
        (CFG, "has 2 anchors, not 1"),
    ],
)
def test_what_cannot_be_adapted_is_said(text: str, words: str) -> None:
    anchors = [(8.0, 8.0)] if "anchors, not" in words else None
    with pytest.raises(ArtifactError, match=words):
        adapt_cfg(parse_cfg(text, "a.cfg"), 2, anchors)


def test_anchors_write_a_cfg_that_trains(folder: Path, capsys) -> None:  # noqa: F811
    (folder / "old.cfg").write_text(CFG.replace("width=48\nheight=32", "width=96\nheight=64"))
    new = folder / "new" / "mine.cfg"
    command = ["anchors", "--data", str(folder), "--cfg", str(folder / "old.cfg")]
    result = folder / "anchors.json"
    assert main([*command, "--write", str(new), "--json", str(result)]) == 0
    assert f"written: {new}" in capsys.readouterr().err.replace("\n", "")
    assert read_names(new.with_suffix(".names")) == ("bright", "dark")
    (head,) = outline(read_cfg(new)).spec("mine", ("bright", "dark")).heads
    told = json.loads(result.read_text())
    assert told["hw"] == [64, 96]
    assert [list(wh) for wh in head.anchors] == [one["wh"] for one in told["anchors"]]
    train = ["train", str(new), "--names", str(new.with_suffix(".names")), "--data", str(folder)]
    assert main([*train, "--steps", "1", "--batch", "2", "-o", str(folder / "out")]) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--write", "NEW.cfg"], "go together"),
        (["--cfg", "OLD.cfg"], "go together"),
        (["--cfg", "OLD.cfg", "--write", "NEW.cfg", "--k", "5"], "leave --k out"),
        (["--cfg", "OLD.cfg", "--write", "NEW.cfg", "--size", "64x64"], "leave --size out"),
        (["--cfg", "OLD.cfg", "--write", "OLD.cfg"], "input of this command"),
    ],
)
def test_options_that_contradict_the_cfg_are_refused(
    folder: Path,  # noqa: F811
    capsys,
    more,
    words,
) -> None:
    (folder / "OLD.cfg").write_text(CFG)
    words_of_command = [str(folder / word) if word.endswith(".cfg") else word for word in more]
    assert main(["anchors", "--data", str(folder), *words_of_command]) == 2
    assert words in capsys.readouterr().err
    assert (folder / "OLD.cfg").read_text() == CFG


def test_training_takes_the_classes_of_its_data_and_keeps_what_fits(folder: Path) -> None:  # noqa: F811
    model, _ = darknet(seed=5)
    (folder / "three.cfg").write_text(CFG)
    save_weights(model, folder / "three.weights")
    command = ["train", str(folder / "three.cfg"), "--data", str(folder), "--classes-from-data"]
    command += ["--steps", "1", "--batch", "2", "--freeze", "3", "-o", str(folder / "out")]
    assert main(command) == 0
    module, spec = load_safetensors(folder / "out" / "three.safetensors")
    assert spec.classes == ("bright", "dark")
    for name in ("layers.0.conv.weight", "layers.2.conv.weight", "layers.2.norm.running_mean"):
        assert torch.equal(module.state_dict()[name], model.state_dict()[name])
    log = (folder / "out" / "three.log").read_text()
    assert "2 classes of the data" in log and "2 layers begin as in" in log


def test_other_classes_take_a_darknet_without_names_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"only a \.cfg"):
        start_from("squeezedet-scenes", TrainOptions(), ("a", "b"))
    with pytest.raises(ValueError, match="leave --names out"):
        TrainOptions(classes_from_data=True, names=tmp_path / "n.names")
    random = TrainOptions(random_weights=True, seed=3, hw=(64, 96))
    begun = start_from("yolov3-tiny", random, ("a", "b"))
    assert begun.spec.classes == ("a", "b") and begun.spec.contract.hw == (64, 96)
    with pytest.raises(DataError, match="no classes"):
        from edge.train.training import _classes

        (tmp_path / "a.png").write_bytes(b"")
        _classes(tmp_path)
