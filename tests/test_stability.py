"""How sure scales are: the bootstrap and the curve over the number of images."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from apps.charts.stability import stability_svg
from calibration.histogram import Histogram
from calibration.stability import Group, collect_groups, stability_of
from edge.data.datasets import open_dataset
from edge.errors import CalibrationError
from tests.support.small_models import picture, write_small
from tests.support.steps import scales


def groups(scales: list[float], count: int = 4000, seed: int = 0) -> list[Group]:
    rng = np.random.default_rng(seed)
    found = []
    for scale in scales:
        one = Histogram()
        one.add((rng.normal(size=count) * scale).astype(np.float32))
        found.append({"a": one})
    return found


def test_images_alike_give_sure_scales_and_few_are_enough() -> None:
    found = stability_of(groups([1.0] * 12, 40_000), [5] * 12)
    assert found.images == 60 and found.spread["a"] < 0.03
    assert found.enough is not None and found.enough <= 20
    last = found.curve[-1]
    assert (last.images, last.shift, last.loss_db) == (60, 0, 0)
    assert [p.images for p in found.curve] == sorted(p.images for p in found.curve)


def test_images_unlike_give_unsure_scales_and_none_are_enough() -> None:
    found = stability_of(groups([1.0] * 11 + [30.0]), [5] * 12)
    assert found.spread["a"] > 0.2
    assert found.curve[0].loss_db > 0.5
    assert found.enough is None or found.enough > 20


def test_the_spread_is_that_of_new_samples() -> None:
    rng = np.random.default_rng(0)
    own = stability_of(groups(list(rng.uniform(1, 2, 12)), 500), [1] * 12, "minmax").spread["a"]
    peaks = []
    for seed in range(40):
        merged = groups(list(np.random.default_rng(seed).uniform(1, 2, 12)), 500, seed)
        peaks.append(max(one["a"].peak for one in merged))
    wanted = float(np.std(peaks) / np.mean(peaks))
    # The bootstrap of a maximum is biased; it must have the right order of magnitude.
    assert wanted / 4 < own < wanted * 4


def test_groups_hold_every_image_once(tmp_path: Path) -> None:
    write_small(tmp_path / "a.onnx")
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(9):
        image = np.rint(picture((48, 64), index)[0].transpose(1, 2, 0) * 255)
        cv2.imwrite(str(folder / f"{index}.png"), image)
    dataset = open_dataset(folder)
    found, sizes = collect_groups(tmp_path / "a.onnx", dataset, {}, groups=4, threads=1)
    assert sum(sizes) == 9 and len(found) == 4 and min(sizes) >= 2
    whole = scales(tmp_path / "a.onnx", folder, equalise=False, threads=1).histograms
    for name, histogram in whole.items():
        merged = found[0][name]
        for other in found[1:]:
            merged = merged.merge(other[name])
        np.testing.assert_array_equal(merged.counts, histogram.counts)
    again, _ = collect_groups(tmp_path / "a.onnx", dataset, {}, groups=4, threads=1)
    assert [g["images"].peak for g in again] == [g["images"].peak for g in found]
    few = open_dataset(folder, limit=3)
    with pytest.raises(CalibrationError, match="3 images; stability takes four or more"):
        collect_groups(tmp_path / "a.onnx", few, {})


def test_the_curve_is_drawn_as_valid_svg() -> None:
    found = stability_of(groups([1.0] * 8, 20_000), [3] * 8)
    root = ElementTree.fromstring(stability_svg(found))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    dots = [e for e in root.iter("{http://www.w3.org/2000/svg}circle") if e.get("class") == "dot"]
    assert len(dots) == len(found.curve)
    hints = [next(iter(dot)).text for dot in dots]
    assert hints[-1] == "24: 0.000 dB"
