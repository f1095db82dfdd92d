"""The smallest weights go, in the share asked for, and stay gone while training."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from edge.compress.weights.magnitude import (
    apply_masks,
    attach_masks,
    convolutions,
    cubic_sparsity,
    detach,
    magnitude_masks,
    pruning_schedule,
    two_four_mask,
)
from edge.errors import CompressionError
from tests.support.small_models import small


def drawn(*shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scale = (1.0, 0.1, 5.0)
    return {
        str(i): scale[i] * torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)
    }


@pytest.mark.parametrize("scope", ["layer", "global", "lamp"])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.9])
def test_the_share_goes_and_it_is_the_smallest_of_each_layer(scope, sparsity: float) -> None:
    weights = drawn((8, 4, 3, 3), (16, 8, 1, 1), (6, 16, 1, 1))
    masks = magnitude_masks(weights, sparsity, scope)
    total = sum(mask.numel() for mask in masks.values())
    gone = sum(int((~mask).sum()) for mask in masks.values())
    assert gone == pytest.approx(sparsity * total, abs=2)
    for name, weight in weights.items():
        kept, lost = weight.abs()[masks[name]], weight.abs()[~masks[name]]
        assert len(kept) and (not len(lost) or lost.max() < kept.min())
    if scope == "layer" and sparsity:
        shares = [float((~mask).float().mean()) for mask in masks.values()]
        assert max(shares) - min(shares) < 0.02


def test_lamp_scores_are_those_of_the_definition() -> None:
    """Lee et al.: w² over the sum of all squares that are no smaller, compared over layers."""
    weights = drawn((4, 3, 1, 1), (5, 4, 1, 1))
    scores = {}
    for name, weight in weights.items():
        flat = weight.double().square().numpy().ravel()
        scores[name] = np.array([w / flat[flat >= w].sum() for w in flat])
    every = np.sort(np.concatenate(list(scores.values())))
    masks = magnitude_masks(weights, 0.5, "lamp")
    for name, mask in masks.items():
        assert np.array_equal(mask.numpy().ravel(), scores[name] > every[len(every) // 2 - 1])


def test_a_layer_keeps_its_largest_weight_whatever_is_asked_for() -> None:
    masks = magnitude_masks(drawn((8, 8, 3, 3), (1, 1, 1, 1)), 0.999)
    assert all(mask.any() for mask in masks.values())


def test_two_of_every_four_stay_along_the_input_channels() -> None:
    weight = drawn((6, 8, 3, 3))["0"]
    mask = two_four_mask(weight)
    fours = mask.reshape(6, 2, 4, 9)
    assert (fours.sum(dim=2) == 2).all()
    by_hand = weight[2, 4:8, 1, 2].abs()
    assert set(by_hand.argsort()[2:].tolist()) == set(mask[2, 4:8, 1, 2].nonzero().ravel().tolist())
    assert two_four_mask(drawn((6, 3, 3, 3))["0"]).all()


def test_the_cubic_schedule_begins_fast_and_ends_where_it_should() -> None:
    share = [cubic_sparsity(step, 100, 0.9) for step in range(120)]
    assert share[0] == 0 and share[100] == share[119] == 0.9
    assert share[50] == pytest.approx(0.9 * (1 - 0.5**3))
    assert all(a <= b for a, b in pairwise(share))


def train(module: nn.Module, steps: int, after_step=None) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05)
    image = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    module.train()
    for _ in range(steps):
        loss = sum((head - 1).square().mean() for head in module(image))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if after_step:
            after_step(module)


def test_masks_hold_while_training_and_the_rest_learns() -> None:
    module, _ = small()
    before = {path: conv.weight.detach().clone() for path, conv in convolutions(module).items()}
    masks = magnitude_masks(before, 0.5)
    attach_masks(module, masks)
    train(module, 4)
    detach(module)
    for path, conv in convolutions(module).items():
        assert type(conv).__name__ in ("Conv2d", "PaddedConv2d")
        assert (conv.weight[~masks[path]] == 0).all()
        assert (conv.weight[masks[path]] != before[path][masks[path]]).any()


def test_gradual_pruning_reaches_its_share_and_lets_weights_return() -> None:
    module, _ = small()
    weights = {path: conv.weight.detach() for path, conv in convolutions(module).items()}
    attach_masks(module, magnitude_masks(weights, 0.0), through=True)
    seen = []

    def after(trained: nn.Module) -> None:
        step(trained)
        masks = [conv.parametrizations.weight[0].mask for conv in convolutions(trained).values()]
        seen.append(torch.cat([mask.flatten() for mask in masks]).clone())

    step = pruning_schedule(0.8, 8, "global", every=1)
    train(module, 10, after)
    share = [1 - float(mask.float().mean()) for mask in seen]
    assert share[0] > 0.2 and share[-1] == pytest.approx(0.8, abs=0.01)
    assert (seen[-1] == seen[-2]).all()  # pruning is over
    assert any((later & ~sooner).any() for sooner, later in pairwise(seen))
    detach(module)
    zeros = sum(int((conv.weight == 0).sum()) for conv in convolutions(module).values())
    assert zeros == int((~seen[-1]).sum())


def test_apply_masks_sets_zeros_alone() -> None:
    module, _ = small()
    weights = {path: conv.weight.detach().clone() for path, conv in convolutions(module).items()}
    masks = magnitude_masks(weights, 0.5)
    apply_masks(module, masks)
    for path, conv in convolutions(module).items():
        assert torch.equal(conv.weight, weights[path] * masks[path])


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 2.0])
def test_a_share_that_empties_everything_is_refused(sparsity: float) -> None:
    with pytest.raises(CompressionError, match="cannot be pruned"):
        magnitude_masks(drawn((2, 2, 1, 1)), sparsity)


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(CompressionError, match="scope 'x'"):
        magnitude_masks(drawn((2, 2, 1, 1)), 0.5, "x")  # type: ignore[arg-type]
