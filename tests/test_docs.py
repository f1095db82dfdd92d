"""Every command that the documentation shows is one that the command line takes."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import fields
from pathlib import Path

import cv2
import pytest

from apps import cli
from apps.regress.suite import Margins, Suite, read_suite
from edge.built_in import PACKAGED
from edge.data.datasets import load, open_dataset
from export.compress.unpack import unpack
from tests.support.folders import write_yolo_folder

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
# A page of figures shows no commands in blocks.
WITH_COMMANDS = [page for page in PAGES if page.stem != "measurements"]
# What makes a command of the pages quick here, where it would look at hundreds of pictures.
FEW = {"robustness": ("--severities", "5", "--workers", "1", "--corruptions", "fog")}
_COMMAND = re.compile(r"(?:.*/)?(edge|export-engine|torchrun .* -m apps\.cli) (.+)")


def blocks(page: Path) -> list[str]:
    text = page.read_text("utf-8")
    return re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def fenced(page: Path) -> list[tuple[str, str]]:
    """Language and text of the blocks that run here: `sh`, lines of commands, and `python`."""
    text = page.read_text("utf-8")
    return re.findall(r"^```(sh|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Program and arguments of each command in the page's blocks."""
    lines = "\n".join(blocks(page)).replace("ExecStart=", "").splitlines()
    found = [match for line in lines if (match := _COMMAND.fullmatch(line.strip()))]
    return [(match[1], shlex.split(match[2], comments=True)) for match in found]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_each_command_of_a_page_parses(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_run", lambda parser, argv: parser.parse_args(argv) and 0)
    shown = commands(page)
    assert shown
    for program, arguments in shown:
        run = cli.export_engine if program == "export-engine" else cli.main
        try:
            run(arguments)
        except SystemExit as error:
            raise AssertionError(f"{page.name}: {program} {shlex.join(arguments)}") from error


def test_a_link_from_a_page_leads_to_a_page() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_suite_of_the_page_is_one_and_the_page_has_every_key(tmp_path: Path) -> None:
    page = ROOT / "docs" / "regress.md"
    text = next(block for block in blocks(page) if block.startswith("schema"))
    (tmp_path / "suite.toml").write_text(text)
    assert read_suite(tmp_path / "suite.toml").entries[0].margins.speedup == 4.0
    rows = [line for line in page.read_text("utf-8").splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`(\w+)", " ".join(row.split("|")[1] for row in rows)))
    known = {field.name for kind in (Suite, Margins) for field in fields(kind)}
    assert known - {"path", "entries"} <= named


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: a trained network, photos, and labelled pictures of three kinds."""
    root = tmp_path_factory.mktemp("desk")
    unpack(PACKAGED["tiny-yolo-scenes-deep"], root / "made")
    for suffix in (".cfg", ".weights", ".names"):
        shutil.copy(root / "made" / f"tiny-yolo-scenes-deep{suffix}", root / f"yolo{suffix}")
    shutil.rmtree(root / "made")
    write_yolo_folder(root / "labelled", "scenes://?seed=97000&count=4")
    write_yolo_folder(root / "tuning", "scenes://?seed=97100&count=4")
    write_yolo_folder(root / "photos", "scenes://?seed=97200&count=8")
    frames = [load(item)[0] for item in open_dataset("scenes://?seed=97300&count=6").items]
    height, width = frames[0].shape[:2]
    film = cv2.VideoWriter(
        str(root / "drive.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 1, (width, height)
    )
    for frame in frames:
        film.write(frame)
    film.release()
    return root


@pytest.mark.parametrize(
    "page", [page for page in PAGES if fenced(page)], ids=lambda page: page.stem
)
def test_the_blocks_of_a_page_run(
    page: Path, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Top to bottom, in one folder, as a reader would; few pictures stand for many."""
    shutil.copytree(desk, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if page.stem != "README" and "out/yolo" in page.read_text("utf-8"):
        made = "yolo.cfg --names yolo.names --int8 --calib photos --no-verdict --builder none"
        assert cli.export_engine(made.split()) == 0
    names: dict[str, object] = {}
    for language, text in fenced(page):
        if language == "python":
            exec(compile(text, f"{page.name}, a python block", "exec"), names)
            continue
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] in ("edge", "export-engine"):
                run = cli.export_engine if words[0] == "export-engine" else cli.main
                assert run([*words[1:], *FEW.get(words[1], ())]) in (0, 1), line
