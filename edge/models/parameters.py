"""The one check that weights of every file format pass before a network takes them."""

from __future__ import annotations

import torch

from edge.errors import ArtifactError
from edge.models.darknet_layers import BATCH_NORM_EPS

__all__ = ["check_weights", "fill"]


def check_weights(values: torch.Tensor, where: str, *, variance: bool = False) -> None:
    """Refuse numbers that no layer can compute with.

    Args:
        where: file and tensor, for the message.
        variance: the values are a batch norm's variances.

    Raises:
        ArtifactError: NaN or infinite values, or a variance below zero.
    """
    if not torch.isfinite(values).all():
        raise ArtifactError(f"{where} holds NaN or infinite weights; train or copy it again")
    # OpenCV takes the root of variance + eps too, so tiny negative variances are harmless.
    if variance and values.numel() and float(values.min()) + BATCH_NORM_EPS <= 0:
        raise ArtifactError(
            f"{where} holds a batch norm variance of {float(values.min()):g}, below zero"
        )


def fill(target: torch.Tensor, values: torch.Tensor, where: str, *, variance: bool = False) -> None:
    """Copy `values` into a parameter or buffer of the same shape.

    Raises:
        ArtifactError: another shape or kind of number, or values that `check_weights` refuses.
    """
    if values.shape != target.shape or values.is_floating_point() != target.is_floating_point():
        raise ArtifactError(
            f"{where} is {str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}; "
            f"it must be {'float' if target.is_floating_point() else 'a whole number'} "
            f"{tuple(target.shape)}"
        )
    # In the target's precision, where a large number of another one may be infinite.
    converted = values.to(target.dtype)
    check_weights(converted, where, variance=variance)
    with torch.no_grad():
        target.copy_(converted)
