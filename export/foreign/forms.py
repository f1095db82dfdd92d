"""The families of detectors: what their outputs look like, and how these are decoded.

Each function looks at names and shapes alone and says what the outputs could be. Where several fit,
`export.foreign.values` looks at the numbers. Sources stand at each family.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, prod, sqrt
from typing import Any

from edge.spec import BoxCoding, Columns, HeadSpec, Holds, InputContract, Layout, Level, ScoreCoding
from export.foreign.graph import Output

__all__ = ["KINDS", "Hypothesis", "Signature", "hypotheses"]

Anchors = tuple[tuple[float, float], ...]

_STRIDES = (
    (8, 16, 32),
    (8, 16, 32, 64),
    (16, 32),
    (8, 16, 32, 64, 128),
    (4, 8, 16, 32),
    (4, 8, 16),
    (8, 16),
    (32,),
    (16,),
    (8,),
)
# ultralytics/yolov5 models/hub/anchors.yaml (also yolov3.cfg), WongKinYiu/yolov7 cfg/, P6 variants.
_V5: tuple[Anchors, ...] = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
_V7: tuple[Anchors, ...] = (
    ((12, 16), (19, 36), (40, 28)),
    ((36, 75), (76, 55), (72, 146)),
    ((142, 110), (192, 243), (459, 401)),
)
_V5_P6: tuple[Anchors, ...] = (
    ((19, 27), (44, 40), (38, 94)),
    ((96, 68), (86, 152), (180, 137)),
    ((140, 301), (303, 264), (238, 542)),
    ((436, 615), (739, 380), (925, 792)),
)
# pjreddie's and AlexeyAB's cfgs.
_V3_TINY: tuple[Anchors, ...] = (
    ((10, 14), (23, 27), (37, 58)),
    ((81, 82), (135, 169), (344, 319)),
)
# dog-qiuqiu/Yolo-FastestV2 data/coco.data.
_FASTEST: tuple[Anchors, ...] = (
    ((12.64, 19.39), (37.88, 51.48), (55.71, 138.31)),
    ((126.91, 78.23), (131.57, 214.55), (279.92, 258.87)),
)
# In cells: pjreddie's yolov2-tiny-voc.cfg, yolov2-tiny.cfg; justadudewhohacks/face-api.js.
_V2_VOC: Anchors = ((1.08, 1.19), (3.42, 4.41), (6.63, 11.38), (9.42, 5.11), (16.62, 10.52))
_V2_COCO: Anchors = (
    (0.57273, 0.677385),
    (1.87446, 2.06253),
    (3.33843, 5.47434),
    (7.88282, 3.52778),
    (9.77052, 9.16828),
)
_V2_FACE: Anchors = (
    (1.603231, 2.094468),
    (6.041143, 7.080126),
    (2.882459, 3.518061),
    (4.266906, 5.178857),
    (9.041765, 10.66308),
)
_BYTE = (1 / 255,) * 3
_IMAGENET = {
    "mean": (123.675, 116.28, 103.53),
    "scale": (1 / 58.395, 1 / 57.12, 1 / 57.375),
}
_ZERO = (0.0, 0.0, 0.0)
_ONE = (1.0, 1.0, 1.0)
_ULTRALYTICS: dict[str, Any] = {"pad_value": 114, "rounding": "nearest", "scaling": "ratio"}
_YOLOX: dict[str, Any] = {
    "scaling": "ratio",
    "placement": "top left",
    "pad_value": 114,
    "channel_order": "BGR",
    "scale": _ONE,
}
_NANODET: dict[str, Any] = {
    "scaling": "ratio",
    "pad_value": 0,
    "channel_order": "BGR",
    "mean": (103.53, 116.28, 123.675),
    "scale": (1 / 57.375, 1 / 57.12, 1 / 58.395),
}
_DARKNET: dict[str, Any] = {"resize": "stretch"}
_FASTEST_INPUT: dict[str, Any] = {"resize": "stretch", "channel_order": "BGR"}
_FACES: dict[str, Any] = {
    "placement": "top left",
    "scaling": "ratio",
    "pad_value": 0,
    "channel_order": "BGR",
}
_RETINA: dict[str, Any] = {**_FACES, "mean": (104.0, 117.0, 123.0), "scale": _ONE}
_RFB: dict[str, Any] = {"resize": "stretch", "mean": (127.0,) * 3, "scale": (1 / 128,) * 3}
_TF_SSD: dict[str, Any] = {"resize": "stretch", "mean": (127.5,) * 3, "scale": (1 / 127.5,) * 3}
_CAFFE_SSD: dict[str, Any] = {
    "resize": "stretch",
    "channel_order": "RGB",
    "mean": (123.0, 117.0, 104.0),
    "scale": _ONE,
}
_SCRFD: dict[str, Any] = {
    "scaling": "ratio",
    "placement": "top left",
    "pad_value": 0,
    "mean": (127.5,) * 3,
    "scale": (1 / 128,) * 3,
}
_DETR: dict[str, Any] = {"resize": "stretch"}


@dataclass(frozen=True)
class Signature:
    """What is known before the numbers are looked at.

    Attributes:
        outputs: of the graph.
        hw: of the input.
        classes: how many names there are, 0 where none are known.
        end_to_end: whether the metadata say that rows need no suppression.
        quantized_names: whether its tensors are named as those of a network trained for INT8.
        light_body: whether it is built of depthwise convolutions and ReLU.
    """

    outputs: tuple[Output, ...]
    hw: tuple[int, int]
    classes: int = 0
    end_to_end: bool = False
    quantized_names: bool = False
    light_body: bool = False


@dataclass(frozen=True)
class Hypothesis:
    """One way of reading the outputs.

    Attributes:
        kind: what `--head` takes.
        heads: the reading.
        classes: how many there are.
        contract: of the input, as this family has it.
        iou: at which the family suppresses.
        says: why it fits.
        names: of the classes, where the family has but one task.
        doubtful: fields of the contract in which networks of the family differ.
        grid: the levels whose cells decoded rows come from: their centres must lie near.
        order: of the anchors in these rows.
    """

    kind: str
    heads: tuple[HeadSpec, ...]
    classes: int
    contract: InputContract
    iou: float
    says: str
    names: tuple[str, ...] = ()
    doubtful: frozenset[str] = frozenset()
    grid: tuple[Level, ...] = field(default=())
    order: str = "outer"


Form = Callable[[Signature], Iterator[Hypothesis]]

KINDS = (
    "yolov8",
    "yolov8-maps",
    "yolov5",
    "yolov5-sigmoid",
    "yolov5-raw",
    "yolov5-maps",
    "yolov7-sigmoid",
    "yolov7-raw",
    "yolov7-maps",
    "yolov3-maps",
    "yolov2-maps",
    "yolox",
    "yolox-raw",
    "nanodet",
    "nanodet-plus",
    "yolo-fastestv2",
    "fastestdet",
    "rows",
    "rows-overlapping",
    "detections",
    "ssd",
    "ssd-raw",
    "detr",
    "retinaface",
    "scrfd",
    "yunet",
)


def hypotheses(signature: Signature) -> list[Hypothesis]:
    """Every reading of the outputs that names and shapes allow."""
    return [each for form in _FORMS for each in form(signature)]


# ------------------------------------------------------------------ shapes


def _cells(hw: tuple[int, int], stride: int) -> tuple[int, int]:
    return ceil(hw[0] / stride), ceil(hw[1] / stride)


def _strides(hw: tuple[int, int], rows: int, anchors: int = 1) -> tuple[int, ...]:
    """The strides whose cells, times anchors, are `rows`; () for none."""
    for strides in _STRIDES:
        if rows == anchors * sum(prod(_cells(hw, stride)) for stride in strides):
            return strides
    return ()


def _levels(hw: tuple[int, int], strides: Sequence[int], anchors: Sequence[Anchors]) -> Any:
    return tuple(
        Level(_cells(hw, stride), tuple((float(w), float(h)) for w, h in each), float(stride))
        for stride, each in zip(strides, anchors, strict=True)
    )


def _free(hw: tuple[int, int], strides: Sequence[int], each: int = 1) -> Any:
    """Levels without anchors of their own: a cell's side stands for them."""
    return _levels(hw, strides, [((stride, stride),) * each for stride in strides])


