"""Rounding errors made up for by other weights, beside equations solved one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edge.compress.weights import feedback
from edge.compress.weights.feedback import input_moments, rounded_with_feedback

torch.set_num_threads(1)


def smooth(count: int, channels: int, seed: int = 0) -> list[torch.Tensor]:
    """Pictures whose channels and neighbours are alike, as those inside a network are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.rand(channels, 3, generator=torch.Generator().manual_seed(9))
    coarse = torch.rand(count, 3, 5, 7, generator=generator)
    fine = functional.interpolate(coarse, (20, 28), mode="bilinear")
    noise = torch.rand(count, channels, 20, 28, generator=generator)
    return list((torch.einsum("ck,nkhw->nchw", mix, fine) + 0.1 * noise)[:, None])


def convolution(channels: int = 4, filters: int = 6, size: int = 3, groups: int = 1) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(channels, filters, size, padding=size // 2, groups=groups).eval()


def coarse(numbers: torch.Tensor) -> torch.Tensor:
    return (numbers * 8).round() / 8


def off(conv: nn.Conv2d, weight: torch.Tensor, images: list[torch.Tensor]) -> float:
    """Mean square of the change of outputs."""
    change = weight - conv.weight.detach()
    outputs = [
        functional.conv2d(image, change, None, conv.stride, conv.padding, 1, conv.groups)
        for image in images
    ]
    return float(torch.stack(outputs).square().mean())


def test_each_weight_takes_the_value_that_makes_up_best_for_those_before_it() -> None:
    conv, images = convolution(), smooth(3, 4)
    around = input_moments(conv, images)[""]
    found = rounded_with_feedback(conv.weight, around, coarse).flatten(1).double().numpy()
    seen = torch.cat([functional.unfold(image, 3, padding=1)[0] for image in images], dim=1)
    moment = (seen @ seen.T).double().numpy() / seen.shape[1]
    moment += feedback._RIDGE * np.diag(moment).mean() * np.eye(len(moment))
    order = np.argsort(-np.diag(moment), kind="stable")
    wanted = conv.weight.detach().flatten(1).double().numpy()
    for place, at in enumerate(order):
        done = order[:place]
        error = found[:, done] - wanted[:, done]
        rest = order[place:]
        # The errors of the rest that keep e' H e lowest, given those that are made.
        best = -np.linalg.solve(moment[np.ix_(rest, rest)], moment[np.ix_(rest, done)] @ error.T)
        ideal = wanted[:, at] + best[0] if place else wanted[:, at]
        near = np.abs(ideal * 8 - np.floor(ideal * 8) - 0.5) > 1e-3
        assert (np.round(ideal * 8) / 8 == found[:, at])[near].all()


def test_outputs_on_other_pictures_are_several_times_nearer() -> None:
    conv, fresh = convolution(), smooth(4, 4, seed=5)
    found = rounded_with_feedback(conv.weight, input_moments(conv, smooth(4, 4))[""], coarse)
    alone = coarse(conv.weight.detach())
    assert off(conv, found, fresh) < 0.25 * off(conv, alone, fresh)


def test_inputs_that_have_nothing_in_common_leave_each_weight_alone() -> None:
    conv = convolution(size=1)
    apart = torch.zeros(1, 4, 1, 4)
    apart[0, range(4), 0, range(4)] = 1.0
    found = rounded_with_feedback(conv.weight, input_moments(conv, [apart])[""], coarse)
    assert torch.equal(found, coarse(conv.weight.detach()))


def test_groups_are_rounded_as_convolutions_of_their_own() -> None:
    both, images = convolution(groups=2), smooth(3, 4)
    found = rounded_with_feedback(both.weight, input_moments(both, images)[""], coarse)
    for group in range(2):
        one = convolution(channels=2, filters=3)
        one.weight.data = both.weight.data[3 * group : 3 * group + 3]
        half = [image[:, 2 * group : 2 * group + 2] for image in images]
        alone = rounded_with_feedback(one.weight, input_moments(one, half)[""], coarse)
        assert torch.equal(found[3 * group : 3 * group + 3], alone)


def test_a_wide_filter_is_rounded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, images = convolution(), smooth(3, 4)
    monkeypatch.setattr(feedback, "_MOST", 20)
    around = input_moments(conv, images)[""]
    assert around.order.shape == (2, 18)
    found = rounded_with_feedback(conv.weight, around, coarse)
    for part in range(2):
        one = convolution(channels=2)
        one.weight.data = conv.weight.data[:, 2 * part : 2 * part + 2]
        half = [image[:, 2 * part : 2 * part + 2] for image in images]
        alone = rounded_with_feedback(one.weight, input_moments(one, half)[""], coarse)
        assert torch.equal(found[:, 2 * part : 2 * part + 2], alone)


def test_what_need_not_be_rounded_stays_as_it_is() -> None:
    conv = convolution(channels=40)
    found = rounded_with_feedback(
        conv.weight, input_moments(conv, smooth(2, 40))[""], lambda x: x.clone()
    )
    assert torch.equal(found, conv.weight.detach())


def test_without_pictures_there_is_nothing_to_look_at() -> None:
    with pytest.raises(ValueError, match="no images"):
        input_moments(convolution(), [])
