"""What a training tells of itself: TensorBoard, and units that never answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge.models.hooks import hooked
from edge.optional import require

__all__ = ["activations", "dead_units", "open_board", "write_activations"]

# A ReLU that answers nowhere passes no gradient either: its filter is lost for good.
_RECTIFIERS = (nn.ReLU, nn.ReLU6)
_ACTIVATIONS = (*_RECTIFIERS, nn.LeakyReLU, nn.SiLU, nn.Mish, nn.Sigmoid)


def open_board(folder: str | Path) -> Any:
    """TensorBoard's writer for event files in `folder`.

    Raises:
        MissingDependency: the package tensorboard is not installed.
    """
    require("tensorboard")
    return require("torch.utils.tensorboard").SummaryWriter(str(folder))


def activations(
    model: nn.Module, images: torch.Tensor, kinds: tuple[type[nn.Module], ...] = _ACTIVATIONS
) -> dict[str, torch.Tensor]:
    """Outputs (N, C, H, W) of the activation modules by path, as in eval mode."""
    found: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            found[path] = output

        return hook

    watched = [(path, m) for path, m in model.named_modules() if isinstance(m, kinds)]
    hooks = [module.register_forward_hook(keep(path)) for path, module in watched]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with hooked(hooks), torch.no_grad():
            model(images)
    finally:
        for module, mode in training.items():
            module.training = mode
    return found


def dead_units(model: nn.Module, images: torch.Tensor) -> dict[str, tuple[int, int]]:
    """Of each ReLU that has some: channels that are nowhere above 0 in `images`, and all."""
    found = {}
    for path, output in activations(model, images, _RECTIFIERS).items():
        alive = output.flatten(2).amax(dim=(0, 2)) > 0
        if not alive.all():
            found[path] = (int((~alive).sum()), len(alive))
    return found


def write_activations(board: Any, model: nn.Module, images: torch.Tensor, step: int) -> None:
    """A histogram of every activation's output, under its module path."""
    for path, output in activations(model, images).items():
        board.add_histogram(f"activations/{path}", output.float().cpu(), step)
