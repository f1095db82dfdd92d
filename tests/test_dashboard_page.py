"""The dashboard in a real browser: it moves, it fits, it asks nobody else, it says what is lost."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.browser import Page, open_browser
from tests.support.camera_parts import Held, pictures, wait_for
from tests.support.dashboard_parts import running
from tests.support.small_models import write_small

# What the picture of the first source is at this moment.
LOOK = """(() => {
  const image = document.images[0], canvas = document.createElement("canvas");
  canvas.width = canvas.height = 16;
  canvas.getContext("2d").drawImage(image, 0, 0, 16, 16);
  return canvas.toDataURL();
})()"""
# Runs of a line: a gap of the series parts it, and so does a second without an age.
GAPS = """(() => {
  const kept = series;
  series = [1, 2, 3, 20].map((t) => ({t, fps: 0, age_ms: t < 20 ? t : null}));
  const found = [runs("fps").length, runs("age_ms").length];
  series = kept;
  return found;
})()"""
STARTED = "document.querySelector('.tile') !== null && document.images[0].naturalWidth > 0"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    write_small(path)
    return path


def sources(count: int) -> list[Held]:
    return [Held(pictures(8, (240, 320), seed=i), fps=10, name=f"held {i}") for i in range(count)]


def test_the_page_lives_fits_and_says_when_the_app_is_gone(artifact: Path, tmp_path: Path) -> None:
    with open_browser(tmp_path) as page:
        with running(artifact, sources(1), baseline=artifact, track=True) as app:
            page.shape(1400, 900, dark=False)
            page.go(app.url)
            page.wait(STARTED)
            first, frames = page.run(LOOK), page.run("$('tiles').children[4].textContent")
            page.wait(f"{LOOK} !== {first!r}")
            page.wait(f"$('tiles').children[4].textContent !== {frames!r}")
            page.wait("document.querySelectorAll('#fps polyline').length >= 1")
            assert page.run(GAPS) == [2, 1]
            assert page.run("$('state').textContent") == "live"
            assert page.run("$('beside').hidden") is False
            for width, height in ((1400, 900), (390, 844), (320, 600)):
                for dark in (False, True):
                    page.shape(width, height, dark, phone=width < 500)
                    page.wait(f"innerWidth === {width} && {STARTED}")
                    page.wait(f"document.documentElement.scrollWidth <= {width}")
                    keep(f"{width}-{'dark' if dark else 'light'}", page.picture())
                    assert contrast(page, "#facts", "body") > 4.5
                    assert contrast(page, "#fps-read", ".card") > 4.5
                    assert (luminance(page, "body", "backgroundColor") < 0.2) == dark
            page.run("$('pause').click()")
            page.wait("document.images[0].src.startsWith('data:')")
            page.run("$('pause').click()")
            page.wait("document.images[0].src.includes('/stream/0')")
            assert page.complaints == []
            assert {urlsplit(one).netloc for one in page.requests} <= {f"127.0.0.1:{app.port}", ""}
        page.wait("$('state').textContent === 'connection lost' && !$('notice').hidden", 20)
        assert page.run("document.querySelector('.away').textContent") == "connection lost"
        keep("lost", page.picture())


def keep(name: str, png: bytes) -> None:
    """Pictures for people, where `EDGE_SCREENSHOTS` names a folder."""
    if folder := os.environ.get("EDGE_SCREENSHOTS"):
        (Path(folder) / f"{name}.png").write_bytes(png)


def luminance(page: Page, selector: str, colour: str) -> float:
    """Relative luminance of a colour that the browser has computed (WCAG 2.1)."""
    style = page.run(f"getComputedStyle(document.querySelector('{selector}')).{colour}")
    sides = [int(part) / 255 for part in re.findall(r"\d+", style)[:3]]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in sides)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(page: Page, text: str, behind: str) -> float:
    """4.5 is what WCAG 2.1 asks of text (success criterion 1.4.3)."""
    both = [luminance(page, text, "color"), luminance(page, behind, "backgroundColor")]
    return (max(both) + 0.05) / (min(both) + 0.05)


def test_six_sources_are_all_seen_although_a_browser_keeps_six_connections(
    artifact: Path, tmp_path: Path
) -> None:
    with running(artifact, sources(6)) as app, open_browser(tmp_path) as page:
        page.shape(1400, 900, dark=True)
        page.go(app.url)
        page.wait("document.images.length === 6")
        page.wait("[...document.images].every((one) => one.naturalWidth > 0)")
        frames = page.run("$('tiles').children[4].textContent")
        page.wait(f"$('tiles').children[4].textContent !== {frames!r}")
        assert page.complaints == []


def test_the_page_enters_with_the_token_and_forgets_it_in_the_address(
    artifact: Path, tmp_path: Path
) -> None:
    token = "a-token-for-a-test"
    with running(artifact, sources(1), token=token) as app, open_browser(tmp_path) as page:
        page.go(app.url.partition("?")[0])
        page.wait("document.body.textContent.includes('a token is needed')")
        page.go(app.url)
        page.wait(STARTED)
        assert page.run("location.search") == ""
        assert page.run("document.cookie") == ""
    wait_for(lambda: app.stats)
