"""Weights pruned one layer at a time, beside normal equations solved row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edge.compress.weights.deep import prune_weights, tune_shared
from edge.compress.weights.feedback import InputMoments, input_moments
from edge.compress.weights.magnitude import convolutions, two_four_mask
from edge.compress.weights.noise import heads_noise_db
from edge.compress.weights.untrained import (
    WeightedPictures,
    prune_on_pictures,
    pruned_with_refit,
    refitted,
    share_on_pictures,
    worth,
)
from edge.edgez.codebook import Codebook
from edge.errors import CompressionError
from edge.models.folding import fold_norms
from tests.support.small_models import small
from tests.test_feedback import convolution, off, smooth


def seen(conv: nn.Conv2d) -> tuple[InputMoments, np.ndarray]:
    around = input_moments(conv, smooth(3, conv.in_channels))[""]
    return around, around.moment[0].double().numpy()


def test_what_is_left_is_fitted_as_normal_equations_say() -> None:
    conv = convolution()
    around, moment = seen(conv)
    wanted = conv.weight.detach().flatten(1).double().numpy()
    mask = torch.rand(conv.weight.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    found = refitted(conv.weight, mask, around, steps=500).flatten(1).double().numpy()
    for row, stays in enumerate(mask.flatten(1).numpy()):
        best = np.zeros(len(stays))
        best[stays] = np.linalg.solve(moment[np.ix_(stays, stays)], moment[stays] @ wanted[row])
        assert (found[row][~stays] == 0).all()
        error, least = found[row] - wanted[row], best - wanted[row]
        assert error @ moment @ error == pytest.approx(least @ moment @ least, rel=0.02)


def test_a_weight_is_worth_what_the_others_cannot_make_up_for() -> None:
    conv = convolution()
    around, moment = seen(conv)
    wanted = conv.weight.detach().flatten(1).double().numpy()
    score = worth(conv.weight, around).flatten(1).double().numpy()
    for at in range(0, wanted.shape[1], 5):
        rest = [i for i in range(wanted.shape[1]) if i != at]
        fitted = np.linalg.solve(moment[np.ix_(rest, rest)], moment[rest] @ wanted[0])
        error = np.insert(fitted, at, 0.0) - wanted[0]
        assert score[0, at] ** 2 == pytest.approx(error @ moment @ error, rel=1e-2)


@pytest.mark.parametrize("groups", [1, 2])
def test_outputs_on_other_pictures_are_several_times_nearer_than_by_magnitude(groups: int) -> None:
    conv, fresh = convolution(groups=groups), smooth(4, 4, seed=5)
    weight, keep = conv.weight.detach(), conv.weight.numel() // 2
    found = pruned_with_refit(weight, keep, seen(conv)[0])
    assert int((found != 0).sum()) == keep
    by_size = weight * (weight.abs() > weight.abs().flatten().kthvalue(keep).values)
    assert off(conv, found, fresh) < 0.2 * off(conv, by_size, fresh)


def test_a_network_pruned_and_shared_on_pictures_keeps_several_decibels_more() -> None:
    module = fold_norms(small()[0])
    images, fresh = smooth_inputs(0), smooth_inputs(5)[0]
    reached = []
    for given in (None, WeightedPictures(images)):
        pruned = prune(module, given)
        with torch.no_grad():
            wanted = module(fresh)
            reached.append(heads_noise_db(wanted, pruned(fresh)))
            for scaled in (False, True):
                shared, books = share(pruned, module, given, scaled)
                reached.append(heads_noise_db(wanted, shared(fresh)))
                kept(pruned, shared, books)
    alone, balanced = np.array(reached[:3]), np.array(reached[3:])
    assert (balanced > alone + 3).all()


def prune(module: nn.Module, seen: WeightedPictures | None) -> nn.Module:
    return prune_weights(module, 0.5) if seen is None else prune_on_pictures(module, 0.5, seen)


def share(
    pruned: nn.Module, full: nn.Module, seen: WeightedPictures | None, scaled: bool
) -> tuple[nn.Module, dict[str, Codebook]]:
    if seen is None:
        return tune_shared(pruned, 3, scaled=scaled)
    return share_on_pictures(pruned, full, 3, seen, scaled=scaled)


def smooth_inputs(seed: int) -> list[torch.Tensor]:
    return [
        nn.functional.interpolate(image, (48, 64), mode="bilinear")
        for image in smooth(6, 3, seed=seed)
    ]


def kept(pruned: nn.Module, shared: nn.Module, books: dict[str, Codebook]) -> None:
    """Zeros stay, and the module holds what its codebooks stand for."""
    before = convolutions(pruned)
    for path, conv in convolutions(shared).items():
        assert torch.equal(conv.weight == 0, before[path].weight == 0)
        assert np.array_equal(conv.weight.detach().numpy(), books[path].dense())
        assert books[path].levels <= 8


def test_two_of_every_four_stay_and_are_fitted() -> None:
    module = fold_norms(small()[0])
    found = prune_on_pictures(module, 0.5, WeightedPictures(smooth_inputs(0)), two_four=True)
    fresh = smooth_inputs(5)[0]
    with torch.no_grad():
        wanted = module(fresh)
        alone = prune_weights(module, 0.5, two_four=True)
        better = heads_noise_db(wanted, found(fresh))
        assert better > heads_noise_db(wanted, alone(fresh)) + 3
    for conv in convolutions(found).values():
        assert bool(((conv.weight != 0) <= two_four_mask(conv.weight)).all())


def test_the_loss_of_scope_loss_is_of_pictures() -> None:
    with pytest.raises(CompressionError, match="takes pictures"):
        prune_weights(fold_norms(small()[0]), 0.5, "loss")