def _tables(out: Output) -> Iterator[tuple[int, int, str]]:
    """Rows, columns and the axis of the candidates, for every way to see a table in an output."""
    dims = [dim for dim in out.dims if dim != 1] or [1]
    if len(out.dims) >= 2 and out.dims[-1] == 1 and len(dims) == 1:
        dims = [dims[0], 1]
    if len(dims) == 1:
        yield dims[0], 1, "first"
    elif len(dims) == 2:
        yield dims[0], dims[1], "first"
        if dims[1] != 1:
            yield dims[1], dims[0], "last"
    elif len(dims) == 4:  # anchors, cells down and across, columns
        yield prod(dims[:3]), dims[3], "first"


def _map(out: Output) -> tuple[int, tuple[int, int]] | None:
    """Channels and grid of a map (C, H, W)."""
    return (out.dims[0], (out.dims[1], out.dims[2])) if len(out.dims) == 3 else None


def _stride_of(hw: tuple[int, int], grid: tuple[int, int]) -> int:
    """The stride of a map; 0 where its grid is no grid of the input."""
    for stride in (4, 8, 16, 32, 64, 128):
        if _cells(hw, stride) == grid:
            return stride
    return 0


def _contract(signature: Signature, **fields: Any) -> InputContract:
    return InputContract(signature.hw, **fields)


def _of(strides: Sequence[int]) -> str:
    return "strides " + ", ".join(map(str, strides))


def _class_counts(signature: Signature, columns: int, *, background: bool) -> Iterator[int]:
    """Numbers of classes that fit so many columns, by what names there are."""
    least = columns - 1 if background else columns
    if least >= 1 and signature.classes in (0, least):
        yield least


# ------------------------------------------------------------------ one table, a row for each cell


def _cell_rows(signature: Signature) -> Iterator[Hypothesis]:
    """ultralytics v5 to v12, v7 and YOLOX: one table whose rows are cells times anchors."""
    # Networks with an auxiliary head for training, such as YOLOv9, give their own one last.
    for out in reversed(signature.outputs):
        if _others_are_maps(signature, out):
            for rows, columns, axis in _tables(out):
                for anchors in (1, 3):
                    strides = _strides(signature.hw, rows, anchors)
                    if strides and columns > 4 and not (columns < 8 and rows <= 300):
                        table = _Table(signature, out, rows, columns, axis, strides, anchors)
                        yield from _of_table(table)


def _others_are_maps(signature: Signature, out: Output) -> bool:
    """Some exports give their raw maps, or the table of an auxiliary head, beside the table."""
    others = [other for other in signature.outputs if other is not out]
    return all(len(other.dims) in (3, 4) or other.dims == out.dims for other in others)


@dataclass(frozen=True)
class _Table:
    signature: Signature
    out: Output
    rows: int
    columns: int
    axis: Any
    strides: tuple[int, ...]
    anchors: int

    @property
    def says(self) -> str:
        times = f" times {self.anchors} anchors" if self.anchors > 1 else ""
        return f"{self.out}: {self.rows} candidates are the cells of {_of(self.strides)}{times}"

    @property
    def grid(self) -> Any:
        return _free(self.signature.hw, self.strides, self.anchors)

    def decoded(
        self, kind: str, holds: tuple[Holds, ...], classes: int, form: Any, unit: Any, **more: Any
    ) -> Hypothesis:
        """A reading whose boxes the graph has decoded."""
        layout = Layout((Columns(self.out.name, holds),), self.axis, "outer", rows=self.rows)
        box = BoxCoding(form, unit=unit)
        head = HeadSpec(layout, box, ScoreCoding("none", "none"))
        where = {"pixels": "pixels", "input": "0..1 of the input"}[unit]
        says = f"{self.says}, {self.columns} columns are a box ({form}, {where})"
        says += f"{', objectness' if 'objectness' in holds else ''} and {classes} classes"
        return Hypothesis(kind, (head,), classes, says=says, grid=self.grid, **more)

    def coded(self, anchors: Sequence[Anchors], score: Any, **box: Any) -> HeadSpec:
        """A reading whose boxes are numbers of a grid."""
        holds: tuple[Holds, ...] = ("box", "objectness", "classes")
        layout = Layout((Columns(self.out.name, holds),), self.axis, "outer")
        levels = _levels(self.signature.hw, self.strides, anchors)
        return HeadSpec(layout, BoxCoding("grid", levels, **box), ScoreCoding(score, score))


