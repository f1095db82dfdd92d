"""How coarse each layer may be without training: even grids, with steps by the noise they cause.

The other weights make up for errors of rounding (`edge.compress.weights.feedback`). What is left
at a step of d makes noise of about c d² at the heads, and a layer of n weights takes
n (h - log2 d) bits. For a given noise in all, the fewest bits are taken where each layer makes its
share by n: steps in proportion to sqrt(n / c). The c are measured layer by layer; then all layers
are made coarse in turn with one common factor of the steps, until the noise is as wanted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from edge.compress.weights.feedback import (
    InputMoments,
    change_layers,
    input_moments,
    rounded_with_feedback,
)
from edge.compress.weights.magnitude import convolutions
from edge.compress.weights.places import root_of_noise, weights_of_places
from edge.edgez.codebook import Codebook
from edge.errors import CompressionError
from edge.measure.noise import signal_to_noise_db

__all__ = ["CoarseNetwork", "NoiseSearch", "grid_codebook", "heads_noise_db"]

_MOST_LEVELS = 4096
_PROBE = 0.2  # first step, in units of a layer's root mean square
_PROBES = 3
_MOST_CHANGE = 8.0
_SHARED_NOISE = 1e-3
_TRIES = 5
_NEAR_DB = 0.1
_MOST_OVER_DB = 40.0
Heads = Sequence[torch.Tensor]


def grid_codebook(
    weight: torch.Tensor, step: float, dead: float = 0.5, inputs: InputMoments | None = None
) -> Codebook:
    """Return the weight (O, I, kh, kw) on an even grid, whose cell about zero is pruned.

    Args:
        dead: part of a step from which on a weight is rounded away from zero; 0.5 is plain
            rounding, more leaves more zeros.
        inputs: by which errors cancel; without them each weight is rounded by itself.

    Raises:
        CompressionError: the grid has more than 4096 cells, or prunes the whole layer.
    """

    def rounding(numbers: torch.Tensor) -> torch.Tensor:
        return numbers.sign() * (numbers.abs() / step + (1 - dead)).floor() * step

    even = rounding(weight) if inputs is None else rounded_with_feedback(weight, inputs, rounding)
    cell = (even.double() / step).round().numpy()
    used, place = np.unique(cell[cell != 0], return_inverse=True)
    if not 1 <= len(used) <= _MOST_LEVELS:
        raise CompressionError(f"a step of {step:g} leaves {len(used)} values; it takes 1 to 4096")
    index = np.zeros(cell.shape, np.int64)
    index[cell != 0] = place.reshape(-1) + 1
    return Codebook((used * step).astype(np.float16).astype(np.float32), index)


def heads_noise_db(wanted: Heads, found: Heads) -> float:
    """Return signal to noise over all numbers of all heads.

    20 dB is noise with a tenth of the signal's root mean square.
    """
    pairs = list(zip(wanted, found, strict=True))
    noise = sum((a.double() - b.double()).square().sum().item() for a, b in pairs)
    signal = sum(a.double().square().sum().item() for a in wanted)
    return signal_to_noise_db(signal, noise)


@dataclass(frozen=True, eq=False)
class CoarseNetwork:
    """A network whose weights lie on grids.

    Attributes:
        module: with the weights that `books` stand for, and biases of its own.
        books: by the path of the convolution.
        noise_db: signal to noise at its heads.
    """

    module: nn.Module
    books: dict[str, Codebook]
    noise_db: float


@dataclass(eq=False)
class NoiseSearch:
    """Makes the layers of a network coarse and compares its heads with the full network's.

    Attributes:
        module: stays as it is.
        judging: batches (N, 3, H, W), as the network takes them, that noise is measured on.
        learning: other pictures, (1, 3, H, W) each, that show how errors cancel.
        dead: as `grid_codebook` takes it.
        tick: called after each of the `measurements`.
    """

    module: nn.Module
    judging: Sequence[torch.Tensor]
    learning: Sequence[torch.Tensor]
    dead: float = 0.5
    tick: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self._work = copy.deepcopy(self.module).eval()
        self._wanted = self._heads(self._work)
        self._weights = weights_of_places(self._work, self.learning, root_of_noise)

    @property
    def measurements(self) -> int:
        """How often `tick` is called at most."""
        return (_PROBES + _TRIES) * len(convolutions(self.module))

    def run(self, least_db: float) -> CoarseNetwork:
        """Return the coarsest network found that keeps `least_db` of signal to noise.

        Raises:
            CompressionError: no grid of at most 4096 values keeps it.
        """
        steps, factor, kept, best = self._even_steps(), 1.0, 0.0, None
        for _ in range(_TRIES):
            found = self._coarse(steps, factor)
            over = min(found.noise_db - least_db, _MOST_OVER_DB)
            if over >= 0 and factor > kept:
                kept, best = factor, found
            if 0 <= over < _NEAR_DB:
                break
            # Noise grows with the square of the step; within half a decibel it is chance.
            factor *= 10 ** ((over - _NEAR_DB / 2) / 20)
        if best is None:
            raise CompressionError(f"no grid of at most 4096 values keeps {least_db:g} dB")
        return best

    def _coarse(self, steps: Mapping[str, float], factor: float) -> CoarseNetwork:
        """Return the network with each layer at `factor` times its step, none too fine or empty."""
        books: dict[str, Codebook] = {}

        def rounded(path: str, aim: torch.Tensor, inputs: InputMoments) -> torch.Tensor:
            books[path] = self._book(aim, steps[path] * factor, inputs)
            return torch.from_numpy(books[path].dense())

        module = change_layers(self.module, self.learning, rounded, self._weights, self.tick)
        for conv in convolutions(module).values():
            if conv.bias is not None:
                conv.bias.detach().copy_(conv.bias.detach().half())  # as packages keep them
        return CoarseNetwork(module, books, heads_noise_db(self._wanted, self._heads(module)))

    def _book(self, weight: torch.Tensor, step: float, inputs: InputMoments) -> Codebook:
        widest = weight.abs().max().item()
        finest, coarsest = widest / (_MOST_LEVELS // 2 - 1), widest / 2
        return grid_codebook(weight, min(max(step, finest), coarsest), self.dead, inputs)

    def _heads(self, module: nn.Module) -> list[torch.Tensor]:
        with torch.no_grad():
            return [head for batch in self.judging for head in module(batch)]

    def _even_steps(self) -> dict[str, float]:
        """Return the step at which each layer causes its share of a noise of 30 dB.

        Coarse grids are not as noisy as fine ones predict, so the noise is measured again at each
        predicted step.
        """
        moments = input_moments(self.module, self.learning, self._weights)
        weights = {p: conv.weight.detach() for p, conv in convolutions(self._work).items()}
        steps = {path: _PROBE * one.square().mean().sqrt().item() for path, one in weights.items()}
        numbers = sum(one.numel() for one in weights.values())
        for _ in range(_PROBES):
            for path, weight in weights.items():
                book = self._book(weight, steps[path], moments[path])
                noise = 10 ** (-self._alone_db(weight, book) / 10)
                share = _SHARED_NOISE * weight.numel() / numbers
                change = math.sqrt(share / max(noise, 1e-12))
                steps[path] *= min(max(change, 1 / _MOST_CHANGE), _MOST_CHANGE)
        return steps

    def _alone_db(self, weight: torch.Tensor, book: Codebook) -> float:
        """Return signal to noise with only this layer's `weight` on its grid, for that time."""
        original = weight.clone()
        weight.copy_(torch.from_numpy(book.dense()))
        found = heads_noise_db(self._wanted, self._heads(self._work))
        weight.copy_(original)
        self.tick()
        return found
