"""Which places of a feature map count, beside Hessians and Jacobians by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from edge.compress.distil import head_loss, head_loss_root
from edge.compress.weights.places import root_of_loss, root_of_noise, weights_of_places
from edge.compress.weights.untrained import WeightedPictures, prune_on_pictures
from edge.models.folding import fold_norms
from edge.spec import HeadSpec
from tests.support.small_models import picture, small

CLASSES = 3


def head(kind: Any, activation: Any) -> HeadSpec:
    return HeadSpec.of_grid("a", kind, (1, 1), ((10.0, 12.0), (20.0, 30.0)), activation)


@pytest.mark.parametrize(
    ("kind", "activation"), [("region", "softmax"), ("yolo", "sigmoid"), ("convdet", "softmax")]
)
def test_gradients_of_random_sums_have_the_hessian_of_the_loss(kind: str, activation: str) -> None:
    one, shape = head(kind, activation), (1, 2 * (5 + CLASSES), 1, 1)
    output = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
    hessian: Any = torch.autograd.functional.hessian(
        lambda o: head_loss(o, output, one, CLASSES), output.clone()
    )
    signs, count = torch.Generator().manual_seed(2), 6000
    total = torch.zeros(output.numel(), output.numel()).double()
    for _ in range(count):
        point = output.clone().requires_grad_()
        [gradient] = torch.autograd.grad(head_loss_root(point, one, CLASSES, signs), point)
        total += torch.outer(gradient.flatten(), gradient.flatten()) / count
    wanted = hessian.reshape(total.shape)
    # head_loss divides by the number of objects that the teacher sees, one at least
    total /= objects(output, one)
    assert torch.allclose(total, wanted, atol=0.06 * float(wanted.abs().max()))
    if activation == "sigmoid":  # each number has a sign of its own
        assert torch.allclose(total.diagonal(), wanted.diagonal(), rtol=1e-3, atol=1e-4)


def objects(output: torch.Tensor, one: HeadSpec) -> float:
    count = len(one.anchors)
    at = slice(count * CLASSES, count * CLASSES + count)
    if one.kind == "convdet":
        seen = output[:, at]
    else:
        seen = output.reshape(1, count, 5 + CLASSES, 1, 1)[:, :, 4]
    return max(1.0, float(seen.sigmoid().sum()))


def test_weights_for_noise_are_the_squares_of_the_jacobian() -> None:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)).eval()
    image = torch.rand(1, 3, 6, 7)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.layers(images),)

    found = weights_of_places(Network(), [image] * 300, root_of_noise)
    first = found["layers.0"].mean(dim=0)
    jacobian: Any = torch.autograd.functional.jacobian(layers[1], layers[0](image).detach())
    wanted = jacobian.square().sum(dim=(0, 1, 2, 3))[0].mean(dim=0)
    wanted = wanted + 0.05 * wanted.mean()
    assert torch.allclose(first, wanted, rtol=0.2)
    assert torch.allclose(found["layers.1"], torch.full((300, 6, 7), 1.05), rtol=1e-4)


def test_pruning_by_what_counts_loses_less_on_other_pictures() -> None:
    module, spec = small()
    full = fold_norms(module)
    images = [torch.from_numpy(picture((48, 64), seed)) for seed in range(12)]
    fresh = torch.from_numpy(picture((48, 64), 99, 8))
    weights = weights_of_places(full, images, root_of_loss(spec))
    lost = []
    for seen in (WeightedPictures(images), WeightedPictures(images, weights)):
        found = prune_on_pictures(full, 0.6, seen)
        with torch.no_grad():
            pairs = zip(full(fresh), found(fresh), spec.heads, strict=True)
            lost.append(sum(float(head_loss(b, a, h, len(spec.classes))) for a, b, h in pairs))
    assert lost[1] < 0.9 * lost[0]
