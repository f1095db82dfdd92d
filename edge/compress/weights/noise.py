"""How coarse each layer may be without training: even grids, their steps by the noise they cause.

Errors of rounding are made up for by other weights (`edge.compress.weights.feedback`). What is
left of them
at a step of d makes noise of about c d² at the heads, and a layer takes n (h - log2 d) bits for n
weights, so for a given noise in all the fewest bits are taken where each layer makes its share by
n: steps in proportion to sqrt(n / c). The c are measured, layer by layer; with the common factor
all layers are made coarse in turn (`edge.compress.weights.onward`), until the noise is as wanted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from edge.compress.weights.feedback import Surroundings, look, rounded_with_feedback
from edge.compress.weights.magnitude import convolutions
from edge.compress.weights.onward import changed_onward
from edge.compress.weights.places import root_of_noise, weights_of_places
from edge.edgez.codebook import Codebook
from edge.errors import CompressionError

__all__ = ["Coarse", "NoiseSearch", "grid_codebook", "signal_to_noise_db"]

_MOST_LEVELS = 4096
_PROBE = 0.2  # of a layer's root mean square, to begin with
_PROBES = 3
_MOST_CHANGE = 8.0
_SHARED_NOISE = 1e-3
_TRIES = 5
_NEAR_DB = 0.1
_MOST_OVER_DB = 40.0
Heads = Sequence[torch.Tensor]


def grid_codebook(
    weight: torch.Tensor, step: float, dead: float = 0.5, around: Surroundings | None = None
) -> Codebook:
    """The weight (O, I, kh, kw) on an even grid, whose cell about zero is pruned.

    Args:
        dead: a weight goes up to the next multiple from this part of a step on; 0.5 is rounding,
            more leaves more zeros.
        around: what makes up for the errors; without it each weight is rounded alone.

    Raises:
        CompressionError: the grid has more than 4096 cells, or prunes the whole layer.
    """

    def rounding(numbers: torch.Tensor) -> torch.Tensor:
        return numbers.sign() * (numbers.abs() / step + (1 - dead)).floor() * step

    even = rounding(weight) if around is None else rounded_with_feedback(weight, around, rounding)
    cell = (even.double() / step).round().numpy()
    used, place = np.unique(cell[cell != 0], return_inverse=True)
    if not 1 <= len(used) <= _MOST_LEVELS:
        raise CompressionError(f"a step of {step:g} leaves {len(used)} values; it takes 1 to 4096")
    index = np.zeros(cell.shape, np.int64)
    index[cell != 0] = place.reshape(-1) + 1
    return Codebook((used * step).astype(np.float16).astype(np.float32), index)


def signal_to_noise_db(wanted: Heads, found: Heads) -> float:
    """Of all numbers of all heads: 20 dB is noise of a tenth of the signal's root mean square."""
    pairs = list(zip(wanted, found, strict=True))
    noise = sum((a.double() - b.double()).square().sum().item() for a, b in pairs)
    signal = sum(a.double().square().sum().item() for a in wanted)
    return 10 * math.log10(signal / noise) if noise > 0 else math.inf


@dataclass(frozen=True, eq=False)
class Coarse:
    """A network on grids.

    Attributes:
        module: with the weights that `books` stand for, and biases of its own.
        books: by the path of the convolution.
        noise_db: signal to noise of its heads.
    """

    module: nn.Module
    books: dict[str, Codebook]
    noise_db: float


@dataclass(eq=False)
class NoiseSearch:
    """A network whose layers are made coarse against its own heads on some images.

    Attributes:
        module: stays as it is.
        judging: batches (N, 3, H, W), as the network takes them, that noise is measured on.
        learning: others, (1, 3, H, W) each, that tell how errors make up for each other.
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
        """How often `tick` is called, at most."""
        return (_PROBES + _TRIES) * len(convolutions(self.module))

    def run(self, least_db: float) -> Coarse:
        """The coarsest grids found that keep `least_db` of signal to noise.

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
            # Noise grows with the square of the step, and is a matter of chance within .5 dB.
            factor *= 10 ** ((over - _NEAR_DB / 2) / 20)
        if best is None:
            raise CompressionError(f"no grid of at most 4096 values keeps {least_db:g} dB")
        return best

    def _coarse(self, steps: Mapping[str, float], factor: float) -> Coarse:
        """Every layer at `factor` times its step, but none too fine or gone."""
        books: dict[str, Codebook] = {}

        def rounded(path: str, aim: torch.Tensor, around: Surroundings) -> torch.Tensor:
            books[path] = self._book(aim, steps[path] * factor, around)
            return torch.from_numpy(books[path].dense())

        module = changed_onward(self.module, self.learning, rounded, self._weights, self.tick)
        for conv in convolutions(module).values():
            if conv.bias is not None:
                conv.bias.detach().copy_(conv.bias.detach().half())  # as packages keep them
        return Coarse(module, books, signal_to_noise_db(self._wanted, self._heads(module)))

    def _book(self, weight: torch.Tensor, step: float, around: Surroundings) -> Codebook:
        widest = weight.abs().max().item()
        finest, coarsest = widest / (_MOST_LEVELS // 2 - 1), widest / 2
        return grid_codebook(weight, min(max(step, finest), coarsest), self.dead, around)

    def _heads(self, module: nn.Module) -> list[torch.Tensor]:
        with torch.no_grad():
            return [head for batch in self.judging for head in module(batch)]

    def _even_steps(self) -> dict[str, float]:
        """For each layer the step that makes it cause its share of noise: 30 dB in all.

        Coarse grids are not as noisy as fine ones foretell, so the noise is measured again at
        each step that was foretold.
        """
        around = look(self.module, self.learning, self._weights)
        weights = {p: conv.weight.detach() for p, conv in convolutions(self._work).items()}
        steps = {path: _PROBE * one.square().mean().sqrt().item() for path, one in weights.items()}
        numbers = sum(one.numel() for one in weights.values())
        for _ in range(_PROBES):
            for path, weight in weights.items():
                book = self._book(weight, steps[path], around[path])
                noise = 10 ** (-self._alone_db(weight, book) / 10)
                share = _SHARED_NOISE * weight.numel() / numbers
                change = math.sqrt(share / max(noise, 1e-12))
                steps[path] *= min(max(change, 1 / _MOST_CHANGE), _MOST_CHANGE)
        return steps

    def _alone_db(self, weight: torch.Tensor, book: Codebook) -> float:
        """Signal to noise where one layer's `weight`, changed for that time, is on its grid."""
        original = weight.clone()
        weight.copy_(torch.from_numpy(book.dense()))
        found = signal_to_noise_db(self._wanted, self._heads(self._work))
        weight.copy_(original)
        self.tick()
        return found
