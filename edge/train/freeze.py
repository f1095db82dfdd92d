"""Which parts of a network learn."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

__all__ = ["freeze", "freeze_norms", "layers", "learn"]


def layers(model: nn.Module) -> OrderedDict[str, nn.Module]:
    """Return the layers in the order of the data, by module path.

    Those of a Darknet are the cfg's (`layers.0`, ..., without those that only pass their input
    on), those of a SqueezeDet conv1, pool1, fire2, ... and the head.
    """
    found: OrderedDict[str, nn.Module] = OrderedDict()
    for name, child in model.named_children():
        if isinstance(child, (nn.ModuleDict, nn.Sequential)):
            found.update((f"{name}.{part}", module) for part, module in child.named_children())
        else:
            found[name] = child
    return found


def _number(position: int, path: str) -> int:
    """Return the number of a layer: a Darknet's as in its cfg, any other's by position."""
    last = path.rpartition(".")[2]
    return int(last) if last.isdigit() else position


def freeze(model: nn.Module, count: int) -> list[str]:
    """Freeze the first `count` layers, with the statistics of their batch norms.

    Returns:
        The layers that had weights to freeze.

    Raises:
        ValueError: nothing would be left to learn.
    """
    frozen = []
    for position, (path, layer) in enumerate(layers(model).items()):
        if _number(position, path) < count and any(True for _ in layer.parameters()):
            layer.requires_grad_(False)
            frozen.append(path)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freezing {count} layers leaves none to learn; there are {len(frozen)}")
    return frozen


def freeze_norms(model: nn.Module) -> int:
    """Freeze every batch norm's statistics, scale and shift, and return their number."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.requires_grad_(False)
    return len(norms)


def learn(model: nn.Module) -> None:
    """Set training mode, in which a frozen batch norm uses its statistics and keeps them."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            module.train(module.weight.requires_grad)
