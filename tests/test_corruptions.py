"""Corruptions: equal to the published implementation's, seeded, and worse by severity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.data.datasets import load, open_dataset
from edge.errors import DataError
from edge.measure.corruptions import (
    CAMERA,
    COMMON,
    EVERY,
    corrupt,
    corruption_names,
    random_state,
)

# Written by tools/robustness/golden_corruptions.py.
GOLDEN = Path(__file__).parent / "golden" / "corruptions.npz"
SEED, SEVERITY = 5, 2
# Grey levels of 255 by root mean square. Other libraries enlarge and round differently by these.
ENLARGED = {"zoom_blur": 4.0, "snow": 5.0, "pixelate": 8.0}
ROUNDED = 0.8


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[np.uint8]]:
    with np.load(GOLDEN) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def scene() -> NDArray[np.uint8]:
    return load(open_dataset("scenes://?seed=90500&count=1").items[0])[0]


def rms(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.sqrt(np.mean((one.astype(float) - other) ** 2)))


@pytest.mark.parametrize("name", sorted({*COMMON} - {"impulse_noise", "glass_blur", "frost"}))
def test_the_published_implementation_makes_the_same(
    name: str, golden: dict[str, NDArray[np.uint8]]
) -> None:
    picture = golden["picture"][..., ::-1]
    made = corrupt(picture, name, SEVERITY, np.random.RandomState(SEED))[..., ::-1]
    assert rms(made, golden[name]) <= ENLARGED.get(name, ROUNDED)


def test_impulse_noise_hits_the_published_share_of_values() -> None:
    grey = np.full((400, 400, 3), 127, np.uint8)
    for severity, share in enumerate((0.03, 0.06, 0.09, 0.17, 0.27), 1):
        made = corrupt(grey, "impulse_noise", severity, np.random.RandomState(severity))
        assert np.mean(made != 127) == pytest.approx(share, rel=0.05)
        assert np.mean(made == 255) == pytest.approx(share / 2, rel=0.1)


def test_glass_moves_no_pixel_further_than_its_reach(scene: NDArray[np.uint8]) -> None:
    dot = np.zeros((64, 64, 3), np.uint8)
    dot[30:34, 30:34] = 255
    for severity, (reach, rounds) in enumerate(((1, 2), (2, 1), (2, 3), (3, 2), (4, 2)), 1):
        made = corrupt(dot, "glass_blur", severity, np.random.RandomState(1))
        rows = np.flatnonzero((made > 8).any(axis=(1, 2)))
        # Two blurs of at most 1.5 pixels come on top.
        assert rows.min() >= 30 - reach * rounds - 6 and rows.max() <= 33 + reach * rounds + 6


@pytest.mark.parametrize("name", EVERY)
def test_a_corruption_is_seeded_keeps_the_shape_and_leaves_its_input(
    name: str, scene: NDArray[np.uint8]
) -> None:
    before = scene.copy()
    for severity in (1, 5):
        one, two = (
            corrupt(scene, name, severity, random_state(7, name, severity, 3)) for _ in "ab"
        )
        assert one.shape == scene.shape and one.dtype == np.uint8
        assert np.array_equal(one, two)
        assert not np.array_equal(one, scene)
    assert np.array_equal(scene, before)


# The published frost and fog grow worse by what they hide, not by grey levels.
@pytest.mark.parametrize("name", sorted({*EVERY} - {"frost", "fog"}))
def test_a_higher_severity_is_further_from_the_picture(name: str, scene: NDArray[np.uint8]) -> None:
    away = [
        np.mean([rms(corrupt(scene, name, s, np.random.RandomState(n)), scene) for n in range(3)])
        for s in (1, 3, 5)
    ]
    assert away[0] < away[1] < away[2], away


def test_each_picture_has_its_own_noise_and_each_artifact_the_same() -> None:
    first, second = (random_state(0, "snow", 1, image).rand(4) for image in (0, 1))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, random_state(0, "snow", 1, 0).rand(4))


def test_names_are_read_and_what_is_wrong_is_said(scene: NDArray[np.uint8]) -> None:
    assert corruption_names("common") == tuple(COMMON) and len(COMMON) == 15
    assert corruption_names("all") == (*COMMON, *CAMERA)
    assert corruption_names("fog, snow,fog") == ("fog", "snow")
    for call in (
        lambda: corruption_names("fgo"),
        lambda: corruption_names(" , "),
        lambda: corrupt(scene, "fog", 6, random_state(0, "fog", 6, 0)),
        lambda: corrupt(scene[:20], "fog", 1, random_state(0, "fog", 1, 0)),
        lambda: corrupt(scene, "smog", 1, random_state(0, "smog", 1, 0)),
    ):
        with pytest.raises(DataError):
            call()
