"""How much each place of each convolution's output counts.

What a detector finds depends on few places of its feature maps. The Gauss-Newton matrix says how
much the loss grows with errors there; its diagonal is estimated by sending random sums of the
heads' numbers back through the network (Hutchinson's method, as in arXiv:2006.00719). No labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from edge.compress.distil import head_loss_root
from edge.compress.weights.magnitude import convolutions
from edge.models.hooks import hooked
from edge.spec import ModelSpec

__all__ = ["Root", "root_of_loss", "root_of_noise", "weights_of_places"]

_DRAWS = 4
# Share of the mean over all places, added to each: few pictures do not show all that can count.
_FLOOR = 0.05
# Takes the heads and a generator of signs, and returns a sum of their numbers.
Root = Callable[[Sequence[torch.Tensor], torch.Generator], torch.Tensor]


def root_of_loss(spec: ModelSpec) -> Root:
    """Return the sum for errors that count as in `edge.compress.distil.head_loss`."""

    def root(heads: Sequence[torch.Tensor], signs: torch.Generator) -> torch.Tensor:
        pairs = zip(heads, spec.heads, strict=True)
        parts = [head_loss_root(out, head, len(spec.classes), signs) for out, head in pairs]
        return torch.stack(parts).sum()

    return root


def root_of_noise(heads: Sequence[torch.Tensor], signs: torch.Generator) -> torch.Tensor:
    """Return a random sum for squared errors of all numbers of all heads."""
    parts = [
        (head * (torch.randint(0, 2, head.shape, generator=signs) * 2 - 1)).sum() for head in heads
    ]
    return torch.stack(parts).sum()


def weights_of_places(
    module: nn.Module, images: Sequence[torch.Tensor], root: Root
) -> dict[str, torch.Tensor]:
    """Return the weight of each place of each convolution's output, (images, h, w) by path.

    Args:
        images: (1, 3, H, W) each, as the network takes them.
        root: how errors at the heads count, as `root_of_loss` returns it or `root_of_noise`.
    """
    found, outputs = convolutions(module), dict[str, torch.Tensor]()

    def keep(path: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
        def after(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            outputs[path] = output

        return after

    hooks = [conv.register_forward_hook(keep(path)) for path, conv in found.items()]
    signs, weights = torch.Generator().manual_seed(0), []
    with hooked(hooks):
        for image in images:
            heads = module(image.clone().requires_grad_())
            weights.append(_of_one(list(outputs.values()), heads, root, signs))
    by_layer = (torch.cat(layer) for layer in zip(*weights, strict=True))
    return {
        path: layer + _FLOOR * layer.mean() for path, layer in zip(outputs, by_layer, strict=True)
    }


def _of_one(
    outputs: list[torch.Tensor],
    heads: Sequence[torch.Tensor],
    root: Root,
    signs: torch.Generator,
) -> list[torch.Tensor]:
    """Return the mean square over channels and draws of the gradient at each place, (1, h, w)."""
    total = [0.0 * output[:, 0].detach() for output in outputs]
    for _ in range(_DRAWS):
        back = torch.autograd.grad(root(heads, signs), outputs, retain_graph=True)
        total = [sum_ + one.square().mean(dim=1) for sum_, one in zip(total, back, strict=True)]
    return [sum_ / _DRAWS for sum_ in total]
