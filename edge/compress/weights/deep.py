"""Deep Compression with training: prune gradually, then share values, whose centroids learn too.

Without training each weight is pruned and rounded by itself; `edge.compress.weights.untrained` is
better then. Pictures, teacher and steps are those of `edge.compress.finetune`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from edge.compress.finetune import fine_tune
from edge.compress.options import FineTuneOptions, Scope, Start
from edge.compress.weights.magnitude import (
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

# Pruning ends after this share of its steps; the others train what is left.
_PRUNING = 0.6
# Share of the steps with shared values under batch norms. The others run at a tenth of the rate,
# with norms folded, and the scales learn.
_UNDER_NORMS = 0.7
_RENEWED_EVERY = 25
Tick = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Training:
    """The training of one stage; see `edge.compress.finetune.fine_tune`.

    Attributes:
        options: with the steps of this stage.
        report: gets a line of mean losses now and then.
        tick: called after each step.
    """

    spec: ModelSpec
    pictures: Sequence[Labelled]
    teacher: nn.Module
    options: FineTuneOptions
    report: Callable[[str], None]
    tick: Tick | None = None

    def run(self, module: nn.Module, options: FineTuneOptions, stepped: Tick | None) -> nn.Module:
        """Train `module` with `options`; `stepped` is called after each step."""

        def after_step(trained: nn.Module) -> None:
            for call in (stepped, self.tick):
                if call is not None:
                    call(trained)

        return fine_tune(
            module, self.spec, self.pictures, options, self.teacher, self.report, after_step
        )


def prune_weights(
    module: nn.Module,
    sparsity: float,
    scope: Scope = "lamp",
    *,
    two_four: bool = False,
    training: Training | None = None,
) -> nn.Module:
    """Return a copy of `module` without the share `sparsity` of its weights, in eval mode.

    Args:
        scope: as `edge.compress.weights.magnitude.magnitude_masks`, but for `loss`.
        two_four: prune two of every four along the input channels instead of `sparsity`.
        training: prunes gradually while it lasts, beginning with what is zero already; None prunes
            at once.

    Raises:
        CompressionError: an impossible share or scope.
    """
    module = copy.deepcopy(module).eval()
    weights = {path: conv.weight.detach() for path, conv in convolutions(module).items()}
    begun = min(sparsity, _pruned(weights))
    if scope == "loss":
        raise CompressionError("scope loss takes pictures and no training")
    if two_four:
        masks = {path: two_four_mask(weight) for path, weight in weights.items()}
    else:
        masks = magnitude_masks(weights, begun if training else sparsity, scope)
    if training is None:
        apply_masks(module, masks)
        return module
    attach_masks(module, masks, through=not two_four)
    steps = int(training.options.steps * _PRUNING)
    schedule = None if two_four else pruning_schedule(sparsity, max(1, steps), scope, begun=begun)
    trained = training.run(module, training.options, schedule)
    detach(trained)
    return trained.eval()


def _pruned(weights: Mapping[str, torch.Tensor]) -> float:
    """Return the share of weights that are zero."""
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
    """Return a copy of `module` whose convolutions take 2^bits values each, and their codebooks.

    Args:
        bits: of every convolution, or by path.
        scaled: give each output channel a scale.
        unfold: returns the module with its batch norms, with which training is more stable; they
            are folded into the scales afterwards.

    Raises:
        CompressionError: a layer has no weights left, or impossible `bits`.
    """
    module = copy.deepcopy(module).eval()
    books = share_weights(module, bits, start, scaled=scaled)
    if training is not None:
        first, peak = int(training.options.steps * _UNDER_NORMS), training.options.peak
        if first:
            if scaled and unfold is not None:
                module = unfold(module)
            options = replace(training.options, steps=first)
            module, books = _clustered(module, books, training, options)
        slow = None if peak is None else peak / 10
        options = replace(training.options, steps=max(1, training.options.steps - first), peak=slow)
        module, books = _clustered(module, books, training, options, gains=scaled)
    return with_codebooks(module, books), books


def _clustered(
    module: nn.Module,
    books: dict[str, Codebook],
    training: Training,
    options: FineTuneOptions,
    *,
    gains: bool = False,
) -> tuple[nn.Module, dict[str, Codebook]]:
    """Train weights that are moved to few values; return them, norms folded, and the values."""
    attach_clusters(module, books, gains=gains)
    count = 0

    def renewed(trained: nn.Module) -> None:
        nonlocal count
        count += 1
        if count % _RENEWED_EVERY == 0:
            renew_clusters(trained)

    trained = training.run(module, options, renewed)
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
    """Return the codebook of the weights after `gain` (O,) is folded into them."""
    if book.scale is None:
        return book
    scale = book.scale if gain is None else book.scale * gain.numpy()
    return replace(book, scale=rounded_scale(scale))


def with_codebooks(module: nn.Module, books: dict[str, Codebook]) -> nn.Module:
    """Set the weights of `module` to what the codebooks stand for, in place, and return it.

    Raises:
        CompressionError: a codebook has another shape than its weight.
    """
    with torch.no_grad():
        for path, book in books.items():
            weight = module.get_submodule(path).weight
            if tuple(weight.shape) != book.index.shape:
                raise CompressionError(f"{path}: a codebook of {book.index.shape} does not fit")
            weight.copy_(torch.from_numpy(book.dense()))
    return module.eval()
