"""The report is one file that asks for nothing, says what the gates say, and shows it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from apps.charts.svg import Axes, Axis, line, nice_ticks, svg
from apps.regress.run import Outcome, regress
from apps.report.pictures import worst_of
from apps.report.plots import precision_recall
from tests.support.painted import write_painted, write_painted_int8, write_pictures
from tests.test_regression import SUITE
from tests.test_statistics import results


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The report of a suite in which calibration went stale."""
    folder = tmp_path_factory.mktemp("report")
    write_pictures(folder / "set")
    write_painted(folder / "fp32.onnx")
    write_painted(folder / "full.onnx", work=48)
    write_painted_int8(folder / "fp32.onnx", folder / "now.onnx")
    suite = folder / "street <cameras>.toml"
    suite.write_text(SUITE)
    regress(suite, update=True)
    write_painted_int8(folder / "fp32.onnx", folder / "now.onnx", stale=0.2)
    return folder / "out" / "report.html", regress(suite, report=folder / "out")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_well_formed_and_asks_for_nothing(made: tuple[Path, Outcome]) -> None:
    text = made[0].read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    for tag, attributes in tags.found:
        assert tag not in ("script", "iframe", "object")
        for name in ("src", "href", "srcset", "data"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text
    assert "@import" not in text
    assert len(text) < 2_000_000


def test_page_shows_every_gate_and_every_chart(made: tuple[Path, Outcome]) -> None:
    path, outcome = made
    text = path.read_text()
    assert "street &lt;cameras&gt;" in text
    for gate in outcome.gates:
        assert escape(gate.change.by if gate.change else gate.said) in text
    for gate in outcome.worse:
        assert escape(gate.said) in text
        for clue in gate.clues:
            assert clue.name.replace("_", "_<wbr>").replace(".", ".<wbr>") in text
            assert clue.by in text
            assert escape(clue.sure) in text
    charts = re.findall(r"<svg viewBox.*?</svg>", text, re.S)
    names = [ElementTree.fromstring(chart).get("aria-label") for chart in charts]
    assert names == [
        "accuracy, latency, size",
        "precision and recall",
        "scores",
        "latency",
        "noise by layer",
    ]
    assert "departs at layers.1.pool.dequantized" in text
    assert text.count("<figure>") == 8
    assert "Camera" not in text
    assert text.index(">worse<") < text.index(">same<")


def test_pictures_are_those_that_lost_most() -> None:
    before = results(40)
    one = before["cat"]
    hit = one.hit & ~np.isin(one.image, (3, 17))
    now = {**before, "cat": type(one)("cat", one.image, one.score, hit, one.boxes)}
    sure = one.hit & (one.score >= 0.25)
    lost = {i: int(sure[one.image == i].sum()) for i in (3, 17)}
    wanted = sorted((i for i in lost if lost[i]), key=lambda i: (-lost[i], i))
    assert worst_of(now, before, 40) == wanted
    assert wanted
    assert worst_of(before, before, 40) == []


def test_curve_ends_where_recall_ends() -> None:
    chart = precision_recall(results(40), {"stored": results(40)})
    assert chart.count('class="line') == 2
    assert "nan" not in chart


def test_points_lie_where_their_axes_say() -> None:
    frame = Axes(Axis("x", 0, 10), Axis("y", 1, 100, log=True))
    low, middle, high = frame.at(0, 1), frame.at(5, 10), frame.at(10, 100)
    np.testing.assert_allclose(np.add(low, high) / 2, middle)
    assert low[0] < high[0]
    assert low[1] > high[1]
    chart = ElementTree.fromstring(svg("a < b", frame, [line(frame, [(0, 1), (10, 100)], "now")]))
    assert chart.get("aria-label") == "a < b"


@pytest.mark.parametrize(
    ("low", "high", "log", "wanted"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 103, False, [0, 50, 100]),
        (57, 91, False, [60, 70, 80, 90]),
        (0.8, 120, True, [1, 2, 5, 10, 20, 50, 100]),
        (3, 3, False, [3]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, log: bool, wanted: list[float]) -> None:
    np.testing.assert_allclose(nice_ticks(low, high, log), wanted)


@pytest.mark.parametrize(("width", "dark"), [(1240, False), (1240, True), (500, False)])
def test_browser_shows_the_page_in_its_colours(
    made: tuple[Path, Outcome], tmp_path: Path, width: int, dark: bool
) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    shot = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += ["--disable-background-networking", "--disable-component-update"]
    options += ["--disable-sync", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}"]
    options += [f"--window-size={width},1600", f"--screenshot={shot}"]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run(
        [browser, *options, made[0].as_uri()], capture_output=True, timeout=120, check=True
    )
    image = cv2.imread(str(shot))
    assert image.shape[1] == width
    # The page's corner is its background; the badges of failed gates are red.
    assert (image[5, 5].mean() < 60) == dark
    assert (np.ptp(image.astype(int), axis=2) > 100).mean() > 0.002
