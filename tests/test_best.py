"""`--method best`: candidates judged on other images; what is chosen is never worse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from calibration.best import calibrate_best, refine
from calibration.histogram import Histogram
from calibration.int8_graph import int8_graph
from calibration.scales import network_inputs
from calibration.threshold import CANDIDATES, METHODS, best_thresholds, candidate, threshold
from edge.data.datasets import open_dataset
from edge.errors import CalibrationError
from edge.measure.reference import head_decibel, reference, session
from export.int8.quantize import write_int8
from tests.support.small_models import picture, run, write_small
from tests.support.steps import scales


def histogram(values: np.ndarray) -> Histogram:
    found = Histogram()
    found.add(values.astype(np.float32))
    return found


def rounded(values: np.ndarray, amax: float) -> np.ndarray:
    return np.clip(np.rint(values * (127 / amax)), -127, 127) * (amax / 127)


def test_every_method_is_a_candidate_with_its_own_threshold() -> None:
    found = histogram(np.random.default_rng(0).normal(size=20_000))
    assert set(METHODS) < set(CANDIDATES)
    for name in METHODS:
        assert candidate(found, name) == threshold(found, name)
    assert candidate(histogram(np.zeros(5)), "minmax") == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_the_candidate_of_least_error_on_the_held_images_is_taken(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fit = rng.laplace(size=20_000)
    # The images held back reach further than those that were fitted.
    held = rng.laplace(size=20_000) * (1 + seed)
    choice = best_thresholds({"a": histogram(fit)}, {"a": histogram(held)})["a"]
    errors = {
        name: np.square(held - rounded(held, candidate(histogram(fit), name))).mean()
        for name in CANDIDATES
    }
    assert errors[choice.name] <= 1.02 * min(errors.values())
    measured = 10 * np.log10(errors["mse"] / errors[choice.name])
    assert choice.gain_db == pytest.approx(measured, abs=0.1) and choice.gain_db >= 0
    assert seed == 0 or choice.gain_db > 0.3


def test_tensors_of_zeros_take_the_default() -> None:
    zeros = histogram(np.zeros(10))
    assert best_thresholds({"a": zeros}, {"a": zeros})["a"].name == "mse"
    some = histogram(np.ones(10))
    assert best_thresholds({"a": some}, {"a": zeros})["a"].gain_db == 0


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("best") / "small.onnx"
    write_small(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(12):
        image = picture((48, 64), seed=index)[0].transpose(1, 2, 0)
        cv2.imwrite(str(folder / f"{index:02d}.png"), np.rint(image * 255).astype(np.uint8))
    return folder


def test_the_heads_noise_is_that_of_the_outputs(fp32: Path, data: Path) -> None:
    model = onnx.load(str(fp32))
    table = scales(fp32, data, threads=1).table
    graph = int8_graph(model, table)
    arrays = [(name, a.copy()) for name, a in network_inputs(fp32, data, 3)]
    options = onnxruntime_as_written()
    pairs = [(run(model, a), run(graph, a, **options)) for _, a in arrays]
    decibels = []
    for head in range(2):
        signal = sum(np.square(w[head].astype(float)).sum() for w, _ in pairs)
        noise = sum(np.square(f[head].astype(float) - w[head]).sum() for w, f in pairs)
        decibels.append(10 * np.log10(signal / noise))
    found = head_decibel(session(graph, 1), reference(model, arrays, 1))
    assert found == pytest.approx(np.mean(decibels), abs=0.3)
    assert head_decibel(session(model, 1), reference(model, arrays, 1)) > 90


def onnxruntime_as_written() -> dict:
    import onnxruntime

    return {"graph_optimization_level": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL}


def test_refined_thresholds_lessen_the_heads_noise_as_a_new_graph_shows(
    fp32: Path, data: Path
) -> None:
    model = onnx.load(str(fp32))
    table = scales(fp32, data, method="minmax", threads=1).table
    # One threshold far too wide, which nothing but the heads' noise shows.
    wide = {name: amax * (6 if index == 2 else 1) for index, (name, amax) in enumerate(table.amax)}
    table = replace(table, amax=tuple(wide.items()))
    known = reference(model, network_inputs(fp32, data, 4), 1)
    factors = refine(model, table, known, threads=1)
    assert list(factors) == list(wide) and list(factors.values())[2] == 0.8
    better = replace(table, amax=tuple((n, a * factors[n]) for n, a in wide.items()))
    before, after = (
        head_decibel(session(int8_graph(model, one), 1), known) for one in (table, better)
    )
    assert after > before + 0.1


def test_best_is_never_worse_than_the_default_on_the_images_held_back(
    fp32: Path, data: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    found = calibrate_best(
        fp32, open_dataset(data), progress=lambda *at: seen.append(at), threads=1
    )
    table = found.calibration.table
    assert found.decibel[found.best] == max(found.decibel.values())
    assert found.decibel[found.best] >= found.decibel["mse, equalised"]
    assert {*METHODS, "by tensor", *(f"{m}, equalised" for m in METHODS)} <= set(found.decibel)
    assert table.method == "best" and len(table.images) == found.calibration.used == 12
    assert dict(table.head_db) == {k: round(v, 3) for k, v in found.decibel.items()}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]
    manifest = write_int8(fp32, table, tmp_path / "a.onnx").manifest
    known = dict(manifest.arguments)
    assert known["method"] == '"best"' and "refined" in known["head_db"]


def test_too_few_images_are_refused_with_what_to_do(fp32: Path, data: Path) -> None:
    with pytest.raises(CalibrationError, match=r"6 images; .* takes 8 or more: .*--method mse"):
        calibrate_best(fp32, open_dataset(data, limit=6))