def _of_table(table: _Table) -> Iterator[Hypothesis]:
    signature, columns = table.signature, table.columns
    ultralytics = _contract(signature, **_ULTRALYTICS)
    plain: tuple[Holds, ...] = ("box", "classes")
    with_object: tuple[Holds, ...] = ("box", "objectness", "classes")
    units = (("centre", "pixels"), ("corners", "pixels"), ("centre", "input"), ("corners", "input"))
    common: dict[str, Any] = {"contract": ultralytics, "doubtful": frozenset({"resize"})}
    if table.anchors == 3 and signature.light_body:
        # ppogg/YOLOv5-Lite on boards: its users stretch the picture.
        common["contract"] = _contract(signature, resize="stretch")
    if table.anchors == 1 and (signature.classes or table.axis == "last"):
        for classes in _class_counts(signature, columns - 4, background=False):
            for form, unit in units:
                yield table.decoded("yolov8", plain, classes, form, unit, iou=0.7, **common)
    for classes in _class_counts(signature, columns - 5, background=False):
        if table.anchors == 1 and table.axis == "last" and not signature.classes:
            continue
        if table.anchors == 1:
            yield from _yolox(table, classes)
        else:
            for form, unit in units:
                if form == "centre":
                    yield table.decoded(
                        "yolov5", with_object, classes, form, unit, iou=0.45, **common
                    )
            yield from _v5_rows(table, classes, common)


def _yolox(table: _Table, classes: int) -> Iterator[Hypothesis]:
    """Megvii-BaseDetection/YOLOX: yolox/models/yolo_head.py `decode_outputs`, data_augment.py."""
    signature = table.signature
    contract = _contract(signature, **_YOLOX)
    holds: tuple[Holds, ...] = ("box", "objectness", "classes")
    for form, unit in (("centre", "pixels"), ("corners", "pixels")):
        made = table.decoded("yolox", holds, classes, form, unit, iou=0.45, contract=contract)
        own = replace(made.heads[0], score=replace(made.heads[0].score, exclusive=True))
        yield replace(made, heads=(own,))
    anchors = [((stride, stride),) for stride in table.strides]
    for score in ("none", "sigmoid"):
        head = table.coded(anchors, score)
        head = replace(head, score=replace(head.score, exclusive=True))
        says = (
            f"{table.says}, {table.columns} columns are offsets from cells, objectness and classes"
        )
        yield Hypothesis("yolox-raw", (head,), classes, contract, 0.45, says)


def _v5_rows(table: _Table, classes: int, common: dict[str, Any]) -> Iterator[Hypothesis]:
    """ultralytics/yolov5 models/yolo.py `Detect`, with the decoding left out."""
    for family, anchors in _anchor_sets(len(table.strides)):
        for how, activation in (("sigmoid", "none"), ("raw", "sigmoid")):
            head = table.coded(
                anchors,
                activation,
                activation=activation,
                stretch=2.0,
                size=activation,
                squared=True,
            )
            says = f"{table.says}, {table.columns} columns are numbers of a grid with {family}'s "
            says += f"anchors, objectness and {classes} classes"
            yield Hypothesis(f"{family}-{how}", (head,), classes, iou=0.45, says=says, **common)


def _anchor_sets(levels: int) -> tuple[tuple[str, tuple[Anchors, ...]], ...]:
    if levels == 3:
        return (("yolov5", _V5), ("yolov7", _V7))
    return (("yolov5", _V5_P6),) if levels == 4 else ()


# ------------------------------------------------------------------ maps


def _maps(signature: Signature) -> list[tuple[int, int, Output, bool]]:
    """Stride, channels, output and whether channels come last, of outputs that all are maps."""
    found = []
    for out in signature.outputs:
        known = _map(out)
        if known is None:
            return []
        channels, grid = known
        stride = _stride_of(signature.hw, grid)
        if stride:
            found.append((stride, channels, out, False))
            continue
        stride = _stride_of(signature.hw, (out.dims[0], out.dims[1]))
        if not stride:
            return []
        found.append((stride, out.dims[2], out, True))
    return found


