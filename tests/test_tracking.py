"""Tracks against scipy's assignment, and trajectories whose truth is known by construction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from edge.detections import Detections
from edge.video.tracking import Tracker, assign


def boxes(centres: list[tuple[float, float]], labels: list[int] | None = None) -> Detections:
    """Boxes of 40x40 pixels around each centre."""
    xy = np.array(centres, np.float32).reshape(-1, 2)
    labels = labels or [0] * len(centres)
    return Detections(
        np.concatenate((xy - 20, xy + 20), axis=1),
        np.full(len(xy), 0.9, np.float32),
        np.array(labels, np.int32),
    )


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6), st.floats(0.0, 0.95))
def test_the_assignment_is_worth_as_much_as_scipys(n: int, m: int, seed: int, holes: float) -> None:
    rng = np.random.default_rng(seed)
    overlap = rng.random((n, m)) * (rng.random((n, m)) > holes)
    pairs = assign(overlap, 0.3)
    gated = np.where(overlap >= 0.3, overlap, 0)
    rows, columns = linear_sum_assignment(-gated)
    assert sum(overlap[pair] for pair in pairs) == pytest.approx(gated[rows, columns].sum())
    assert all(overlap[pair] >= 0.3 for pair in pairs)
    for side in zip(*pairs, strict=True):
        assert len(set(side)) == len(side)


def test_no_detection_is_normal() -> None:
    tracker = Tracker()
    for frame in range(5):
        assert tracker.update(Detections.empty(), frame / 10).shape == (0,)
    assert not tracker.counts


def test_objects_that_cross_keep_their_numbers() -> None:
    tracker = Tracker()
    seen: dict[int, set[int]] = {0: set(), 1: set()}
    for frame in range(40):
        x = 100 + 10 * frame
        pair = [(x, 100.0), (590 - x + 10, 118.0)]
        # The detector's order says nothing about who is who.
        order = [0, 1] if frame % 3 else [1, 0]
        numbers = tracker.update(boxes([pair[i] for i in order]), frame / 30)
        for who, number in zip(order, numbers.tolist(), strict=True):
            if number:
                seen[who].add(number)
    assert all(len(numbers) == 1 for numbers in seen.values())
    assert seen[0] != seen[1]
    assert tracker.counts == {0: 2}


def test_a_track_survives_a_gap_because_it_moves_on() -> None:
    tracker = Tracker()
    for frame in range(40):
        hidden = 20 <= frame < 30
        centre = (100.0 + 12 * frame, 200.0)
        numbers = tracker.update(boxes([] if hidden else [centre]), frame / 30)
    # 132 pixels were travelled unseen: more than three boxes, which a standing track would miss.
    assert numbers.tolist() == [1]
    assert tracker.counts == {0: 1}


def test_dropped_frames_do_not_change_the_speed() -> None:
    tracker = Tracker()
    rng = np.random.default_rng(3)
    kept = [frame for frame in range(90) if frame < 10 or rng.random() < 0.4]
    numbers = [
        tracker.update(boxes([(50 + 9.0 * frame, 100.0)]), frame / 30).tolist() for frame in kept
    ]
    assert {one[0] for one in numbers[2:]} == {1}


def test_a_flicker_gets_no_number_and_is_not_counted() -> None:
    tracker = Tracker()
    for frame in range(30):
        centres = [(100.0, 100.0)]
        if frame % 5 == 0:
            centres.append((300.0 + 37 * frame, 300.0))
        numbers = tracker.update(boxes(centres), frame / 30)
        assert not numbers[1:].any()
    assert tracker.counts == {0: 1}


def test_classes_are_tracked_apart() -> None:
    tracker = Tracker()
    for frame in range(6):
        numbers = tracker.update(boxes([(100, 100), (102, 101)], [0, 4]), frame / 30)
    assert sorted(numbers.tolist()) == [1, 2]
    assert tracker.counts == {0: 1, 4: 1}


def test_who_leaves_for_longer_than_a_second_comes_back_as_somebody_new() -> None:
    tracker = Tracker()
    for start in (0.0, 3.0):
        for frame in range(5):
            numbers = tracker.update(boxes([(100, 100)]), start + frame / 30)
        assert tracker.update(Detections.empty(), start + 0.3).shape == (0,)
    assert numbers.tolist() == [2]
    assert tracker.counts == {0: 2}


def test_memory_does_not_grow_with_strangers() -> None:
    tracker = Tracker()
    for frame in range(500):
        tracker.update(boxes([(100 + 300 * (frame % 7), 50 + 200 * (frame % 5))]), frame / 10)
    assert len(tracker._tracks) < 12


def test_noise_of_a_detector_costs_no_identity() -> None:
    rng = np.random.default_rng(7)
    tracker, changes = Tracker(), 0
    last: dict[int, int] = {}
    starts = rng.uniform(100, 900, (6, 2)) + np.arange(6)[:, None] * (0, 150)
    speeds = rng.uniform(-60, 60, (6, 2))
    for frame in range(120):
        seen = [i for i in range(6) if rng.random() > 0.1]
        centres = [tuple(starts[i] + speeds[i] * frame / 30 + rng.normal(0, 1.5, 2)) for i in seen]
        for who, number in zip(seen, tracker.update(boxes(centres), frame / 30), strict=True):
            changes += bool(number) and last.get(who, number) != number
            if number:
                last[who] = int(number)
    assert len(last) == 6
    assert changes == 0
