"""Layers made coarse in turn, beside least squares by numpy and beside each layer for itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edge.compress.weights import feedback
from edge.compress.weights.feedback import (
    InputMoments,
    change_layers,
    input_moments,
    rounded_with_feedback,
)
from edge.compress.weights.magnitude import convolutions
from edge.compress.weights.noise import heads_noise_db
from edge.models.folding import fold_norms
from export.compress.pictures import varied
from tests.support.small_models import picture, small
from tests.test_feedback import smooth


def two_layers() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3)).eval()


def test_a_layer_aims_at_what_the_full_one_gives_on_what_it_gets_itself() -> None:
    full, images, aims = two_layers(), smooth(3, 4), {}

    def change(path: str, aim: torch.Tensor, around: InputMoments) -> torch.Tensor:
        aims[path] = aim
        return (aim * 4).round() / 4

    found = change_layers(full, images, change)
    assert torch.equal(aims["0"], full[0].weight)  # nothing before it is off
    assert torch.equal(found[2].weight, (aims["2"] * 4).round() / 4)
    batch = torch.cat(images)
    with torch.no_grad():
        theirs, mine = full[:2](batch), found[:2](batch)
    x, y = (
        functional.unfold(seen, 3).movedim(1, 2).flatten(0, 1).double().numpy()
        for seen in (mine, theirs)
    )
    weight = full[2].weight.detach().flatten(1).double().numpy()
    moment = x.T @ x
    ridge = feedback._RIDGE * np.diag(moment).mean() * np.eye(len(moment))
    change_of_rows = np.linalg.solve(moment + ridge, x.T @ (y - x) @ weight.T).T
    assert np.allclose(aims["2"].flatten(1).numpy(), weight + change_of_rows, atol=1e-4)


def test_biases_take_up_what_is_left_in_the_mean() -> None:
    full, images, ticks = two_layers(), smooth(3, 4), []
    found = change_layers(
        full, images, lambda _, aim, __: aim.round(), tick=lambda: ticks.append(1)
    )
    with torch.no_grad():
        wanted, got = full(torch.cat(images)), found(torch.cat(images))
    assert torch.allclose(wanted.mean((0, 2, 3)), got.mean((0, 2, 3)), atol=1e-5)
    assert not torch.allclose(wanted, got, atol=0.1) and len(ticks) == 2


def test_in_turn_less_noise_is_left_than_with_every_layer_for_itself() -> None:
    full = fold_norms(small()[0])
    learning = [torch.from_numpy(picture((48, 64), seed)) for seed in range(8)]
    judging = torch.from_numpy(picture((48, 64), 99))

    def rounded(weight: torch.Tensor, around: InputMoments) -> torch.Tensor:
        step = weight.square().mean().sqrt() / 2
        return rounded_with_feedback(weight, around, lambda n: (n / step).round() * step)

    found = change_layers(full, learning, lambda _, aim, around: rounded(aim, around))
    alone, around = fold_norms(full), input_moments(full, learning)
    for path, conv in convolutions(alone).items():
        conv.weight.detach().copy_(rounded(conv.weight.detach(), around[path]))
    with torch.no_grad():
        wanted = full(judging)
        in_turn, apart = (heads_noise_db(wanted, module(judging)) for module in (found, alone))
    assert in_turn > apart + 1


@pytest.mark.parametrize(("count", "least"), [(2, 7), (5, 5), (1, 2)])
def test_few_pictures_are_varied_and_enough_stay_as_they_are(count: int, least: int) -> None:
    images = [torch.from_numpy(picture((48, 64), seed)) for seed in range(count)]
    found = varied(images, least)
    assert len(found) >= least and all(one.shape == images[0].shape for one in found)
    assert all(torch.equal(a, b) for a, b in zip(images, found, strict=False))
    if least > count:
        assert torch.equal(found[count], images[0].flip(3))
    for part in found[2 * count :]:
        low, high = float(part.min()), float(part.max())
        assert any(one.min() <= low and high <= one.max() for one in images)
    assert len({one.numpy().tobytes() for one in found}) == len(found)