def _anchor_maps(signature: Signature) -> Iterator[Hypothesis]:
    """YOLOv2 to v7 as raw maps, one a level: (A * (5 + C), H, W)."""
    maps = sorted(_maps(signature), key=lambda each: each[0])
    strides = [each[0] for each in maps]
    channels = {each[1] for each in maps}
    if not maps or len(set(strides)) != len(strides) or len(channels) != 1:
        return
    width = channels.pop()
    if len(maps) == 1:
        yield from _region(signature, maps[0][2], width, maps[0][3])
        return
    for classes in _class_counts(signature, width // 3 - 5, background=False):
        if width == 3 * (5 + classes):
            yield from _yolo_maps(signature, maps, strides, classes)


def _yolo_maps(
    signature: Signature, maps: Sequence[Any], strides: Sequence[int], classes: int
) -> Iterator[Hypothesis]:
    outs = {each[0]: each for each in maps}
    axis: Any = "first" if maps[0][3] else "last"
    sets: list[tuple[str, tuple[Anchors, ...], dict[str, Any]]] = []
    square = {"activation": "sigmoid", "stretch": 2.0, "size": "sigmoid", "squared": True}
    for family, anchors in _anchor_sets(len(maps)):
        sets.append((f"{family}-maps", anchors, square))
    if len(maps) == 3:
        sets.append(("yolov3-maps", _V5, {"activation": "sigmoid"}))
    if len(maps) == 2:
        sets.append(("yolov3-maps", _V3_TINY, {"activation": "sigmoid"}))
    for kind, anchors, coding in sets:
        sized = dict(zip(strides, anchors, strict=True))
        heads = []
        for _, _, out, _ in _in_order(signature, maps):
            stride = next(key for key, each in outs.items() if each[2] is out)
            layout = Layout((Columns(out.name, ("box", "objectness", "classes")),), axis)
            (level,) = _levels(signature.hw, [stride], [sized[stride]])
            heads.append(HeadSpec(layout, BoxCoding("grid", (level,), **coding)))
        contract = _contract(signature, **(_DARKNET if kind == "yolov3-maps" else _ULTRALYTICS))
        says = f"{len(maps)} maps of {_of(strides)} with 3 * (5 + {classes}) channels"
        doubtful = frozenset({"resize"})
        yield Hypothesis(kind, tuple(heads), classes, contract, 0.45, says, doubtful=doubtful)


def _in_order(signature: Signature, maps: Sequence[Any]) -> list[Any]:
    """The maps in the order of the graph's outputs, which the heads must keep."""
    return sorted(maps, key=lambda each: signature.outputs.index(each[2]))


def _region(signature: Signature, out: Output, width: int, last: bool) -> Iterator[Hypothesis]:
    """YOLOv2 (arXiv:1612.08242): one map of five anchors. FastestDet has one of none."""
    axis: Any = "first" if last else "last"
    grid = (out.dims[0], out.dims[1]) if last else (out.dims[1], out.dims[2])
    stride = _stride_of(signature.hw, grid)
    each, over = divmod(width, 5)
    if not over and each >= 5 and stride == 32 and signature.classes in (0, max(1, each - 5)):
        classes = max(1, each - 5)
        known = {20: _V2_VOC, 80: _V2_COCO}.get(each - 5)
        faces = each == 5
        if known or faces:
            cells = known or _V2_FACE
            anchors = tuple((w * stride, h * stride) for w, h in cells)
            holds: tuple[Holds, ...] = ("box", "objectness")
            if not faces:
                holds = (*holds, "classes")
            layout = Layout((Columns(out.name, holds),), axis)
            (level,) = _levels(signature.hw, [stride], [anchors])
            box = BoxCoding("grid", (level,), activation="sigmoid")
            head = HeadSpec(layout, box, ScoreCoding("softmax"))
            says = f"{out}: one map of stride 32, 5 anchors of {each} numbers"
            if faces:
                mean = (117.001, 114.697, 97.404)
                contract = _contract(
                    signature,
                    mean=mean,
                    placement="top left",
                    rounding="nearest",
                    scaling="ratio",
                    pad_value=0,
                )
                says += "; without classes, as face-api.js has it, and with its anchors"
            else:
                contract = _contract(signature, **_DARKNET)
                says += f"; the anchors are those of its {classes} classes' published cfg"
            iou, names = (0.4, ("face",)) if faces else (0.45, ())
            doubtful = frozenset() if faces else frozenset({"resize"})
            yield Hypothesis("yolov2-maps", (head,), classes, contract, iou, says, names, doubtful)
    # dog-qiuqiu/FastestDet utils/tool.py `handle_preds`: objectness, box, classes.
    for classes in _class_counts(signature, width - 5, background=False):
        if stride == 16:
            layout = Layout((Columns(out.name, ("objectness", "box", "classes")),), axis)
            whole = (float(signature.hw[1]), float(signature.hw[0]))
            (level,) = _levels(signature.hw, [stride], [(whole,)])
            box = BoxCoding("grid", (level,), activation="tanh", size="sigmoid")
            head = HeadSpec(layout, box, ScoreCoding("none", "none", powers=(0.6, 0.4)))
            says = f"{out}: one map of stride 16 with 1 + 4 + {classes} channels"
            contract = _contract(signature, **_FASTEST_INPUT)
            yield Hypothesis("fastestdet", (head,), classes, contract, 0.45, says)


def _anchor_maps_5d(signature: Signature) -> Iterator[Hypothesis]:
    """YOLOv5's maps with the anchors as a dimension of their own: (A, H, W, 5 + C)."""
    outs = signature.outputs
    if len(outs) not in (2, 3, 4) or any(len(out.dims) != 4 for out in outs):
        return
    strides = [_stride_of(signature.hw, (out.dims[1], out.dims[2])) for out in outs]
    if 0 in strides or len(set(strides)) != len(strides) or {o.dims[0] for o in outs} != {3}:
        return
    if len({out.dims[3] for out in outs}) != 1:
        return
    square: dict[str, Any] = {
        "activation": "sigmoid",
        "stretch": 2.0,
        "size": "sigmoid",
        "squared": True,
    }
    for classes in _class_counts(signature, outs[0].dims[3] - 5, background=False):
        for family, anchors in _anchor_sets(len(outs)):
            sized = dict(zip(sorted(strides), anchors, strict=True))
            heads = []
            for out, stride in zip(outs, strides, strict=True):
                tensors = (Columns(out.name, ("box", "objectness", "classes")),)
                (level,) = _levels(signature.hw, [stride], [sized[stride]])
                layout = Layout(tensors, "first", "outer")
                heads.append(HeadSpec(layout, BoxCoding("grid", (level,), **square)))
            says = f"{len(outs)} maps of {_of(sorted(strides))}, 3 anchors of 5 + {classes} numbers"
            contract = _contract(signature, **_ULTRALYTICS)
            doubtful = frozenset({"resize"})
            yield Hypothesis(
                f"{family}-maps", tuple(heads), classes, contract, 0.45, says, doubtful=doubtful
            )


def _dfl_maps(signature: Signature) -> Iterator[Hypothesis]:
    """ultralytics v8 and later before decoding: 4 * 16 bins and C classes, in one map or two."""
    maps = _maps(signature)
    by_stride: dict[int, list[tuple[int, Output]]] = {}
    for stride, channels, out, last in maps:
        if last:
            return
        by_stride.setdefault(stride, []).append((channels, out))
    strides = sorted(by_stride)
    if len(strides) < 2:
        return
    widths = {tuple(channels for channels, _ in by_stride[stride]) for stride in strides}
    if len(widths) != 1:
        return
    (width,) = widths
    bins = 16
    if len(width) == 1:
        counts = list(_class_counts(signature, width[0] - 4 * bins, background=False))
        orders: list[tuple[Holds, ...]] = [("box", "classes")]
    else:
        rest = [channels for channels in width if channels != 4 * bins]
        known = signature.classes or max(rest, default=0)
        counts = [known] if 4 * bins in width and known in rest else []
        orders = [("box", "classes")]
    for classes in counts:
        for holds in orders:
            heads = tuple(
                _dfl_head(signature, stride, by_stride[stride], classes, bins, holds, score)
                for stride in _first_seen(maps)
                for score in ("sigmoid",)
            )
            says = f"{len(strides)} levels of {_of(strides)}, 4 * {bins} bins and {classes} classes"
            contract = _contract(signature, **_ULTRALYTICS)
            yield Hypothesis("yolov8-maps", heads, classes, contract, 0.7, says)
            if len(width) > 1:
                graph_does = tuple(replace(h, score=ScoreCoding("none")) for h in heads)
                yield Hypothesis("yolov8-maps", graph_does, classes, contract, 0.7, says)


def _first_seen(maps: Sequence[Any]) -> list[int]:
    return list(dict.fromkeys(stride for stride, *_ in maps))


def _dfl_head(
    signature: Signature,
    stride: int,
    outs: Sequence[tuple[int, Output]],
    classes: int,
    bins: int,
    holds: tuple[Holds, ...],
    score: Any,
) -> HeadSpec:
    (level,) = _free(signature.hw, [stride])
    box = BoxCoding("distances", (level,), shift=0.5, bins=bins, unit="cells")
    if len(outs) == 1:
        tensors: tuple[Columns, ...] = (Columns(outs[0][1].name, holds),)
    else:
        kinds: dict[int, tuple[Holds, ...]] = {4 * bins: ("box",), classes: ("classes",)}
        chosen = [(out.name, kinds.pop(channels)) for channels, out in outs if channels in kinds]
        tensors = tuple(Columns(name, held) for name, held in chosen)
    return HeadSpec(Layout(tensors), box, ScoreCoding(score))


def _shared_class_maps(signature: Signature) -> Iterator[Hypothesis]:
    """dog-qiuqiu/Yolo-FastestV2 utils/utils.py: 12 box numbers, 3 objectness, classes shared."""
    maps = _maps(signature)
    strides = _first_seen(maps)
    if len(strides) != 2:
        return
    each = {stride: [m for m in maps if m[0] == stride] for stride in strides}
    together = all(len(group) == 1 and group[0][3] for group in each.values())
    apart = all(sorted(m[1] for m in group)[:2] == [3, 12] for group in each.values())
    widths = {tuple(sorted(m[1] for m in group)) for group in each.values()}
    if len(widths) != 1 or not (together or (apart and len(maps) == 6)):
        return
    (width,) = widths
    sized = dict(zip(sorted(strides), _FASTEST, strict=True))
    for classes in _class_counts(signature, max(width) - 15 * together, background=False):
        heads = []
        for stride in strides:
            (level,) = _levels(signature.hw, [stride], [sized[stride]])
            square = {"activation": "sigmoid", "stretch": 2.0, "size": "sigmoid", "squared": True}
            if together:
                holds: tuple[Holds, ...] = ("box", "objectness", "classes")
                tensors: tuple[Columns, ...] = (Columns(each[stride][0][2].name, holds),)
            else:
                kinds: dict[int, tuple[Holds, ...]] = {12: ("box",), 3: ("objectness",)}
                tensors = tuple(
                    Columns(out.name, kinds.get(channels, ("classes",)))
                    for _, channels, out, _ in each[stride]
                )
            layout = Layout(tensors, "first" if together else "last", "kinds", True)
            # Exports with channels last have their sigmoid and softmax in the graph or not.
            heads.append(
                HeadSpec(layout, BoxCoding("grid", (level,), **square), ScoreCoding("softmax"))  # type: ignore[arg-type]
            )
        says = (
            f"maps of {_of(sorted(strides))} with 12 box numbers, 3 objectness, {classes} classes"
        )
        contract = _contract(signature, **_FASTEST_INPUT)
        yield Hypothesis("yolo-fastestv2", tuple(heads), classes, contract, 0.4, says)


# ------------------------------------------------------------------ levels of tables


def _level_tables(signature: Signature) -> Iterator[Hypothesis]:
    """NanoDet, YuNet and SCRFD: two or more tables for each level."""
    groups = _by_level(signature)
    if len(groups) < 2:
        return
    (anchors,) = {key[1] for key in groups} if len({key[1] for key in groups}) == 1 else (0,)
    kinds = [tuple(sorted(columns for columns, _ in group)) for group in groups.values()]
    if not anchors or len(set(kinds)) != 1:
        return
    strides = [stride for stride, _ in groups]
    says = f"tables of {_of(sorted(strides))} with {', '.join(map(str, kinds[0]))} columns"
    if anchors == 1 and kinds[0] in ((1, 1, 4), (1, 1, 4, 10)):
        yield from _yunet(signature, groups, says)
    elif kinds[0] in ((1, 4), (1, 4, 10)) and anchors in (1, 2):
        yield from _scrfd(signature, groups, anchors, says)
    elif anchors == 1 and len(kinds[0]) == 2:
        yield from _nanodet(signature, groups, says)


Groups = dict[tuple[int, int], list[tuple[int, Output]]]


def _by_level(signature: Signature) -> Groups:
    """Columns and outputs by stride and anchors a cell; {} where one fits no level."""
    groups: Groups = {}
    for out in signature.outputs:
        if len(out.dims) > 2:
            return {}
        rows, columns = (out.dims[0], out.dims[1]) if len(out.dims) == 2 else (out.dims[0], 1)
        fits = [
            (stride, anchors)
            for stride in (8, 16, 32, 64, 128)
            for anchors in (1, 2)
            if prod(_cells(signature.hw, stride)) * anchors == rows
        ]
        if not fits:
            return {}
        groups.setdefault(fits[0], []).append((columns, out))
    return groups


def _yunet(signature: Signature, groups: Groups, says: str) -> Iterator[Hypothesis]:
    """ShiqiYu/libfacedetection.train: mmdet/models/dense_heads/yunet_head.py `_bbox_decode`."""
    heads = []
    for (stride, _), group in groups.items():
        scores = [out for columns, out in group if columns == 1]
        named = {bool(re.search("obj", out.name)): out for out in scores}
        if len(named) != 2 or signature.classes > 1:
            return
        (boxes,) = (out for columns, out in group if columns == 4)
        holds: dict[str, tuple[Holds, ...]] = {
            named[True].name: ("objectness",),
            named[False].name: ("classes",),
            boxes.name: ("box",),
        }
        tensors = tuple(Columns(out.name, holds[out.name]) for _, out in group if out.name in holds)
        (level,) = _free(signature.hw, [stride])
        box = BoxCoding("grid", (level,))
        score = ScoreCoding("none", "none")
        heads.append(HeadSpec(Layout(tensors, "first", "outer"), box, score))
    contract = _contract(signature, **_FACES, scale=_ONE)
    yield Hypothesis("yunet", tuple(heads), 1, contract, 0.45, says, ("face",))


def _scrfd(signature: Signature, groups: Groups, anchors: int, says: str) -> Iterator[Hypothesis]:
    """deepinsight/insightface detection/scrfd: distances in cells from the cell's corner."""
    heads = []
    if signature.classes > 1:
        return
    for (stride, _), group in groups.items():
        kinds: dict[int, tuple[Holds, ...]] = {1: ("classes",), 4: ("box",)}
        tensors = tuple(Columns(out.name, kinds[columns]) for columns, out in group if columns < 10)
        (level,) = _free(signature.hw, [stride], anchors)
        box = BoxCoding("distances", (level,), unit="cells")
        heads.append(HeadSpec(Layout(tensors, "first", "inner"), box, ScoreCoding("none")))
    contract = _contract(signature, **_SCRFD)
    yield Hypothesis("scrfd", tuple(heads), 1, contract, 0.4, says, ("face",))


def _nanodet(signature: Signature, groups: Groups, says: str) -> Iterator[Hypothesis]:
    """RangiLyu/nanodet nanodet_head.py: distances, or their bins, from the middle of a cell."""
    columns = sorted({c for group in groups.values() for c, _ in group})
    for box_columns in columns:
        bins = box_columns // 4 if box_columns > 4 else 0
        classes = sum(columns) - box_columns if len(columns) == 2 else columns[0]
        if box_columns % 4 or bins == 1 or signature.classes not in (0, classes):
            continue
        if not signature.classes and box_columns not in (4, 32, 68):
            continue
        for score in ("none", "sigmoid"):
            heads = []
            for (stride, _), group in groups.items():
                boxes = [out for c, out in group if c == box_columns]
                if len(boxes) > 1:
                    boxes = [out for out in boxes if re.search("dis|reg|box", out.name, re.I)]
                if len(boxes) != 1:
                    return
                tensors = tuple(
                    Columns(out.name, ("box",) if out is boxes[0] else ("classes",))
                    for _, out in group
                )
                (level,) = _free(signature.hw, [stride])
                box = BoxCoding("distances", (level,), shift=0.5, bins=bins, unit="cells")
                coding = ScoreCoding(score)
                heads.append(HeadSpec(Layout(tensors, "first", "outer"), box, coding))
            contract = _contract(signature, **_NANODET)
            yield Hypothesis("nanodet", tuple(heads), classes, contract, 0.3, says)


def _nanodet_plus(signature: Signature) -> Iterator[Hypothesis]:
    """RangiLyu/nanodet nanodet_plus_head.py: classes, then 8 bins a side, from a cell's corner."""
    for out in signature.outputs if len(signature.outputs) == 1 else ():
        for rows, columns, axis in _tables(out):
            strides = _strides(signature.hw, rows)
            for bins in (8, 17):
                for classes in _class_counts(signature, columns - 4 * bins, background=False):
                    if not strides or (not signature.classes and (bins != 8 or axis == "last")):
                        continue
                    plus = len(strides) == 4
                    levels = _free(signature.hw, strides)
                    shift = 0.0 if plus else 0.5
                    box = BoxCoding("distances", levels, shift=shift, bins=bins, unit="cells")
                    tensors = (Columns(out.name, ("classes", "box")),)
                    contract = _contract(signature, **_NANODET)
                    says = f"{out}: rows of {_of(strides)}, {classes} classes and 4 * {bins} bins"
                    for score in ("none", "sigmoid"):
                        layout = Layout(tensors, axis, "outer")  # type: ignore[arg-type]
                        head = HeadSpec(layout, box, ScoreCoding(score))
                        kind = "nanodet-plus" if plus else "nanodet"
                        yield Hypothesis(
                            kind,
                            (head,),
                            classes,
                            contract,
                            0.6 if plus else 0.3,
                            says,
                            doubtful=frozenset({"resize"}),
                        )


# ------------------------------------------------------------------ rows of finished boxes


def _rows(signature: Signature) -> Iterator[Hypothesis]:
    """One table of boxes, score and label: v10, 26, `nms=True`, YOLOv7, DeepStream, OpenVINO."""
    if len(signature.outputs) != 1:
        return
    (out,) = signature.outputs
    orders: dict[int, tuple[tuple[Holds, ...], ...]] = {
        6: (
            ("box", "classes", "label"),
            ("box", "label", "classes"),
            ("label", "classes", "box"),
        ),
        7: (
            ("other", "box", "label", "classes"),
            ("other", "box", "classes", "label"),
            ("other", "label", "classes", "box"),
        ),
    }
    for rows, columns, axis in _tables(out):
        for holds in orders.get(columns, ()) if axis == "first" else ():
            strides = _strides(signature.hw, rows, 1) or _strides(signature.hw, rows, 3)
            overlapping = bool(strides) and not signature.end_to_end and rows > 300
            layout = Layout(
                (Columns(out.name, holds),), "first", "outer", rows=rows, suppressed=not overlapping
            )
            classes = signature.classes or 80
            for form, unit in (
                ("corners", "pixels"),
                ("centre", "pixels"),
                ("corners", "input"),
            ):
                if form == "centre" and not overlapping:
                    continue
                for first in (0, 1):
                    score = ScoreCoding("none", first_label=first)
                    box = BoxCoding(form, unit=unit)  # type: ignore[arg-type]
                    head = HeadSpec(layout, box, score)
                    says = f"{out}: rows of {', '.join(holds)} ({form}, {unit})"
                    contract = _contract(signature, **_ULTRALYTICS)
                    kind = "rows-overlapping" if overlapping else "rows"
                    yield Hypothesis(
                        kind,
                        (head,),
                        classes,
                        contract,
                        0.45,
                        says,
                        doubtful=frozenset({"resize"}),
                        grid=_free(signature.hw, strides) if _single(signature, rows) else (),
                    )


def _single(signature: Signature, rows: int) -> bool:
    return bool(_strides(signature.hw, rows, 1))


def _detections(signature: Signature) -> Iterator[Hypothesis]:
    """Boxes, scores and labels apart: TensorFlow, torchvision, DETR, mmdetection, DeepStream."""
    boxes = [out for out in signature.outputs if _is_boxes(out)]
    for box_out in boxes[:1]:
        rows = prod(box_out.dims) // box_out.dims[-1]
        flat = [
            out for out in signature.outputs if out is not box_out and prod(out.dims) == rows > 1
        ]
        with_score = box_out.dims[-1] == 5
        labels = [out for out in flat if out.integer or re.search("label|class", out.name, re.I)]
        scores = [out for out in flat if out not in labels]
        if len(scores) > 1:
            scores = [out for out in scores if re.search("score|conf|prob", out.name, re.I)]
        if len(labels) != 1 or len(scores) != (0 if with_score else 1):
            continue
        holds: dict[str, tuple[Holds, ...]] = {
            box_out.name: ("box", "classes") if with_score else ("box",),
            labels[0].name: ("label",),
        }
        if scores:
            holds[scores[0].name] = ("classes",)
        tensors = tuple(
            Columns(out.name, holds[out.name]) for out in signature.outputs if out.name in holds
        )
        overlapping = rows > 1000
        layout = Layout(tensors, "first", "outer", rows=rows, suppressed=not overlapping)
        tensorflow = bool(re.search("detection_?boxes", box_out.name, re.I))
        units: tuple[tuple[str, str, str], ...] = (
            ("corners", "pixels", "xy"),
            ("corners", "input", "xy"),
            ("centre", "input", "xy"),
        )
        if tensorflow:
            units = (("corners", "input", "yx"), ("corners", "pixels", "yx"))
        for form, unit, order in units:
            for first in (1, 0) if tensorflow else (0, 1):
                box = BoxCoding(form, unit=unit, order=order)  # type: ignore[arg-type]
                head = HeadSpec(layout, box, ScoreCoding("none", first_label=first))
                says = f"{box_out} with scores and labels ({form}, {unit}, {order})"
                contract = _contract(signature, **(_TF_SSD if tensorflow else _DETR))
                yield Hypothesis(
                    "detections",
                    (head,),
                    signature.classes or (90 if tensorflow else 80),
                    contract,
                    0.6,
                    says,
                    doubtful=frozenset({"resize"}) - ({"resize"} if tensorflow else set()),
                )


def _is_boxes(out: Output) -> bool:
    return len(out.dims) >= 2 and out.dims[-1] in (4, 5) and not out.integer


# ------------------------------------------------------------------ boxes beside classes


@dataclass(frozen=True)
class _Priors:
    """How a family lays out its priors, and what its pictures are."""

    name: str
    levels: tuple[Level, ...]
    box: dict[str, Any]
    contract: dict[str, Any]
    iou: float
    names: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return sum(level.candidates for level in self.levels)


def _prior_sets(signature: Signature) -> Iterator[_Priors]:
    """Published layouts of priors at this input size."""
    hw = signature.hw
    usual: dict[str, Any] = {"shift": 0.5, "variances": (0.1, 0.2)}
    # Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB vision/ssd/config/fd_config.py.
    sizes = ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256))
    levels = tuple(
        Level(_cells(hw, stride), tuple((float(s), float(s)) for s in each))
        for stride, each in zip((8, 16, 32, 64), sizes, strict=True)
    )
    yield _Priors("Ultra-Light", levels, {**usual, "clip_priors": True}, _RFB, 0.3, ("face",))
    # biubug6/Pytorch_Retinaface layers/functions/prior_box.py, data/config.py.
    pairs = ((16, 32), (64, 128), (256, 512))
    squares = [tuple((s, s) for s in each) for each in pairs]
    levels = _levels(hw, (8, 16, 32), squares)
    yield _Priors("RetinaFace", levels, usual, _RETINA, 0.4, ("face",))
    # Bytes minus a zero point of 128 are what a network trained for INT8 was fed.
    own = {**_TF_SSD, "mean": (128.0,) * 3, "scale": (1 / 128,) * 3}
    yield from _tensorflow_priors(hw, usual, own if signature.quantized_names else _TF_SSD)
    yield from _published_ssd(hw, usual)


