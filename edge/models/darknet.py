"""A Darknet cfg as a torch module whose outputs are the raw heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from edge.errors import ArtifactError
from edge.files import as_name, plain_text
from edge.models.class_names import class_names
from edge.models.darknet_cfg import DarknetCfg, Section, read_cfg
from edge.models.darknet_layers import MOST_FLOATS, Layer, Shape, build_layer
from edge.models.darknet_weights import check_length, load_weights
from edge.models.initialise import initialise
from edge.names import read_names
from edge.spec import HeadSpec, InputContract, ModelSpec

__all__ = ["Darknet", "build_darknet", "load_darknet"]

Resize = Literal["letterbox", "stretch"]
# No box in pixels or cells is larger.
_MOST_ANCHOR = 1_000_000
# YOLOv4 has up to 2.
_MOST_STRETCH = 10


@dataclass(frozen=True)
class _Head:
    """A `[yolo]` or `[region]` section, the layer it reads and that layer's tensor and shape."""

    section: Section
    source: int
    tensor: str
    shape: Shape


class Darknet(nn.Module):
    """The network of a cfg; layer N of the cfg is `layers.N`.

    `forward` takes (N, 3, H, W) float32 and returns one (N, anchors*(5+classes), h, w) tensor for
    each `[yolo]` or `[region]`, in cfg order: the raw output of the layer before it.

    Attributes:
        cfg: what it was built from.
        layers: modules by layer number; layers that only pass their input on have none.
        classes: number of classes.

    Raises:
        ArtifactError: the cfg cannot be built; cfg, line and layer are named.
    """

    def __init__(self, cfg: DarknetCfg) -> None:
        super().__init__()
        self.cfg = cfg
        picture = _picture(cfg)
        wiring = _build(cfg, picture)
        self.layers = nn.ModuleDict(
            {str(i): layer.module for i, layer in enumerate(wiring) if layer.module is not None}
        )
        self._sources = tuple(layer.sources for layer in wiring)
        self._heads = _heads(cfg, wiring)
        self._done = _last_uses(self._sources, {head.source for head in self._heads})
        self.classes = self._heads[0].section.positive("classes")
        self._contract_hw = picture[1:]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = {-1: images}
        for index, sources in enumerate(self._sources):
            inputs = [values[source] for source in sources]
            key = str(index)
            values[index] = self.layers[key](*inputs) if key in self.layers else inputs[0]
            for source in self._done[index]:
                del values[source]
        return tuple(values[head.source] for head in self._heads)

    @property
    def input_hw(self) -> tuple[int, int]:
        """Height and width of the input, pixels."""
        return self._contract_hw

    @property
    def head_sections(self) -> tuple[str, ...]:
        """The type of each head's section: `yolo` or `region`."""
        return tuple(head.section.type for head in self._heads)

    def spec(self, name: str, classes: Sequence[str], resize: Resize = "letterbox") -> ModelSpec:
        """Return what the detector is; head tensors are named after the module that yields them.

        Raises:
            ArtifactError: `classes` are not as many as the cfg says, or a size makes no sense.
        """
        if len(classes) != self.classes:
            raise ArtifactError(
                f"{self.cfg.source}: the cfg has {self.classes} classes and {len(classes)} names "
                "are given; pass the .names file it was trained with"
            )
        try:
            contract = InputContract(hw=self._contract_hw, resize=resize, pad_value=128)
            heads = tuple(_head_spec(head, self._contract_hw) for head in self._heads)
            return ModelSpec(as_name(name), "darknet", tuple(classes), contract, heads)
        except ValueError as error:
            raise ArtifactError(f"{self.cfg.source}: {error}") from error


def load_darknet(
    cfg: str | Path,
    weights: str | Path | None = None,
    names: str | Path | None = None,
    resize: Resize = "letterbox",
    seed: int = 0,
) -> tuple[Darknet, ModelSpec]:
    """Return a network, in eval mode, and its spec; without weights, random ones from `seed`.

    Without a names file, 80 classes are COCO's and 20 are VOC's.

    Raises:
        ArtifactError: a file is missing or damaged, or the files do not belong together.
    """
    parsed = read_cfg(Path(cfg))
    model = build_darknet(parsed, None if weights is None else Path(weights))
    labels = read_names(Path(names)) if names is not None else class_names(model.classes)
    spec = model.spec(Path(cfg).stem, labels, resize)
    if weights is None:
        initialise(model, spec, seed)
    return model.eval(), spec


def build_darknet(cfg: DarknetCfg, weights: Path | None) -> Darknet:
    """Return the network of a cfg with the weights of a file; None leaves them to the caller.

    The size of the network is checked, and compared with the file, before any memory is taken.

    Raises:
        ArtifactError: the cfg cannot be built, or the weights do not belong to it.
    """
    with torch.device("meta"):
        outline = Darknet(cfg)
    if weights is not None:
        check_length(outline, weights)
    model = Darknet(cfg)
    if weights is not None:
        load_weights(model, weights)
    return model


