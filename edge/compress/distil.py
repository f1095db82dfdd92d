"""Distillation: the full network teaches the pruned one.

Every cell learns the teacher's objectness; boxes and classes count as much as the teacher believes
that an object is there (objectness scaled distillation, arXiv:1805.06361). This needs no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from edge.spec import HeadSpec, ModelSpec
from edge.train.losses.ciou import Loss

__all__ = ["distilled", "head_loss", "head_loss_root"]

Batches = Callable[[], tuple[torch.Tensor, torch.Tensor]]


def distilled(
    batches: Batches,
    loss: Loss | None,
    teacher: nn.Module,
    spec: ModelSpec,
    weight: float = 1.0,
    *,
    bfloat16: bool = False,
) -> tuple[Batches, Loss]:
    """Return `batches` and `loss` for `edge.train.fit.fit`, with the teacher's part in the loss.

    Args:
        loss: loss of the labels; None learns from the teacher alone.
        teacher: a network with the same heads; runs on every batch, in eval mode.
        weight: factor of the teacher's part.
        bfloat16: run the teacher under autocast.
    """
    answers: list[Sequence[torch.Tensor]] = []
    teacher.eval()

    def batches_with_answers() -> tuple[torch.Tensor, torch.Tensor]:
        images, targets = batches()
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
            answers[:] = [teacher(images)]
        return images, targets

    def loss_with_teacher(
        outputs: Sequence[torch.Tensor], targets: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        total, parts = outputs[0].new_zeros(()), dict[str, float]()
        if loss is not None:
            total, parts = loss(outputs, targets)
        pairs = zip(outputs, answers[0], spec.heads, strict=True)
        losses = [head_loss(mine, its, head, len(spec.classes)) for mine, its, head in pairs]
        part = weight * torch.stack(losses).sum()
        return total + part, {**parts, "teacher": part.item()}

    return batches_with_answers, loss_with_teacher


def head_loss(
    output: torch.Tensor, answer: torch.Tensor, head: HeadSpec, classes: int
) -> torch.Tensor:
    """Return the distance of a raw head from the teacher's, per object that the teacher sees.

    Box numbers count by their squared difference, objectness and classes by the cross-entropy
    above its minimum, so that equal heads have a loss of zero.
    """
    box, objectness, labels = _parts(output.float(), head, classes)
    its_box, its_objectness, its_labels = _parts(answer.float(), head, classes)
    sure = its_objectness.sigmoid()
    count = sure.sum().clamp(min=1.0)
    seen = _excess(objectness, its_objectness).sum()
    if head.kind != "convdet":
        box, its_box = _decoded(box), _decoded(its_box)
    away = ((box - its_box).square().sum(dim=2) * sure).sum()
    if head.class_activation == "softmax":
        mine, its = labels.log_softmax(dim=2), its_labels.log_softmax(dim=2)
        named = (its.exp() * (its - mine)).sum(dim=2)
    else:
        named = _excess(labels, its_labels).sum(dim=2)
    return (seen + away + (named * sure).sum()) / count


def head_loss_root(
    output: torch.Tensor, head: HeadSpec, classes: int, signs: torch.Generator
) -> torch.Tensor:
    """Return a random sum of a raw head's numbers whose gradient g samples `head_loss`'s Hessian.

    For a head that equals its teacher's, the mean of g g' over draws of `signs` is the Hessian of
    `head_loss` times the number of objects (the Gauss-Newton matrix).
    """

    def drawn(numbers: torch.Tensor) -> torch.Tensor:
        return torch.randint(0, 2, numbers.shape, generator=signs).to(numbers.dtype) * 2 - 1

    box, objectness, labels = _parts(output, head, classes)
    sure = objectness.sigmoid().detach()
    if head.kind != "convdet":
        box = _decoded(box)
    seen = objectness * drawn(objectness) * (sure * (1 - sure)).sqrt()
    away = box * drawn(box) * (2 * sure).sqrt()[:, :, None]
    if head.class_activation == "softmax":
        share = labels.softmax(dim=2).detach()
        bend = share.sqrt() * drawn(labels)
        bend = bend - share * bend.sum(dim=2, keepdim=True)
    else:
        share = labels.sigmoid().detach()
        bend = (share * (1 - share)).sqrt() * drawn(labels)
    return seen.sum() + away.sum() + (labels * bend * sure.sqrt()[:, :, None]).sum()


def _excess(mine: torch.Tensor, its: torch.Tensor) -> torch.Tensor:
    """Return the logistic cross-entropy with the teacher's probability, minus its entropy."""
    wanted = its.sigmoid()
    cross = functional.binary_cross_entropy_with_logits(mine, wanted, reduction="none")
    return cross - functional.binary_cross_entropy_with_logits(its, wanted, reduction="none")


def _decoded(box: torch.Tensor) -> torch.Tensor:
    return torch.cat([box[:, :, :2].sigmoid(), box[:, :, 2:]], dim=2)


def _parts(
    raw: torch.Tensor, head: HeadSpec, classes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split a head into boxes (N, A, 4, h, w), objectness (N, A, h, w), classes (N, A, C, h, w)."""
    number, images, grid = len(head.anchors), len(raw), raw.shape[2:]
    if head.kind == "convdet":
        labels, objectness, box = raw.split((number * classes, number, number * 4), dim=1)
        return (
            box.reshape(images, number, 4, *grid),
            objectness,
            labels.reshape(images, number, classes, *grid),
        )
    parts = raw.reshape(images, number, 5 + classes, *grid)
    return parts[:, :, :4], parts[:, :, 4], parts[:, :, 5:]