def _tensorflow_priors(
    hw: tuple[int, int], usual: dict[str, Any], contract: dict[str, Any]
) -> Iterator[_Priors]:
    """tensorflow/models object_detection/anchor_generators/multiple_grid_anchor_generator.py."""
    height, width = hw
    grids = [_cells(hw, 16)]
    while len(grids) < 6:
        grids.append((ceil(grids[-1][0] / 2), ceil(grids[-1][1] / 2)))
    scales = [0.2 + (0.95 - 0.2) * i / 5 for i in range(6)] + [1.0]
    levels = []
    for i, grid in enumerate(grids):
        ratios = [(scales[i], ratio) for ratio in (1.0, 2.0, 0.5, 3.0, 1 / 3)]
        ratios.append((sqrt(scales[i] * scales[i + 1]), 1.0))
        if i == 0:
            ratios = [(0.1, 1.0), (scales[0], 2.0), (scales[0], 0.5)]
        sizes = tuple((s * sqrt(r) * width, s / sqrt(r) * height) for s, r in ratios)
        levels.append(Level(grid, sizes))
    yield _Priors(
        "TensorFlow's SSD",
        tuple(levels),
        {**usual, "order": "yx", "clip_boxes": True},
        contract,
        0.6,
    )


def _published_ssd(hw: tuple[int, int], usual: dict[str, Any]) -> Iterator[_Priors]:
    """qfgaohao/pytorch-ssd and amdegroot/ssd.pytorch at 300x300."""
    if hw != (300, 300):
        return

    def levels(
        grids: Sequence[int],
        steps: Sequence[float],
        sizes: Sequence[tuple[float, float]],
        ratios: Sequence[Sequence[float]],
    ) -> tuple[Level, ...]:
        made = []
        for grid, step, (low, high), own in zip(grids, steps, sizes, ratios, strict=True):
            anchors = [(low, low), (sqrt(low * high),) * 2]
            for ratio in own:
                root = sqrt(ratio)
                anchors += [(low * root, low / root), (low / root, low * root)]
            made.append(Level((grid, grid), tuple((float(w), float(h)) for w, h in anchors), step))
        return tuple(made)

    clipped = {**usual, "clip_priors": True}
    mobile = levels(
        (19, 10, 5, 3, 2, 1),
        (16, 32, 64, 100, 150, 300),
        ((60, 105), (105, 150), (150, 195), (195, 240), (240, 285), (285, 330)),
        ((2, 3),) * 6,
    )
    yield _Priors("pytorch-ssd", mobile, clipped, _RFB, 0.45)
    vgg = levels(
        (38, 19, 10, 5, 3, 1),
        (8, 16, 32, 64, 100, 300),
        ((30, 60), (60, 111), (111, 162), (162, 213), (213, 264), (264, 315)),
        ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
    )
    yield _Priors("SSD300", vgg, clipped, _CAFFE_SSD, 0.45)


