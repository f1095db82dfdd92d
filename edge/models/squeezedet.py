"""SqueezeDet (Wu et al., arXiv:1612.01051): a SqueezeNet body and one convolutional head.

With `SqueezeDetConfig.pyramid` it has the heads of a feature pyramid of fire modules instead.

The head's raw output is (N, K*(C+1+4), h, w) for K anchors and C classes, as upstream lays it out:
K*C class logits (anchor k, class c at k*C + c), then K confidence logits, then K*4 deltas
(dx, dy, dw, dh of anchor k from K*(C+1) + 4*k on).

Anchor centres, as upstream's `set_anchors` places them in a W x H picture with a w x h grid: cell
(row i, column j) has its centre at x = (j + 1) * W / (w + 1), y = (i + 1) * H / (h + 1), pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Literal

import torch
from torch import nn

from edge.decoding import decode, parse_json
from edge.errors import ArtifactError
from edge.files import as_name, plain_text
from edge.models.blocks import Concat, DarknetMaxPool, PaddedConv2d
from edge.models.class_names import KITTI, VOC
from edge.models.darknet_layers import MOST_FLOATS
from edge.names import check_class_name
from edge.spec import MOST_PIXELS, HeadSpec, InputContract, ModelSpec

__all__ = [
    "KITTI_CONFIG",
    "VOC_CONFIG",
    "Fire",
    "Pyramid",
    "SqueezeDet",
    "SqueezeDetConfig",
    "read_config",
    "scaled",
    "squeezedet_spec",
    "version_1_0",
]

# Filters of a fire module: squeeze, expand 1x1, expand 3x3.
Triple = tuple[int, int, int]
# No side, filter number or kernel comes near this.
_MOST = 2**15
# squeeze, expand 1x1, expand 3x3 of fire2 to fire11: SqueezeNet's eight (arXiv:1602.07360, table 1)
# and SqueezeDet's two on top.
_FIRES: tuple[Triple, ...] = (
    (16, 64, 64),
    (16, 64, 64),
    (32, 128, 128),
    (32, 128, 128),
    (48, 192, 192),
    (48, 192, 192),
    (64, 256, 256),
    (64, 256, 256),
    (96, 384, 384),
    (96, 384, 384),
)


@dataclass(frozen=True)
class SqueezeDetConfig:
    """What determines the shape of a SqueezeDet.

    Attributes:
        hw: height and width of the input, pixels.
        classes: their names.
        anchors: (width, height) of each anchor, pixels of the input.
        conv1: filters and size of the first convolution, stride 2.
        fires: squeeze, expand 1x1 and expand 3x3 filters of each fire module, from fire2 on.
        pools: the fire modules that a 3x3 pool of stride 2 follows; conv1 always has one.
        head_size: kernel size of the head.
        batch_norm: whether body convolutions have one; upstream's, fine-tuned, have none.
        channel_order, mean, scale, resize: as in `InputContract`.
        pyramid: none, or the fire modules of a `Pyramid`, coarse to fine: it takes the body's
            output and what goes into the body's last pools, and has one head more than these, of
            YOLO's kind with `scale_xy` 2. The anchors, small to large, are shared out evenly.
        pyramid_norm: whether the pyramid's convolutions have batch norm.
    """

    hw: tuple[int, int]
    classes: tuple[str, ...]
    anchors: tuple[tuple[float, float], ...]
    conv1: tuple[int, int] = (64, 3)
    fires: tuple[Triple, ...] = _FIRES
    pools: tuple[int, ...] = (3, 5)
    head_size: int = 3
    batch_norm: bool = False
    channel_order: Literal["RGB", "BGR"] = "BGR"
    mean: tuple[float, float, float] = (103.939, 116.779, 123.68)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    resize: Literal["letterbox", "stretch"] = "stretch"
    pyramid: tuple[Triple, ...] = ()
    pyramid_norm: bool = True

    def __post_init__(self) -> None:
        widths = [filters for triple in (*self.fires, *self.pyramid) for filters in triple]
        counts = (*self.hw, *self.conv1, self.head_size, *widths)
        if not 1 <= min(counts) <= max(counts) <= _MOST or len(widths) > _MOST:
            raise ValueError(f"hw, filters and kernel sizes must be 1 to {_MOST}")
        if not all(0 < side < _MOST for wh in self.anchors for side in wh):
            raise ValueError(f"the sides of anchors must be above 0 and below {_MOST}")
        numbers = range(2, 2 + len(self.fires))
        if not self.fires or any(pool not in numbers for pool in self.pools):
            raise ValueError(f"pools {self.pools} must follow one of fire2..fire{numbers.stop - 1}")
        if not self.classes or not self.anchors or self.head_size % 2 == 0:
            raise ValueError("a SqueezeDet needs classes, anchors and an odd head_size")
        for number, name in enumerate(self.classes):
            check_class_name(name, f"classes[{number}]")
        if self.pyramid:
            self._check_pyramid()

    def _check_pyramid(self) -> None:
        levels = len(self.pyramid)
        if not 2 <= levels <= len(self.pools) + 2 or len(self.anchors) % levels:
            raise ValueError(
                f"a pyramid of {levels} levels takes {levels - 2} pools or more and anchors "
                f"that {levels} divides"
            )
        stride = 4 * 2 ** (len(self.pools) + 1)
        if any(side % stride for side in self.hw):
            raise ValueError(f"hw is {self.hw}; with this pyramid it takes multiples of {stride}")


# Upstream's kitti_squeezeDet_config: SqueezeNet 1.1's body at 1248x384.
KITTI_CONFIG = SqueezeDetConfig(
    hw=(384, 1248),
    classes=KITTI,
    anchors=(
        (36.0, 37.0),
        (366.0, 174.0),
        (115.0, 59.0),
        (162.0, 87.0),
        (38.0, 90.0),
        (258.0, 173.0),
        (224.0, 108.0),
        (78.0, 170.0),
        (72.0, 43.0),
    ),
)
# Upstream publishes no anchors for VOC; these are YOLOv2's clusters of VOC's boxes
# (yolov2-voc.cfg, cells of 32 pixels at 416x416).
VOC_CONFIG = SqueezeDetConfig(
    hw=(416, 416),
    classes=VOC,
    anchors=(
        (42.3072, 55.4064),
        (102.168, 128.30208),
        (161.78784, 259.16544),
        (303.07584, 154.89696),
        (359.5648, 320.2272),
    ),
)


def read_config(text: str | bytes, source: str) -> SqueezeDetConfig:
    """Read the JSON of a `SqueezeDetConfig`.

    Args:
        source: the file's name, for the message.

    Raises:
        ArtifactError: it is not that: an unknown or missing field, or one of another type or out
            of its range.
    """
    what = "the JSON of a SqueezeDet"
    value = parse_json(text, source, what)
    known = {field.name for field in fields(SqueezeDetConfig)}
    if isinstance(value, dict) and (unknown := sorted(set(value) - known)):
        names = ", ".join(sorted(known))
        raise ArtifactError(
            f"{source}: not {what}: it has no {plain_text(unknown[0])[:60]!r}; known: {names}"
        )
    config = decode(value, SqueezeDetConfig, source, what)
    with torch.device("meta"):
        floats = sum(parameter.numel() for parameter in SqueezeDet(config).parameters())
    if floats > MOST_FLOATS or prod(config.hw) > MOST_PIXELS:
        raise ArtifactError(
            f"{source}: its input has more than {MOST_PIXELS} pixels, or it has more than 2^29 "
            "weights; no engine can hold it"
        )
    try:
        squeezedet_spec(config, "check")
    except ValueError as error:
        raise ArtifactError(f"{source}: not {what}: {error}") from error
    return config


def version_1_0(config: SqueezeDetConfig) -> SqueezeDetConfig:
    """Return `config` with SqueezeNet 1.0's body: 96 filters of 7x7, pools after fire4, fire8."""
    return replace(config, conv1=(96, 7), pools=(4, 8))


