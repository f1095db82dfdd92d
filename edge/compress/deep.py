"""Deep Compression with training: prune little by little, then share, then train the centroids.

The pictures, the teacher (the network as it came) and the steps are `edge.compress.finetune`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from edge.compress.codebook import Codebook
from edge.compress.feedback import Surroundings, rounded_with_feedback
from edge.compress.finetune import FineTuning, fine_tune
from edge.compress.folding import fold_norms, norm_gains
from edge.compress.kmeans import Start
from edge.compress.magnitude import (
    Scope,
    apply_masks,
    attach_masks,
    convolutions,
    detach,
    magnitude_masks,
    pruning_schedule,
    two_four_mask,
)
from edge.compress.sharing import (
    attach_clusters,
    attach_codebooks,
    codebooks_of,
    renew_clusters,
    rounded_scale,
    share_weights,
)
from edge.compress.surgeon import pruned_with_refit, refitted, worth
from edge.errors import CompressionError
from edge.spec import ModelSpec
from edge.train.augment import Labelled

__all__ = ["Training", "prune_weights", "tune_shared", "with_codebooks"]

# Pruning is over after this share of its steps; the rest trains what is left.
_PRUNING = 0.6
# Weights may change their cluster for this share of the steps; then the centroids alone learn.
_CLUSTERING = 0.7
_RENEWED_EVERY = 25

Tick = Callable[[nn.Module], None]
Around = Mapping[str, Surroundings]


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
    around: Around | None = None,
) -> nn.Module:
    """A copy of `module` without the share `sparsity` of its weights, in eval mode.

    Args:
        scope: as `edge.compress.magnitude.magnitude_masks`.
        two_four: prune two of every four along the input channels in place of `sparsity`.
        training: prunes by and by while it lasts, from what is zero already; None prunes at once.
        around: of each convolution; without training what is left makes up for what is gone.

    Raises:
        CompressionError: a share or scope that cannot be.
    """
    module = copy.deepcopy(module).eval()
    weights = {path: conv.weight.detach() for path, conv in convolutions(module).items()}
    begun = min(sparsity, _pruned(weights))
    if around is not None and training is None:
        weights = {path: worth(weight, around[path]) for path, weight in weights.items()}
    if two_four:
        masks = {path: two_four_mask(weight) for path, weight in weights.items()}
    else:
        masks = magnitude_masks(weights, begun if training else sparsity, scope)
    if training is None:
        if around is None:
            apply_masks(module, masks)
            return module
        return _operated(module, masks, around, two_four=two_four)
    attach_masks(module, masks, through=not two_four)
    steps = int(training.how.steps * _PRUNING)
    schedule = None if two_four else pruning_schedule(sparsity, max(1, steps), scope, begun=begun)
    trained = training(module, training.how, schedule)
    detach(trained)
    return trained.eval()


def _operated(
    module: nn.Module, masks: Mapping[str, torch.Tensor], around: Around, *, two_four: bool
) -> nn.Module:
    """As many weights as the masks leave in each layer, or just those of 2:4, fitted anew."""
    for path, conv in convolutions(module).items():
        weight, here = conv.weight.detach(), around[path]
        if two_four:
            found = refitted(weight, masks[path], here)
        else:
            found = pruned_with_refit(weight, int(masks[path].sum()), here)
        weight.copy_(found)
    return module


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
    around: Around | None = None,
) -> tuple[nn.Module, dict[str, Codebook]]:
    """A copy of `module` whose convolutions take 2^bits values each, and their codebooks.

    Args:
        bits: of every convolution, or by path.
        scaled: with a scale for each output channel.
        unfold: gives the module back its batch norms, whose training forgives more; only scales
            can take them up again.
        around: of each convolution; without training weights make up for each other's errors.

    Raises:
        CompressionError: a layer has no weights left, or `bits` that cannot be.
    """
    module = copy.deepcopy(module).eval()
    books = share_weights(module, bits, start, scaled=scaled)
    if training is not None:
        first = int(training.how.steps * _CLUSTERING)
        if first:
            if scaled and unfold is not None:
                module = unfold(module)
            module, books = _clustered(module, books, training, first)
        attach_codebooks(module, books)
        peak = training.how.peak
        # Centroids gather the gradients of all their weights.
        slow = None if peak is None else peak / 10
        how = replace(training.how, steps=max(1, training.how.steps - first), peak=slow)
        module = training(module, how, None)
        books = codebooks_of(module)
        detach(module)
    elif around is not None:
        books = {
            path: _balanced(conv.weight.detach(), books[path], around[path])
            for path, conv in convolutions(module).items()
        }
    return with_codebooks(module, books), books


def _balanced(weight: torch.Tensor, book: Codebook, around: Surroundings) -> Codebook:
    """The codebook whose indices make up for each other's errors."""
    centroids = torch.from_numpy(book.centroids)
    middles = (centroids[1:] + centroids[:-1]) / 2
    scale = torch.ones(len(weight)) if book.scale is None else torch.from_numpy(book.scale)
    shape = weight.shape
    even = around.rows(scale.view(-1, 1, 1, 1).expand(shape).contiguous())[:, :, 0]
    found = rounded_with_feedback(
        weight,
        around,
        lambda numbers: centroids[torch.bucketize((numbers / even).contiguous(), middles)] * even,
        kept=weight != 0,
    )
    place = torch.bucketize((found / scale.view(-1, 1, 1, 1)).contiguous(), middles) + 1
    return replace(book, index=(place * (weight != 0)).numpy())


def _clustered(
    module: nn.Module, books: dict[str, Codebook], training: Training, steps: int
) -> tuple[nn.Module, dict[str, Codebook]]:
    attach_clusters(module, books)
    count = 0

    def renewed(trained: nn.Module) -> None:
        nonlocal count
        count += 1
        if count % _RENEWED_EVERY == 0:
            renew_clusters(trained)

    trained = training(module, replace(training.how, steps=steps), renewed)
    found = codebooks_of(trained)
    detach(trained)
    gains = norm_gains(trained)
    books = {path: _scaled(book, gains.get(path)) for path, book in found.items()}
    return fold_norms(trained) if gains else trained, books


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