def _pairs(signature: Signature) -> Iterator[Hypothesis]:
    """SSD, RetinaFace, YOLOv4 and DETR: a table of boxes beside a table of classes."""
    boxes = [out for out in signature.outputs if any(c == 4 for _, c, _ in _tables(out))]
    for box_out in boxes if len(boxes) <= 2 else ():
        for rows, columns, axis in _tables(box_out):
            if columns != 4:
                continue
            for score_out in signature.outputs:
                if score_out is not box_out:
                    yield from _pair(signature, box_out, score_out, rows, axis)


def _pair(
    signature: Signature, box_out: Output, score_out: Output, rows: int, axis: Any
) -> Iterator[Hypothesis]:
    for found, columns, its_axis in _tables(score_out):
        # Landmarks of five points have ten columns, and no family has so many classes by chance.
        if found != rows or (columns > 1 and its_axis != axis) or score_out.integer:
            continue
        if columns == 10 and len(signature.outputs) > 2 and signature.classes not in (9, 10):
            continue
        holds: dict[str, tuple[Holds, ...]] = {
            box_out.name: ("box",),
            score_out.name: ("classes",),
        }
        tensors = tuple(
            Columns(out.name, holds[out.name]) for out in signature.outputs if out.name in holds
        )
        yield from _boxes_beside_classes(signature, tensors, rows, columns, axis, str(box_out))


