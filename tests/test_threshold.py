"""Thresholds against what they promise, computed from the raw samples by other means."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calibration.histogram import BINS, Histogram
from calibration.threshold import METHODS, _divergence, noise, threshold
from tests.support.tolerances import ENTROPY_ATOL, MSE_NEAR_OPTIMAL

COUNT = 40_000


def samples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    normal = rng.normal(0, 2, COUNT)
    leaky = np.where(normal > 0, normal, 0.1 * normal)
    return {
        "normal": normal,
        "laplace": rng.laplace(0, 0.3, COUNT),
        "relu": np.maximum(normal, 0),
        "leaky": leaky,
        "uniform": rng.uniform(0, 1, COUNT),
        "heavy tail": rng.standard_t(3, COUNT),
        "outlier": np.append(rng.normal(0, 1, COUNT - 1), 60.0),
        "picture": rng.integers(0, 256, COUNT) / 255,
        "two values": rng.choice([0.0, 5.5], COUNT),
        "one value": np.full(COUNT, 0.37),
        "tiny": rng.normal(0, 1e-20, COUNT),
        "huge": rng.normal(0, 1e20, COUNT),
    }


SAMPLES = {name: values.astype(np.float32) for name, values in samples().items()}


def histogram(values: np.ndarray) -> Histogram:
    found = Histogram()
    found.add(values)
    return found


def error(values: np.ndarray, amax: float) -> float:
    """Mean squared error of symmetric INT8 on the samples themselves."""
    step = amax / 127
    return float(np.mean((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2))


@pytest.mark.parametrize("name", SAMPLES)
def test_mse_is_near_the_best_of_a_fine_search(name: str) -> None:
    values = SAMPLES[name].astype(np.float64)
    best = min(error(values, peak) for peak in np.abs(values).max() * np.linspace(0.002, 1, 500))
    found = error(values, threshold(histogram(SAMPLES[name]), "mse"))
    # A sample of few levels may fit a threshold exactly; what is left is far below rounding.
    floor = (np.abs(values).max() / 127) ** 2 / 12 * 0.2
    assert found <= max(best * MSE_NEAR_OPTIMAL, floor)


@pytest.mark.parametrize("name", ["normal", "laplace", "leaky", "heavy tail", "uniform"])
def test_predicted_noise_is_that_of_the_samples(name: str) -> None:
    values, found = SAMPLES[name].astype(np.float64), histogram(SAMPLES[name])
    for share in (0.1, 0.4, 1.0):
        amax = found.peak * share
        predicted = float(noise(found, np.array([amax]))[0])
        assert predicted == pytest.approx(error(values, amax), rel=0.05)


@pytest.mark.parametrize("name", SAMPLES)
def test_minmax_is_the_largest_magnitude(name: str) -> None:
    assert threshold(histogram(SAMPLES[name]), "minmax") == np.abs(SAMPLES[name]).max()


@pytest.mark.parametrize("name", SAMPLES)
def test_percentile_equals_numpys_within_a_bin(name: str) -> None:
    found = histogram(SAMPLES[name])
    wanted = np.quantile(np.abs(SAMPLES[name]), 0.9999, method="inverted_cdf")
    assert wanted <= threshold(found, "percentile") <= wanted + found.limit / BINS


def divergence(counts: list[float], stop: int) -> float:
    """S7310's pseudocode in plain loops: clip at `stop`, quantize to 128 levels, compare.

    An empty bin of the quantized distribution where the clipped one is not counts as 1e-12.
    """
    kept = counts[:stop]
    reference = list(kept)
    reference[-1] += sum(counts[stop:])
    candidate = [0.0] * stop
    for level in range(128):
        start, end = stop * level // 128, stop * (level + 1) // 128
        used = [i for i in range(start, end) if kept[i] > 0]
        total = sum(kept[start:end])
        for i in used:
            candidate[i] = total / len(used)
    p_sum, q_sum = sum(reference), sum(candidate)
    found = 0.0
    for p, q in zip(reference, candidate, strict=True):
        if p > 0:
            found += p / p_sum * math.log(p / p_sum / max(q / q_sum, 1e-12))
    return found


@pytest.mark.parametrize("name", ["normal", "laplace", "relu", "heavy tail", "outlier"])
def test_entropy_is_the_least_divergence_of_the_published_algorithm(name: str) -> None:
    found = histogram(SAMPLES[name])
    amax = threshold(found, "entropy")
    width = found.limit / BINS
    counts = found.counts.astype(float).tolist()
    counts[0] = counts[1]  # published practice: the bin of the zeros is left out
    last = math.ceil(found.peak / width)
    stops = np.linspace(128, last, 256).astype(int).tolist()
    chosen = min(stops, key=lambda stop: abs(stop * width - amax))
    assert abs(min(chosen * width, found.peak) - amax) < 1e-6 * amax
    # No other of the 256 clips better; a loop over each ninth is enough and takes a second.
    least = min(divergence(counts, stop) for stop in stops[::9])
    assert divergence(counts, chosen) <= least + ENTROPY_ATOL


@pytest.mark.parametrize("name", ["normal", "laplace", "relu", "heavy tail", "outlier", "picture"])
@pytest.mark.parametrize("stop", [128, 129, 300, 1000, 2047])
def test_divergence_equals_the_published_loops(name: str, stop: int) -> None:
    counts = histogram(SAMPLES[name]).counts.astype(float)
    wanted = divergence(counts.tolist(), stop)
    assert _divergence(counts, stop) == pytest.approx(wanted, rel=1e-9, abs=ENTROPY_ATOL)


def test_entropy_clips_a_lonely_outlier() -> None:
    assert threshold(histogram(SAMPLES["outlier"]), "entropy") < 10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SAMPLES)
def test_every_method_gives_a_positive_threshold_up_to_the_peak(name: str, method: str) -> None:
    found = histogram(SAMPLES[name])
    with np.errstate(all="raise", under="ignore"):
        amax = threshold(found, method)
    assert 0 < amax <= found.peak
    assert isinstance(amax, float)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_zeros_gives_one(method: str) -> None:
    assert threshold(histogram(np.zeros(10, np.float32)), method) == 1.0


def test_no_samples_and_no_method_are_refused() -> None:
    with pytest.raises(ValueError, match="histogram is empty"):
        threshold(Histogram())
    with pytest.raises(ValueError, match="method is 'best'; known: mse, percentile"):
        threshold(histogram(np.ones(3, np.float32)), "best")


def test_the_default_is_mse() -> None:
    found = histogram(SAMPLES["laplace"])
    assert threshold(found) == threshold(found, "mse") < found.peak
