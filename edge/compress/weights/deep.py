"""Deep Compression with training: prune little by little, then share, centroids learning too.

Without training each weight is pruned and rounded alone; `edge.compress.weights.untrained` does it
better.
The pictures, the teacher (the network as it came) and the steps are `edge.compress.finetune`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from edge.compress.finetune import FineTuning, fine_tune
from edge.compress.weights.kmeans import Start
from edge.compress.weights.magnitude import (
    Scope,
    apply_masks,
    attach_masks,
    convolutions,
    detach,
    magnitude_masks,
    pruning_schedule,
    two_four_mask,
)
from edge.compress.weights.sharing import (
    attach_clusters,
    codebooks_of,
    renew_clusters,
    rounded_scale,
    share_weights,
    weights_behind,
)
from edge.edgez.codebook import Codebook
from edge.errors import CompressionError
from edge.models.folding import fold_norms, norm_gains
from edge.spec import ModelSpec
from edge.train.augment import Labelled

__all__ = ["Training", "prune_weights", "tune_shared", "with_codebooks"]

# Pruning is over after this share of its steps; the rest trains what is left.
_PRUNING = 0.6
# Of the steps with shared weights; the rest are at a tenth of the rate, norms folded, scales learn.
_UNDER_NORMS = 0.7
_RENEWED_EVERY = 25
Tick = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Training:
    """What trains a network on its way; see `edge.compress.finetune.fine_tune`.

    Attributes:
        how: its `steps` are those of one stage.
        report: gets a line of mean losses now and then.
        tick: called after each step.
    """

    spec: ModelSpec
    pictures: Sequence[Labelled]
    teacher: nn.Module
    how: FineTuning
    report: Callable[[str], None]
    tick: Tick | None = None

    def __call__(self, module: nn.Module, how: FineTuning, stepped: Tick | None) -> nn.Module:
        def after_step(trained: nn.Module) -> None:
            for call in (stepped, self.tick):
                if call is not None:
                    call(trained)

        return fine_tune(
            module, self.spec, self.pictures, how, self.teacher, self.report, after_step
        )


def prune_weights(
    module: nn.Module,
    sparsity: float,
    scope: Scope = "lamp",
    *,
    two_four: bool = False,
    training: Training | None = None,
) -> nn.Module:
    """A copy of `module` without the share `sparsity` of its weights, in eval mode.

    Args:
        scope: as `edge.compress.weights.magnitude.magnitude_masks`, but for `loss`.
        two_four: prune two of every four along the input channels in place of `sparsity`.
        training: prunes by and by while it lasts, from what is zero already; None prunes at once.

    Raises:
        CompressionError: a share or scope that cannot be.
    """
    module = copy.deepcopy(module).eval()
    weights = {path: conv.weight.detach() for path, conv in convolutions(module).items()}
    begun = min(sparsity, _pruned(weights))
    if scope == "loss":
        raise CompressionError("scope loss takes pictures to look at, and no training")
    if two_four:
        masks = {path: two_four_mask(weight) for path, weight in weights.items()}
    else:
        masks = magnitude_masks(weights, begun if training else sparsity, scope)
    if training is None:
        apply_masks(module, masks)
        return module
    attach_masks(module, masks, through=not two_four)
    steps = int(training.how.steps * _PRUNING)
    schedule = None if two_four else pruning_schedule(sparsity, max(1, steps), scope, begun=begun)
    trained = training(module, training.how, schedule)
    detach(trained)
    return trained.eval()


def _pruned(weights: Mapping[str, torch.Tensor]) -> float:
    """The share of weights that are zero."""
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    return zeros / max(1, sum(int(weight.numel()) for weight in weights.values()))


def tune_shared(
    module: nn.Module,
    bits: int | Mapping[str, int],
    start: Start = "optimal",
    training: Training | None = None,
    *,
    scaled: bool = False,
    unfold: Callable[[nn.Module], nn.Module] | None = None,
) -> tuple[nn.Module, dict[str, Codebook]]:
    """A copy of `module` whose convolutions take 2^bits values each, and their codebooks.

    Args:
        bits: of every convolution, or by path.
        scaled: with a scale for each output channel.
        unfold: gives the module back its batch norms, whose training forgives more; only scales
            can take them up again.

    Raises:
        CompressionError: a layer has no weights left, or `bits` that cannot be.
    """
    module = copy.deepcopy(module).eval()
    books = share_weights(module, bits, start, scaled=scaled)
    if training is not None:
        first, peak = int(training.how.steps * _UNDER_NORMS), training.how.peak
        if first:
            if scaled and unfold is not None:
                module = unfold(module)
            how = replace(training.how, steps=first)
            module, books = _clustered(module, books, training, how)
        slow = None if peak is None else peak / 10
        how = replace(training.how, steps=max(1, training.how.steps - first), peak=slow)
        module, books = _clustered(module, books, training, how, gains=scaled)
    return with_codebooks(module, books), books


def _clustered(
    module: nn.Module,
    books: dict[str, Codebook],
    training: Training,
    how: FineTuning,
    *,
    gains: bool = False,
) -> tuple[nn.Module, dict[str, Codebook]]:
    """Weights trained near few values, without batch norms afterwards, and what they are near."""
    attach_clusters(module, books, gains=gains)
    count = 0

    def renewed(trained: nn.Module) -> None:
        nonlocal count
        count += 1
        if count % _RENEWED_EVERY == 0:
            renew_clusters(trained)

    trained = training(module, how, renewed)
    found, behind = codebooks_of(trained), weights_behind(trained)
    detach(trained)
    folded = norm_gains(trained)
    books = {path: _scaled(book, folded.get(path)) for path, book in found.items()}
    if folded:
        trained = fold_norms(trained)
    for path, weight in behind.items():
        gain = folded.get(path, torch.ones(1)).view(-1, 1, 1, 1)
        trained.get_submodule(path).weight.detach().copy_(weight * gain)
    return trained, books


def _scaled(book: Codebook, gain: torch.Tensor | None) -> Codebook:
    """The codebook of the weights after `gain` (O,) is folded into them."""
    if book.scale is None:
        return book
    scale = book.scale if gain is None else book.scale * gain.numpy()
    return replace(book, scale=rounded_scale(scale))


def with_codebooks(module: nn.Module, books: dict[str, Codebook]) -> nn.Module:
    """The module with the weights that the codebooks stand for, in place.

    Raises:
        CompressionError: a codebook of another shape.
    """
    with torch.no_grad():
        for path, book in books.items():
            weight = module.get_submodule(path).weight
            if tuple(weight.shape) != book.index.shape:
                raise CompressionError(f"{path}: a codebook of {book.index.shape} does not fit")
            weight.copy_(torch.from_numpy(book.dense()))
    return module.eval()
