"""Agreement counted by hand and by exhaustion; the baseline beside a detector."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.camera.baseline import Agreement, Baseline, agreed
from edge.detections import Detections, iou_matrix
from edge.errors import ArtifactError
from edge.runtime.detector import Detector
from tests.support.small_models import write_small

BOX = (10.0, 10.0, 50.0, 50.0)


def found(*rows: tuple[tuple[float, ...], float, int]) -> Detections:
    if not rows:
        return Detections.empty()
    xyxy, score, label = zip(*rows, strict=True)
    return Detections(np.array(xyxy), np.array(score), np.array(label))


def test_counted_by_hand() -> None:
    agreement = Agreement(("person", "motorbike", "zebra"), ("motorcycle", "person"))
    side, corner = (100.0, 0.0, 140.0, 40.0), (0.0, 0.0, 9.0, 9.0)
    wanted = found((BOX, 0.9, 0), (side, 0.8, 1), (BOX, 0.7, 2), (corner, 0.6, 0))
    # A person where the person is; a motorcycle that overlaps by 30 of 50 columns.
    agreement.add(wanted, found((BOX, 0.5, 1), ((110, 0, 150, 40), 0.5, 0)))
    figures = agreement.stats()
    assert figures.boxes == 3
    assert figures.agreement == pytest.approx(2 / 3)
    assert figures.by_class["person"] == {"boxes": 2, "agreement": 0.5}
    assert figures.by_class["motorbike"] == {"boxes": 1, "agreement": 1.0}
    assert figures.left_out == {"zebra": 1}


def test_no_boxes_is_no_figure() -> None:
    agreement = Agreement(("a",), ("a",))
    agreement.add(Detections.empty(), found((BOX, 0.9, 0)))
    assert agreement.stats().agreement is None
    agreement.add(found((BOX, 0.9, 0)), Detections.empty())
    assert agreement.stats().agreement == 0


def test_one_box_is_not_found_twice() -> None:
    join = np.array([0], np.int32)
    twins = found((BOX, 0.9, 0), (BOX, 0.8, 0))
    assert agreed(twins, found((BOX, 0.5, 0)), join).tolist() == [True, False]
    assert agreed(twins, twins, join).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 10**6))
def test_it_lies_between_half_of_the_best_pairing_and_all_of_it(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def some(count: int) -> Detections:
        low = rng.integers(0, 12, (count, 2)).astype(float)
        return Detections(np.hstack((low, low + 20)), rng.random(count), rng.integers(0, 2, count))

    wanted, small = some(n), some(m)
    hit = agreed(wanted, small, np.array([0, 1], np.int32))
    fits = iou_matrix(wanted.xyxy, small.xyxy) >= 0.5
    fits &= wanted.class_id[:, None] == small.class_id[None, :]
    padded = np.zeros((n, m + n), bool)
    padded[:, :m] = fits
    best = max(sum(padded[i, j] for i, j in enumerate(p)) for p in permutations(range(m + n), n))
    assert best / 2 <= hit.sum() <= best
    assert not hit[~fits.any(axis=1)].any()


def test_detectors_without_a_common_class_are_refused() -> None:
    with pytest.raises(ArtifactError, match="share no class"):
        Agreement(("cat", "dog"), ("bolt", "nut"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    write_small(path)
    return path


def test_a_detector_agrees_with_itself_and_is_as_fast(artifact: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, 60, 80, 3), np.uint8)
    with (
        Detector.open(artifact, threads=1, score=0.01) as edge,
        Detector.open(artifact, threads=1, score=0.01) as full,
    ):
        beside = Baseline(artifact, full, edge, 1.0)
        for frame in frames:
            detections = edge(frame)
            beside.consider(frame, detections, sum(edge.stages_ms.values()))
        figures = beside.stats()
    assert figures.frames == 12
    assert figures.boxes > 0
    assert figures.agreement == 1.0
    assert 0.2 < figures.speedup < 5
    assert figures.speedup == pytest.approx(figures.fps_edge / figures.fps)


def test_the_baseline_keeps_to_its_share_of_the_time(artifact: Path) -> None:
    now = 0.0
    with Detector.open(artifact, threads=1) as detector:
        spec = detector.spec

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now

    class Slow:
        def __init__(self) -> None:
            self.spec, self.stages_ms = spec, {"engine": 400.0}

        def __call__(self, image: np.ndarray) -> Detections:
            nonlocal now
            now += 0.4
            return Detections.empty()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("apps.camera.baseline.time", Clock)
        beside = Baseline(artifact, Slow(), Slow(), 0.2)  # type: ignore[arg-type]
        for _ in range(400):
            now += 0.05
            beside.consider(np.zeros((4, 4, 3), np.uint8), Detections.empty(), 50.0)
    assert beside.spent_s / now == pytest.approx(0.2, abs=0.03)
