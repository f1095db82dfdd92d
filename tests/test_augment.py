"""Augmentation: a box follows its pixels, and a seed repeats everything."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.train.augment import (
    IGNORE,
    Augmentation,
    Labelled,
    augment,
    contrast,
    flip,
    hsv,
    mosaic,
    noise,
    placement,
    sharpness,
    warp,
)

CALM = Augmentation(
    flip=0, scale=(1, 1), aspect=1, shift=0, hue=0, saturation=0, value=0, contrast=0,
    sharpness=0, noise=0, mosaic=0,
)  # fmt: skip
FEW = settings(max_examples=40, deadline=None)


def _painted(hw: tuple[int, int], box: tuple[int, int, int, int], level: int = 255) -> Labelled:
    """A black picture with one bright rectangle and its box."""
    image = np.zeros((*hw, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = level
    return Labelled(image, np.array([(0, *box)], np.float32))


def _bright(image: np.ndarray) -> np.ndarray:
    """x1, y1, x2, y2 of what is brighter than half, by its pixels."""
    rows, columns = np.nonzero(image[..., 0] > 127)
    return np.array((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), np.float32)


@FEW
@given(x=st.integers(0, 60), y=st.integers(0, 40), w=st.integers(6, 30), h=st.integers(6, 20))
def test_a_box_follows_its_pixels_through_a_flip(x: int, y: int, w: int, h: int) -> None:
    flipped = flip(_painted((64, 96), (x, y, x + w, y + h)))
    np.testing.assert_array_equal(flipped.boxes[0, 1:], _bright(flipped.image))


@FEW
@given(seed=st.integers(0, 10_000), degrees=st.sampled_from((0.0, 20.0, 45.0)))
def test_a_box_follows_its_pixels_through_any_placement(seed: int, degrees: float) -> None:
    rng = np.random.default_rng(seed)
    options = Augmentation(scale=(0.6, 1.6), aspect=1.3, shift=0.2, degrees=degrees)
    picture = _painted((120, 160), (50, 40, 100, 85))
    made = warp(picture, placement((120, 160), (144, 192), options, rng), (144, 192), pad=0)
    if len(made.boxes) == 0 or made.boxes[0, 0] == IGNORE:
        return
    found, box = _bright(made.image), made.boxes[0, 1:]
    # A rotated corner's tip is thinner than half a pixel and looks dark; clipping cuts hulls.
    slack = 1.0 if degrees == 0 else 2.5
    inside = (box > 0.01) & (box < (191.99, 143.99, 191.99, 143.99))
    if inside.all():
        assert np.abs(found - box).max() <= slack
    assert (found[:2] >= box[:2] - 1).all() and (found[2:] <= box[2:] + 1).all()


def test_without_change_a_placement_is_a_letterbox_as_opencv_resizes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 2)
    matrix = placement((60, 80), (120, 200), CALM, np.random.default_rng(0))
    made = warp(Labelled(image, np.zeros((0, 5), np.float32)), matrix, (120, 200), pad=9)
    resized = cv2.resize(image, (160, 120), interpolation=cv2.INTER_LINEAR)
    assert (made.image[:, :19] == 9).all() and (made.image[:, -19:] == 9).all()
    inner = made.image[2:-2, 22:-22].astype(int) - resized[2:-2, 2:-2]
    assert np.abs(inner).max() <= 4  # warpAffine's weights have 5 bits


def test_a_box_mostly_out_of_the_picture_is_ignored_and_one_wholly_out_dropped() -> None:
    boxes = [(3, 10, 10, 20, 20), (4, -8, 0, 2, 10), (5, -20, 0, -5, 10)]
    picture = Labelled(np.zeros((40, 40, 3), np.uint8), np.array(boxes, np.float32))
    made = warp(picture, np.eye(2, 3), (40, 40), visible=0.3)
    assert made.boxes[:, 0].tolist() == [3, IGNORE]
    assert made.boxes[1, 1:].tolist() == [0, 0, 2, 10]


@FEW
@given(seed=st.integers(0, 10_000))
def test_mosaic_boxes_hold_their_own_pictures_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = (150, 180, 210, 240)
    pictures = [
        Labelled(p.image, p.boxes + np.array((number, 0, 0, 0, 0), np.float32))
        for number, p in enumerate(_painted((90, 120), (40, 30, 80, 60), k) for k in levels)
    ]
    made = mosaic(pictures, (96, 128), Augmentation(scale=(0.8, 1.2)), rng, pad=0)
    assert made.image.shape == (96, 128, 3)
    assert (made.boxes[:, 1:] >= 0).all() and (made.boxes[:, 3:] <= (128, 96)).all()
    for label, *box in made.boxes.tolist():
        x1, y1, x2, y2 = np.rint(box).astype(int)
        if label != IGNORE and min(x2 - x1, y2 - y1) > 4:
            inner = made.image[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2, 0]
            assert (inner == levels[int(label)]).all()


def test_a_mosaic_takes_four_pictures() -> None:
    with pytest.raises(ValueError, match="4 pictures, not 3"):
        mosaic([_painted((8, 8), (1, 1, 4, 4))] * 3, (8, 8), CALM, np.random.default_rng(0))


def test_hue_turns_as_opencv_counts_it_and_zero_changes_nothing() -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 2] = 200
    assert (hsv(red, 120, 0, 0)[0, 0] == (0, 200, 0)).all()
    assert (hsv(red, 0, 0, -0.5)[0, 0] == (0, 0, 100)).all()
    assert (hsv(red, 0, -1, 0)[0, 0] == 200).all()
    np.testing.assert_array_equal(hsv(red, 0, 0, 0), red)


def test_contrast_and_sharpness_do_what_they_say() -> None:
    image = np.full((20, 20, 3), 100, np.uint8)
    image[:, 10:] = 156
    assert np.ptp(contrast(image, 0.5)) == 84 and np.ptp(contrast(image, -0.5)) == 28
    np.testing.assert_array_equal(sharpness(image, 0.0), image)
    assert np.ptp(sharpness(image, 0.8)) > 56
    blurred = cv2.GaussianBlur(image, (0, 0), 1.0)
    np.testing.assert_array_equal(sharpness(image, -1.0), blurred)


def test_noise_has_the_deviation_asked_for() -> None:
    grey = np.full((200, 300, 3), 128, np.uint8)
    made = noise(grey, 5.0, np.random.default_rng(3)).astype(float) - 128
    assert made.std() == pytest.approx(5.0, rel=0.05) and abs(made.mean()) < 0.2


def test_one_seed_gives_one_picture_and_another_seed_another() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    boxes = np.array([(1, 10, 10, 50, 40)], np.float32)
    pictures = [Labelled(np.roll(image, k, axis=1), boxes) for k in range(5)]
    options = Augmentation(degrees=10)

    def made(seed: int) -> Labelled:
        return augment(pictures, 2, (64, 96), options, np.random.default_rng(seed))

    for seed in range(8):
        first, again, other = made(seed), made(seed), made(seed + 100)
        np.testing.assert_array_equal(first.image, again.image)
        np.testing.assert_array_equal(first.boxes, again.boxes)
        assert not np.array_equal(first.image, other.image)
    np.testing.assert_array_equal(pictures[2].image, np.roll(image, 2, axis=1))
    assert pictures[2].boxes.tolist() == boxes.tolist()


def test_pictures_without_boxes_pass_through() -> None:
    empty = Labelled(np.zeros((30, 40, 3), np.uint8), np.zeros((0, 5), np.float32))
    for seed in range(6):
        made = augment([empty], 0, (32, 32), Augmentation(), np.random.default_rng(seed))
        assert made.image.shape == (32, 32, 3) and made.boxes.shape == (0, 5)


@pytest.mark.parametrize(
    "wrong", [{"degrees": 60.0}, {"scale": (0.0, 1.0)}, {"scale": (2.0, 1.0)}, {"aspect": 0.5}]
)
def test_options_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        Augmentation(**wrong)
