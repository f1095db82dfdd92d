"""Drawn detections are legible: inside the frame, in contrast, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from edge.detections import Detections
from edge.video.draw import colour, draw, ink

CLASSES = ("person", "potted plant", "café")


def detections(*boxes: tuple[float, float, float, float]) -> Detections:
    n = len(boxes)
    score = np.linspace(0.9, 0.3, n)
    return Detections(np.array(boxes), score, np.arange(n) % 3)  # type: ignore[arg-type]


def frame(hw: tuple[int, int]) -> np.ndarray:
    return np.full((*hw, 3), 90, np.uint8)


def changed(hw: tuple[int, int], *boxes: tuple[float, float, float, float]) -> np.ndarray:
    return (draw(frame(hw), detections(*boxes), CLASSES) != 90).any(axis=2)


def test_no_detections_leave_the_frame_as_it_is() -> None:
    before = frame((48, 64))
    after = draw(before, Detections.empty(), CLASSES)
    assert after is not before
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("hw", [(240, 320), (480, 640), (720, 1280), (2160, 3840)])
def test_box_stands_where_the_detection_is_and_the_frame_is_untouched(hw: tuple[int, int]) -> None:
    height, width = hw
    box = (width * 0.4, height * 0.4, width * 0.6, height * 0.7)
    before = frame(hw)
    picture = draw(before, detections(box), CLASSES)
    assert (before == 90).all()
    x1, y1, x2, y2 = (round(v) for v in box)
    for x, y in ((x1, (y1 + y2) // 2), (x2, (y1 + y2) // 2), ((x1 + x2) // 2, y2)):
        assert tuple(picture[y, x]) == colour(0)
    assert (picture[(y1 + y2) // 2, (x1 + x2) // 2] == 90).all()


@pytest.mark.parametrize("hw", [(480, 640), (2160, 3840)])
def test_letters_grow_with_the_frame(hw: tuple[int, int]) -> None:
    height, width = hw
    mask = changed(hw, (width * 0.3, height * 0.5, width * 0.9, height * 0.9))
    caption = mask[: round(height * 0.5) - max(2, height // 200)].any(axis=1).sum()
    assert 0.018 <= caption / height <= 0.08


@pytest.mark.parametrize(
    "box",
    [(-50, -50, 30, 30), (300, 200, 900, 900), (0, 0, 320, 240), (310, 230, 319, 239)],
)
def test_caption_of_a_box_at_the_edge_stays_inside(box: tuple[float, float, float, float]) -> None:
    inside = changed((240, 320), (100, 100, 200, 200))
    caption = inside[:99].sum()
    assert caption > 300
    assert changed((240, 320), box).sum() > 0.9 * caption


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e30])
def test_boxes_without_end_are_survived(bad: float) -> None:
    picture = draw(frame((48, 64)), detections((10, 10, bad, 30)), CLASSES)
    assert picture.shape == (48, 64, 3)


def test_best_detection_lies_on_top() -> None:
    box = (40.0, 60.0, 120.0, 130.0)
    both = draw(frame((240, 320)), detections(box, box), CLASSES)
    assert tuple(both[130, 80]) == colour(0)


def contrast(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    """https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio, of BGR colours."""

    def luminance(bgr: tuple[int, int, int]) -> float:
        c = np.array(bgr[::-1]) / 255
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_every_class_has_its_own_colour_and_legible_ink() -> None:
    assert len({colour(i) for i in range(80)}) == 80
    assert colour(7) == colour(7)
    for i in range(200):
        other = (0, 0, 0) if ink(colour(i)) != (0, 0, 0) else (255, 255, 255)
        assert contrast(colour(i), ink(colour(i))) >= max(4.5, contrast(colour(i), other) - 0.01)


def test_a_name_too_long_for_the_frame_leaves_its_score_legible() -> None:
    def picture(score: float, name: str) -> np.ndarray:
        one = Detections(np.array([(9, 90, 99, 99)]), np.array([score]), np.array([0]))
        return draw(frame((120, 200)), one, (name,))

    long = "a_class_with_a_name_" * 9
    assert (picture(0.88, long) != picture(0.31, long)).any()
    assert (picture(0.88, long) != picture(0.88, "a")).any()
    assert (picture(0.88, "") != 90).any()


def test_letters_lose_their_accents_and_not_more() -> None:
    one = Detections(np.array([(9, 90, 99, 99)]), np.array([0.5]), np.array([0]))
    for name, plain in (("Fußgänger", "Fussganger"), ("café", "cafe"), ("信号", "??")):
        found, wanted = (draw(frame((120, 200)), one, (each,)) for each in (name, plain))
        assert (found == wanted).all()


def plates(hw: tuple[int, int], *boxes: tuple[float, float, float, float]) -> list[np.ndarray]:
    """For each box the pixels of its plate, drawn alone with the places of all of them."""
    found, placed = [], []
    from edge.video import draw as module

    plain = module._plate

    def keep(canvas: np.ndarray, place: tuple[int, int, int, int], *rest: object) -> None:
        placed.append(place)
        plain(canvas, place, *rest)  # type: ignore[arg-type]

    module._plate = keep  # type: ignore[assignment]
    try:
        draw(frame(hw), detections(*boxes), CLASSES)
    finally:
        module._plate = plain
    for left, top, right, bottom in placed:
        mask = np.zeros(hw, bool)
        mask[top:bottom, left:right] = True
        found.append(mask)
    return found


@pytest.mark.parametrize("hw", [(426, 640), (900, 1352), (2160, 3840)])
def test_names_of_neighbours_hide_neither_each_other_nor_small_objects(hw: tuple[int, int]) -> None:
    side = hw[0] / 900
    row = [(300 + 45 * i, 400, 330 + 45 * i, 470) for i in range(5)]
    boxes = [tuple(value * side for value in box) for box in row]
    found = plates(hw, *boxes)  # type: ignore[arg-type]
    assert len(found) == 5
    area = found[0].sum()
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            assert (one & other).sum() <= 0.15 * area
        for x1, y1, x2, y2 in boxes:
            under = one[int(y1) : int(y2), int(x1) : int(x2)]
            assert under.mean() < 0.3
    # Nowhere near as tall as on a frame whose longer side decides.
    heights = [np.flatnonzero(one.any(axis=1)) for one in found]
    assert all(0.015 < (rows[-1] - rows[0]) / hw[0] < 0.05 for rows in heights)


def test_the_picture_shines_through_a_plate() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (240, 320, 3), np.uint8)
    picture = draw(noise, detections((100, 100, 200, 200)), CLASSES)
    mask = plates((240, 320), (100, 100, 200, 200))[0]
    inside, under = picture[mask].astype(float), noise[mask].astype(float)
    assert np.corrcoef(inside[:, 0], under[:, 0])[0, 1] > 0.3
    assert abs(inside.mean(axis=0) - np.array(colour(0))).max() < 80


def test_notes_stand_before_the_names() -> None:
    one = detections((100, 100, 200, 200))
    plain, noted = (
        draw(frame((240, 320)), one, CLASSES),
        draw(frame((240, 320)), one, CLASSES, ["#7"]),
    )
    assert (plain != noted).any()
    assert (noted != 90).any(axis=2).sum() > (plain != 90).any(axis=2).sum()


def test_no_box_crosses_a_caption() -> None:
    boxes = ((60.0, 20.0, 120.0, 220.0), (40.0, 100.0, 140.0, 200.0))
    both = draw(frame((240, 320)), detections(*boxes), CLASSES)
    assert (both == colour(0)).all(axis=2).any()
    for mask, label in zip(plates((240, 320), *boxes), (1, 0), strict=True):
        # Plates are painted over the lines, the weaker one's first; no line is there in full.
        assert not (both[mask] == colour(1 - label)).all(axis=1).any()
        assert mask.sum() > 300