def _one_table_of_priors(signature: Signature) -> Iterator[Hypothesis]:
    """RetinaFace in one tensor: box, two classes, ten landmarks."""
    for out in signature.outputs if len(signature.outputs) == 1 else ():
        for rows, columns, axis in _tables(out):
            if columns == 16 and axis == "first":
                tensors = (Columns(out.name, ("box", "classes")),)
                yield from _boxes_beside_classes(signature, tensors, rows, 2, axis, str(out))
            elif columns == 15 and axis == "first":
                tensors = (Columns(out.name, ("box", "classes")),)
                yield from _boxes_beside_classes(signature, tensors, rows, 1, axis, str(out))


def _boxes_beside_classes(
    signature: Signature,
    tensors: tuple[Columns, ...],
    rows: int,
    columns: int,
    axis: Any,
    what: str,
) -> Iterator[Hypothesis]:
    priors = [each for each in _prior_sets(signature) if each.count == rows]
    for background in (None, "first", "last"):
        for classes in _class_counts(signature, columns, background=background is not None):
            if columns == 2 and background is None and not signature.classes:
                continue
            for activation in ("none", "softmax", "sigmoid"):
                if activation == "softmax" and background is None:
                    continue
                score = ScoreCoding(activation, background=background)
                says = f"{what} beside {columns} columns of classes"
                if background:
                    says += f", the {background} one background"
                yield from _decoded_pair(
                    signature, tensors, rows, axis, classes, score, says, priors
                )
                for each in priors:
                    layout = Layout(tensors, axis, "inner")
                    head = HeadSpec(layout, BoxCoding("priors", each.levels, **each.box), score)
                    yield Hypothesis(
                        "retinaface" if each.name == "RetinaFace" else "ssd-raw",
                        (head,),
                        classes,
                        _contract(signature, **each.contract),
                        each.iou,
                        f"{says}; {rows} are the priors of {each.name}",
                        each.names if classes == 1 else (),
                    )


