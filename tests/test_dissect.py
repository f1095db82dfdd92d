"""Class dissection: heads sliced, feature maps profiled, data sets narrowed."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.cli import main
from apps.commands.dissect import arguments
from edge.compress.channels.dissect import Moments, of_classes, only_classes, profile, scores
from edge.compress.channels.slicing import class_numbers, slice_classes
from edge.compress.channels.wiring import read_wiring
from edge.data.datasets import load, open_dataset
from edge.data.items import Dataset, Label, make_item
from edge.errors import CompressionError, DataError
from edge.models.cfgs import cfg_text
from edge.models.class_names import VOC
from edge.models.darknet import Darknet
from edge.models.darknet_cfg import parse_cfg
from edge.models.initialise import initialise
from edge.models.squeezedet import KITTI_CONFIG, SqueezeDet, scaled, squeezedet_spec
from edge.runtime.ops_cpu import Decoder
from edge.spec import ModelSpec
from edge.train.start import write_model
from tests.support.painted import write_pictures
from tests.support.small_models import CFG, picture, small

torch.set_num_threads(1)
HW = (64, 64)


def detector(name: str) -> tuple[torch.nn.Module, ModelSpec]:
    """A yolo, region or convdet detector of VOC's or KITTI's classes with random weights."""
    if name == "squeezedet":
        config = scaled(replace(KITTI_CONFIG, hw=HW), 0.25)
        model: torch.nn.Module = SqueezeDet(config)
        spec = squeezedet_spec(config, name)
    else:
        model = Darknet(parse_cfg(cfg_text(name, HW, classes=20), f"{name}.cfg"))
        spec = model.spec(name, VOC)
    initialise(model, spec, 0)
    return model.eval(), spec


def raw(model: torch.nn.Module, spec: ModelSpec) -> list[np.ndarray]:
    mean, scale = (torch.tensor(v).view(3, 1, 1) for v in (spec.contract.mean, spec.contract.scale))
    with torch.no_grad():
        outputs = model((255 * torch.from_numpy(picture(HW)) - mean) * scale)
    return [output.numpy() for output in outputs]


@pytest.mark.parametrize("name", ["yolov3-tiny", "squeezedet", "yolov2-tiny"])
def test_a_sliced_head_says_of_its_classes_what_the_full_one_said(name: str) -> None:
    model, spec = detector(name)
    kept = (spec.classes[2], spec.classes[0])
    sliced, narrow = slice_classes(model, spec, kept)
    assert narrow.classes == (spec.classes[0], spec.classes[2])
    # Decoding is the oracle: with logistic classes the detections of both are the same.
    if name == "yolov3-tiny":
        found, wanted = (
            Decoder(s, multi_label=True)(raw(m, s), 1e-4)
            for m, s in ((sliced, narrow), (model, spec))
        )
        wanted = wanted[np.isin(wanted.class_id, (0, 2))]
        order, other = np.lexsort(found.xyxy.T), np.lexsort(wanted.xyxy.T)
        assert len(found) == len(wanted) > 10
        np.testing.assert_allclose(found.xyxy[order], wanted.xyxy[other], rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(
            np.sort(found.score), np.sort(wanted.score), rtol=1e-3, atol=1e-6
        )
    else:
        mine, its = Decoder(narrow)(raw(sliced, narrow), 0.0), Decoder(spec)(raw(model, spec), 0.0)
        # Boxes stay, and a share among fewer classes can only be larger.
        np.testing.assert_allclose(mine.xyxy, its.xyxy, rtol=1e-3, atol=1e-2)
        same = np.isin(its.class_id, (0, 2))
        assert same.any() and not same.all()
        assert (mine.score[same] >= its.score[same] - 1e-6).all()
        np.testing.assert_array_equal(mine.class_id[same], its.class_id[same] // 2)


def test_voc_and_coco_spellings_name_one_class() -> None:
    _, spec = detector("yolov3-tiny")
    names = ("tv", "person", "chair", "potted plant")
    assert class_numbers(spec, names) == tuple(
        sorted(VOC.index(n) for n in ("tvmonitor", "person", "chair", "pottedplant"))
    )


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("person", "zebra"), "no class zebra"),
        (("zebra",), "no class zebra"),
        (("tv", "tvmonitor"), "given twice"),
        ((), "no class to keep"),
    ],
)
def test_classes_that_are_not_there_are_refused_in_one_line(
    names: tuple[str, ...], words: str
) -> None:
    model, spec = detector("yolov2-tiny")
    with pytest.raises(CompressionError, match=words) as caught:
        slice_classes(model, spec, names)
    assert "\n" not in str(caught.value)


def test_running_moments_are_numpys_over_all_images_at_once() -> None:
    model, spec = small()
    wiring = read_wiring(model)
    batches = [
        torch.from_numpy(picture(spec.contract.hw, seed, count))
        for seed, count in ((0, 1), (1, 3), (2, 2))
    ]
    found = profile(model, wiring, batches)
    for path, end in (("layers.0.conv", "layers.0.act"), ("layers.9.conv", "layers.9.conv")):
        assert wiring.ends[path] == end
        seen: list[torch.Tensor] = []
        hook = model.get_submodule(end).register_forward_hook(
            lambda _m, _i, output, seen=seen: seen.append(output)
        )
        with torch.no_grad():
            model(torch.cat(batches))
        hook.remove()
        maps = seen[0].double().numpy()
        np.testing.assert_allclose(found[path].mean, maps.mean(axis=(0, 2, 3)), atol=1e-6)
        np.testing.assert_allclose(found[path].variance, maps.var(axis=(0, 2, 3)), rtol=1e-4)
    assert set(found) == set(wiring.ends)


def test_scores_are_m2_over_v_plus_log_v_and_constants_tell_nothing() -> None:
    moments = Moments(np.array([2.0, -1.0, 5.0]), np.array([4.0, 0.5, 0.0]), 10)
    found = scores({"a": moments})["a"]
    np.testing.assert_allclose(found[:2], [1 + np.log(4), 2 + np.log(0.5)])
    assert found[2] == -np.inf


def labelled(*images: tuple[int, ...], crowd: bool = False) -> Dataset:
    """Images with boxes of the classes given by number among cat, tv, dog."""
    items = [
        make_item(
            Path(f"{number}.png"),
            [Label(c, (0, 0, 9, 9), "x", crowd=crowd) for c in numbers],
            (10, 10),
        )[0]
        for number, numbers in enumerate(images)
    ]
    return Dataset("x", "coco", ("cat", "tv", "dog"), tuple(items), "x")


def test_narrowed_data_keeps_the_boxes_of_its_classes_alone() -> None:
    found = of_classes(labelled((0, 1, 2), (2,), (1, 1), ()), ("tvmonitor", "cat"))
    assert [item.image.stem for item in found.items] == ["0", "2"]
    assert [item.class_id.tolist() for item in found.items] == [[1, 0], [0, 0]]
    assert found.classes == ("tvmonitor", "cat")


def test_pure_images_hold_these_classes_and_no_others() -> None:
    found = only_classes(labelled((0, 1, 2), (2,), (1, 1), (), (0,)), ("tv", "cat"))
    assert [item.image.stem for item in found.items] == ["2", "4"]
    with pytest.raises(DataError, match="no image holds only"):
        only_classes(labelled((0, 2), ()), ("cat",))


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A small detector of cats and dogs whose widths are worth pruning."""
    module, spec = small(CFG.replace("filters=16", "filters=32"))
    return write_model(module, replace(spec, classes=("cat", "dog")), tmp_path, "pets")[0]


