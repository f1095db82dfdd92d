"""One builder per Darknet section: a cfg section and its inputs' shapes give a module.

Sources: `parser.c` of pjreddie/darknet and AlexeyAB/darknet for keys, defaults and shapes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from edge.models.blocks import (
    ACTIVATIONS,
    Add,
    Avgpool,
    ChannelGroup,
    Concat,
    DarknetMaxPool,
    Multiply,
    Reorg,
    SquaredSizes,
    activation,
)
from edge.models.darknet_cfg import Section

__all__ = ["BATCH_NORM_EPS", "MOST_FLOATS", "Layer", "Shape", "build_layer"]

# OpenCV's Darknet importer adds 1e-6 to the variance; Darknet adds .000001f to its root.
BATCH_NORM_EPS = 1e-6
Shape = tuple[int, int, int]
# An ONNX file, a protobuf message, ends at 2 GiB; TensorRT's tensors too, in elements.
MOST_FLOATS = 2**29
_SPARE_PIXELS = 15
# Options that change the arithmetic and that this does not do, with their harmless values.
_UNSUPPORTED = {
    "antialiasing": ("0",),
    "binary": ("0",),
    "extra": ("0",),
    "flatten": ("0",),
    "flipped": ("0",),
    "maxpool_depth": ("0",),
    "reverse": ("0",),
    "scale": ("1", "1."),
    "scale_wh": ("0",),
    "share_index": (),
    "weights_type": ("none",),
    "xnor": ("0",),
}


@dataclass(frozen=True)
class Layer:
    """One Darknet layer.

    Attributes:
        module: None where the layer only passes its input on.
        leaf: name within `module` of the submodule that yields the output.
        sources: layers whose outputs it takes, in order; -1 is the picture.
        shape: of its output: channels, height, width.
    """

    module: nn.Module | None
    leaf: str
    sources: tuple[int, ...]
    shape: Shape


class Route(nn.Module):
    """Joins layers, or one channel group of each where the cfg says so."""

    def __init__(self, groups: list[ChannelGroup], joins: bool) -> None:
        super().__init__()
        self.group = nn.ModuleList(groups)
        self.concat = Concat() if joins else None

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        parts = list(tensors)
        if len(self.group):
            parts = [group(part) for group, part in zip(self.group, parts, strict=True)]
        return self.concat(*parts) if self.concat is not None else parts[0]


class Shortcut(nn.Module):
    """Adds two layers; surplus channels of the older one are cut off, as in Darknet."""

    def __init__(self, cut: ChannelGroup | None, act: nn.Module | None) -> None:
        super().__init__()
        self.cut = cut
        self.add = Add()
        self.act = act

    def forward(self, tensor: torch.Tensor, older: torch.Tensor) -> torch.Tensor:
        total = self.add(tensor, self.cut(older) if self.cut is not None else older)
        return self.act(total) if self.act is not None else total


class ScaleChannels(nn.Module):
    """Multiplies an older layer by this one, by channel (squeeze and excitation) or by value
    (spatial attention).
    """

    def __init__(self, act: nn.Module | None) -> None:
        super().__init__()
        self.multiply = Multiply()
        self.act = act

    def forward(self, scale: torch.Tensor, older: torch.Tensor) -> torch.Tensor:
        scaled = self.multiply(older, scale)
        return self.act(scaled) if self.act is not None else scaled


def build_layer(
    section: Section, shapes: list[Shape], picture: Shape, head: Section | None = None
) -> Layer:
    """Build the layer of one section, given the output shapes of those before it.

    Args:
        head: the `[yolo]` with `new_coords` right behind it, if there is one.

    Raises:
        ArtifactError: an unknown section or option, a missing key, shapes that do not fit.
    """
    build = _BUILDERS.get(section.type)
    if build is None:
        raise section.error(f"unknown section; known: {', '.join(sorted(_BUILDERS))}")
    for key, harmless in _UNSUPPORTED.items():
        if key in section.options and section.options[key] not in harmless:
            raise section.error(f"{key}={section.options[key]} is not supported")
    layer = build(section, [*shapes, picture])
    if head is not None:
        layer = _with_new_coords(layer, section, head)
    if min(layer.shape) < 1:
        raise section.error(f"its output would be {layer.shape}; the input is too small for it")
    _refuse_giant(section, "its output", layer.shape)
    return layer


def _with_new_coords(layer: Layer, section: Section, head: Section) -> Layer:
    """Return a convolution whose logistic is left to the decoder, like that of other heads."""
    if section.type != "convolutional" or section.text("activation", "logistic") != "logistic":
        raise head.error("new_coords=1 takes a logistic convolution right before it")
    numbers = 5 + head.positive("classes")
    anchors, rest = divmod(layer.shape[0], numbers)
    if rest or layer.module is None:
        raise head.error(f"classes={numbers - 5} do not fit {layer.shape[0]} channels")
    parts = {name: part for name, part in layer.module.named_children() if name != "act"}
    parts["sizes"] = SquaredSizes(anchors, numbers)
    return Layer(_sequence(**parts), "sizes", layer.sources, layer.shape)


def _refuse_giant(section: Section, what: str, shape: tuple[int, ...]) -> None:
    """Refuse a size before memory is taken: a typing error must not fill the machine."""
    if prod(shape) > MOST_FLOATS:
        size = "x".join(map(str, shape))
        raise section.error(f"{what} would have {size} numbers; no more than 2^29 are possible")


def _refuse_wide_window(section: Section, size: int, hw: tuple[int, int]) -> None:
    """Refuse a kernel or pool of which most could never meet the picture."""
    if size > 2 * max(hw) + _SPARE_PIXELS:
        raise section.error(f"size={size} is far larger than its input of {hw[0]}x{hw[1]}")


def _before(section: Section) -> int:
    return section.index - 1


def _older(section: Section, reference: int) -> int:
    index = reference if reference >= 0 else section.index + reference
    if not 0 <= index < section.index:
        raise section.error(f"refers to layer {reference}, which is not one before it")
    return index


def _activation(section: Section, default: str | None = None) -> nn.Module | None:
    name = section.text("activation", default)
    try:
        return activation(name)
    except KeyError:
        known = ", ".join(sorted(ACTIVATIONS))
        raise section.error(f"unknown activation {name}; known: {known}") from None


def _sequence(**modules: nn.Module | None) -> nn.Sequential:
    return nn.Sequential(OrderedDict((k, m) for k, m in modules.items() if m is not None))


def _convolutional(section: Section, shapes: list[Shape]) -> Layer:
    channels, height, width = shapes[_before(section)]
    size, filters = section.positive("size", 1), section.positive("filters")
    groups = section.positive("groups", 1)
    if channels % groups or filters % groups:
        raise section.error(f"groups={groups} divides not both {channels} and {filters} channels")
    strides = _strides(section)
    pad = size // 2 if section.integer("pad", 0) else section.integer("padding", 0)
    if pad < 0:
        raise section.error(f"padding={pad} is negative")
    _refuse_wide_window(section, size, (height, width))
    dilation = section.positive("dilation", 1)
    if dilation > 1 and 2 * pad != size - 1:
        raise section.error(f"dilation={dilation} takes an odd size and pad=1")
    _refuse_giant(section, "its kernel", (filters, channels // groups, size, size))
    normed = bool(section.integer("batch_normalize", 0))
    conv = nn.Conv2d(
        channels,
        filters,
        size,
        strides,
        # Darknet widens the padding with the kernel, so the output keeps its size.
        padding=pad * dilation,
        dilation=dilation,
        groups=groups,
        bias=not normed,
    )
    norm = nn.BatchNorm2d(filters, eps=BATCH_NORM_EPS) if normed else None
    module = _sequence(conv=conv, norm=norm, act=_activation(section, "logistic"))
    shape = (
        filters,
        (height + 2 * pad - size) // strides[0] + 1,
        (width + 2 * pad - size) // strides[1] + 1,
    )
    return Layer(module, _last_name(module), (_before(section),), shape)


def _strides(section: Section) -> tuple[int, int]:
    """Return the strides down and across, in pixels."""
    stride = section.positive("stride", 1)
    return section.positive("stride_y", stride), section.positive("stride_x", stride)


def _last_name(module: nn.Module) -> str:
    return str([name for name, _ in module.named_children()][-1])


def _maxpool(section: Section, shapes: list[Shape]) -> Layer:
    channels, height, width = shapes[_before(section)]
    stride, across = _strides(section)
    if stride != across:
        raise section.error(f"stride_y={stride} and stride_x={across} differ: not supported")
    size = section.positive("size", stride)
    _refuse_wide_window(section, size, (height, width))
    padding = section.integer("padding", size - 1)
    if not 0 <= padding < 2 * size:
        raise section.error(f"padding={padding} does not fit size={size}")
    pool = DarknetMaxPool(size, stride, (padding, padding))
    shape = (
        channels,
        (height + padding - size) // stride + 1,
        (width + padding - size) // stride + 1,
    )
    return Layer(_sequence(pool=pool), "pool", (_before(section),), shape)


def _avgpool(section: Section, shapes: list[Shape]) -> Layer:
    shape = (shapes[_before(section)][0], 1, 1)
    return Layer(_sequence(pool=Avgpool()), "pool", (_before(section),), shape)


def _route(section: Section, shapes: list[Shape]) -> Layer:
    sources = tuple(_older(section, reference) for reference in section.integers("layers"))
    if not sources:
        raise section.error("layers is empty")
    if len({shapes[source][1:] for source in sources}) > 1:
        sizes = ", ".join("x".join(map(str, shapes[source])) for source in sources)
        raise section.error(f"layers of different size cannot be joined: {sizes}")
    groups, group = section.positive("groups", 1), section.integer("group_id", 0)
    widths = [shapes[source][0] // groups for source in sources]
    if not 0 <= group < groups or any(shapes[s][0] % groups for s in sources):
        raise section.error(f"groups={groups}, group_id={group} does not fit the layers' channels")
    shape = (sum(widths), *shapes[sources[0]][1:])
    joins = len(sources) > 1
    if groups == 1 and not joins:
        return Layer(None, "", sources, shape)
    cuts = [ChannelGroup(w * group, w * (group + 1)) for w in widths] if groups > 1 else []
    return Layer(Route(cuts, joins), "concat" if joins else "group.0", sources, shape)


def _shortcut(section: Section, shapes: list[Shape]) -> Layer:
    references = section.integers("from")
    if len(references) != 1:
        raise section.error(f"from={section.text('from')}: it takes one layer, not several")
    older = _older(section, references[0])
    shape, other = shapes[_before(section)], shapes[older]
    if other[0] < shape[0] or other[1:] != shape[1:]:
        raise section.error(f"cannot add layer {older} of shape {other} to {shape}")
    cut = ChannelGroup(0, shape[0]) if other[0] > shape[0] else None
    act = _activation(section, "linear")
    leaf = "act" if act is not None else "add"
    return Layer(Shortcut(cut, act), leaf, (_before(section), older), shape)


def _scale_channels(section: Section, shapes: list[Shape]) -> Layer:
    older = _older(section, section.integer("from"))
    scale, shape = shapes[_before(section)], shapes[older]
    if scale != (shape[0], 1, 1):
        raise section.error(f"cannot scale layer {older} of shape {shape} by {scale}")
    act = _activation(section, "linear")
    leaf = "act" if act is not None else "multiply"
    return Layer(ScaleChannels(act), leaf, (_before(section), older), shape)


def _sam(section: Section, shapes: list[Shape]) -> Layer:
    older = _older(section, section.integer("from"))
    mask, shape = shapes[_before(section)], shapes[older]
    if mask != shape:
        raise section.error(f"cannot scale layer {older} of shape {shape} by {mask}")
    act = _activation(section, "linear")
    leaf = "act" if act is not None else "multiply"
    return Layer(ScaleChannels(act), leaf, (_before(section), older), shape)


def _upsample(section: Section, shapes: list[Shape]) -> Layer:
    channels, height, width = shapes[_before(section)]
    stride = section.positive("stride", 2)
    module = _sequence(upsample=nn.Upsample(scale_factor=stride, mode="nearest"))
    shape = (channels, height * stride, width * stride)
    return Layer(module, "upsample", (_before(section),), shape)


def _reorg(section: Section, shapes: list[Shape]) -> Layer:
    channels, height, width = shapes[_before(section)]
    stride = section.positive("stride", 1)
    if height % stride or width % stride or channels % (stride * stride):
        raise section.error(f"stride={stride} does not divide {channels}x{height}x{width}")
    shape = (channels * stride * stride, height // stride, width // stride)
    return Layer(_sequence(reorg=Reorg(stride)), "reorg", (_before(section),), shape)


def _pass_on(section: Section, shapes: list[Shape]) -> Layer:
    return Layer(None, "", (_before(section),), shapes[_before(section)])


_BUILDERS: dict[str, Callable[[Section, list[Shape]], Layer]] = {
    "avgpool": _avgpool,
    "convolutional": _convolutional,
    # Darknet's dropout does nothing at inference; training here augments instead.
    "dropout": _pass_on,
    "maxpool": _maxpool,
    "region": _pass_on,
    "reorg": _reorg,
    "route": _route,
    "sam": _sam,
    "scale_channels": _scale_channels,
    "shortcut": _shortcut,
    "upsample": _upsample,
    "yolo": _pass_on,
}
