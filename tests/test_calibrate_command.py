"""`edge calibrate`: one table for one set of things, its images chosen, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import calibration.pipeline
from apps.cli import main
from calibration.compare import compare_tables
from calibration.scales import calibration_inputs
from calibration.table import read_table
from edge.artifact import read_manifest
from edge.measure.noise import head_noise, heads_of
from tests.support.small_models import picture, write_small
from tests.support.steps import scales


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("command") / "small.fp32.onnx"
    write_small(path)
    return path


def shot(seed: int) -> np.ndarray:
    image = picture((48, 64), seed=seed)[0].transpose(1, 2, 0)
    return np.rint(image * 255).astype(np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(8):
        cv2.imwrite(str(folder / f"{index}.png"), shot(index))
    return folder


def test_a_table_made_from_the_same_things_is_not_made_again(
    fp32: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    table = tmp_path / "t.json"
    command = ["calibrate", str(fp32), "--data", str(data), "-o", str(table)]
    assert main(command) == 0
    first = table.read_bytes()
    real, calls = calibration.pipeline.measure_scales, []
    monkeypatch.setattr(
        calibration.pipeline, "measure_scales", lambda *a, **k: (calls.append(1), real(*a, **k))[1]
    )
    assert main(command) == 0 and not calls and table.read_bytes() == first
    assert "up to date" in capsys.readouterr().err
    for changed in (["--fresh"], ["--method", "minmax"], ["--no-equalise"], ["--images", "5"]):
        before = len(calls)
        assert main([*command, *changed]) == 0
        assert len(calls) == before + 1, changed
    assert main(command) == 0
    cv2.imwrite(str(data / "3.png"), shot(99))
    before = len(calls)
    assert main(command) == 0 and len(calls) == before + 1
    assert table.read_bytes() != first


def test_a_table_whose_key_is_not_its_contents_is_refused(
    fp32: Path, data: Path, tmp_path: Path, capsys
) -> None:
    path = tmp_path / "t.json"
    assert main(["calibrate", str(fp32), "--data", str(data), "-o", str(path)]) == 0
    document = json.loads(path.read_text())
    assert document["key"] == read_table(path).key
    document["method"] = "minmax"
    path.write_text(json.dumps(document))
    assert main(["quantize", str(fp32), str(path), "-o", str(tmp_path / "a.onnx")]) == 2
    assert "edited or stale" in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()


def test_a_table_of_another_graph_is_refused(
    data: Path, fp32: Path, tmp_path: Path, capsys
) -> None:
    write_small(tmp_path / "other.fp32.onnx", seed=5)
    path = tmp_path / "t.json"
    assert main(["calibrate", str(fp32), "--data", str(data), "-o", str(path)]) == 0
    assert main(["quantize", str(tmp_path / "other.fp32.onnx"), str(path)]) == 2
    assert "measured on another graph" in capsys.readouterr().err


def test_a_diff_tells_what_changed_tensor_by_tensor(
    fp32: Path, data: Path, tmp_path: Path, capsys
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    command = ["calibrate", str(fp32), "--data", str(data), "--no-equalise"]
    assert main([*command, "-o", str(old)]) == 0
    assert main([*command, "--method", "minmax", "--images", "6", "-o", str(new)]) == 0
    assert main(["calibrate", "--diff", str(old), str(new), "--json", str(tmp_path / "d")]) == 0
    assert "thresholds differ" in capsys.readouterr().out
    found = json.loads((tmp_path / "d").read_text())
    assert found["facts"] == {"method": {"old": "mse", "new": "minmax"}}
    assert found["images"] == {"common": 6, "added": 0, "removed": 2}
    first, second = (dict(read_table(path).amax) for path in (old, new))
    wanted = {n: {"old": first[n], "new": second[n]} for n in first if first[n] != second[n]}
    assert found["amax"] == wanted and wanted
    ratios = [
        max(c.ratio, 1 / c.ratio) for c in compare_tables(*map(read_table, (old, new))).tensors
    ]
    assert ratios == sorted(ratios, reverse=True)
    assert not compare_tables(read_table(old), read_table(old)).tensors


def test_images_are_chosen_from_a_folder_without_copies(
    fp32: Path, data: Path, tmp_path: Path
) -> None:
    for index in range(4):
        cv2.imwrite(str(data / f"copy {index}.jpg"), shot(index))
    (data / "torn.png").write_bytes(b"no picture")
    table, report = tmp_path / "t.json", tmp_path / "r.json"
    command = ["calibrate", str(fp32), "--data", str(data), "--choose", "5"]
    command += ["--pictures", str(tmp_path / "chosen"), "-o", str(table)]
    assert main([*command, "--json", str(report)]) == 0
    chosen = sorted(path.name for path in (tmp_path / "chosen").iterdir())
    assert len(chosen) == 5 and [name[:5] for name in chosen] == [f"{i:04d}-" for i in range(1, 6)]
    found = json.loads(report.read_text())
    assert found["chosen"]["candidates"] == 13 and found["chosen"]["duplicates"] >= 4
    assert "torn.png" in found["chosen"]["skipped"][0]
    assert 0 < found["chosen"]["coverage"]["ranges"] <= 1
    assert found["images"] == 5 and len(read_table(table).images) == 5
    assert main(command) == 2, "the folder is taken"


def test_images_are_chosen_from_a_video_and_not_from_the_evaluation_set(
    fp32: Path, tmp_path: Path
) -> None:
    video = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    assert writer.isOpened()
    for index in range(12):
        writer.write(shot(index // 2))
    writer.release()
    (tmp_path / "evaluation").mkdir()
    cv2.imwrite(str(tmp_path / "evaluation" / "x.png"), shot(3)[:, ::-1])
    report = tmp_path / "r.json"
    command = ["calibrate", str(fp32), "--data", str(video), "--choose", "9", "-o"]
    command += [str(tmp_path / "t.json"), "--pictures", str(tmp_path / "chosen")]
    command += ["--not-in", str(tmp_path / "evaluation"), "--json", str(report)]
    assert main(command) == 0
    found = json.loads(report.read_text())["chosen"]
    assert (found["candidates"], found["evaluation"], found["duplicates"]) == (12, 2, 5)
    assert len(found["images"]) == 5 == len(list((tmp_path / "chosen").iterdir()))


def test_evaluation_images_are_refused_unless_allowed(
    fp32: Path, data: Path, tmp_path: Path, capsys
) -> None:
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    cv2.imwrite(str(evaluation / "again.jpg"), shot(2), [cv2.IMWRITE_JPEG_QUALITY, 80])
    cv2.imwrite(str(evaluation / "new.jpg"), shot(70))
    command = ["calibrate", str(fp32), "--data", str(data), "--not-in", str(evaluation)]
    command += ["-o", str(tmp_path / "t.json")]
    assert main(command) == 2
    text = capsys.readouterr().err
    assert "1 of its images are calibration images" in text and "again.jpg" in text
    assert not (tmp_path / "t.json").exists()
    assert main([*command, "--allow-overlap"]) == 0


def test_stability_is_told_and_drawn(fp32: Path, data: Path, tmp_path: Path, capsys) -> None:
    report, drawing = tmp_path / "r.json", tmp_path / "c.svg"
    command = ["calibrate", str(fp32), "--data", str(data), "-o", str(tmp_path / "t.json")]
    assert main([*command, "--svg", str(drawing), "--json", str(report)]) == 0
    found = json.loads(report.read_text())["stability"]
    assert found["images"] == 8 and len(found["spread"]) == len(
        read_table(tmp_path / "t.json").amax
    )
    assert found["curve"][-1]["loss_db"] == 0
    assert drawing.read_text().startswith("<svg ")
    assert "least sure scales" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (np.full((48, 64), 90, np.uint8), "grey"),
        (np.full((48, 64), 9000, np.uint16), "16 bits a channel"),
        (np.full((48, 64, 3), 9000, np.uint16), "16 bits a channel"),
    ],
)
def test_grey_and_16_bit_files_are_named_and_left_out(
    fp32: Path, data: Path, tmp_path: Path, image: np.ndarray, what: str, capsys
) -> None:
    without = scales(fp32, data, threads=1)
    cv2.imwrite(str(data / "odd.png"), image)
    found = scales(fp32, data, threads=1)
    assert found.table == without.table
    assert len(found.skipped) == 1 and f"odd.png: {what}" in found.skipped[0]
    alone = tmp_path / "alone"
    alone.mkdir()
    (data / "odd.png").rename(alone / "odd.png")
    command = ["calibrate", str(fp32), "--data", str(alone), "-o", str(tmp_path / "t.json")]
    assert main(command) == 2
    text = capsys.readouterr().err
    assert "none of its 1 images" in text and what in text and text.count("\n") == 1


def test_a_picture_with_alpha_is_read_as_colour(fp32: Path, data: Path) -> None:
    image = np.dstack([shot(0), np.full((48, 64), 255, np.uint8)])
    cv2.imwrite(str(data / "0.png"), image)
    assert scales(fp32, data, threads=1).used == 8


def test_neither_a_graph_nor_a_diff_is_one_line(capsys) -> None:
    assert main(["calibrate"]) == 2
    assert "--diff A B" in capsys.readouterr().err


def test_a_table_of_somebodys_pictures_is_not_replaced_by_one_of_the_scenes(
    fp32: Path, data: Path, tmp_path: Path, capsys
) -> None:
    graph = tmp_path / "small.fp32.onnx"
    graph.write_bytes(fp32.read_bytes())
    table = tmp_path / "small.calib.json"
    assert main(["calibrate", str(graph), "--data", str(data)]) == 0
    first = table.read_bytes()
    capsys.readouterr()
    export = ["export-engine", str(graph), "--int8", "--builder", "none", "-o", str(tmp_path)]
    for command in (["calibrate", str(graph)], export):
        assert main([*command, "--images", "4"]) == 2
        said = capsys.readouterr().err
        assert f"holds scales of other pictures ({data})" in said and "--fresh" in said
        assert table.read_bytes() == first
    # What the message says to do can be done.
    assert main([*export, "--calib", str(table), "--no-verdict"]) == 0
    assert table.read_bytes() == first
    assert main(["calibrate", str(graph), "--images", "4", "--fresh"]) == 0
    assert table.read_bytes() != first
    # A table of the scenes may follow another one of them.
    assert main(["calibrate", str(graph), "--images", "5"]) == 0


def test_what_is_no_table_is_not_replaced_by_one_of_the_scenes(
    fp32: Path, tmp_path: Path, capsys
) -> None:
    target = tmp_path / "notes.json"
    target.write_text('{"mine": 1}')
    assert main(["calibrate", str(fp32), "--images", "2", "-o", str(target)]) == 2
    assert "not a calibration table" in capsys.readouterr().err
    assert target.read_text() == '{"mine": 1}'


def test_the_decibels_of_a_verdict_are_of_the_calibration_pictures(
    fp32: Path, data: Path, tmp_path: Path, capsys
) -> None:
    export = ["export-engine", str(fp32), "--int8", "--builder", "none", "--json"]
    found = []
    for name, calib in (("a", data), ("b", tmp_path / "a" / "small.calib.json")):
        report = tmp_path / f"{name}.json"
        command = [*export, str(report), "--calib", str(calib), "-o", str(tmp_path / name)]
        assert main(command) == 0
        found.append(json.loads(report.read_text())["verdict"]["facts"])
    # By the folder and by the table made from it: one figure, of the same pictures.
    assert found[0]["head_db"] == found[1]["head_db"]
    assert found[1]["measured_on"] == "6 calibration pictures"
    assert "on 6 calibration pictures" in capsys.readouterr().err
    loss = read_manifest(tmp_path / "b" / "small.int8.onnx").argument("int8_loss", dict)
    assert loss["head_db"] == found[1]["head_db"]
    assert loss["measured_on"] == "6 calibration pictures"
    # The very figure, from the two files.
    pictures = calibration_inputs(fp32, read_table(tmp_path / "a" / "small.calib.json"), 6)
    heads = [heads_of(one, pictures) for one in (fp32, tmp_path / "b" / "small.int8.onnx")]
    assert head_noise(*heads) == pytest.approx(loss["head_db"], abs=0.01)


def test_pictures_that_are_gone_or_others_are_not_measured_on(
    fp32: Path, data: Path, tmp_path: Path
) -> None:
    table, report = tmp_path / "t.calib.json", tmp_path / "r.json"
    assert main(["calibrate", str(fp32), "--data", str(data), "-o", str(table)]) == 0
    export = ["export-engine", str(fp32), "--int8", "--builder", "none", "--calib", str(table)]
    export += ["-o", str(tmp_path / "out"), "--json", str(report)]
    for path in data.iterdir():
        cv2.imwrite(str(path), 255 - cv2.imread(str(path)))
    assert main(export) == 0
    verdict = json.loads(report.read_text())["verdict"]
    assert verdict["facts"]["head_db"] is None
    assert "no longer holds the pictures" in verdict["facts"]["measured_on"]
    assert any("was not measured" in reason for reason in verdict["reasons"])
    assert any("--accuracy-data" in step for step in verdict["advice"])
    data.rename(tmp_path / "elsewhere")
    assert main(export) == 0
    facts = json.loads(report.read_text())["verdict"]["facts"]
    assert facts["head_db"] is None and "no such file or folder" in facts["measured_on"]


def test_a_table_that_does_not_say_its_pictures_is_known_by_them(
    fp32: Path, data: Path, tmp_path: Path, capsys
) -> None:
    table = tmp_path / "t.json"
    command = ["calibrate", str(fp32), "-o", str(table)]
    for given, status in ((["--images", "3"], 0), (["--data", str(data)], 2)):
        assert main([*command, *given, "--fresh"]) == 0
        document = json.loads(table.read_text())
        for key in ("data", "asked"):
            del document[key]
        table.write_text(json.dumps(document))
        assert main([*command, "--images", "4"]) == status
    assert "holds scales of other pictures, which" in capsys.readouterr().err
    # Scales of another graph are not for use here, and nobody is told to.
    write_small(tmp_path / "other.fp32.onnx", seed=5)
    assert main(["calibrate", str(tmp_path / "other.fp32.onnx"), "-o", str(table)]) == 2
    said = capsys.readouterr().err
    assert "holds scales of other pictures" in said and "use the table" not in said
