"""Detections: one shape for all, none included, and IoU by its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge.detections import Detections, iou_matrix

TWO = Detections(
    np.array([[0, 0, 2, 2], [1, 1, 3.127, 3]]), np.array([0.9, 0.1234567]), np.array([1, 0])
)


def test_none_is_normal() -> None:
    none = Detections.empty()
    assert len(none) == 0
    assert none.xyxy.shape == (0, 4)
    assert none.to_json(("cat",)) == []
    assert len(none[np.zeros(0, bool)]) == 0


def test_arrays_become_the_promised_types() -> None:
    for array, dtype in ((TWO.xyxy, "f4"), (TWO.score, "f4"), (TWO.class_id, "i4")):
        assert array.dtype == np.dtype(dtype)
        assert array.flags.c_contiguous


@pytest.mark.parametrize(
    ("xyxy", "score", "label"),
    [((2, 4), (1,), (1,)), ((1, 4), (1,), (2,)), ((1, 5), (1,), (1,)), ((1, 4), (1, 1), (1, 1))],
)
def test_arrays_that_do_not_fit_together_are_refused(
    xyxy: tuple[int, ...], score: tuple[int, ...], label: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        Detections(np.zeros(xyxy), np.zeros(score), np.zeros(label))


def test_masks_slices_and_indices_select() -> None:
    assert TWO[np.array([False, True])].class_id.tolist() == [0]
    assert TWO[:1].class_id.tolist() == [1]
    assert TWO[np.array([1, 0])].class_id.tolist() == [0, 1]


def test_json_has_plain_numbers() -> None:
    assert TWO.to_json(("cat", "dog"))[1] == {
        "class": "cat",
        "class_id": 0,
        "score": 0.12346,
        "xyxy": [1.0, 1.0, 3.13, 3.0],
    }


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """By counting unit squares: the boxes have whole corners."""

    def cells(box: np.ndarray) -> set[tuple[int, int]]:
        x1, y1, x2, y2 = map(int, box)
        return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}

    union = cells(a) | cells(b)
    return len(cells(a) & cells(b)) / len(union) if union else 0.0


whole_boxes = hnp.arrays(
    np.int64, st.tuples(st.integers(0, 4), st.just(4)), elements=st.integers(-4, 6)
)


@given(whole_boxes, whole_boxes)
def test_iou_equals_counting(a: np.ndarray, b: np.ndarray) -> None:
    found = iou_matrix(a, b)
    assert found.shape == (len(a), len(b))
    wanted = np.array([[iou(x, y) for y in b] for x in a]).reshape(len(a), len(b))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_boxes_smaller_than_a_pixel_overlap_like_others() -> None:
    boxes = np.array([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.25], [0.0, 0.0, 1e-3, 1e-3]])
    assert iou_matrix(boxes, boxes).diagonal().tolist() == [1, 1, 1]
    assert iou_matrix(boxes[:1], boxes[1:2]).item() == 0.5


def test_boxes_without_area_overlap_nothing() -> None:
    boxes = np.array([[1, 1, 1, 5], [3, 3, 2, 2], [0, 0, 9, 9]])
    assert iou_matrix(boxes, boxes).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
