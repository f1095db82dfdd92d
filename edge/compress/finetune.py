"""Training of a pruned network: batch norms measured again, then steps beside the full network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from edge.compress.distil import distilled
from edge.compress.options import FineTuneOptions
from edge.errors import CompressionError
from edge.spec import ModelSpec
from edge.train.augment import Augmentation, Labelled
from edge.train.batches import BatchMaker, make_batch, prefetched
from edge.train.fit import fit
from edge.train.losses.ciou import loss_for
from edge.train.schedule import Schedule

__all__ = ["fine_tune", "measure_norms", "plain_batches"]

_AUGMENTATIONS = {
    "strong": Augmentation(),
    "mild": Augmentation(
        scale=(0.9, 1.1),
        aspect=1.05,
        shift=0.1,
        hue=9.0,
        saturation=0.4,
        value=0.3,
        contrast=0.0,
        sharpness=0.0,
        noise=0.0,
        mosaic=0.0,
    ),
}
_FLIP = 0.5


def plain_batches(
    pictures: Sequence[Labelled], spec: ModelSpec, size: int
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Yield every picture once, without augmentation, in batches of `size`.

    Returns:
        Images (N, 3, H, W) as the network takes them, and targets (M, 6).
    """
    size = min(size, len(pictures))
    maker = BatchMaker(pictures, spec, size, seed=0)
    return (make_batch(maker, step) for step in range(len(pictures) // size))


def measure_norms(model: nn.Module, images: Iterable[torch.Tensor]) -> None:
    """Set the batch norms' means and variances to those of `images`, in place.

    Without the pruned channels the sums that enter a batch norm have other statistics than before.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    with torch.no_grad():
        for batch in images:
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def fine_tune(
    model: nn.Module,
    spec: ModelSpec,
    pictures: Sequence[Labelled],
    options: FineTuneOptions,
    teacher: nn.Module,
    report: Callable[[str], None],
    stepped: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Train `model` in place and return the average of its weights, in eval mode.

    Args:
        pictures: labelled; see `edge.train.pictures.read_pictures`.
        teacher: the full network.
        report: gets a line of mean losses now and then.
        stepped: called with the model after every step.

    Raises:
        CompressionError: the loss is no longer a number.
    """
    flip = _FLIP if options.flip else 0.0
    augmentation = replace(_AUGMENTATIONS[options.augment], flip=flip)
    maker = BatchMaker(pictures, spec, options.batch, options.seed, augmentation)
    loss = loss_for(spec) if options.labels else None
    peak, warmup = options.peak or _usual_peak(model), min(100, 1 + options.steps // 10)
    schedule = Schedule(options.steps, peak, warmup, average=0.99, bfloat16=options.bfloat16)
    with prefetched(partial(make_batch, maker), 0, torch.device("cpu")) as batches:
        if options.teacher > 0 or loss is None:
            teacher = copy.deepcopy(teacher).to(memory_format=torch.channels_last)
            batches, loss = distilled(
                batches, loss, teacher, spec, options.teacher, bfloat16=options.bfloat16
            )
        every = max(1, options.steps // 10)
        # Convolutions train faster in this layout on a CPU, as in `edge.train.session`.
        model = model.to(memory_format=torch.channels_last)
        try:
            tuned = fit(model, loss, batches, schedule, report, every, after_step=stepped)
        except FloatingPointError as error:
            raise CompressionError(
                f"{spec.name}: training failed: {error}, with --peak below {peak:g}"
            ) from error
        return tuned.to(memory_format=torch.contiguous_format)


def _usual_peak(model: nn.Module) -> float:
    # A network without batch norms diverges sooner.
    return 1e-3 if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) else 1e-4
