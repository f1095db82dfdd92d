"""What a detector is, apart from its weights: classes, input contract, heads, provenance.

All types are frozen, hashable and hold no arrays; `to_json`/`from_json` go both ways without loss.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Literal

from edge.decoding import decode, parse_json
from edge.errors import ArtifactError

__all__ = ["PRECISIONS", "HeadSpec", "InputContract", "Manifest", "ModelSpec", "TensorSpec"]

Precision = Literal["fp32", "fp16", "int8", "mixed"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "mixed")
SCHEMA = 1


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
        resize: `letterbox` keeps the aspect ratio and pads both sides alike (pjreddie's Darknet),
            `stretch` does not (AlexeyAB's Darknet, SqueezeDet).
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

    def __post_init__(self) -> None:
        if len(self.hw) != 2 or min(self.hw) < 1:
            raise ValueError(f"hw is {self.hw}; it takes two positive numbers of pixels")
        _one_of("resize", self.resize, ("letterbox", "stretch"))
        _one_of("interpolation", self.interpolation, ("bilinear",))
        _one_of("channel_order", self.channel_order, ("RGB", "BGR"))
        if not 0 <= self.pad_value <= 255:
            raise ValueError(f"pad_value is {self.pad_value}; it takes a grey level 0..255")
        if len(self.mean) != 3 or len(self.scale) != 3:
            raise ValueError("mean and scale take one number for each of the three channels")
        for name in ("mean", "scale"):  # 0 and 0.0 are one number and must give one digest
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))

    @property
    def digest(self) -> str:
        """sha256 over the fields: two paths that pre-process alike have the same digest."""
        return hashlib.sha256(_canonical(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True)
class HeadSpec:
    """All that decoding one raw output needs.

    Attributes:
        tensor: name of the network's output, (N, channels, *grid_hw).
        kind: `region` (YOLOv2, arXiv:1612.08242), `yolo` (YOLOv3, arXiv:1804.02767) or
            `convdet` (SqueezeDet, arXiv:1612.01051).
        grid_hw: cells down and across.
        anchors: (width, height) of each of the cell's anchors, in pixels of the network's input.
        class_activation: what turns class logits into probabilities.
        scale_xy: YOLOv4's `scale_x_y`; 1 leaves the sigmoid as it is.
    """

    tensor: str
    kind: Literal["region", "yolo", "convdet"]
    grid_hw: tuple[int, int]
    anchors: tuple[tuple[float, float], ...]
    class_activation: Literal["softmax", "sigmoid", "linear"] = "sigmoid"
    scale_xy: float = 1.0

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, ("region", "yolo", "convdet"))
        _one_of("class_activation", self.class_activation, ("softmax", "sigmoid", "linear"))
        if not self.anchors:
            raise ValueError(f"head {self.tensor} has no anchors")
        if len(self.grid_hw) != 2 or min(self.grid_hw) < 1:
            raise ValueError(f"grid_hw is {self.grid_hw}; it takes two positive numbers of cells")
        for anchor in self.anchors:
            if len(anchor) != 2 or not all(map(isfinite, anchor)):
                raise ValueError(f"anchor {anchor} of head {self.tensor} is no width and height")

    def channels(self, classes: int) -> int:
        """Channels of the raw output: every anchor has 4 coordinates, 1 objectness, its classes."""
        return len(self.anchors) * (5 + classes)


@dataclass(frozen=True)
class ModelSpec:
    """A detector without its weights.

    Attributes:
        name: file stem of its artifacts.
        family: `darknet` or `squeezedet`.
        classes: names, in the order of the network's class indices.
        contract: how frames become its input.
        heads: its raw outputs, in the order of the graph's outputs.
    """

    name: str
    family: str
    classes: tuple[str, ...]
    contract: InputContract
    heads: tuple[HeadSpec, ...]

    def __post_init__(self) -> None:
        if not self.classes or not self.heads:
            raise ValueError(f"model {self.name} needs at least one class and one head")


@dataclass(frozen=True)
class TensorSpec:
    """One binding of the graph: its name, shape and numpy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


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

    @property
    def score(self) -> float | None:
        """The score threshold that was fitted to this artifact, where one was."""
        found = dict(self.arguments).get("score")
        return None if found is None else float(json.loads(found))

    def to_json(self, indent: int | None = None) -> str:
        """The manifest as JSON text."""
        return json.dumps(asdict(self), indent=indent)

    @staticmethod
    def from_json(text: str, source: str = "manifest") -> Manifest:
        """Read what `to_json` wrote; unknown keys are ignored, so newer writers stay readable.

        Raises:
            ArtifactError: `text` is not JSON, or misses or mistypes a field; names `source`.
        """
        what = "a manifest of edge"
        data = parse_json(text, source, what)
        found = data.get("schema", 0) if isinstance(data, dict) else 0
        if isinstance(found, int) and found > SCHEMA:
            raise ArtifactError(
                f"{source}: not {what}: schema {found} is newer than {SCHEMA}, which this reads; "
                "update edge"
            )
        return decode(data, Manifest, source, what)
