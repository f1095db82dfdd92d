"""The stages of Deep Compression on one network: what `edge compress` does to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge.compress.finetune import FineTuning
from edge.compress.weights.bits import costs_of_bits, measurements, spread_bits
from edge.compress.weights.deep import Training, prune_weights, tune_shared
from edge.compress.weights.magnitude import convolutions
from edge.compress.weights.untrained import Seen, prune_on_pictures, share_on_pictures
from edge.data.datasets import Dataset
from edge.edgez.codebook import Codebook
from edge.models.dense import Dense
from edge.models.folding import fold_norms, unfold_norms
from edge.reporting import ticking
from edge.train.augment import Labelled
from edge.train.batches import BatchMaker, make_batch
from export.compress.pictures import few_of
from export.compress.stages import judge

__all__ = ["RECIPES", "Recipe", "Work"]

_NORM_IMAGES = 32


@dataclass(frozen=True)
class Recipe:
    """What is done to the weights.

    Attributes:
        prune: share of the weights to remove.
        scope: how layers share that: `lamp`, `global`, `layer` or, on pictures without training,
            `loss`; None takes `loss` where it can, else `lamp`.
        two_four: two of every four in place of `prune`.
        bits: of an index into a layer's codebook; not whole: at most so many for each weight, with
            those layers finer that need it (`edge.compress.weights.bits`).
        start: of k-means.
        sharing: this share of the training steps is for the shared weights; all of them where
            the network comes pruned.
        coding: `auto`, `ans`, `huffman` or `packed`.
        half: centroids and biases in FP16 instead of FP32.
        scaled: a scale for each output channel beside the codebook: few bits need it.
    """

    prune: float = 0.6
    scope: str | None = None
    two_four: bool = False
    bits: float = 5
    start: str = "optimal"
    sharing: float = 0.4
    coding: str = "auto"
    half: bool = True
    scaled: bool = False

    @property
    def spread(self) -> bool:
        """Whether layers differ in bits."""
        return not float(self.bits).is_integer()


RECIPES = {"plain": Recipe(), "deep": Recipe(prune=0.86, bits=3, scaled=True)}


@dataclass(eq=False)
class Work:
    """A network under compression and what its stages are judged and trained with."""

    dense: Dense
    recipe: Recipe
    judged: Dataset | None
    pictures: Sequence[Labelled]
    tuning: FineTuning | None
    images: Sequence[torch.Tensor]
    seen: Seen | None
    scratch: Path
    threads: int
    report: Callable[[str], None]

    def map50(self, name: str, module: nn.Module) -> float | None:
        """mAP@.5, 0..1, of a stage's ONNX file; None where there is nothing to judge by."""
        if self.judged is None:
            return None
        stage = judge(name, module, self.dense.spec, self.judged, self.scratch, self.threads)
        return float(stage.facts["map50"])

    @contextmanager
    def training(self, what: str, share: float) -> Iterator[Training | None]:
        """The training of one stage, with its progress; None without fine-tuning."""
        if self.tuning is None:
            yield None
            return
        how = replace(self.tuning, steps=max(1, round(self.tuning.steps * share)))
        with ticking(what, how.steps) as tick:
            yield Training(
                self.dense.spec,
                self.pictures,
                self.dense.module,
                how,
                lambda line: self.report(f"{what}: {line}"),
                tick,
            )

    def prune(self, start: nn.Module) -> nn.Module:
        """`start` without the recipe's share of weights, its norms folded.

        Raises:
            CompressionError: a share or scope that cannot be.
        """
        recipe = self.recipe
        scope: Any = recipe.scope
        if self.seen is not None:
            return prune_on_pictures(
                start, recipe.prune, self.seen, scope or "loss", two_four=recipe.two_four
            )
        with self.training("pruning", 1 - recipe.sharing) as training:
            if training is not None:
                start = self._unfold(start)
            pruned = prune_weights(
                start, recipe.prune, scope or "lamp", two_four=recipe.two_four, training=training
            )
        return fold_norms(pruned)

    def share(self, pruned: nn.Module) -> tuple[nn.Module, dict[str, Codebook]]:
        """A network whose convolutions take few values, and their codebooks by path.

        Raises:
            CompressionError: a layer has no weights left, or bits that cannot be.
        """
        bits, scaled = self._bits(pruned), self.recipe.scaled
        start: Any = self.recipe.start
        if self.seen is not None:
            full = self.dense.module
            return share_on_pictures(pruned, full, bits, self.seen, start, scaled=scaled)
        with self.training("sharing", self.recipe.sharing) as training:
            return tune_shared(pruned, bits, start, training, scaled=scaled, unfold=self._unfold)

    def _bits(self, pruned: nn.Module) -> int | Mapping[str, int]:
        """Of every layer, or by its path."""
        wanted = self.recipe.bits
        if not self.recipe.spread:
            return int(wanted)
        sizes = {
            path: int(conv.weight.count_nonzero()) for path, conv in convolutions(pruned).items()
        }
        few, scaled = few_of(self.images), self.recipe.scaled
        with ticking("bits of each layer", measurements(pruned)) as tick:
            costs = costs_of_bits(pruned, self.dense.spec, few, tick, scaled=scaled)
        bits = spread_bits(costs, sizes, wanted)
        self.report("bits: " + ", ".join(f"{path} {count}" for path, count in bits.items()))
        return bits

    def _unfold(self, module: nn.Module) -> nn.Module:
        """With batch norms, if the architecture has any."""
        if self.dense.normed is None:
            return module
        maker = BatchMaker(self.pictures, self.dense.spec, _NORM_IMAGES, 0)
        return unfold_norms(module, self.dense.normed, make_batch(maker, 0)[0])