def test_dissect_writes_the_small_detector_and_what_each_stage_is_worth(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_pictures(tmp_path / "data", 12), tmp_path / "out"
    for label in sorted((data / "labels").glob("*.txt"))[::3]:
        label.write_text("\n".join(x for x in label.read_text().splitlines() if x[0] == "0"))
    argv = f"dissect {model_file} --classes cat --data {data} -o {out} --json {out}.json"
    assert main([*argv.split(), "--fine-tune", "2", "--batch", "4", "--untouched", "1"]) == 0
    result = json.loads(Path(f"{out}.json").read_text())
    names = [stage["name"] for stage in result["stages"]]
    assert names == ["before", "sliced", "pruned", "fine-tuned"]
    assert result["stages"][2]["parameters"] < result["stages"][1]["parameters"]
    assert all(stage["ms"] > 0 for stage in result["stages"])
    assert result["classes"] == ["cat"] and result["warning"] is None
    # One of two classes stays, so half of each layer must.
    assert all(int(after) * 2 >= int(before) for _, before, after in result["plan"])
    assert {path for path, _, _ in result["plan"]} & {"layers.0.conv"} == set()
    for kind in ("onnx", "cfg", "weights", "names", "safetensors", "plan", "plots"):
        assert Path(result["files"][kind]).is_file()
    assert "layers.2.conv" in Path(result["files"]["plots"]).read_text()
    assert not list(out.glob(".stages-*"))
    assert open_dataset(data).classes == ("cat", "dog")
    assert "fine-tuned" in capsys.readouterr().out


def test_scenes_are_narrowed_to_classes_and_keep_their_pictures() -> None:
    scenes = open_dataset("scenes://?seed=7&count=12")
    found = of_classes(scenes, ("cyclist", "car"))
    assert 0 < len(found.items) <= 12 and found.classes == ("cyclist", "car")
    names = {one.image: one for one in scenes.items}
    for item in found.items:
        frame, known = load(item)
        full, every = load(names[item.image])
        np.testing.assert_array_equal(frame, full)
        cars = int((every.class_id == scenes.classes.index("car")).sum())
        assert int((known.class_id == 1).sum()) == cars
        assert set(known.class_id.tolist()) <= {0, 1}
    for item in only_classes(scenes, ("car", "van")).items:
        assert set(load(names[item.image])[1].class_id.tolist()) <= {0, 1}


def test_a_built_in_detector_is_dissected_on_its_scenes(tmp_path: Path) -> None:
    argv = "dissect squeezedet-scenes --classes car,van --profile-images 4 --no-refit --data"
    words = [*argv.split(), "scenes://?count=4", "--train", "scenes://?seed=800000&count=40"]
    report = tmp_path / "r.json"
    assert main([*words, "-o", str(tmp_path / "out"), "--json", str(report)]) == 0
    result = json.loads(report.read_text())
    assert result["classes"] == ["car", "van"] and result["warning"]
    assert set(result["stages"][0]["by_class"]) == {"car", "van"}


def test_the_first_two_convolutions_stay_whole_unless_said_otherwise() -> None:
    parser = argparse.ArgumentParser()
    arguments(parser)
    for words, untouched in (("", 2), ("--untouched 0", 0)):
        args = parser.parse_args(f"m.cfg --classes a {words}".split())
        assert args.untouched == untouched
    assert "(default: 2)" in " ".join(parser.format_help().split())


def test_an_unknown_class_ends_the_command_in_one_line(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pictures(tmp_path / "data", 2)
    argv = ["dissect", str(model_file), "--classes", "horse", "--data", str(data)]
    assert main([*argv, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert "no class horse" in error and "\n" not in error
