"""What commands print: tables with rich and without it, lines that nobody reads any more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from apps.cli import main
from apps.commands.terminal import listing, show
from edge.reporting import say
from tests.support.camera_parts import ROOT

COLUMNS = ("source", "frames", "FPS")
ROWS = [("a", "7", "29.4"), ("scenes://[x]", "1200", "3.0")]


@pytest.fixture
def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*(name for name in sys.modules if name.startswith("rich.")), "rich"]:
        monkeypatch.setitem(sys.modules, name, None)


def test_without_rich_columns_are_aligned(
    without_rich: None, capsys: pytest.CaptureFixture[str]
) -> None:
    show("cameras", COLUMNS, ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "cameras",
        "source        frames   FPS",
        "a                  7  29.4",
        "scenes://[x]    1200   3.0",
    ]
    listing("", ("", ""), [("a", "b"), ("ccc", "d")])
    assert capsys.readouterr().out.splitlines() == ["", "a    b", "ccc  d"]
    show("none", COLUMNS, [])
    assert capsys.readouterr().out.splitlines() == ["none", "source  frames  FPS"]


def test_with_rich_the_same_words_stand_in_a_frame(capsys: pytest.CaptureFixture[str]) -> None:
    show("cameras", COLUMNS, ROWS)
    out = capsys.readouterr().out
    assert out.startswith("cameras\n")
    for word in (*COLUMNS, *(cell for row in ROWS for cell in row)):
        assert word in out


def test_a_line_that_nobody_reads_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w", buffering=1) as broken, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", broken)
        say("to nobody")
        patch.setattr(sys, "stderr", None)
        say("to nobody")
        # Of the pipe nothing can be written when it is closed either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), broken.fileno())


def test_a_name_that_the_encoding_does_not_have_costs_no_figures(tmp_path: Path) -> None:
    source = tmp_path / "küche 厨房.png"
    cv2.imwrite(str(source), np.zeros((64, 96, 3), np.uint8))
    done = subprocess.run(
        [sys.executable, "-m", "apps.cli", "camera", "--source", str(source), "--headless"],
        cwd=ROOT,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rb"k\xfcche \u53a8\u623f.png" in done.stdout


# Every package of this environment but those that a device needs.
BARE = """
import sys
from importlib.metadata import packages_distributions, requires

allowed = {"numpy", "opencv-python", "opencv-python-headless", "onnxruntime"}
for needed in requires("onnxruntime"):
    if ";" not in needed:
        allowed.add(needed.split()[0].split("=")[0].split(">")[0].split("<")[0])
absent = {top for top, owners in packages_distributions().items() if not allowed & set(owners)}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent - {"apps", "edge"}:
            raise ModuleNotFoundError(name + " is absent in this test", name=name)

assert {"rich", "torch", "onnx"} & absent
sys.meta_path.insert(0, Absent())
from apps.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_camera_runs_on_numpy_opencv_and_onnxruntime_alone(tmp_path: Path) -> None:
    flags = ["--source", "scenes://", "--size", "64x96", "--frames", "4", "--headless", "--track"]
    flags += ["--serve", "127.0.0.1:0", "--events", f"{tmp_path}/e.jsonl"]
    flags += ["--record", f"{tmp_path}/r.mp4", "--pictures", f"{tmp_path}"]
    flags += ["--stats", f"{tmp_path}/s.json"]
    done = subprocess.run(
        [sys.executable, "-c", BARE, "camera", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "age p99 ms" in done.stdout


def test_json_on_standard_output_is_alone_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["anchors", "--data", "scenes://?seed=1&count=6", "--size", "64x96", "--json", "-"])
        == 0
    )
    out, err = capfd.readouterr()
    assert "anchors" in json.loads(out)
    assert "anchors = " in err
    assert main(["anchors", "--data", "scenes://?seed=1&count=6", "--size", "64x96"]) == 0
    assert "anchors = " in capfd.readouterr().out
