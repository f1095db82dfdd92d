"""How many bits the index of each layer gets: more where fewer values cost most."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from edge.compress.distil import head_loss
from edge.compress.weights.magnitude import convolutions
from edge.compress.weights.sharing import share_tensor
from edge.spec import ModelSpec

__all__ = ["costs_of_bits", "measurements", "spread_bits"]

_LEAST, _MOST = 1, 6
Costs = Mapping[str, Mapping[int, float]]


def costs_of_bits(
    module: nn.Module,
    spec: ModelSpec,
    images: Sequence[torch.Tensor],
    tick: Callable[[], object] = lambda: None,
    *,
    scaled: bool = False,
) -> dict[str, dict[int, float]]:
    """Return the loss at the heads when one convolution takes 2^bits values, by path and bits.

    Args:
        images: batches (N, 3, H, W) as the network takes them; no labels are needed.
        tick: called after each of the `measurements`.
        scaled: as `edge.compress.weights.sharing.share_tensor` takes it.

    Raises:
        CompressionError: a layer has no weights left.
    """
    work = copy.deepcopy(module).eval()

    def heads() -> list[Sequence[torch.Tensor]]:
        return [work(batch) for batch in images]

    costs: dict[str, dict[int, float]] = {}
    with torch.no_grad():
        wanted = heads()
        for path, conv in convolutions(work).items():
            weight = conv.weight.detach().clone()
            costs[path] = {}
            for bits in range(_LEAST, _MOST + 1):
                book = share_tensor(weight.numpy(), bits, "optimal", scaled=scaled)
                conv.weight.copy_(torch.from_numpy(book.dense()))
                costs[path][bits] = _lost(wanted, heads(), spec)
                tick()
            conv.weight.copy_(weight)
    return costs


def measurements(module: nn.Module) -> int:
    """Return how often `costs_of_bits` measures."""
    return len(convolutions(module)) * (_MOST - _LEAST + 1)


def _lost(
    wanted: Sequence[Sequence[torch.Tensor]],
    found: Sequence[Sequence[torch.Tensor]],
    spec: ModelSpec,
) -> float:
    """Return the mean over the batches of the distillation loss."""
    losses = [
        head_loss(mine, its, head, len(spec.classes)).item()
        for its_heads, my_heads in zip(wanted, found, strict=True)
        for its, mine, head in zip(its_heads, my_heads, spec.heads, strict=True)
    ]
    return float(sum(losses)) / len(wanted)


def spread_bits(costs: Costs, sizes: Mapping[str, int], mean: float) -> dict[str, int]:
    """Return the bits of each layer, such that the mean over all weights is at most `mean`.

    All layers begin with the fewest bits; as long as there is room, the step of one or several
    bits is taken that lowers the loss most for each bit of the file.

    Args:
        costs: of each layer, by bits; see `costs_of_bits`.
        sizes: number of weights of each layer.
    """
    bits = {path: min(cost) for path, cost in costs.items()}
    room = mean * sum(sizes.values()) - sum(bits[path] * sizes[path] for path in bits)
    while True:
        steps = [
            ((costs[path][bits[path]] - cost) / ((more - bits[path]) * sizes[path]), path, more)
            for path in bits
            for more, cost in costs[path].items()
            if more > bits[path] and (more - bits[path]) * sizes[path] <= room
        ]
        gain, path, more = max(steps, default=(0.0, "", 0))
        if gain <= 0:
            return bits
        room -= (more - bits[path]) * sizes[path]
        bits[path] = more
