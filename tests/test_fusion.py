"""Weighted box fusion equals its authors' implementation (ensemble-boxes)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.detections import Detections
from edge.fusion import fuse

# Written by tools/robustness/golden_fusion.py, which takes the number of sets.
GOLDEN = Path(__file__).parent / "golden" / "fusion.npz"


def test_fused_boxes_are_those_of_the_authors() -> None:
    file = np.load(GOLDEN)
    sets = len([name for name in file.files if name.endswith("_lengths")])
    assert sets >= 20
    for number in range(sets):
        ends = np.cumsum(file[f"{number}_lengths"])[:-1]
        parts = [np.split(file[f"{number}_{name}"], ends) for name in ("boxes", "scores", "labels")]
        found = fuse([Detections(*view) for view in zip(*parts, strict=True)])
        wanted = [file[f"{number}_fused_{name}"] for name in ("boxes", "scores", "labels")]
        assert len(found) == len(wanted[1])
        mine = np.lexsort((found.xyxy[:, 0], -found.score.round(4)))
        theirs = np.lexsort((wanted[0][:, 0], -wanted[1].round(4)))
        assert np.allclose(found.xyxy[mine], wanted[0][theirs], atol=0.01)
        assert np.allclose(found.score[mine], wanted[1][theirs], atol=1e-4)
        assert np.array_equal(found.class_id[mine], wanted[2][theirs].astype(int))


def one(*boxes: tuple[float, ...]) -> Detections:
    rows = np.array(boxes, np.float32).reshape(-1, 6)
    return Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int32))


def test_views_that_see_nothing_lower_the_score() -> None:
    alone = fuse([one((0, 0, 10, 10, 0.8, 1)), one(), one(), one()])
    assert alone.score.tolist() == pytest.approx([0.2])
    assert alone.xyxy.tolist() == [[0, 0, 10, 10]] and alone.class_id.tolist() == [1]
    assert len(fuse([one(), one()])) == 0


def test_the_mean_box_leans_to_the_better_score_and_classes_stay_apart() -> None:
    found = fuse([one((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.5, 1)), one((2, 0, 12, 10, 0.3, 0))])
    assert found.class_id.tolist() == [0, 1]
    assert found.xyxy[0].tolist() == pytest.approx([0.5, 0, 10.5, 10])
    assert found.score.tolist() == pytest.approx([0.6, 0.25])
