"""Layers made coarse one after the other, each to make up for those before it.

What enters a layer of a coarse network is off already. So each layer is first fitted to give on
those inputs what the full network gives on its own (arXiv:1707.06168, section 3.1; for rounding
arXiv:2504.02692), then made coarse, and its bias takes up what is left in the mean. Nothing is
trained and no label is needed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from edge.compress.weights.feedback import Surroundings, patches, surroundings
from edge.compress.weights.magnitude import convolutions
from edge.models.hooks import hooked

__all__ = ["Change", "changed_onward"]

# Gets the path of a convolution, the weight to come near to, and what it sees.
Change = Callable[[str, torch.Tensor, Surroundings], torch.Tensor]


def changed_onward(
    full: nn.Module,
    images: Sequence[torch.Tensor],
    change: Change,
    weights: Mapping[str, torch.Tensor] | None = None,
    tick: Callable[[], object] = lambda: None,
) -> nn.Module:
    """A copy of `full` whose convolutions `change` has changed, in the order of the data.

    Args:
        full: each convolution runs once.
        images: (1, 3, H, W) each, as the network takes them.
        change: gives a weight of the same shape.
        weights: of the places of each convolution's output, (images, h, w) by path; None: 1.
        tick: called after each convolution.
    """
    work = copy.deepcopy(full).eval()

    def after(path: str) -> Callable[[nn.Conv2d, tuple[torch.Tensor], torch.Tensor], torch.Tensor]:
        places = None if weights is None else weights[path]

        def changed(
            conv: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor
        ) -> torch.Tensor:
            wanted, _ = output.chunk(2)
            theirs, mine = inputs[0].chunk(2)
            aim, around = _aim(conv, theirs, mine, places)
            conv.weight.copy_(change(path, aim, around))
            found = conv.forward(mine)
            if conv.bias is not None:
                off = _mean(wanted - found, places)
                conv.bias.add_(off)
                found = found + off[:, None, None]
            tick()
            return torch.cat([wanted, found])

        return changed

    # One batch goes through both networks: its first half through the full one.
    batch = torch.cat(list(images))
    hooks = [c.register_forward_hook(after(path)) for path, c in convolutions(work).items()]
    with hooked(hooks), torch.no_grad():
        work(torch.cat([batch, batch]))
    return work


def _mean(off: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    """Of (N, O, h, w) over all but the channels, weighted by `places` (N, h, w)."""
    if places is None:
        return off.mean(dim=(0, 2, 3))
    return torch.einsum("nohw,nhw->o", off, places) / places.sum()


def _aim(
    conv: nn.Conv2d, theirs: torch.Tensor, mine: torch.Tensor, places: torch.Tensor | None
) -> tuple[torch.Tensor, Surroundings]:
    """The weight that gives on `mine` what the convolution's gives on `theirs`, (N, I, h, w)."""
    moment: torch.Tensor | float = 0.0
    cross: torch.Tensor | float = 0.0
    for number in range(len(mine)):
        weight = None if places is None else places[number]
        seen = patches(conv, mine[number : number + 1], weight)
        moment = moment + seen @ seen.mT
        cross = cross + (patches(conv, theirs[number : number + 1], weight) - seen) @ seen.mT
    around = surroundings(conv, moment)
    rows = around.rows(conv.weight)
    away = torch.linalg.solve(around.moment, (rows @ cross).mT).mT
    return around.weight(rows + away, conv.weight.shape), around
