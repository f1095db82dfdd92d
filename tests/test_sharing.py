"""Codebooks are scipy's and the optimum's, zeros stay zero, centroids learn by summed gradients."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans as scipy_kmeans
from torch import nn

from edge.compress.options import FineTuneOptions
from edge.compress.weights.deep import tune_shared, with_codebooks
from edge.compress.weights.kmeans import kmeans_1d
from edge.compress.weights.magnitude import convolutions, detach
from edge.compress.weights.noise import NoiseSearch, grid_codebook, heads_noise_db
from edge.compress.weights.sharing import (
    Clustered,
    attach_clusters,
    codebooks_of,
    renew_clusters,
    rounded_scale,
    share_tensor,
    share_weights,
    weights_behind,
)
from edge.compress.weights.sizes import sharing_rate
from edge.errors import CompressionError
from edge.models.folding import fold_norms, has_norms, unfold_norms
from edge.models.squeezedet import SqueezeDet, SqueezeDetConfig
from tests.support.small_models import decibel, small


def error(values: np.ndarray, centres: np.ndarray) -> float:
    return float(np.square(values[:, None] - centres[None]).min(axis=1).sum())


@pytest.mark.parametrize("start", ["linear", "density", "random", "optimal"])
def test_lloyd_ends_where_scipys_does(start) -> None:
    values = np.random.default_rng(0).laplace(size=900)
    found = kmeans_1d(values, 8, start)
    again = scipy_kmeans(values, found.copy(), iter=1)[0]
    assert np.allclose(np.sort(again), found, atol=1e-4)
    assert (np.diff(found) > 0).all()


def test_the_optimal_start_is_the_best_of_all_partitions() -> None:
    values = np.sort(np.random.default_rng(1).normal(size=12))
    best = min(
        sum(np.square(p - p.mean()).sum() for p in np.split(values, cuts))
        for cuts in combinations(range(1, 12), 3)
    )
    assert error(values, kmeans_1d(values, 4, "optimal")) == pytest.approx(best, rel=1e-9)


def test_the_optimal_start_is_no_worse_than_the_others_on_a_layers_weights() -> None:
    values = np.random.default_rng(2).laplace(size=20_000)
    errors = {s: error(values, kmeans_1d(values, 16, s)) for s in ("linear", "density", "optimal")}
    assert errors["optimal"] <= min(errors.values()) * 1.0001


def test_fewer_values_than_centres_are_kept_as_they_are() -> None:
    assert kmeans_1d(np.array([3.0, 1.0, 3.0]), 8).tolist() == [1.0, 3.0]


def test_zeros_stay_zero_and_take_no_centroid() -> None:
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(8, 4, 3, 3)).astype(np.float32) * (rng.random((8, 4, 3, 3)) < 0.4)
    book = share_tensor(weight, 3)
    assert book.levels == 8 and ((book.index == 0) == (weight == 0)).all()
    dense = book.dense()
    assert (dense[weight == 0] == 0).all()
    nearest = book.centroids[np.abs(weight[..., None] - book.centroids).argmin(axis=-1)]
    assert np.array_equal(dense[weight != 0], nearest[weight != 0])


def test_scales_make_channels_of_any_range_share_one_codebook() -> None:
    rng = np.random.default_rng(4)
    even = rng.laplace(size=(12, 8, 3, 3)) * (rng.random((12, 8, 3, 3)) < 0.3)
    weight = (even * 2.0 ** rng.integers(-6, 7, 12)[:, None, None, None]).astype(np.float32)
    weight[3] = 0
    book = share_tensor(weight, 3, "optimal", scaled=True)
    assert book.scale is not None and ((book.index == 0) == (weight == 0)).all()
    kept = [row[row != 0].astype(np.float64) for row in weight]
    size = [np.sqrt(np.square(row).mean()) if len(row) else 1.0 for row in kept]
    assert np.allclose(book.scale, size, rtol=1 / 32)
    values = book.scale[:, None] * book.centroids
    nearest = [
        row[np.abs(w[:, None] - row).argmin(axis=1)] for w, row in zip(kept, values, strict=True)
    ]
    dense = book.dense()
    for row, channel, wanted in zip(dense, weight, nearest, strict=True):
        assert np.allclose(row[channel != 0], wanted, rtol=1e-6)
    plain = np.square(weight - share_tensor(weight, 3, "optimal").dense()).sum(axis=(1, 2, 3))
    scaled = np.square(weight - dense).sum(axis=(1, 2, 3))
    power = np.square(weight).sum(axis=(1, 2, 3)).clip(min=1e-30)
    assert (scaled / power).max() < 0.1 < 0.9 < (plain / power).max()


def test_a_rounded_scale_is_within_three_percent_and_half_a_float16_of_zeros() -> None:
    scale = np.exp(np.random.default_rng(0).normal(size=500)).astype("f4")
    rounded = rounded_scale(np.concatenate([scale, -scale]))
    assert (np.abs(rounded[:500] / scale - 1) <= 1 / 32).all()
    assert (rounded[500:] == -rounded[:500]).all()
    bits = rounded.astype("f2").view("u2")
    assert ((bits & 0x3F) == 0).all() and (rounded == rounded.astype("f2")).all()


def test_the_rate_is_deep_compressions_formula() -> None:
    book = share_tensor(np.random.default_rng(0).normal(size=(32, 16, 3, 3)).astype("f4"), 4)
    n, k, b = 32 * 16 * 9, 16, 32
    assert sharing_rate(book) == pytest.approx(n * b / (n * np.log2(k) + k * b))


def test_a_centroids_gradient_is_the_sum_over_its_weights() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3)
    book = share_tensor(conv.weight.detach().numpy(), 2)
    image = torch.randn(2, 4, 8, 8)
    plain = nn.Conv2d(4, 6, 3, bias=False)
    with torch.no_grad():
        plain.weight.copy_(torch.from_numpy(book.dense()))
    plain(image).square().sum().backward()
    summed = [plain.weight.grad.numpy()[book.index == k + 1].sum() for k in range(4)]
    clustered = Clustered(book)
    nn.functional.conv2d(image, clustered(conv.weight)).square().sum().backward()
    assert np.allclose(clustered.centroids.grad.numpy(), summed, rtol=1e-3)
    # and weights learn as if they were not moved
    assert torch.allclose(conv.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)


def step(module: nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    image = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    sum((head - 1).square().mean() for head in module(image)).backward()
    optimizer.step()


@pytest.mark.parametrize("gains", [False, True])
def test_clustered_weights_learn_behind_their_centroids_which_learn_too(gains: bool) -> None:
    module = fold_norms(small()[0])
    books = share_weights(module, 2, scaled=gains)
    attach_clusters(module, books, gains=gains)
    before = weights_behind(module)
    step(module)
    found, behind = codebooks_of(module), weights_behind(module)
    detach(module)
    for path, conv in convolutions(module).items():
        assert (behind[path] != before[path]).any()
        assert (found[path].centroids != books[path].centroids).any()
        assert (np.diff(found[path].centroids) >= 0).all() and found[path].levels <= 4
        # Straight-through weights are c + (w - w), one rounding from c.
        assert np.allclose(conv.weight.detach(), found[path].dense(), atol=1e-6)
        if gains:
            assert (found[path].scale != books[path].scale).any()


def test_scales_that_do_not_learn_follow_the_size_of_their_channels() -> None:
    module = fold_norms(small()[0])
    books = share_weights(module, 2, scaled=True)
    attach_clusters(module, books)
    step(module)
    assert all((codebooks_of(module)[path].scale == books[path].scale).all() for path in books)
    renew_clusters(module)
    found = codebooks_of(module)
    for path, weight in weights_behind(module).items():
        size = weight.flatten(1).square().mean(dim=1).sqrt()
        assert np.allclose(found[path].scale, size.numpy(), rtol=1e-5)


class Stepping:
    """A training of one step, which notes whether there were norms and the heads after it."""

    options = FineTuneOptions(10)

    def __init__(self, image: torch.Tensor) -> None:
        self.image = image
        self.seen: list[tuple[bool, Any]] = []

    def run(self, module: nn.Module, _options: FineTuneOptions, stepped: object) -> nn.Module:
        step(module.train())
        with torch.no_grad():
            self.seen.append((has_norms(module), module.eval()(self.image)))
        return module


def test_scales_take_up_the_batch_norms_of_the_training() -> None:
    normed, _ = small()
    image = torch.rand(4, 3, 48, 64, generator=torch.Generator().manual_seed(2))
    training: Any = Stepping(image)
    module, books = tune_shared(
        fold_norms(normed),
        4,
        training=training,
        scaled=True,
        unfold=lambda folded: unfold_norms(folded, normed, image),
    )
    assert [norms for norms, _ in training.seen] == [True, False] and not has_norms(module)
    for path, conv in convolutions(module).items():
        assert np.array_equal(conv.weight.detach(), books[path].dense())
        assert np.array_equal(books[path].scale, rounded_scale(books[path].scale))
    with torch.no_grad():
        for a, b in zip(training.seen[0][1], module(image), strict=True):
            assert decibel(a.numpy(), b.numpy()) > 20  # scales are rounded


def test_codebooks_go_into_a_module_of_their_shapes_alone() -> None:
    module, other = fold_norms(small()[0]), fold_norms(small(seed=1)[0])
    books = share_weights(module, 3)
    with_codebooks(other, books)
    for path, conv in convolutions(other).items():
        assert np.array_equal(conv.weight.detach(), books[path].dense())
    first, second = list(books)[:2]
    with pytest.raises(CompressionError, match="does not fit"):
        with_codebooks(other, {first: books[second]})


@pytest.mark.parametrize(
    ("weight", "bits", "message"),
    [
        (np.zeros((2, 2), np.float32), 3, "lost all"),
        (np.ones((2, 2), np.float32), 13, "13 bits"),
    ],
)
def test_what_cannot_be_shared_is_refused(weight, bits: int, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        share_tensor(weight, bits)


def test_folded_and_unfolded_norms_give_the_same_heads() -> None:
    module, _ = small()
    image = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(2))
    folded = fold_norms(module)
    normed = unfold_norms(folded, module, image)
    assert has_norms(module) and not has_norms(folded) and has_norms(normed)
    with torch.no_grad():
        for a, b, c in zip(module(image), folded(image), normed(image), strict=True):
            assert torch.allclose(a, b, atol=1e-4) and torch.allclose(a, c, atol=1e-4)


def test_a_pyramids_norms_fold_too() -> None:
    config = SqueezeDetConfig(
        (64, 64),
        ("a", "b"),
        tuple((8.0 * i, 6.0 * i) for i in range(1, 10)),
        conv1=(8, 3),
        fires=((4, 8, 8),) * 8,
        pools=(4, 8),
        pyramid=((4, 8, 8),) * 3,
    )
    module = SqueezeDet(config).eval()
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    module.train()(image)
    folded = fold_norms(module.eval())
    assert has_norms(module) and not has_norms(folded)
    with torch.no_grad():
        for a, b in zip(module(image), folded(image), strict=True):
            assert torch.allclose(a, b, atol=1e-4)


def test_noise_is_measured_as_the_tests_measure_it() -> None:
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    assert heads_noise_db([a], [b]) == pytest.approx(decibel(a.numpy(), b.numpy()), abs=1e-4)


def test_a_grid_rounds_and_prunes_its_dead_zone() -> None:
    weight = torch.tensor([[-0.9, -0.2, 0.1, 0.55, 1.1, 2.0]]).reshape(1, 6, 1, 1)
    book = grid_codebook(weight, 1.0, dead=0.6)
    assert book.index.flatten().tolist() == [1, 0, 0, 0, 2, 3]
    assert book.centroids.tolist() == [-1, 1, 2]
    wide = torch.linspace(-1, 1, 20_001).reshape(1, -1, 1, 1)
    for step, words in ((1e-4, "leaves 20000 values"), (5.0, "leaves 0 values")):
        with pytest.raises(CompressionError, match=words):
            grid_codebook(wide, step)


def test_the_search_keeps_the_noise_and_finer_takes_more_bits() -> None:
    module = fold_norms(small()[0])
    judging, learning = (
        [torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(seed))] for seed in (3, 4)
    )
    kept = []
    for least in (15.0, 30.0):
        ticks = iter(range(1000))
        search = NoiseSearch(module, judging, learning, tick=partial(next, ticks))
        found = search.run(least)
        assert next(ticks) <= search.measurements
        with torch.no_grad():
            reached = heads_noise_db(module(judging[0]), found.module(judging[0]))
        assert reached == pytest.approx(found.noise_db, abs=1e-3) and least <= reached < least + 4
        for path, conv in convolutions(found.module).items():
            assert np.array_equal(conv.weight.detach().numpy(), found.books[path].dense())
        kept.append(sum(int((book.index > 0).sum()) for book in found.books.values()))
    assert kept[0] < kept[1]


def test_noise_that_no_grid_keeps_is_refused() -> None:
    module = fold_norms(small()[0])
    images = [torch.rand(1, 3, 48, 64)]
    with pytest.raises(CompressionError, match="keeps 200 dB"):
        NoiseSearch(module, images, images).run(200.0)
