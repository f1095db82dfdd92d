"""The letterbox's geometry: Darknet's integers, and exact ways back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.letterbox import Letterbox
from edge.spec import InputContract
from tests.support.tolerances import LETTERBOX_ATOL_PX

side = st.integers(1, 8000)
hw = st.tuples(side, side)
input_hw = st.tuples(st.integers(1, 2000), st.integers(1, 2000))
coordinate = st.floats(-1e5, 1e5)


@given(hw, input_hw, st.sampled_from(("letterbox", "stretch")), st.lists(coordinate, min_size=4))
def test_there_and_back_is_exact(
    source: tuple[int, int], target: tuple[int, int], resize: str, numbers: list[float]
) -> None:
    boxes = np.array(numbers[: len(numbers) // 4 * 4]).reshape(-1, 4)
    fit = Letterbox.fit(source, InputContract(target, resize=resize))
    back = fit.to_source(fit.to_input(boxes))
    # Leaving float64's pixels of the input costs their rounding, times source / input.
    atol = LETTERBOX_ATOL_PX / min(1.0, *fit.scale_xy)
    np.testing.assert_allclose(back, boxes, rtol=1e-12, atol=atol)


def darknet_letterbox(
    source: tuple[int, int], target: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """`letterbox_image` and `embed_image` of pjreddie's Darknet (src/image.c), with its floats."""
    (im_h, im_w), (h, w) = source, target
    if np.float32(w) / np.float32(im_w) < np.float32(h) / np.float32(im_h):
        new_w, new_h = w, im_h * w // im_w
    else:
        new_h, new_w = h, im_w * h // im_h
    return (new_h, new_w), ((w - new_w) // 2, (h - new_h) // 2)


@given(hw, input_hw)
def test_equals_darknets_integers(source: tuple[int, int], target: tuple[int, int]) -> None:
    (new_h, new_w), (left, top) = darknet_letterbox(source, target)
    fit = Letterbox.fit(source, InputContract(target))
    if new_h and new_w:  # Darknet shrinks the thinnest pictures to nothing
        assert (fit.resized_hw, fit.pad_xy) == ((new_h, new_w), (left, top))
    assert min(fit.resized_hw) >= 1
    assert fit.resized_hw[0] == target[0] or fit.resized_hw[1] == target[1]
    assert fit.pad_xy[0] >= 0 and fit.pad_xy[0] + fit.resized_hw[1] <= target[1]
    assert fit.pad_xy[1] >= 0 and fit.pad_xy[1] + fit.resized_hw[0] <= target[0]


@pytest.mark.parametrize(
    ("source", "resized", "pad"),
    [
        ((720, 1280), (234, 416), (0, 91)),
        ((1280, 720), (416, 234), (91, 0)),
        ((416, 416), (416, 416), (0, 0)),
        ((1, 1), (416, 416), (0, 0)),
        ((1, 5000), (1, 416), (0, 207)),
        ((5000, 1), (416, 1), (207, 0)),
    ],
)
def test_known_sizes(
    source: tuple[int, int], resized: tuple[int, int], pad: tuple[int, int]
) -> None:
    fit = Letterbox.fit(source, InputContract((416, 416)))
    assert (fit.resized_hw, fit.pad_xy) == (resized, pad)


def test_corners_of_the_source_are_corners_of_the_resized_image() -> None:
    fit = Letterbox.fit((720, 1280), InputContract((416, 416)))
    corners = fit.to_input(np.array([[0, 0, 1280, 720]], np.float32))
    assert corners.tolist() == [[0, 91, 416, 325]]


def test_stretch_fills_the_input() -> None:
    fit = Letterbox.fit((375, 1242), InputContract((384, 1248), resize="stretch"))
    assert (fit.resized_hw, fit.pad_xy) == ((384, 1248), (0, 0))
    assert fit.to_input(np.array([[0, 0, 1242, 375]])).tolist() == [[0, 0, 1248, 384]]


def test_no_boxes_stay_no_boxes() -> None:
    fit = Letterbox.fit((375, 1242), InputContract((384, 1248)))
    assert fit.to_source(np.zeros((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize("source", [(0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(source: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cannot be resized"):
        Letterbox.fit(source, InputContract((416, 416)))
