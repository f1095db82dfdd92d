"""A pruned network's training: its batch norms measured anew, then steps beside its teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import nn

from edge.compress.distil import distilled
from edge.spec import ModelSpec
from edge.train.augment import Augmentation, Labelled
from edge.train.batches import BatchMaker, make_batch, prefetched
from edge.train.fit import fit
from edge.train.losses.ciou import loss_for
from edge.train.schedule import Schedule

__all__ = ["FineTuning", "fine_tune", "measure_norms", "plain_batches"]

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


@dataclass(frozen=True)
class FineTuning:
    """How a network is trained after pruning.

    Attributes:
        steps: optimizer steps.
        batch: pictures in each.
        peak: highest learning rate; None: 1e-3, and a tenth of it without batch norms, which
            forgive less.
        teacher: weight of the unpruned network's part of the loss; 0 leaves it out.
        labels: whether the boxes count; without them only the teacher teaches.
        flip: probability of a mirror image, 0 for objects with writing on them.
        augment: `mild` changes colours, and size and place a little: what is left of a trained
            network is to do the same on the same pictures. `strong` is that of `edge train`, with
            mosaics, noise and half the size, for few pictures.
        seed: of order and changes of the pictures.
        bfloat16: run the forward passes under autocast.
    """

    steps: int
    batch: int = 16
    peak: float | None = None
    teacher: float = 1.0
    labels: bool = True
    flip: float = 0.5
    augment: Literal["mild", "strong"] = "mild"
    seed: int = 0
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if not self.labels and self.teacher <= 0:
            raise ValueError("without labels and without a teacher there is nothing to learn from")

    @property
    def augmentation(self) -> Augmentation:
        """How pictures are changed."""
        return replace(_AUGMENTATIONS[self.augment], flip=self.flip)


def plain_batches(
    pictures: Sequence[Labelled], spec: ModelSpec, size: int
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Every picture once, resized as the contract says: images (N, 3, H, W), targets (M, 6)."""
    size = min(size, len(pictures))
    maker = BatchMaker(pictures, spec, size, seed=0)
    return (make_batch(maker, step) for step in range(len(pictures) // size))


def measure_norms(model: nn.Module, images: Iterable[torch.Tensor]) -> None:
    """Set the batch norms' means and variances to those of `images`, in place.

    Channels that are gone leave sums behind that no longer have the statistics of before.
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
    how: FineTuning,
    teacher: nn.Module,
    report: Callable[[str], None],
    stepped: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Train `model` in place and return the average of its weights, in eval mode.

    Args:
        pictures: labelled; see `edge.train.pictures.read_pictures`.
        teacher: the network before pruning.
        report: gets a line of mean losses now and then.
        stepped: called after every step.

    Raises:
        FloatingPointError: the loss is no longer a number.
    """
    maker = BatchMaker(pictures, spec, how.batch, how.seed, how.augmentation)
    loss = loss_for(spec) if how.labels else None
    peak, warmup = how.peak or _usual_peak(model), min(100, 1 + how.steps // 10)
    schedule = Schedule(how.steps, peak, warmup, average=0.99, bfloat16=how.bfloat16)
    with prefetched(partial(make_batch, maker), 0, torch.device("cpu")) as batches:
        if how.teacher > 0:
            teacher = copy.deepcopy(teacher).to(memory_format=torch.channels_last)
            batches, loss = distilled(
                batches, loss, teacher, spec, how.teacher, bfloat16=how.bfloat16
            )
        assert loss is not None  # FineTuning refuses neither labels nor teacher
        every = max(1, how.steps // 10)
        # Convolutions train faster in this layout on a CPU, as in `edge.train.session`.
        model = model.to(memory_format=torch.channels_last)
        tuned = fit(model, loss, batches, schedule, report, every, after_step=stepped)
        return tuned.to(memory_format=torch.contiguous_format)


def _usual_peak(model: nn.Module) -> float:
    return 1e-3 if any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) else 1e-4