def scaled(config: SqueezeDetConfig, width: float) -> SqueezeDetConfig:
    """Return `config` with every body width times `width`, in multiples of 8."""

    def scale(filters: int) -> int:
        return max(8, round(filters * width / 8) * 8)

    fires = tuple((scale(s), scale(a), scale(b)) for s, a, b in config.fires)
    return replace(config, conv1=(scale(config.conv1[0]), config.conv1[1]), fires=fires)


def _conv_act(channels: int, filters: int, size: int, normed: bool) -> nn.Sequential:
    """Return a convolution that keeps the size, a batch norm if `normed`, and a ReLU."""
    conv = nn.Conv2d(channels, filters, size, padding=size // 2, bias=not normed)
    return _activated(conv, normed)


def _activated(conv: nn.Conv2d, normed: bool) -> nn.Sequential:
    """Return `conv`, a batch norm if `normed` and a ReLU, named conv, norm and act."""
    modules = OrderedDict[str, nn.Module](conv=conv)
    if normed:
        modules["norm"] = nn.BatchNorm2d(conv.out_channels)
    modules["act"] = nn.ReLU()
    return nn.Sequential(modules)


class Fire(nn.Module):
    """A fire module (arXiv:1602.07360): a 1x1 squeeze, then 1x1 and 3x3 expansions in parallel."""

    def __init__(self, channels: int, widths: Triple, normed: bool = False) -> None:
        super().__init__()
        squeeze, expand1, expand3 = widths
        self.squeeze = _conv_act(channels, squeeze, 1, normed)
        self.expand1 = _conv_act(squeeze, expand1, 1, normed)
        self.expand3 = _conv_act(squeeze, expand3, 3, normed)
        self.concat = Concat()

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        squeezed = self.squeeze(tensor)
        return self.concat(self.expand1(squeezed), self.expand3(squeezed))


def same_padding(hw: tuple[int, int], size: int, stride: int) -> tuple[int, int]:
    """Return the total padding, down and across in pixels, of TensorFlow's SAME."""

    def total(side: int) -> int:
        return max((-(-side // stride) - 1) * stride + size - side, 0)

    return total(hw[0]), total(hw[1])


def _conv1(config: SqueezeDetConfig) -> nn.Sequential:
    filters, size = config.conv1
    down, across = same_padding(config.hw, size, 2)
    pads = (down // 2, across // 2, down - down // 2, across - across // 2)
    return _activated(
        PaddedConv2d(3, filters, size, 2, pads, bias=not config.batch_norm), config.batch_norm
    )


def _halved(hw: tuple[int, int]) -> tuple[int, int]:
    return -(-hw[0] // 2), -(-hw[1] // 2)


class _Merge(nn.Module):
    """A finer level: its own features and the coarser level's, reduced and enlarged."""

    def __init__(self, fine: int, coarse: int, widths: Triple, normed: bool) -> None:
        super().__init__()
        self.reduce = _conv_act(coarse, widths[1], 1, normed)
        self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")
        self.concat = Concat()
        self.fire = Fire(fine + widths[1], widths, normed)

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        return self.fire(self.concat(fine, self.enlarge(self.reduce(coarse))))


class Pyramid(nn.Module):
    """A feature pyramid of fire modules, which turns features of strides s, 2s, ... into raw heads.

    Coarse features are handed to finer levels as in arXiv:1612.03144, with concatenation in place
    of sums. It has one head for each stride and one more of twice the coarsest. Its convolutions
    have batch norm until that is folded, so it can be put on a body that has none.

    Args:
        channels: of the features, fine to coarse.
        fires: one per head, coarse to fine; the coarsest level has two such modules.
        outputs: channels of each head.
        head_size: kernel size of the heads.
        normed: batch norm behind every convolution but the heads.

    Attributes:
        head0, head1, ...: the heads, fine to coarse.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        fires: tuple[Triple, ...],
        outputs: int,
        head_size: int,
        normed: bool = True,
    ) -> None:
        super().__init__()
        widths = [expand1 + expand3 for _, expand1, expand3 in reversed(fires)]
        top = fires[0]
        self.top = nn.Sequential(
            DarknetMaxPool(3, 2, (1, 1)),
            Fire(channels[-1], top, normed),
            Fire(widths[-1], top, normed),
        )
        merges = enumerate(zip(channels, reversed(fires[1:]), strict=True))
        self.merges = nn.ModuleList(
            _Merge(fine, widths[level + 1], fire, normed) for level, (fine, fire) in merges
        )
        for level, width in enumerate(widths):
            head = nn.Conv2d(width, outputs, head_size, padding=head_size // 2)
            self.add_module(f"head{level}", head)

    def forward(self, *features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        level = len(features)
        tensor = self.top(features[-1])
        raw = [self.get_submodule(f"head{level}")(tensor)]
        for level in range(len(features) - 1, -1, -1):
            tensor = self.merges[level](features[level], tensor)
            raw.append(self.get_submodule(f"head{level}")(tensor))
        return tuple(reversed(raw))


class SqueezeDet(nn.Module):
    """The network of a config: (N, 3, H, W) to a tuple of one raw head, laid out as above.

    Convolutions and pools of stride 2 pad as TensorFlow's SAME does for `config.hw`.

    Attributes:
        config: what it was built from.
        body: conv1, pool1, fire2, fire3, pool3, ... in the order of the data.
        convdet: the head, of a config without pyramid.
        pyramid, taps: the heads of one with it, and the fire modules that feed them.
    """

    def __init__(self, config: SqueezeDetConfig) -> None:
        super().__init__()
        self.config = config
        hw = _halved(config.hw)
        modules = OrderedDict[str, nn.Module](conv1=_conv1(config))
        modules["pool1"] = DarknetMaxPool(3, 2, same_padding(hw, 3, 2))
        hw, channels = _halved(hw), config.conv1[0]
        for number, widths in enumerate(config.fires, start=2):
            modules[f"fire{number}"] = Fire(channels, widths, config.batch_norm)
            channels = widths[1] + widths[2]
            if number in config.pools:
                modules[f"pool{number}"] = DarknetMaxPool(3, 2, same_padding(hw, 3, 2))
                hw = _halved(hw)
        self.body = nn.Sequential(modules)
        outputs = len(config.anchors) * (5 + len(config.classes))
        if config.pyramid:
            self.taps = _taps(config)
            fires = [config.fires[int(tap[4:]) - 2] for tap in self.taps]
            levels, size = len(config.pyramid), config.head_size
            self.pyramid = Pyramid(
                tuple(a + b for _, a, b in fires),
                config.pyramid,
                outputs // levels,
                size,
                config.pyramid_norm,
            )
        else:
            size = config.head_size
            self.convdet = nn.Conv2d(channels, outputs, size, padding=size // 2)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not self.config.pyramid:
            return (self.convdet(self.body(images)),)
        features, tensor = [], images
        for name, module in self.body.named_children():
            tensor = module(tensor)
            if name in self.taps:
                features.append(tensor)
        raw: tuple[torch.Tensor, ...] = self.pyramid(*features)
        return raw


def _taps(config: SqueezeDetConfig) -> tuple[str, ...]:
    """The fire modules whose outputs the pyramid takes, fine to coarse."""
    count = len(config.pyramid) - 2
    pooled = sorted(config.pools)[len(config.pools) - count :]
    return tuple(f"fire{number}" for number in (*pooled, len(config.fires) + 1))


def squeezedet_spec(config: SqueezeDetConfig, name: str) -> ModelSpec:
    """Return what the detector is; by default frames are stretched, as upstream does it."""
    contract = InputContract(
        hw=config.hw,
        resize=config.resize,
        channel_order=config.channel_order,
        mean=config.mean,
        scale=config.scale,
    )
    return ModelSpec(as_name(name), "squeezedet", config.classes, contract, _heads(config))


def _heads(config: SqueezeDetConfig) -> tuple[HeadSpec, ...]:
    grid = _halved(config.hw)
    for _ in range(1 + len(config.pools)):
        grid = _halved(grid)
    if not config.pyramid:
        return (
            HeadSpec.of_grid(
                "convdet", "convdet", grid, config.anchors, class_activation="softmax"
            ),
        )
    levels = len(config.pyramid)
    each = len(config.anchors) // levels
    heads = []
    for level in range(levels):
        factor = 2.0 ** (levels - 2 - level)
        hw = (int(grid[0] * factor), int(grid[1] * factor))
        anchors = config.anchors[level * each : (level + 1) * each]
        heads.append(HeadSpec.of_grid(f"pyramid.head{level}", "yolo", hw, anchors, scale_xy=2.0))
    return tuple(heads)
