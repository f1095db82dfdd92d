"""`edge train` from labelled pictures to a file that `export-engine` takes."""

from __future__ import annotations

import json
import shutil
import struct

import cv2
import numpy as np
import pytest
import torch

from apps.cli import export_engine, main
from edge.errors import CalibrationError
from edge.models.checkpoint import load_safetensors, save_safetensors
from edge.models.darknet import load_darknet
from edge.train import epochs
from edge.train.options import TrainOptions
from tests.test_train_session import CFG


@pytest.fixture
def folder(tmp_path):
    """Ten pictures, YOLO labels, with a bright square (class 0) or a dark one (class 1) each."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "n.names").write_text("bright\ndark\n")
    for number in range(10):
        image = rng.integers(100, 150, (64, 96, 3), dtype=np.uint8)
        label, side = number % 2, int(rng.integers(14, 24))
        x, y = int(rng.integers(0, 96 - side)), int(rng.integers(0, 64 - side))
        image[y : y + side, x : x + side] = 255 * (1 - label)
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), image)
        box = ((x + side / 2) / 96, (y + side / 2) / 64, side / 96, side / 64)
        line = f"{label} " + " ".join(f"{value:.6f}" for value in box)
        (tmp_path / "labels" / f"{number}.txt").write_text(line + "\n")
    small = CFG.replace("classes=3", "classes=2").replace("filters=16", "filters=14")
    (tmp_path / "small.cfg").write_text(small.replace("8,8, 20,16", "8,8, 12,12"))
    return tmp_path


def command(folder, *more):
    names = ("--names", str(folder / "n.names"))
    return [
        *("train", str(folder / "small.cfg"), *names, "--data", str(folder)),
        *("-o", str(folder / "out"), "--json", str(folder / "told.json"), *more),
    ]


def test_training_writes_all_that_the_next_stages_take(folder, capsys):
    options = ("--epochs", "2", "--batch", "5", "--val", str(folder), "--allow-overlap")
    assert main(command(folder, *options)) == 0
    told = json.loads((folder / "told.json").read_text())
    assert told["steps"] == 4 and told["ended"] == "all steps done"
    assert told["objects"] == {"bright": 5, "dark": 5}
    assert [entry["epoch"] for entry in told["history"]] == [1, 2] and told["best"]
    assert "epoch (* best)" in capsys.readouterr().out
    log = (folder / "out" / "small.log").read_text()
    assert "random weights, seed 0" in log and "epoch    2  step      4" in log
    module, spec = load_safetensors(folder / "out" / "small.safetensors")
    assert spec.classes == ("bright", "dark") and spec.name == "small"
    cfg = folder / "out" / "small.cfg"
    again, _ = load_darknet(cfg, cfg.with_suffix(".weights"), folder / "n.names")
    weights = again.state_dict()
    assert all(
        np.array_equal(v, weights[k]) for k, v in module.state_dict().items() if "num_b" not in k
    )
    made = ["--fp32", "--builder", "none", "-o", str(folder / "e")]
    assert export_engine([str(folder / "out" / "small.safetensors"), *made]) == 0
    assert (folder / "e" / "small.fp32.onnx").is_file()


def test_tensorboard_gets_losses_rates_figures_and_activations(folder):
    pytest.importorskip("tensorboard")
    options = ("--steps", "1", "--val", str(folder), "--tensorboard", str(folder / "board"))
    assert main(command(folder, *options, "--allow-overlap")) == 0
    wanted = {"loss/box", "rate", "dead channels", "validation/map50", "activations/layers.0.act"}
    assert tags(folder / "board") >= wanted


def tags(board):
    """The names of what was written to TensorBoard: records of length, crc, data, crc."""
    from tensorboard.compat.proto.event_pb2 import Event

    (path,) = board.iterdir()
    data, at, found = path.read_bytes(), 0, set()
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        found |= {value.tag for value in event.summary.value}
        at += 16 + length
    return found


def test_a_resumed_command_ends_with_the_very_weights_of_one_run(folder, monkeypatch):
    options = ("--epochs", "4", "--batch", "5", "--seed", "3")
    assert main(command(folder, *options)) == 0
    whole = (folder / "out" / "small.weights").read_bytes()
    write = epochs._finish_epoch

    def cancel_after_two(one, hooks):
        write(one, hooks)
        if len(one.history) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(epochs, "_finish_epoch", cancel_after_two)
        assert main(command(folder, *options, "--fresh")) == 130
    assert (folder / "out" / "small.weights").read_bytes() != whole
    assert main(command(folder, *options, "--resume")) == 0
    assert (folder / "out" / "small.weights").read_bytes() == whole


def test_training_ends_early_where_validation_gets_no_better(folder):
    options = (
        "--epochs",
        "9",
        "--batch",
        "5",
        "--peak",
        "0",
        "--val",
        str(folder),
        "--allow-overlap",
    )
    assert main(command(folder, *options, "--patience", "1", "--name", "other")) == 0
    told = json.loads((folder / "told.json").read_text())
    assert told["model"] == "other" and told["ended"] == "no better mAP@.5 in 1 epochs"
    assert 2 <= len(told["history"]) < 9


def test_overfitting_is_checked_and_failing_it_is_status_1(folder, capsys):
    options = ("--overfit", "4", "--peak", "0.02")
    assert main(command(folder, *options, "--steps", "250", "--epoch-steps", "125")) == 0
    assert "learns its pictures by heart" in capsys.readouterr().err
    assert json.loads((folder / "told.json").read_text())["overfits"] is True
    assert main(command(folder, *options, "--steps", "2")) == 1
    assert "look at labels" in "".join(capsys.readouterr().err.split("\n")).replace("  ", " ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--freeze", "9"), "leaves none to learn"),
        (("--resume",), "small.checkpoint.safetensors: not a readable checkpoint"),
        (("--val", "nowhere"), "nowhere: no such file or folder"),
        (("--name", "../small"), "cannot be a file name"),
        (("--weights", "nothing.safetensors"), "nothing.safetensors"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(folder, capsys, options, words):
    assert main(command(folder, "--epochs", "1", *options)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edge: ")]
    assert len(lines) == 1 and words in lines[0]


def test_a_training_does_not_overwrite_what_it_starts_from(folder, capsys):
    assert main(command(folder, "--epochs", "1", "-o", str(folder))) == 2
    assert "would overwrite what it begins with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--drops", "3"), "EPOCH:SHARE"),
        (("--augment", "blur=3"), "is not one of"),
        (("--augment", "mosaic=2"), "from 0 to 1"),
        (("--size", "big"), "HEIGHTxWIDTH"),
    ],
)
def test_an_option_that_cannot_be_read_is_a_usage_error(folder, capsys, options, words):
    with pytest.raises(SystemExit) as error:
        main(command(folder, "--epochs", "1", *options))
    assert error.value.code == 2 and words in capsys.readouterr().err


def test_dead_rectifiers_are_told_with_an_alarm(folder):
    module, spec = load_darknet(folder / "small.cfg", names=folder / "n.names")
    with torch.no_grad():
        module.layers["2"].norm.bias[:8] = -1000.0
    save_safetensors(module, folder / "dead.safetensors", spec)
    options = ("--steps", "1", "--peak", "1e-6", "--weights", str(folder / "dead.safetensors"))
    assert main(command(folder, *options)) == 0
    log = (folder / "out" / "small.log").read_text()
    assert "alarm: layers.2.act: 8 of 12 channels are dead" in log
    told = json.loads((folder / "told.json").read_text())
    assert told["history"][-1]["dead_units"] == {"layers.2.act": [8, 12]}


def test_every_switch_goes_with_every_other(folder):
    options = "--balance --multi-scale --loss published --optimizer sgd --drops 1:0.1 --freeze 1"
    assert main(command(folder, *options.split(), "--bfloat16", "--epochs", "2")) == 0
    told = json.loads((folder / "told.json").read_text())
    rates = [entry["rate"] for entry in told["history"]]
    assert rates[1] == pytest.approx(0.1 * rates[0])


def test_bad_boxes_are_counted_in_the_result_and_named_in_the_log(folder):
    label = folder / "labels" / "3.txt"
    label.write_text(label.read_text() + "0 0.5 0.5 0 0.2\n0 1.7 0.5 0.2 0.2\n1 0.95 0.5 0.2 0.2\n")
    assert main(command(folder, "--steps", "1")) == 0
    told = json.loads((folder / "told.json").read_text())
    assert told["problems"] == {
        "box without area": 1,
        "box outside the image": 1,
        "box clipped to the image": 1,
    }
    log = (folder / "out" / "small.log").read_text()
    assert all(f"3.txt:{line}" in log for line in (2, 3, 4))


def test_a_built_in_detector_is_trained_further_from_its_shipped_weights(folder):
    model = ["train", "squeezedet-scenes", "--data", "scenes://?seed=300000&count=2"]
    assert main([*model, "--steps", "1", "--batch", "1", "-o", str(folder / "out")]) == 0
    log = (folder / "out" / "squeezedet-scenes.log").read_text()
    assert "the shipped weights of squeezedet-scenes" in log
    _, spec = load_safetensors(folder / "out" / "squeezedet-scenes.safetensors")
    assert spec.contract.channel_order == "RGB" and len(spec.classes) == 5


def test_quantization_aware_steps_follow_the_training(folder, capsys):
    steps = ("--steps", "4", "--batch", "5", "--augment", "none")
    assert main(command(folder, *steps, "--qat", "3")) == 2
    assert "--val" in capsys.readouterr().err
    other = turned(folder)
    status = main(command(folder, *steps, "--val", str(other), "--qat", "3"))
    assert status in (0, 1)
    for kind in ("fp32.onnx", "calib.json", "int8.onnx"):
        assert (folder / "out" / f"small.qat.{kind}").is_file()


def turned(folder):
    """The same pictures and labels, the pictures turned by half: another set."""
    other = folder / "other"
    shutil.copytree(folder / "labels", other / "labels")
    (other / "images").mkdir()
    for path in (folder / "images").iterdir():
        image = cv2.rotate(cv2.imread(str(path)), cv2.ROTATE_180)
        cv2.imwrite(str(other / "images" / path.name), image)
    (other / "n.names").write_text("bright\ndark\n")
    return other


def test_validation_on_training_pictures_is_refused_before_the_training(folder, capsys):
    other = turned(folder)
    shutil.copy(folder / "images" / "3.png", other / "images" / "3.png")
    options = ("--steps", "1", "--batch", "5", "--val", str(other))
    assert main(command(folder, *options)) == 2
    said = capsys.readouterr().err
    assert "1 of the 10 pictures" in said and "1 with the same pixels" in said
    assert "3.png" in said and "--allow-overlap" in said
    assert not (folder / "out" / "small.safetensors").exists()
    assert main(command(folder, *options, "--allow-overlap")) == 0
    assert "may flatter" in (folder / "out" / "small.log").read_text()


def test_pictures_that_look_alike_are_told_and_refused_where_they_are_many(folder, capsys):
    other = turned(folder)
    options = ("--steps", "1", "--batch", "5", "--val", str(other))
    for number in range(5):
        image = cv2.imread(str(folder / "images" / f"{number}.png"))
        cv2.imwrite(str(other / "images" / f"{number}.png"), cv2.add(image, 2))
        assert main(command(folder, *options, "--fresh")) == (2 if number >= 3 else 0), number
        assert f"{number + 1} of the 10 pictures" in capsys.readouterr().err


def test_scenes_are_shared_by_their_seeds(folder, capsys):
    model = ["train", "tiny-yolo-scenes", "--steps", "1", "--batch", "1", "-o", str(folder / "o")]
    model += ["--data", "scenes://?seed=300000&count=2"]
    assert main([*model, "--val", "scenes://?seed=300001&count=2"]) == 2
    assert "1 of the 2 pictures" in capsys.readouterr().err
    assert main([*model, "--val", "scenes://?seed=300002&count=2"]) == 0


def test_a_training_that_was_done_is_not_lost_to_the_same_command(folder, capsys):
    options = ("--steps", "2", "--batch", "5")
    assert main(command(folder, *options)) == 0
    files = [folder / "out" / f"small{suffix}" for suffix in (".weights", ".log")]
    before = [path.read_bytes() for path in files]
    assert main(command(folder, *options)) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("--resume", "--fresh", "small.checkpoint.safetensors"))
    assert [path.read_bytes() for path in files] == before
    assert main(command(folder, "--steps", "4", "--batch", "5", "--resume")) == 0
    assert main(command(folder, *options, "--name", "other")) == 0
    assert main(command(folder, *options, "--fresh")) == 0
    assert main(command(folder, "--overfit", "2", "--steps", "1")) == 2
    with pytest.raises(ValueError, match="--fresh"):
        TrainOptions(resume=True, fresh=True)


def test_an_overfit_check_leaves_no_checkpoint_in_the_way(folder):
    assert main(command(folder, "--overfit", "2", "--steps", "1")) == 1
    assert not list((folder / "out").glob("*.checkpoint.*"))
    assert main(command(folder, "--steps", "1")) == 0


def test_the_json_of_a_training_with_quantization_holds_both(folder):
    options = ("--steps", "2", "--batch", "5", "--val", str(turned(folder)), "--qat", "2")
    status = main(command(folder, *options))
    told = json.loads((folder / "told.json").read_text())
    assert told["steps"] == 2 and told["qat"]["steps"] == 2
    assert set(told["qat"]["map50"]) == {"fp32", "ptq", "qat"}
    assert status == (0 if told["qat"]["better"] else 1)


def test_a_training_is_on_record_even_if_quantization_fails_after_it(folder, monkeypatch):
    import export.qat.run

    def fail(*_):
        raise CalibrationError("no")

    monkeypatch.setattr(export.qat.run, "qat", fail)
    options = ("--steps", "2", "--batch", "5", "--val", str(turned(folder)), "--qat", "2")
    assert main(command(folder, *options)) == 2
    told = json.loads((folder / "told.json").read_text())
    assert told["steps"] == 2 and "qat" not in told


def test_a_pytorch_file_gets_advice_that_works(folder, capsys):
    (folder / "best.pt").write_bytes(b"PK")
    for command_line in (["train", "--data", str(folder)], ["export-engine", "--fp32"]):
        words = [command_line[0], str(folder / "best.pt"), *command_line[1:], "-o", str(folder)]
        assert main(words) == 2
        assert "yolo export model=best.pt format=onnx" in capsys.readouterr().err


def test_more_than_one_lost_picture_in_ten_is_a_warning(folder):
    (folder / "images" / "3.png").write_bytes(b"no picture")
    assert main(command(folder, "--steps", "1", "--batch", "3")) == 0
    assert "warning" not in (folder / "out" / "small.log").read_text()
    (folder / "images" / "4.png").write_bytes(b"no picture")
    assert main(command(folder, "--steps", "1", "--batch", "3", "--fresh")) == 0
    log = (folder / "out" / "small.log").read_text()
    assert "warning: 2 of 10 pictures are missing or cannot be read" in log
    told = json.loads((folder / "told.json").read_text())
    assert told["problems"] == {"image left out": 2}
