"""How coarse each layer may be without training: even grids, their steps by the noise they cause.

Errors of rounding are made up for by other weights (`edge.compress.feedback`). What is left of them
at a step of d makes noise of about c d² at the heads, and a layer takes n (h - log2 d) bits for n
weights, so for a given noise in all the fewest bits are taken where each layer makes its share by
n: steps in proportion to sqrt(n / c). The c are measured, the common factor is found by bisection.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from edge.compress.codebook import Codebook
from edge.compress.feedback import Surroundings, rounded_with_feedback
from edge.compress.magnitude import convolutions
from edge.errors import CompressionError

__all__ = ["NoiseSearch", "grid_codebook", "signal_to_noise_db"]

_MOST_LEVELS = 4096
_PROBE = 0.2  # of a layer's root mean square, to begin with
_PROBES = 3
_MOST_CHANGE = 8.0
_SHARED_NOISE = 1e-3
_ROUNDS = 10

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


@dataclass(eq=False)
class NoiseSearch:
    """A network whose layers are made coarse against its own heads on some images.

    Attributes:
        module: stays as it is.
        images: batches (N, 3, H, W), as the network takes them.
        around: of each convolution, from other images: see `edge.compress.feedback.look`.
        dead: as `grid_codebook` takes it.
        tick: called after each measurement.
    """

    module: nn.Module
    images: Sequence[torch.Tensor]
    around: Mapping[str, Surroundings]
    dead: float = 0.5
    tick: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self._work = copy.deepcopy(self.module).eval()
        self._wanted = self._heads()

    @property
    def measurements(self) -> int:
        """How often `tick` is called, at most."""
        return _PROBES * len(convolutions(self.module)) + _ROUNDS + 1

    def run(self, least_db: float) -> dict[str, Codebook]:
        """The codebooks of the coarsest grids that keep `least_db` of signal to noise.

        Raises:
            CompressionError: no grid of at most 4096 values keeps it.
        """
        steps = self._even_steps()
        low, high, best = math.log(1 / 32), math.log(32), None
        for _ in range(_ROUNDS):
            middle = (low + high) / 2
            books = self._books(steps, math.exp(middle))
            if self.measure(books) >= least_db:
                low, best = middle, books
            else:
                high = middle
        if best is None:
            raise CompressionError(f"no grid of at most 4096 values keeps {least_db:g} dB")
        return best

    def measure(self, books: Mapping[str, Codebook]) -> float:
        """Signal to noise of the heads with these codebooks, dB."""
        originals = {path: self._weight(path).clone() for path in books}
        for path, book in books.items():
            self._weight(path).copy_(torch.from_numpy(book.dense()))
        found = signal_to_noise_db(self._wanted, self._heads())
        for path, weight in originals.items():
            self._weight(path).copy_(weight)
        self.tick()
        return found

    def _weight(self, path: str) -> torch.Tensor:
        weight: torch.Tensor = self._work.get_submodule(path).weight.detach()
        return weight

    def _heads(self) -> list[torch.Tensor]:
        with torch.no_grad():
            return [head for batch in self.images for head in self._work(batch)]

    def _even_steps(self) -> dict[str, float]:
        """For each layer the step that makes it cause its share of noise: 30 dB in all.

        Coarse grids are not as noisy as fine ones foretell, so the noise is measured again at
        each step that was foretold.
        """
        sizes = {path: conv.weight.numel() for path, conv in convolutions(self._work).items()}
        steps = {path: _PROBE * self._weight(path).square().mean().sqrt().item() for path in sizes}
        for _ in range(_PROBES):
            for path, size in sizes.items():
                noise = 10 ** (-self.measure(self._books({path: steps[path]}, 1.0)) / 10)
                share = _SHARED_NOISE * size / sum(sizes.values())
                change = math.sqrt(share / max(noise, 1e-12))
                steps[path] *= min(max(change, 1 / _MOST_CHANGE), _MOST_CHANGE)
        return steps

    def _books(self, steps: Mapping[str, float], factor: float) -> dict[str, Codebook]:
        """Codebooks at `factor` times the steps, but no layer too fine or gone."""
        books = {}
        for path, step in steps.items():
            weight = self._weight(path)
            widest = weight.abs().max().item()
            finest, coarsest = widest / (_MOST_LEVELS // 2 - 1), widest / 2
            even = min(max(step * factor, finest), coarsest)
            books[path] = grid_codebook(weight, even, self.dead, self.around[path])
        return books
