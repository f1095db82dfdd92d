"""Calibration sets: hashes, overlap with an evaluation set, and the choice of images."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.scales import network_inputs
from calibration.sets import Features, choose, coverage, measure_features
from edge.data.datasets import open_dataset
from edge.data.distinct import Seen, pictures
from edge.data.hashes import NEAR, distances, hash_image, near_duplicates
from edge.data.overlap import calibrated_on, match, overlap, refuse_overlap
from edge.errors import CalibrationError
from edge.runtime.detector import Detector
from export.int8.quantize import write_int8
from tests.support.small_models import picture, write_small
from tests.support.steps import scales


def photo(seed: int, hw: tuple[int, int] = (120, 160)) -> np.ndarray:
    """A picture with structure at every scale."""
    rng = np.random.default_rng(seed)
    total = np.zeros((*hw, 3))
    for side in (3, 6, 12, 24, 48):
        coarse = rng.normal(size=(side, side, 3)) / np.sqrt(side)
        total += cv2.resize(coarse, hw[::-1], interpolation=cv2.INTER_CUBIC)
    low, high = total.min(), total.max()
    return ((total - low) / (high - low) * 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)


def test_the_hash_is_that_of_its_definition() -> None:
    image = photo(0)
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float64)
    at = np.arange(32)
    basis = np.cos(np.pi * (2 * at[None] + 1) * at[:8, None] / 64)
    basis[0] /= np.sqrt(2)
    low = (basis @ small @ basis.T).reshape(-1)
    bits = "".join("1" if value > np.median(low[1:]) else "0" for value in low)
    assert hash_image(image) == f"{int(bits, 2):016x}"


@pytest.mark.parametrize("seed", range(8))
def test_a_copy_is_near_whatever_was_done_to_its_file(seed: int) -> None:
    image = photo(seed)
    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    stretched = cv2.resize(image, (104, 104), interpolation=cv2.INTER_AREA)
    copies = [jpeg(image, 50), half, jpeg(stretched, 70), np.clip(image * 0.9, 0, 255)]
    hashes = [hash_image(copy.astype(np.uint8)) for copy in copies]
    assert distances([hash_image(image)], hashes).max() <= NEAR


def test_other_pictures_are_far() -> None:
    hashes = [hash_image(photo(seed)) for seed in range(30)]
    far = distances(hashes, hashes)[np.triu_indices(30, 1)]
    assert far.min() > 2 * NEAR
    one, two = hashes[:2]
    assert distances([one], [two])[0, 0] == (int(one, 16) ^ int(two, 16)).bit_count()


def test_of_pictures_alike_the_first_stays() -> None:
    first, other = photo(0), photo(1)
    row = [first, jpeg(first, 60), other, first, jpeg(other, 80)]
    assert near_duplicates(hash_image(image) for image in row) == [1, 3, 4]
    assert near_duplicates([]) == []


def folder_of(folder: Path, images: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for name, image in images.items():
        cv2.imwrite(str(folder / name), image)
    return folder


def seen_in(folder: Path) -> Seen:
    seen = Seen()
    assert list(pictures(open_dataset(folder), seen))
    return seen


def test_overlap_finds_copies_and_re_encoded_ones_and_nothing_else(tmp_path: Path) -> None:
    seen = seen_in(folder_of(tmp_path / "a", {f"{i}.png": photo(i) for i in range(6)}))
    mixed = {"new.png": photo(50), "same.png": photo(2), "again.jpg": photo(4)}
    found = overlap(seen.hashes, open_dataset(folder_of(tmp_path / "b", mixed)), seen.digests)
    assert [(Path(one.image).name, one.exact) for one in found] == [
        ("again.jpg", False),
        ("same.png", True),
    ]
    with pytest.raises(CalibrationError, match=r"^b: 2 of its images .* a \(1 the same pixels, 1 "):
        refuse_overlap(found, "a", "b")
    refuse_overlap([], "a", "b")
    mirrored = folder_of(tmp_path / "c", {"mirror.png": photo(3)[:, ::-1].copy()})
    assert [one.exact for one in overlap(seen.hashes, open_dataset(mirrored))] == [False]
    assert overlap([], open_dataset(tmp_path / "b")) == []


def test_an_int8_file_tells_its_calibration_images(tmp_path: Path) -> None:
    write_small(tmp_path / "a.onnx")
    data = folder_of(tmp_path / "images", {f"{i}.png": photo(i) for i in range(4)})
    table = scales(tmp_path / "a.onnx", data, threads=1).table
    manifest = write_int8(tmp_path / "a.onnx", table, tmp_path / "a.int8.onnx").manifest
    hashes, digests = calibrated_on(manifest)
    assert len(hashes) == len(digests) == 4
    again = match("x", photo(3), hashes, digests)
    assert again is not None and again.exact
    alike = match("x", jpeg(photo(3), 60), hashes, digests)
    assert alike is not None and not alike.exact and alike.bits <= NEAR
    assert match("x", photo(9), hashes, digests) is None
    with Detector.open(tmp_path / "a.onnx", threads=1) as detector:
        assert calibrated_on(detector.manifest) == ([], [])


def features(
    peaks: np.ndarray, classes: np.ndarray | None = None, pooled: np.ndarray | None = None
) -> Features:
    count = len(peaks)
    return Features(
        tuple(str(i) for i in range(count)),
        np.asarray(peaks, np.float32),
        np.ones((count, 3), np.float32) if pooled is None else np.asarray(pooled, np.float32),
        np.zeros((count, 2), np.float32) if classes is None else np.asarray(classes, np.float32),
    )


def test_what_alone_reaches_a_range_or_shows_a_class_is_chosen() -> None:
    peaks = np.ones((20, 4))
    peaks[7, 2] = 30
    assert choose(features(peaks), 1) == [7]
    classes = np.zeros((20, 3))
    classes[:, 0], classes[13, 1], classes[17, 2] = 0.9, 0.8, 0.7
    assert {13, 17} == set(choose(features(np.ones((20, 4)), classes), 2))


def test_each_cluster_gives_one_before_any_gives_two() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 16)) * 10
    pooled = np.repeat(centres, 5, axis=0) + rng.normal(0, 0.1, (20, 16))
    chosen = choose(features(np.ones((20, 2)), pooled=pooled), 4)
    assert sorted(index // 5 for index in chosen) == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(3))
def test_the_choice_has_most_of_the_best_possible_coverage(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = features(rng.lognormal(size=(9, 5)), rng.random((9, 4)), pooled=rng.normal(size=(9, 6)))

    def total(chosen: list[int]) -> float:
        found = coverage(known, chosen)
        return found.ranges + found.classes + found.likeness

    best = max(total(list(some)) for some in itertools.combinations(range(9), 3))
    chosen = choose(known, 3)
    assert len(set(chosen)) == 3 and total(chosen) >= (1 - 1 / np.e) * best
    assert total(chosen) > np.mean([total(list(s)) for s in itertools.combinations(range(9), 3)])
    assert sorted(choose(known, 99)) == list(range(9))
    assert total(list(range(9))) == pytest.approx(3, abs=1e-5)
    with pytest.raises(ValueError, match="count is 0"):
        choose(known, 0)


def test_features_are_those_of_the_activations(tmp_path: Path) -> None:
    manifest = write_small(tmp_path / "a.onnx")
    images = {
        f"{i}.png": np.rint(picture((48, 64), i)[0].transpose(1, 2, 0) * 255) for i in range(3)
    }
    data = folder_of(tmp_path / "images", images)
    found = measure_features(tmp_path / "a.onnx", network_inputs(tmp_path / "a.onnx", data, 3))
    assert found.names == tuple(str(data / f"{i}.png") for i in range(3))
    table = scales(tmp_path / "a.onnx", data, method="minmax", equalise=False, threads=1).table
    np.testing.assert_allclose(found.peaks.max(axis=0), [a for _, a in table.amax], rtol=1e-6)
    assert found.classes.shape == (3, len(manifest.spec.classes))
    with Detector.open(tmp_path / "a.onnx", threads=1, score=0.05, multi_label=True) as detector:
        for row, name in zip(found.classes, found.names, strict=True):
            detections = detector(cv2.imread(name))
            best = [
                max(detections.score[detections.class_id == c], default=0) for c in range(len(row))
            ]
            np.testing.assert_allclose(row, best, atol=1e-5)
    with pytest.raises(CalibrationError, match="no image to choose from"):
        measure_features(tmp_path / "a.onnx", [])


def test_older_manifests_have_no_images(tmp_path: Path) -> None:
    manifest = write_small(tmp_path / "a.onnx")
    old = replace(manifest, arguments=(("method", json.dumps("mse")),))
    assert calibrated_on(old) == ([], [])
