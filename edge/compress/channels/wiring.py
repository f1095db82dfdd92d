"""Which channels of a detector can be removed, and which only together, from its traced graph.

Every channel of every tensor carries a label: a convolution gives each of its outputs a new one,
the modules behind it pass labels on, a route concatenates them, a shortcut makes two of them one.
Channels of one label are removed together or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from edge.errors import CompressionError
from edge.models import blocks
from edge.models.squeezedet import SqueezeDet
from edge.models.tracing import trace

__all__ = ["FIXED", "Family", "Labels", "Wiring", "read_wiring"]

Labels = NDArray[np.int64]
# The label of pictures and heads, whose channels are never removed.
FIXED = 0
_SAME = (
    nn.BatchNorm2d,
    nn.LeakyReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.Sigmoid,
    nn.SiLU,
    nn.Mish,
    nn.Tanh,
    nn.MaxPool2d,
    nn.Upsample,
    nn.Identity,
    nn.Dropout,
    blocks.DarknetMaxPool,
    blocks.Avgpool,
    blocks.SquaredSizes,
)
_ELEMENTWISE = (
    nn.BatchNorm2d,
    nn.LeakyReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.Sigmoid,
    nn.SiLU,
    nn.Mish,
    nn.Tanh,
)


@dataclass(frozen=True)
class Family:
    """Labels that occur equally often in the same convolutions; any of them may be removed.

    Attributes:
        labels: ascending.
        members: how many output channels each label has, by the path of the convolution.
    """

    labels: tuple[int, ...]
    members: dict[str, int]


@dataclass(frozen=True, eq=False)
class Wiring:
    """A detector's channels.

    Attributes:
        graph: the traced module.
        enters, leaves: labels of the channels that enter and leave a module, by its path.
        families: what may be removed, in the order of the data.
        norms: the batch norm right behind a convolution, by the convolution's path.
        ends: the last module of the convolution, batch norm, activation chain, by its path.
    """

    graph: fx.GraphModule
    enters: dict[str, Labels]
    leaves: dict[str, Labels]
    families: tuple[Family, ...]
    norms: dict[str, str]
    ends: dict[str, str]

    @property
    def convolutions(self) -> dict[str, nn.Conv2d]:
        """Return the convolutions by path, in the order of the data."""
        modules = dict(self.graph.named_modules())
        return {path: modules[path] for path in self.ends}


class _Unions:
    """Disjoint sets of labels, each named after its smallest label, so that FIXED stays FIXED."""

    def __init__(self) -> None:
        self._parent = [FIXED]

    def draw(self, count: int) -> Labels:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label

    def join(self, left: Labels, right: Labels) -> None:
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            a, b = self.find(a), self.find(b)
            self._parent[max(a, b)] = min(a, b)

    def names(self, labels: Labels) -> Labels:
        return np.array([self.find(label) for label in labels.tolist()], np.int64)


def read_wiring(model: nn.Module) -> Wiring:
    """Follow every channel through `model`, a Darknet or a SqueezeDet.

    Raises:
        CompressionError: a module whose channels cannot be followed.
    """
    graph, unions = trace(model), _Unions()
    modules = dict(graph.named_modules())
    values: dict[fx.Node, Labels] = {}
    enters: dict[str, Labels] = {}
    leaves: dict[str, Labels] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            values[node] = np.full(3, FIXED)
        elif node.op == "output":
            for head in node.args[0]:
                unions.join(values[head], np.full(len(values[head]), FIXED))
        else:
            inputs = [values[source] for source in node.args]
            if node.target in leaves:
                raise CompressionError(
                    f"{node.target} is used twice in the network; its channels cannot be followed"
                )
            values[node] = _follow(node.target, modules[node.target], inputs, unions)
            enters[node.target], leaves[node.target] = inputs[0], values[node]
    for left, right in _tied(model):
        unions.join(leaves[left], leaves[right])
    enters = {path: unions.names(labels) for path, labels in enters.items()}
    leaves = {path: unions.names(labels) for path, labels in leaves.items()}
    norms, ends = _chains(graph, modules)
    return Wiring(graph, enters, leaves, _families(leaves, list(ends)), norms, ends)


def _follow(path: str, module: nn.Module, inputs: list[Labels], unions: _Unions) -> Labels:
    if isinstance(module, nn.Conv2d):
        return _through_conv(module, inputs[0], unions)
    if isinstance(module, _SAME):
        return inputs[0]
    if isinstance(module, blocks.Concat):
        return np.concatenate(inputs)
    if isinstance(module, (blocks.Add, blocks.Multiply)):
        unions.join(inputs[0], inputs[1])
        return inputs[0]
    if isinstance(module, blocks.ChannelGroup):
        return _through_group(path, module, inputs[0], unions)
    if isinstance(module, blocks.Reorg):
        return _through_reorg(module.stride, inputs[0], unions)
    raise CompressionError(
        f"{path}: the channels of a {type(module).__name__} cannot be followed; "
        "add a rule to edge.compress.channels.wiring"
    )


def _through_conv(conv: nn.Conv2d, entering: Labels, unions: _Unions) -> Labels:
    if conv.groups == 1:
        return unions.draw(conv.out_channels)
    # A group is removed whole, inputs and outputs; in a depthwise convolution it is one channel.
    groups = entering.reshape(conv.groups, -1)
    for group in groups:
        unions.join(group[1:], np.full(len(group) - 1, group[0]))
    return np.repeat(groups[:, 0], conv.out_channels // conv.groups)


def _through_group(
    path: str, part: blocks.ChannelGroup, entering: Labels, unions: _Unions
) -> Labels:
    width = part.stop - part.start
    # A cfg can only cut equal groups, so the n-th channels of all groups are removed together. The
    # cut of a shortcut needs no such bond: the rest is another family.
    if not path.endswith(".cut"):
        for start in range(width, len(entering), width):
            unions.join(entering[:width], entering[start : start + width])
    return entering[part.start : part.stop]


def _through_reorg(stride: int, entering: Labels, unions: _Unions) -> Labels:
    """Darknet's reorg reads s*s channels as one larger picture, so they are removed together.

    Block k of them becomes, for each of the s*s offsets, channels k*s*s to (k+1)*s*s - 1 of that
    offset's share (`edge.models.blocks.Reorg`).
    """
    square = stride * stride
    groups = entering.reshape(-1, square)
    for group in groups:
        unions.join(group[1:], np.full(square - 1, group[0]))
    return np.tile(np.repeat(groups[:, 0], square), square)


def _tied(model: nn.Module) -> list[tuple[str, str]]:
    """Return pairs of convolutions that a SqueezeDet's config gives one width."""
    if not isinstance(model, SqueezeDet) or not model.config.pyramid:
        return []
    parts = ("squeeze.conv", "expand1.conv", "expand3.conv")
    pairs = [(f"pyramid.top.1.{part}", f"pyramid.top.2.{part}") for part in parts]
    for level in range(len(model.config.pyramid) - 1):
        merge = f"pyramid.merges.{level}"
        pairs.append((f"{merge}.reduce.conv", f"{merge}.fire.expand1.conv"))
    return pairs


def _chains(
    graph: fx.GraphModule, modules: dict[str, nn.Module]
) -> tuple[dict[str, str], dict[str, str]]:
    norms: dict[str, str] = {}
    ends: dict[str, str] = {}
    for node in graph.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.Conv2d):
            continue
        last = node
        while _continues(last, modules):
            last = next(iter(last.users))
            if isinstance(modules[last.target], nn.BatchNorm2d):
                norms.setdefault(node.target, last.target)
        ends[node.target] = last.target
    return norms, ends


def _continues(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if len(node.users) != 1:
        return False
    follow = next(iter(node.users))
    return follow.op == "call_module" and isinstance(modules[follow.target], _ELEMENTWISE)


def _families(leaves: dict[str, Labels], convolutions: list[str]) -> tuple[Family, ...]:
    members: dict[int, dict[str, int]] = {}
    for path in convolutions:
        for label in leaves[path].tolist():
            if label != FIXED:
                own = members.setdefault(label, {})
                own[path] = own.get(path, 0) + 1
    families: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for label, own in members.items():
        families.setdefault(tuple(own.items()), []).append(label)
    return tuple(Family(tuple(sorted(labels)), dict(key)) for key, labels in families.items())
