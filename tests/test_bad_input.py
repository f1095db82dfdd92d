"""Bad input: one line on stderr, exit status 2, nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from apps import cli
from edge.built_in import BUILT_IN

CFG = """[net]
width=32
height=32
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[convolutional]
filters=18
size=1
stride=1
pad=1
activation=linear

[yolo]
mask=0,1,2
anchors=4,4, 8,8, 16,16
classes=1
num=3
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A cfg with weights that fit it: 4*8 norm + 216 + 18 + 144 floats behind a 20-byte header."""
    cfg = tmp_path / "small.cfg"
    cfg.write_text(CFG)
    values = np.random.default_rng(0).uniform(0.1, 0.5, 8 * 4 + 8 * 27 + 18 + 18 * 8)
    header = np.array([0, 2, 0, 0, 0], np.int32).tobytes()
    cfg.with_suffix(".weights").write_bytes(header + values.astype(np.float32).tobytes())
    return cfg


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Run a command that must fail; its one line."""
    status = cli.main([str(arg) for arg in argv])
    text = capsys.readouterr().err.strip()
    lines = [line for line in text.splitlines() if line.startswith("edge: ")]
    assert status == 2
    assert len(lines) == 1, text
    return lines[0]


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def test_the_small_model_itself_exports(model: Path, tmp_path: Path) -> None:
    argv = [
        "export-engine",
        model,
        "--int8",
        "--images",
        4,
        "--builder",
        "none",
        "-o",
        tmp_path / "o",
    ]
    assert cli.main([str(arg) for arg in argv]) == 0
    kinds = ("calib.json", "fp16.onnx", "fp32.onnx", "int8.onnx")
    assert leftovers(tmp_path / "o") == [f"small.{kind}" for kind in kinds]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("yololite-voc-trial8", "floats"),
        ("yololite-voc-trial11", "floats"),
    ],
)
def test_weights_of_another_net_say_how_many_floats_were_expected_and_found(
    edge_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    cfg = edge_data / "weights" / "broken" / f"{name}.cfg"
    line = refused(capsys, "export-engine", cfg, "-o", tmp_path / "o")
    assert name in line
    assert words in line
    assert leftovers(tmp_path / "o") == []


def test_truncated_weights_are_named(
    edge_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = edge_data / "weights" / "broken" / "yolov4-tiny.TRUNCATED.weights"
    line = refused(
        capsys, "export-engine", "yolov4-tiny", "--weights", weights, "-o", tmp_path / "o"
    )
    assert "TRUNCATED" in line
    assert "floats" in line
    assert leftovers(tmp_path / "o") == []


def test_an_unknown_section_is_named_with_its_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.write_text(CFG.replace("[yolo]", "[yolr]"))
    line = refused(capsys, "export-engine", model, "-o", tmp_path / "o")
    assert "yolr" in line
    assert "21" in line
    assert leftovers(tmp_path / "o") == []


def test_an_empty_cfg_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.cfg").touch()
    assert "empty.cfg" in refused(
        capsys, "export-engine", tmp_path / "empty.cfg", "-o", tmp_path / "o"
    )


def test_nan_weights_name_the_layer(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = model.with_suffix(".weights")
    data = np.frombuffer(weights.read_bytes(), np.float32).copy()
    data[100] = np.nan
    weights.write_bytes(data.tobytes())
    line = refused(capsys, "export-engine", model, "-o", tmp_path / "o")
    assert "layers.0" in line or "layer 0" in line
    assert leftovers(tmp_path / "o") == []


@pytest.mark.parametrize("content", [b"", b"\x00" * 4096, bytes(range(256)) * 16, b"plain text"])
@pytest.mark.parametrize("suffix", [".onnx", ".engine"])
@pytest.mark.parametrize("command", ["export-engine", "evaluate", "bench", "show"])
def test_random_bytes_are_no_artifact(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    suffix: str,
    command: str,
) -> None:
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(content)
    more = ["-o", tmp_path / "o"] if command == "export-engine" else []
    assert f"junk{suffix}" in refused(capsys, command, path, *more)
    assert leftovers(tmp_path / "o") == []


def test_a_damaged_graph_is_refused_before_a_copy_is_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["export-engine", model, "--fp32", "--builder", "none", "-o", tmp_path / "a"]
    assert cli.main([str(arg) for arg in argv]) == 0
    capsys.readouterr()
    graph = onnx.load(str(tmp_path / "a" / "small.fp32.onnx"))
    graph.graph.node[1].input[0] = "nowhere"
    onnx.save(graph, str(tmp_path / "b.onnx"))
    line = refused(capsys, "export-engine", tmp_path / "b.onnx", "--int8", "-o", tmp_path / "o")
    assert "b.onnx: its graph is damaged" in line
    assert "nowhere" in line
    assert leftovers(tmp_path / "o") == []
    line = refused(capsys, "calibrate", tmp_path / "b.onnx", "-o", tmp_path / "x.calib.json")
    assert "b.onnx: onnxruntime cannot load it" in line
    assert leftovers(tmp_path) == ["a", "b.onnx", "o", "small.cfg", "small.weights"]


def test_a_quantized_graph_that_is_damaged_builds_no_engine(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["export-engine", model, "--int8", "--images", 4, "--no-verdict", "--builder", "none"]
    assert cli.main([str(arg) for arg in [*argv, "-o", tmp_path / "a"]]) == 0
    capsys.readouterr()
    graph = onnx.load(str(tmp_path / "a" / "small.int8.onnx"))
    for node in graph.graph.node:
        if node.op_type == "LeakyRelu":
            node.output[0] = "nowhere"
    onnx.save(graph, str(tmp_path / "b.onnx"))
    assert "b.onnx" in refused(capsys, "export-engine", tmp_path / "b.onnx", "-o", tmp_path / "o")
    assert leftovers(tmp_path / "o") == []


def test_want_of_memory_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("cannot allocate 9 GiB")

    monkeypatch.setattr("apps.commands.detect.detect_pictures", full)
    assert "out of memory: cannot allocate 9 GiB" in refused(capsys, "detect", "a.onnx", "a.jpg")


def test_an_engine_without_its_manifest_is_refused_with_the_rebuild_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.engine").write_bytes(b"vtrt" + bytes(64))
    line = refused(capsys, "evaluate", tmp_path / "a.engine")
    assert "a.engine.json" in line
    assert "export-engine" in line


def test_an_engine_of_another_checksum_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    assert (
        cli.main(["export-engine", str(model), "--fp32", "--builder", "none", "-o", str(out)]) == 0
    )
    capsys.readouterr()
    from edge.artifact import read_manifest

    text = read_manifest(out / "small.fp32.onnx").to_json()
    (out / "small.engine").write_bytes(b"vtrt" + bytes(64))
    (out / "small.engine.json").write_text(json.dumps({**json.loads(text), "sha256": "0" * 64}))
    line = refused(capsys, "bench", out / "small.engine")
    assert "sha256" in line


def test_an_empty_calibration_folder_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none").mkdir()
    line = refused(
        capsys, "export-engine", model, "--int8", "--calib", tmp_path / "none", "-o", tmp_path / "o"
    )
    assert "none" in line
    assert leftovers(tmp_path / "o") == []


def test_a_corrupt_calibration_image_is_named_skipped_and_counted(
    model: Path, edge_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("dog.jpg", "person.jpg"):
        shutil.copy(edge_data / "photos" / name, folder / name)
    whole = (folder / "dog.jpg").read_bytes()
    (folder / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    argv = ["export-engine", model, "--int8", "--calib", folder, "--builder", "none"]
    argv += ["-o", tmp_path / "o", "--json", tmp_path / "r.json"]
    assert cli.main([str(arg) for arg in argv]) == 0
    facts = json.loads((tmp_path / "r.json").read_text())["calibration"]
    assert facts["images"] == 2
    assert len(facts["skipped"]) == 1
    assert "broken.jpg" in facts["skipped"][0]
    assert "broken.jpg" in capsys.readouterr().err


def test_no_readable_calibration_image_is_an_error(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff junk")
    line = refused(
        capsys, "export-engine", model, "--int8", "--calib", folder, "-o", tmp_path / "o"
    )
    assert "broken.jpg" in line
    assert leftovers(tmp_path / "o") == []


def test_a_calibration_table_of_another_graph_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["export-engine", model, "--int8", "--images", 4, "--builder", "none"]
    assert cli.main([str(a) for a in [*argv, "-o", tmp_path / "a"]]) == 0
    capsys.readouterr()
    table = tmp_path / "a" / "small.calib.json"
    line = refused(capsys, *argv, "--calib", table, "--resize", "stretch", "-o", tmp_path / "b")
    assert "another" in line
    assert not (tmp_path / "b" / "small.int8.onnx").exists()
    assert table.is_file()


def test_a_network_without_its_weights_says_which_file_to_put_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("edge.models.download._open", _no_network)
    line = refused(capsys, "export-engine", "yolov3-tiny", "-o", tmp_path / "o")
    assert str(tmp_path / "cache" / "yolov3-tiny.weights") in line
    assert leftovers(tmp_path / "o") == []


def _no_network(*_: object) -> None:
    raise OSError("Network is unreachable")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "a.onnx", "--table", "t.json", "--data", "d", "-o", "mixed"], ".onnx"),
        (["quantize", "a.onnx", "t.json", "-o", "mixed"], "mixed does not end in .onnx"),
        (["sensitivity", "a.onnx", "--table", "t", "--data", "d", "--plot", "."], "is a folder"),
        (["bench", "a.onnx", "--json", "file/r.json"], "file: no folder can be made"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    # Nothing was looked at yet: none of the files that these commands read is there.
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_folder_of_a_result_is_made(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "r.json"
    assert (
        cli.main(["share", str(model), "-o", str(tmp_path / "a.edgez"), "--json", str(target)]) == 0
    )
    assert json.loads(target.read_text())["file"] == str(tmp_path / "a.edgez")


@pytest.mark.parametrize(
    "command",
    [
        "show {given} --json {given}",
        "show {given} --json {link}",
        "detect {given} {picture} --json {given} --draw {folder}",
        "evaluate {given} --images 2 --json {given}",
        "bench {given} --seconds 1 --rounds 2 --json {given}",
    ],
)
def test_an_input_is_never_written_over(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, link, picture = tmp_path / "given.onnx", tmp_path / "link.json", tmp_path / "p.png"
    shutil.copy(BUILT_IN["tiny-yolo-scenes"], given)
    link.symlink_to(given)
    cv2.imwrite(str(picture), np.zeros((64, 96, 3), np.uint8))
    before = given.read_bytes()
    names = {"given": given, "link": link, "picture": picture, "folder": tmp_path / "out"}
    assert cli.main(command.format(**names).split()) == 2
    assert "is an input of this command and is not written over" in capsys.readouterr().err
    assert given.read_bytes() == before and link.is_symlink()
