"""What a detector is, apart from its weights: classes, input contract, heads, provenance.

All types are frozen, hashable and hold no arrays; `to_json`/`from_json` go both ways without loss.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import inf, isfinite, prod
from typing import Any, Literal, TypeVar

from edge.decoding import decode, decode_json, parse_json
from edge.errors import ArtifactError
from edge.files import check_name, plain_text

__all__ = [
    "PRECISIONS",
    "BoxCoding",
    "Columns",
    "HeadSpec",
    "InputContract",
    "Layout",
    "Level",
    "Manifest",
    "ModelSpec",
    "ScoreCoding",
    "TensorSpec",
]

Precision = Literal["fp32", "fp16", "int8", "mixed"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "mixed")
# 1 had the heads of Darknet and SqueezeDet alone, as the arguments of `HeadSpec.of_grid`.
_WHAT = "a manifest of edge"
SCHEMA = 2
# Of a network's input: 4096x4096, which takes 200 MB as float32.
MOST_PIXELS = 1 << 24
Kind = TypeVar("Kind")


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; known: {', '.join(allowed)}")


@dataclass(frozen=True)
class InputContract:
    """How a BGR uint8 frame becomes the network's NCHW float tensor; the only description of it.

    A pixel `p` (0..255, in `channel_order`) becomes `(p - mean) * scale` after the resize.

    Attributes:
        hw: height and width of the network's input, pixels.
        resize: `letterbox` keeps the aspect ratio and pads (pjreddie's Darknet), `stretch` does not
            (AlexeyAB's Darknet, SqueezeDet).
        placement: where a letterbox puts the picture: in the `centre`, or `top left` with all
            padding right and below.
        rounding: of a letterbox's size to whole pixels: `down` (Darknet, YOLOX) or `nearest`
            (ultralytics).
        scaling: how boxes of a letterbox go between picture and input: by the resized size of
            each of its `sides` (Darknet), or by the one `ratio` before rounding, as networks whose
            labels were scaled so in training want it (YOLOX, ultralytics).
        interpolation: `bilinear`, sampled at pixel centres (OpenCV's INTER_LINEAR).
        pad_value: grey level 0..255 of the letterbox's border.
        channel_order: order of the tensor's channels.
        mean, scale: per channel, in `channel_order`.
    """

    hw: tuple[int, int]
    resize: Literal["letterbox", "stretch"] = "letterbox"
    interpolation: Literal["bilinear"] = "bilinear"
    pad_value: int = 128
    channel_order: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: tuple[float, float, float] = (1 / 255, 1 / 255, 1 / 255)
    placement: Literal["centre", "top left"] = "centre"
    rounding: Literal["down", "nearest"] = "down"
    scaling: Literal["sides", "ratio"] = "sides"

    def __post_init__(self) -> None:
        if len(self.hw) != 2 or min(self.hw) < 1 or prod(self.hw) > MOST_PIXELS:
            raise ValueError(
                f"hw is {self.hw}; it takes two positive numbers of pixels, {MOST_PIXELS} in all"
            )
        _one_of("resize", self.resize, ("letterbox", "stretch"))
        _one_of("interpolation", self.interpolation, ("bilinear",))
        _one_of("placement", self.placement, ("centre", "top left"))
        _one_of("rounding", self.rounding, ("down", "nearest"))
        _one_of("scaling", self.scaling, ("sides", "ratio"))
        _one_of("channel_order", self.channel_order, ("RGB", "BGR"))
        if not 0 <= self.pad_value <= 255:
            raise ValueError(f"pad_value is {self.pad_value}; it takes a grey level 0..255")
        if len(self.mean) != 3 or len(self.scale) != 3:
            raise ValueError("mean and scale take one number for each of the three channels")
        for name in ("mean", "scale"):  # 0 and 0.0 are one number and must give one digest
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if not all(map(isfinite, (*self.mean, *self.scale))) or 0 in self.scale:
            raise ValueError(f"mean {self.mean} and scale {self.scale} take finite numbers, not 0")

    @property
    def digest(self) -> str:
        """sha256 over the fields: two paths that pre-process alike have the same digest.

        Fields that came later count only where they are not at their defaults, so that contracts
        without them keep the digest of old tables and artifacts.
        """
        values = asdict(self)
        for name in ("placement", "rounding", "scaling"):
            if values[name] == getattr(InputContract, name):
                del values[name]
        return hashlib.sha256(_canonical(values).encode()).hexdigest()


Holds = Literal["box", "objectness", "classes", "label", "other"]
HOLDS: tuple[Holds, ...] = ("box", "objectness", "classes", "label", "other")


@dataclass(frozen=True)
class Columns:
    """What one output tensor holds for a candidate, in the order of its columns.

    Attributes:
        tensor: name of the graph's output.
        holds: `box`, `objectness`, `classes`, `label` (the number of the class), and `other`, one
            column that decoding does not read. Columns behind the last are not read either.
    """

    tensor: str
    holds: tuple[Holds, ...]

    def __post_init__(self) -> None:
        if not self.holds:
            raise ValueError(f"tensor {self.tensor} holds nothing that decoding reads")
        for kind in self.holds:
            _one_of("holds", kind, HOLDS)


@dataclass(frozen=True)
class Layout:
    """Where a candidate's numbers lie: a head's first part.

    Each tensor is looked at as a table of candidates by columns, whatever its dimensions.

    Attributes:
        tensors: the outputs that the head reads, in the order of the graph's outputs.
        axis: whether the candidates come `first` (rows, maps with channels last) or `last` (maps
            with channels first, columns by candidates).
        anchors: where the anchors of one cell lie. Among the candidates: `outer` has all cells of
            the first anchor, then of the next; `inner` has all anchors of the first cell. Among
            the columns: `blocks` has all columns of the first anchor, then of the next; `kinds`
            has, say, the boxes of all anchors, then their objectness.
        shared_classes: the anchors of a cell have one set of classes.
        rows: number of candidates where the box coding has no levels, else 0.
        suppressed: the graph suppresses overlapping boxes itself, or was trained not to need it.
    """

    tensors: tuple[Columns, ...]
    axis: Literal["first", "last"] = "last"
    anchors: Literal["outer", "inner", "blocks", "kinds"] = "blocks"
    shared_classes: bool = False
    rows: int = 0
    suppressed: bool = False

    def __post_init__(self) -> None:
        _one_of("axis", self.axis, ("first", "last"))
        _one_of("anchors", self.anchors, ("outer", "inner", "blocks", "kinds"))
        held = [kind for tensor in self.tensors for kind in tensor.holds if kind != "other"]
        if len(held) != len(set(held)):
            raise ValueError(f"a head has each kind of columns once, not {held}")
        if "box" not in held or not {"objectness", "classes"} & set(held):
            raise ValueError(f"a head needs boxes and scores; its tensors hold {held}")

    @property
    def held(self) -> frozenset[str]:
        """The kinds of columns that it reads."""
        return frozenset(kind for tensor in self.tensors for kind in tensor.holds)


@dataclass(frozen=True)
class Level:
    """A grid of cells with its anchors; candidates of several levels follow one another.

    Attributes:
        grid_hw: cells down and across.
        anchors: (width, height) of each of a cell's anchors (or priors), pixels of the input. A
            head without anchors has one, of which only the number counts where sizes are distances.
        stride: pixels from cell to cell; None divides the input among the cells.
    """

    grid_hw: tuple[int, int]
    anchors: tuple[tuple[float, float], ...]
    stride: float | None = None

    def __post_init__(self) -> None:
        if len(self.grid_hw) != 2 or min(self.grid_hw) < 1:
            raise ValueError(f"grid_hw is {self.grid_hw}; it takes two positive numbers of cells")
        if not self.anchors:
            raise ValueError(f"a level of {self.grid_hw} cells has no anchors")
        for anchor in self.anchors:
            if len(anchor) != 2 or not all(0 < side < inf for side in anchor):
                raise ValueError(f"anchor {anchor} is no width and height")
        if self.stride is not None and not 0 < self.stride < inf:
            raise ValueError(f"stride is {self.stride}; it takes a positive number of pixels")

    @property
    def candidates(self) -> int:
        """Cells times anchors."""
        return self.grid_hw[0] * self.grid_hw[1] * len(self.anchors)


@dataclass(frozen=True)
class BoxCoding:
    """What the numbers of a box mean: a head's second part.

    With `g` the cell's column or row, `t` the raw number and `a` the anchor's side:

    - `grid`: the centre is `(g + shift + stretch * act(t) - (stretch - 1) / 2)` cells, the size
      `a * f(t)` with `f` by `size`, or `a * (2 f(t))**2` where `squared`. YOLOv2 to v7, YOLOX.
    - `priors`: the centre is `(g + shift) cells + variances[0] * a * t`, the size
      `a * exp(variances[1] * t)`. SSD (arXiv:1512.02325), SqueezeDet (arXiv:1612.01051).
    - `distances`: from `(g + shift)` cells to the left, top, right and bottom side, in `unit`. With
      `bins` each is the mean of a distribution over 0 .. bins - 1 (arXiv:2006.04388). FCOS, GFL.
    - `corners` and `centre`: x1 y1 x2 y2, or centre and size, in `unit`.

    Attributes:
        form: which of these.
        levels: the grids, in the order of the candidates; `corners` and `centre` need none.
        activation: of the centre's numbers in a `grid`.
        stretch: YOLOv4's `scale_x_y`; 1 leaves the activation as it is.
        shift: where in its cell a centre lies when its number is 0, in cells.
        margin: cells by which a grid is taken to be larger when the input is divided among them.
        size: what turns the numbers of a `grid`'s size into factors of the anchor.
        squared: whether the size is `(2 f)**2` anchors, as in YOLOv5.
        variances: of the centre and of the size, of `priors`.
        clip_priors: whether `priors` are clipped to the picture.
        clip_boxes: whether boxes are, as TensorFlow's SSD does before it suppresses them.
        bins: of the distributions; 0 where the numbers are the distances.
        unit: `cells`, `pixels` of the input, or `input`: 0..1 of its sides.
        order: `xy` or `yx`, of centres, sizes and corners.
    """

    form: Literal["grid", "priors", "distances", "corners", "centre"]
    levels: tuple[Level, ...] = ()
    activation: Literal["sigmoid", "tanh", "none"] = "none"
    stretch: float = 1.0
    shift: float = 0.0
    margin: int = 0
    size: Literal["exp", "sigmoid", "none"] = "exp"
    squared: bool = False
    variances: tuple[float, float] = (1.0, 1.0)
    clip_priors: bool = False
    clip_boxes: bool = False
    bins: int = 0
    unit: Literal["cells", "pixels", "input"] = "pixels"
    order: Literal["xy", "yx"] = "xy"

    def __post_init__(self) -> None:
        _one_of("form", self.form, ("grid", "priors", "distances", "corners", "centre"))
        _one_of("activation", self.activation, ("sigmoid", "tanh", "none"))
        _one_of("size", self.size, ("exp", "sigmoid", "none"))
        _one_of("unit", self.unit, ("cells", "pixels", "input"))
        _one_of("order", self.order, ("xy", "yx"))
        if self.form in ("grid", "priors", "distances") and not self.levels:
            raise ValueError(f"a box coding of form {self.form} needs the levels of its grid")
        if self.form in ("corners", "centre") and self.unit == "cells":
            raise ValueError(f"a box coding of form {self.form} has no cells to measure in")
        if not 0 < self.stretch < inf or not all(0 < value < inf for value in self.variances):
            raise ValueError(
                f"stretch {self.stretch} and variances {self.variances} take positive numbers"
            )
        if not isfinite(self.shift) or self.margin < 0:
            raise ValueError(f"shift is {self.shift} and margin {self.margin} cells")
        distances = self.form == "distances"
        if not 0 <= self.bins <= 1024 or self.bins == 1 or (self.bins and not distances):
            raise ValueError(f"bins is {self.bins}; distances take 0, or 2 and more")


@dataclass(frozen=True)
class ScoreCoding:
    """What the numbers of objectness and classes mean: a head's third part.

    A candidate's score is `objectness ** powers[0] * probability ** powers[1]` of its best class;
    what its columns do not hold counts as 1.

    Attributes:
        classes, objectness: what turns the raw numbers into probabilities; `none` where the graph
            does.
        powers: FastestDet and YuNet take roots of the two.
        background: where a column that is no class lies among those of the classes.
        first_label: the label of the first class, where the tensors hold labels.
        exclusive: whether boxes suppress each other whatever their classes.
    """

    classes: Literal["sigmoid", "softmax", "none"] = "sigmoid"
    objectness: Literal["sigmoid", "none"] = "sigmoid"
    powers: tuple[float, float] = (1.0, 1.0)
    background: Literal["first", "last"] | None = None
    first_label: int = 0
    exclusive: bool = False

    def __post_init__(self) -> None:
        _one_of("classes", self.classes, ("sigmoid", "softmax", "none"))
        _one_of("objectness", self.objectness, ("sigmoid", "none"))
        if self.background is not None:
            _one_of("background", self.background, ("first", "last"))
        if not all(0 < power < inf for power in self.powers):
            raise ValueError(f"powers are {self.powers}; they take two positive numbers")


@dataclass(frozen=True)
class HeadSpec:
    """All that decoding one group of raw outputs needs, in three independent parts.

    Attributes:
        layout: where a candidate's numbers lie.
        box: what the numbers of its box mean.
        score: what the numbers of its objectness and classes mean.
    """

    layout: Layout
    box: BoxCoding
    score: ScoreCoding = ScoreCoding()

    def __post_init__(self) -> None:
        among_columns = self.layout.anchors in ("blocks", "kinds")
        if among_columns and len(self.box.levels) > 1:
            raise ValueError(f"{self.tensor}: several levels take their anchors among the rows")
        if bool(self.box.levels) == bool(self.layout.rows):
            raise ValueError(f"{self.tensor}: its candidates are counted by levels, or by rows")

    @staticmethod
    def of_grid(
        tensor: str,
        kind: Literal["region", "yolo", "convdet"],
        grid_hw: tuple[int, int],
        anchors: tuple[tuple[float, float], ...],
        class_activation: Literal["softmax", "sigmoid", "linear"] = "sigmoid",
        scale_xy: float = 1.0,
    ) -> HeadSpec:
        """The head of Darknet (`region`, `yolo`) or of SqueezeDet (`convdet`) in one output.

        Args:
            tensor: (N, anchors * (5 + classes), *grid_hw).
            kind: `region` (YOLOv2, arXiv:1612.08242) and `yolo` (YOLOv3, arXiv:1804.02767) are
                decoded alike; `convdet` (arXiv:1612.01051) has all class logits, all confidences,
                all deltas, and spreads its anchors over W / (columns + 1) steps.
            class_activation: what turns class logits into probabilities.
            scale_xy: YOLOv4's `scale_x_y`.
        """
        _one_of("kind", kind, ("region", "yolo", "convdet"))
        _one_of("class_activation", class_activation, ("softmax", "sigmoid", "linear"))
        classes: Any = "none" if class_activation == "linear" else class_activation
        level = (Level(grid_hw, anchors),)
        if kind == "convdet":
            layout = Layout((Columns(tensor, ("classes", "objectness", "box")),), anchors="kinds")
            return HeadSpec(
                layout, BoxCoding("priors", level, shift=1.0, margin=1), ScoreCoding(classes)
            )
        layout = Layout((Columns(tensor, ("box", "objectness", "classes")),))
        box = BoxCoding("grid", level, activation="sigmoid", stretch=scale_xy)
        return HeadSpec(layout, box, ScoreCoding(classes))

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the outputs that it reads."""
        return tuple(tensor.tensor for tensor in self.layout.tensors)

    @property
    def tensor(self) -> str:
        """Name of the first output that it reads; heads of our own networks have only that."""
        return self.layout.tensors[0].tensor

    @property
    def kind(self) -> Literal["region", "yolo", "convdet", "foreign"]:
        """What `of_grid` was asked for, which the trainer knows; else `foreign`.

        A `region` without softmax is a `yolo`: the two are decoded alike.
        """
        for level in self.box.levels[:1]:
            grid = (level.grid_hw, level.anchors)
            own = HeadSpec.of_grid(self.tensor, "yolo", *grid)
            if self.layout == own.layout and self.box == replace(own.box, stretch=self.scale_xy):
                return "region" if self.score.classes == "softmax" else "yolo"
            own = HeadSpec.of_grid(self.tensor, "convdet", *grid)
            if self.layout == own.layout and self.box == own.box:
                return "convdet"
        return "foreign"

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Cells down and across of its only level."""
        return self.box.levels[0].grid_hw

    @property
    def anchors(self) -> tuple[tuple[float, float], ...]:
        """Anchors of its only level."""
        return self.box.levels[0].anchors

    @property
    def class_activation(self) -> str:
        """What turns class logits into probabilities."""
        return self.score.classes

    @property
    def scale_xy(self) -> float:
        """YOLOv4's `scale_x_y`."""
        return self.box.stretch

    def at_grid(self, grid_hw: tuple[int, int]) -> HeadSpec:
        """The same head on another number of cells: of an input of another size."""
        levels = (replace(self.box.levels[0], grid_hw=grid_hw),)
        return replace(self, box=replace(self.box, levels=levels))

    @property
    def candidates(self) -> int:
        """Boxes that it can give."""
        return self.layout.rows or sum(level.candidates for level in self.box.levels)

    @property
    def side_by_side(self) -> int:
        """Anchors of a cell that lie among the columns; 1 where they are candidates of their own.

        `candidates / side_by_side` is the length of the tensors' candidate axis.
        """
        own = self.layout.anchors in ("blocks", "kinds") and self.box.levels
        return len(self.box.levels[0].anchors) if own else 1

    def width(self, kind: Holds, classes: int) -> int:
        """Columns of one kind for one candidate."""
        labelled = "label" in self.layout.held
        each = 1 if labelled else classes + (self.score.background is not None)
        return {"box": 4 * max(1, self.box.bins), "classes": each}.get(kind, 1)

    def columns(self, tensor: Columns, classes: int) -> int:
        """Columns of one tensor that are counted for, over all anchors among them."""
        total = 0
        for kind in tensor.holds:
            shared = kind == "classes" and self.layout.shared_classes
            total += self.width(kind, classes) * (1 if shared else self.side_by_side)
        return total

    def channels(self, classes: int) -> int:
        """Channels of the raw output of a head that reads one map."""
        return self.columns(self.layout.tensors[0], classes)

    def misfit(self, tensor: str, shape: tuple[int, ...], classes: int) -> str:
        """Why an output of `shape` is not the one that the head reads, or "".

        Args:
            shape: with the batch.
        """
        (mine,) = (each for each in self.layout.tensors if each.tensor == tensor)
        rows, needed = self.candidates // self.side_by_side, self.columns(mine, classes)
        if self.kind != "foreign" and shape[1:] != (needed, *self.grid_hw):
            return f"{tensor} {(needed, *self.grid_hw)}"
        batch = shape[0] if len(shape) > 2 and shape[0] > 0 else 1
        found, over = divmod(prod(shape) // batch, rows)
        if over or found < needed or (found > needed and self.side_by_side > 1):
            return f"{tensor} with {rows} candidates of {needed} columns"
        return ""


@dataclass(frozen=True)
class ModelSpec:
    """A detector without its weights.

    Attributes:
        name: file stem of its artifacts.
        family: `darknet`, `squeezedet`, or what an imported detector was recognised as.
        classes: names, in the order of the network's class indices.
        contract: how frames become its input.
        heads: what reads its raw outputs, in the order of the graph's outputs.
    """

    name: str
    family: str
    classes: tuple[str, ...]
    contract: InputContract
    heads: tuple[HeadSpec, ...]

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        if not self.classes or not self.heads:
            raise ValueError(f"model {self.name} needs at least one class and one head")
        for text in (self.family, *self.classes):
            if text != plain_text(text):
                raise ValueError(f"{plain_text(text)[:60]!r} holds control characters")

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the raw outputs, in the order of the graph's outputs."""
        return tuple(tensor for head in self.heads for tensor in head.tensors)


@dataclass(frozen=True)
class TensorSpec:
    """One binding of the graph: its name, shape and numpy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if len(self.shape) > 8 or any(not 0 <= side < 2**31 for side in self.shape):
            raise ValueError(f"the shape of {self.name} is {self.shape}")


@dataclass(frozen=True)
class Manifest:
    """Where an artifact comes from; kept in the ONNX metadata and in `<engine>.json`.

    Attributes:
        spec: the detector.
        precision: of the graph's convolutions.
        inputs, outputs: the graph's bindings.
        sha256: of the artifact's own bytes; empty inside an ONNX file, which cannot hold its own.
        parent_sha256: of the file it was made from; empty for the first of a chain.
        made_by: versions of the tools, by name.
        arguments: options that shaped the artifact, by name; JSON text values.
        labels: facts that every report must repeat, such as `random weights`.
    """

    spec: ModelSpec
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sha256: str = ""
    parent_sha256: str = ""
    made_by: tuple[tuple[str, str], ...] = ()
    arguments: tuple[tuple[str, str], ...] = ()
    labels: tuple[str, ...] = ()
    schema: int = field(default=SCHEMA)

    def __post_init__(self) -> None:
        _one_of("precision", self.precision, PRECISIONS)
        for name in ("score", "iou"):
            value = self.argument(name, float)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it lies between 0 and 1")

    def argument(self, name: str, kind: type[Kind]) -> Kind | None:
        """Return the value of an argument; None where there is none of that name.

        Raises:
            ArtifactError: it is not of this kind.
        """
        text = dict(self.arguments).get(name)
        if text is None:
            return None
        return decode_json(text, kind, f"the manifest of {self.spec.name}", f"its argument {name}")

    @property
    def score(self) -> float | None:
        """The score threshold that was fitted to this artifact, where one was."""
        return self.argument("score", float)

    @property
    def iou(self) -> float | None:
        """The IoU above which boxes are suppressed that the network was made for, where known."""
        return self.argument("iou", float)

    @property
    def quantized_elsewhere(self) -> bool:
        """Whether its Q/DQ nodes were in an imported graph already."""
        return dict(self.arguments).get("quantized_elsewhere") == "true"

    def misfit(self) -> str:
        """What its heads read that its outputs are not, or "" where they tell one story."""
        classes, spec = len(self.spec.classes), self.spec
        if spec.tensors != tuple(tensor.name for tensor in self.outputs):
            return f"{list(spec.tensors)}"
        shapes = {tensor.name: tensor.shape for tensor in self.outputs}
        return "; ".join(
            wrong
            for head in spec.heads
            for tensor in head.tensors
            if (wrong := head.misfit(tensor, shapes[tensor], classes))
        )

    def to_json(self, indent: int | None = None) -> str:
        """The manifest as JSON text."""
        return json.dumps(asdict(self), indent=indent)

    @staticmethod
    def from_json(text: str | bytes, source: str = "manifest") -> Manifest:
        """Read what `to_json` wrote; unknown keys are ignored, so newer writers stay readable.

        Raises:
            ArtifactError: `text` is not JSON, or misses or mistypes a field; names `source`.
        """
        return Manifest.from_plain(parse_json(text, source, _WHAT), source)

    @staticmethod
    def from_plain(data: Any, source: str) -> Manifest:
        """Decode the parsed JSON of `to_json`.

        Raises:
            ArtifactError: as `from_json`.
        """
        what = _WHAT
        found = data.get("schema", 0) if isinstance(data, dict) else 0
        if isinstance(found, int) and found > SCHEMA:
            raise ArtifactError(
                f"{source}: not {what}: schema {found} is newer than {SCHEMA}, which this reads; "
                "update edge"
            )
        data = _of_today(data, source, what)
        return decode(data, Manifest, source, what)


@dataclass(frozen=True)
class _OldHead:
    """A head as manifests of schema 1 have it: the arguments of `HeadSpec.of_grid`."""

    tensor: str
    kind: Literal["region", "yolo", "convdet"]
    grid_hw: tuple[int, int]
    anchors: tuple[tuple[float, float], ...]
    class_activation: Literal["softmax", "sigmoid", "linear"] = "sigmoid"
    scale_xy: float = 1.0
    head: HeadSpec = field(init=False)

    def __post_init__(self) -> None:
        made = HeadSpec.of_grid(
            self.tensor,
            self.kind,
            self.grid_hw,
            self.anchors,
            self.class_activation,
            self.scale_xy,
        )
        object.__setattr__(self, "head", made)


def _of_today(data: Any, source: str, what: str) -> Any:
    """Parsed JSON of any schema with its heads as of today."""
    spec = data.get("spec") if isinstance(data, Mapping) else None
    heads = spec.get("heads") if isinstance(spec, Mapping) else None
    if not isinstance(heads, list):
        return data
    known: list[Any] = []
    for head in heads:
        if isinstance(head, Mapping) and not {"layout", "box", "score"} & head.keys():
            old = decode(head, _OldHead, source, what)
            head = json.loads(json.dumps(asdict(old.head)))
        known.append(head)
    return {**data, "spec": {**data["spec"], "heads": known}}
