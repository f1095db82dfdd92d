"""Detectors as graphs of module calls, which the ONNX writer and the compressors read."""

from __future__ import annotations

from torch import fx, nn

from edge.models import blocks

__all__ = ["Tracer", "is_leaf", "trace"]

_OWN_LEAVES = (
    blocks.Add,
    blocks.Avgpool,
    blocks.ChannelGroup,
    blocks.Concat,
    blocks.DarknetMaxPool,
    blocks.Multiply,
    blocks.Reorg,
    blocks.SquaredSizes,
)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_leaf(module: nn.Module) -> bool:
    """Return whether tracing stops at this module: a block of edge or torch.nn, no container.

    A subclass of a torch.nn layer (shared or quantized weights) is a leaf as well.
    """
    if isinstance(module, _CONTAINERS):
        return False
    return isinstance(module, _OWN_LEAVES) or any(
        kind.__module__.startswith("torch.nn.modules") and kind is not nn.Module
        for kind in type(module).__mro__
    )


class Tracer(fx.Tracer):
    """torch.fx's tracer with `is_leaf` as its leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)


def trace(module: nn.Module) -> fx.GraphModule:
    """Return the graph of `module`: one placeholder, `call_module` nodes, one output.

    The modules are shared with `module`, not copied; a node's `target` is the module's path.

    Raises:
        ValueError: the forward pass computes outside of modules.
    """
    graph = Tracer().trace(module)
    for node in graph.nodes:
        if node.op not in ("placeholder", "call_module", "output"):
            raise ValueError(
                f"{type(module).__name__}: {node.op} {node.target} is no module call; "
                "move it into a module of edge.models.blocks"
            )
    return fx.GraphModule(module, graph)