def _decoded_pair(
    signature: Signature,
    tensors: tuple[Columns, ...],
    rows: int,
    axis: Any,
    classes: int,
    score: ScoreCoding,
    says: str,
    priors: Sequence[_Priors],
) -> Iterator[Hypothesis]:
    strides = _strides(signature.hw, rows, 1)
    three = _strides(signature.hw, rows, 3)
    few = rows <= 1000 and not strides and not three and not priors
    layout = Layout(tensors, axis, "outer", rows=rows, suppressed=few)
    kind = "detr" if few else "ssd"
    fields: dict[str, Any] = dict(_DETR)
    iou, order_of, doubtful = 0.45, "outer", frozenset({"resize"})
    names: tuple[str, ...] = ()
    grid: tuple[Level, ...] = ()
    if priors:
        fields, iou = priors[0].contract, priors[0].iou
        names = priors[0].names if classes == 1 else ()
        doubtful = frozenset()
        grid, order_of = priors[0].levels, "inner"
    elif strides or three:
        fields, kind = _ULTRALYTICS, "yolov8" if strides else "yolov5"
    if few and (score.background is not None or score.classes == "softmax"):
        fields = {**_DETR, **_IMAGENET}
    if not priors and (strides or three):
        grid = _free(signature.hw, strides or three, 1 if strides else 3)
    for form, unit, order in (
        ("corners", "input", "xy"),
        ("corners", "pixels", "xy"),
        ("centre", "input", "xy"),
        ("centre", "pixels", "xy"),
        ("corners", "input", "yx"),
    ):
        box = BoxCoding(form, unit=unit, order=order)  # type: ignore[arg-type]
        yield Hypothesis(
            kind,
            (HeadSpec(layout, box, score),),
            classes,
            _contract(signature, **fields),
            iou,
            f"{says} ({form}, {unit}{', yx' if order == 'yx' else ''})",
            names,
            doubtful,
            grid,
            order_of,
        )


_FORMS: tuple[Form, ...] = (
    _cell_rows,
    _anchor_maps,
    _anchor_maps_5d,
    _dfl_maps,
    _shared_class_maps,
    _level_tables,
    _nanodet_plus,
    _rows,
    _detections,
    _pairs,
    _one_table_of_priors,
)
