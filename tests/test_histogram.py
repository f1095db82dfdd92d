"""The accumulator of activations: exact merging, bounded memory, nothing counted by halves."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration.histogram import BINS, Histogram

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
arrays = hnp.arrays(np.float32, st.integers(0, 20), elements=floats)


def histogram(*parts: np.ndarray) -> Histogram:
    found = Histogram()
    for part in parts:
        found.add(part)
    return found


def assert_same(a: Histogram, b: Histogram) -> None:
    assert (a.limit, a.peak, a.seen) == (b.limit, b.peak, b.seen)
    assert np.array_equal(a.counts, b.counts)


def by_definition(values: np.ndarray, limit: float) -> np.ndarray:
    """Each value's bin by exact arithmetic: the limit is a power of two, floats are fractions."""
    counts = np.zeros(BINS, np.int64)
    for value in np.abs(values.astype(np.float64)).tolist():
        top, bottom = value.as_integer_ratio()
        over, under = float(limit).as_integer_ratio()
        counts[(top * under * BINS) // (bottom * over)] += 1
    return counts


@given(arrays)
def test_every_value_is_in_its_bin(values: np.ndarray) -> None:
    found = histogram(values)
    assert found.seen == found.counts.sum() == values.size
    assert found.peak == np.abs(values).max(initial=0)
    if found.limit:
        assert np.array_equal(found.counts, by_definition(values, found.limit))


@given(st.lists(arrays, max_size=5), st.randoms())
def test_any_order_and_any_split_give_one_histogram(
    parts: list[np.ndarray], random: object
) -> None:
    whole = histogram(np.concatenate([np.zeros(0, np.float32), *parts]))
    shuffled = list(parts)
    random.shuffle(shuffled)
    assert_same(histogram(*shuffled), whole)


@given(arrays, arrays, arrays)
def test_merge_is_the_histogram_of_the_concatenation(
    a: np.ndarray, b: np.ndarray, c: np.ndarray
) -> None:
    one, two, three = histogram(a), histogram(b), histogram(c)
    kept = deepcopy(one), deepcopy(two)
    merged = one.merge(two).merge(three)
    assert_same(merged, histogram(np.concatenate((a, b, c))))
    assert_same(three.merge(two.merge(one)), merged)
    assert_same(one, kept[0])
    assert_same(two, kept[1])


def test_a_merged_histogram_shares_no_memory_with_its_parts() -> None:
    one, two = histogram(np.float32([1, 2])), histogram(np.float32([3]))
    merged = one.merge(two)
    merged.add(np.float32([1, 1, 1]))
    assert (one.seen, two.seen, one.counts.sum(), two.counts.sum()) == (2, 1, 2, 1)


def test_memory_does_not_grow() -> None:
    found = Histogram()
    for scale in np.geomspace(1e-6, 1e6, 50):
        found.add(np.float32(scale) * np.ones((100, 30), np.float32))
        assert found.counts.shape == (BINS,) and found.counts.dtype == np.int64
    assert found.seen == found.counts.sum() == 50 * 3000


def test_the_limit_grows_by_powers_of_two_above_the_peak() -> None:
    found = Histogram()
    for peak, limit in [(0, 0), (0.3, 0.5), (0.4, 0.5), (0.5, 1), (1, 2), (1000, 1024), (3, 1024)]:
        found.add(np.float32([peak, -peak / 2]))
        assert found.limit == limit
    assert found.counts[found.counts.nonzero()[0]].sum() == found.seen == 14


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_and_nothing_is_counted(bad: float) -> None:
    found = histogram(np.float32([1, 2, 3]))
    before = deepcopy(found)
    with pytest.raises(ValueError, match="NaN or infinity"):
        found.add(np.float32([100, bad, 5]))
    assert_same(found, before)


@pytest.mark.parametrize(
    "values",
    [
        [1e-45, 3e-45],
        [1e-40, 0, 5e-39],
        [1e-30, 2e-36],
        [1e-36],
        [3.4e38, 1.0, 1e-40],
        [np.finfo(np.float32).max],
        [np.finfo(np.float32).tiny],
    ],
)
def test_tiny_and_huge_values_are_counted(values: list[float]) -> None:
    array = np.float32(values)
    found = histogram(array)
    assert found.seen == found.counts.sum() == array.size
    assert np.array_equal(found.counts, by_definition(array, found.limit))
    # And next to values of the usual size.
    assert_same(found.merge(histogram(np.float32([1.5]))), histogram(array, np.float32([1.5])))


def test_the_values_given_stay_as_they_were() -> None:
    values = np.float32([[-1, 2], [3, -4]])
    histogram(values)
    assert values.tolist() == [[-1, 2], [3, -4]]


def test_half_precision_values_are_counted() -> None:
    values = np.float16([1e-6, 0.25, 0.1, 6.1e-5])
    assert np.array_equal(histogram(values).counts, histogram(values.astype(np.float32)).counts)
    assert histogram(np.float16([1e-6])).seen == 1


def test_centres_are_the_middles_of_the_bins() -> None:
    found = histogram(np.float32([3]))
    assert found.limit == 4
    assert found.centres[0] == 4 / BINS / 2
    assert found.centres[-1] == 4 - 4 / BINS / 2