def _picture(cfg: DarknetCfg) -> Shape:
    channels = cfg.net.integer("channels", 3)
    if channels != 3:
        raise cfg.net.error(f"channels={channels}; only colour pictures are supported")
    return channels, cfg.net.positive("height"), cfg.net.positive("width")


def _build(cfg: DarknetCfg, picture: Shape) -> list[Layer]:
    wiring: list[Layer] = []
    floats = 0
    for section, after in zip(cfg.layers, (*cfg.layers[1:], None), strict=True):
        head = after if after is not None and _has_new_coords(after) else None
        layer = build_layer(section, [layer.shape for layer in wiring], picture, head)
        if layer.module is not None:
            floats += sum(tensor.numel() for tensor in layer.module.parameters())
        if floats > MOST_FLOATS:
            raise section.error("the weights up to here are more than the 2^29 that are possible")
        wiring.append(layer)
    return wiring


def _has_new_coords(section: Section) -> bool:
    value = section.integer("new_coords", 0) if section.type == "yolo" else 0
    if value not in (0, 1):
        raise section.error(f"new_coords={value} is neither 0 nor 1")
    return bool(value)


def _heads(cfg: DarknetCfg, wiring: list[Layer]) -> tuple[_Head, ...]:
    heads = [_head(section, wiring) for section in cfg.layers if section.type in ("region", "yolo")]
    if not heads:
        raise ArtifactError(f"{cfg.source}: no [region] and no [yolo], so not a detector")
    for head in heads[1:]:
        if head.section.positive("classes") != heads[0].section.positive("classes"):
            raise head.section.error("classes differ between the heads")
    return tuple(heads)


def _head(section: Section, wiring: list[Layer]) -> _Head:
    source = section.index - 1
    while source >= 0 and wiring[source].module is None:
        source = wiring[source].sources[0]
    if source < 0:
        raise section.error("a head needs a layer before it")
    head = _Head(section, source, f"layers.{source}.{wiring[source].leaf}", wiring[source].shape)
    if _has_new_coords(section):
        others = [layer for index, layer in enumerate(wiring) if index != section.index]
        if any({source, section.index} & set(layer.sources) for layer in others):
            raise section.error("new_coords=1: another layer reads its convolution too")
    wanted = len(_anchors(head, (1, 1))) * (5 + section.positive("classes"))
    if head.shape[0] != wanted:
        raise section.error(
            f"its anchors and classes take {wanted} channels and the layer before it "
            f"gives {head.shape[0]}"
        )
    return head


def _last_uses(sources: tuple[tuple[int, ...], ...], kept: set[int]) -> tuple[tuple[int, ...], ...]:
    """Return for each layer the values that no later one needs."""
    last = {source: index for index, used in enumerate(sources) for source in used}
    done: list[list[int]] = [[] for _ in sources]
    for source, index in last.items():
        if source not in kept:
            done[index].append(source)
    return tuple(tuple(group) for group in done)


def _anchors(head: _Head, stride_wh: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """Return (width, height) of each in pixels; `[region]` has cells, times `stride_wh`."""
    section = head.section
    numbers = section.numbers("anchors")
    number = section.positive("num", 1)
    if len(numbers) != 2 * number:
        raise section.error(f"num={number} takes {2 * number} anchor numbers, not {len(numbers)}")
    if min(numbers) <= 0 or max(numbers) > _MOST_ANCHOR:
        text = plain_text(section.text("anchors"))[:60]
        raise section.error(f"anchors={text}: a size must be above 0 and at most {_MOST_ANCHOR}")
    pairs = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    if section.type == "region":
        return tuple((w * stride_wh[0], h * stride_wh[1]) for w, h in pairs)
    mask = section.integers("mask") if "mask" in section.options else tuple(range(number))
    if any(not 0 <= index < number for index in mask) or not mask:
        raise section.error(f"mask={section.text('mask')} does not fit num={number}")
    return tuple(pairs[index] for index in mask)


def _head_spec(head: _Head, hw: tuple[int, int]) -> HeadSpec:
    section, (_, rows, columns) = head.section, head.shape
    region = section.type == "region"
    if region:
        _refuse_odd_regions(section)
    softmax = region and section.integer("softmax", 0)
    stretch = 1.0 if region else section.number("scale_x_y", 1.0)
    if not 0 < stretch <= _MOST_STRETCH:
        raise section.error(f"scale_x_y={stretch:g} must be above 0 and at most {_MOST_STRETCH}")
    return HeadSpec.of_grid(
        tensor=head.tensor,
        kind="region" if region else "yolo",
        grid_hw=(rows, columns),
        anchors=_anchors(head, (hw[1] / columns, hw[0] / rows)),
        class_activation="softmax" if softmax else "sigmoid",
        scale_xy=stretch,
    )


def _refuse_odd_regions(section: Section) -> None:
    for key, usual in (("coords", "4"), ("background", "0"), ("softmax_tree", "0")):
        if section.options.get(key, usual) != usual:
            raise section.error(f"{key}={section.options[key]} is not supported")
    if section.options.get("tree"):
        raise section.error("tree (YOLO9000) is not supported")
