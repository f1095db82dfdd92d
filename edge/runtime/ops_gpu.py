"""Pre- and post-processing on the GPU, the twin of `ops_cpu`, which says what the numbers are.

`Preprocessor`, `Decoder` and `nms` have the CPU's names and calls, from arrays to arrays, so that
one test body holds both. Their `enqueue` is what a pipeline uses: it only queues kernels on a
stream, from buffer to buffer, and what it queues can be captured into a graph.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge.detections import Detections
from edge.letterbox import Letterbox
from edge.runtime.compile import compile_kernels
from edge.runtime.device import Device, DeviceBuffer, HasPointer, Kernel, Mirror, Module, Stream
from edge.runtime.heads import candidate_table, parts_of
from edge.spec import HeadSpec, Holds, InputContract, ModelSpec

__all__ = [
    "CANDIDATES",
    "Candidates",
    "Decoder",
    "FrameFormat",
    "Kernels",
    "Preprocessor",
    "Suppressor",
    "frame_hw",
    "nms",
    "taps",
]

FrameFormat = Literal["bgr", "nv12", "yuyv"]
"""`bgr` (H, W, 3); `nv12` (H * 3 / 2, W): luma, then rows of U, V; `yuyv` (H, W, 2): Y U Y V."""
CANDIDATES = 3000
"""The best that take part in suppression; the rest never reaches a report. As on the CPU."""
_BLOCK = 128
_WORD = 64  # boxes in a word of the overlap mask; kernels.cu
_SLICES = 8  # threads that place one candidate; kernels.cu
_KEEPERS = 256  # threads of the one block that suppresses
_ACTIVATIONS = {"softmax": 0, "sigmoid": 1, "none": 2}
_HEAD = np.dtype(  # Head of kernels.cu
    [("raw", np.int64)]
    + [(name, np.int32) for name in ("first", "end", "anchors", "columns", "cells")]
    + [(f"{part}_{of}", np.int32) for part in ("box", "object", "class") for of in ("at", "step")]
    + [("convdet", np.int32)]
    + [(name, np.float32) for name in ("step_x", "step_y", "stretch")],
    align=True,
)
_KINDS: tuple[Holds, ...] = ("box", "objectness", "classes", "label")
_PART = np.dtype(  # Part of kernels.cu
    [("at", np.int64)] + [(name, np.int32) for name in ("anchor", "down", "across", "width")]
)
_ANY_HEAD = np.dtype(  # AnyHead of kernels.cu
    [(name, np.int32) for name in ("first", "end", "rows", "fill")] + [("parts", _PART, 4)]
)
_FORMS = ("grid", "priors", "distances", "corners", "centre")
_ANY_ACTIVATIONS = ("none", "sigmoid", "tanh", "exp", "softmax")
_CODED = "form activation size squared bins order_yx clip class_activation object_activation "
_CODED += "background first_label"
_WEIGHED = "variance object_power class_power unit_x unit_y width height"
_CODING = np.dtype(  # Coding of kernels.cu
    [(name, np.int32) for name in _CODED.split()]
    + [(name, np.float32) for name in _WEIGHED.split()]
)
_ROW = np.dtype([("xyxy", np.float32, 4), ("score", np.float32), ("class_id", np.int32)])


@dataclass(frozen=True)
class Kernels:
    """A device with its compiled kernels and a stream to queue them on."""

    device: Device
    module: Module
    stream: Stream

    @staticmethod
    def load(device: Device, stream: Stream | None = None) -> Kernels:
        """Compile kernels.cu for this device, or take it from the cache.

        Raises:
            MissingDependency: there is neither NVRTC nor nvcc.
            DeviceError: the kernels do not compile or do not load; names the error.
        """
        major, minor = device.compute_capability
        image = compile_kernels(major * 10 + minor)
        return Kernels(device, device.module(image), stream or device.stream())

    def launch(
        self, name: str, grid: tuple[int, ...], block: tuple[int, ...], *values: Any
    ) -> None:
        """Queue the kernel of that name over so many threads, in whole blocks."""
        blocks = [-(-threads // size) for threads, size in zip(grid, block, strict=True)]
        kernel: Kernel = self.module.kernel(name)
        self.device.launch(kernel, _three(blocks), _three(block), values, self.stream)

    def upload(self, array: NDArray[Any]) -> DeviceBuffer:
        """A copy on the device, once; waits for it."""
        array = np.ascontiguousarray(array)
        buffer = self.device.allocate(array.shape, array.dtype)
        self.device.copy_to_device_async(buffer, array, self.stream)
        self.device.synchronize(self.stream)
        return buffer

    def download(self, buffer: DeviceBuffer) -> NDArray[Any]:
        """A copy on the host; waits for all that is queued."""
        array = np.empty(buffer.shape, buffer.dtype)
        self.device.copy_to_host_async(array, buffer, self.stream)
        self.device.synchronize(self.stream)
        return array


def _three(sizes: Any) -> tuple[int, int, int]:
    x, y, z = (*sizes, 1, 1)[:3]
    return int(x), int(y), int(z)


def taps(source: int, target: int, *, rows: bool = False) -> NDArray[np.int32]:
    """Where each of `target` samples lies among `source` pixels: (target, 4) int32.

    Two positions and their weights, which add up to 2048: what cv2.resize's INTER_LINEAR does to
    bytes (OpenCV's resize.cpp: pixel centres, weights of INTER_RESIZE_COEF_BITS = 11). Beyond the
    edge a column has the full weight of the last one, a row keeps both halves of it.
    """
    at = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    fraction = at - first.astype(np.float32)
    if not rows:
        fraction[(first < 0) | (first >= source - 1)] = 0
        first = np.clip(first, 0, source - 1)
    weights = np.stack((np.float32(1) - fraction, fraction), axis=1) * np.float32(2048)
    places = np.clip(np.stack((first, first + 1), axis=1), 0, source - 1)
    return np.concatenate((places, np.rint(weights)), axis=1).astype(np.int32)


def frame_hw(frame: NDArray[np.uint8], layout: FrameFormat) -> tuple[int, int]:
    """Height and width of the picture in `frame`.

    Raises:
        ValueError: `frame` is not of that layout.
    """
    shape, kind = frame.shape, frame.dtype
    fits = {
        "bgr": len(shape) == 3 and shape[2] == 3,
        "yuyv": len(shape) == 3 and shape[2] == 2 and shape[1] % 2 == 0,
        "nv12": len(shape) == 2 and shape[0] % 3 == 0 and shape[1] % 2 == 0,
    }
    if kind == np.uint8 and fits[layout]:
        return (shape[0] // 3 * 2 if layout == "nv12" else shape[0]), shape[1]
    wanted = {"bgr": "(H, W, 3)", "yuyv": "(H, W, 2), W even", "nv12": "(H * 3 / 2, W), both even"}
    raise ValueError(f"a {layout} frame is {wanted[layout]} uint8, not {shape} {kind}")


class Preprocessor:
    """Frames to one (1, 3, *hw) tensor on the device; buffers allocated once for a frame size.

    Attributes:
        contract: what the tensor is to hold.
        tensor: the result, unless another buffer is handed to `enqueue`.
        frame: the frame's memory; writing a frame into `frame.array` saves a copy.
    """

    def __init__(
        self,
        contract: InputContract,
        kernels: Kernels,
        *,
        layout: FrameFormat = "bgr",
        dtype: Literal["float32", "float16"] = "float32",
        tensor: DeviceBuffer | None = None,
    ) -> None:
        self.contract, self.layout = contract, layout
        self._kernels = kernels
        self._name = f"letterbox_{layout}_{dtype}"
        self.tensor = tensor or kernels.device.allocate((1, 3, *contract.hw), dtype)
        levels = np.arange(256, dtype=np.float64)
        tables = [
            ((levels - mean) * scale).astype(np.float32).astype(dtype)
            for mean, scale in zip(contract.mean, contract.scale, strict=True)
        ]
        self._levels = kernels.upload(np.concatenate(tables))
        self._fit: Letterbox | None = None
        self.frame: Mirror | None = None
        self._across: DeviceBuffer | None = None
        self._down: DeviceBuffer | None = None

    def place(self, source_hw: tuple[int, int]) -> Letterbox:
        """Make ready for frames of that size; a second call with the same size does nothing."""
        if self._fit is not None and self._fit.source_hw == source_hw:
            return self._fit
        fit = Letterbox.fit(source_hw, self.contract)
        self._release()
        (height, width), resized = source_hw, fit.resized_hw
        shape = {"bgr": (height, width, 3), "yuyv": (height, width, 2)}
        whole = shape.get(self.layout, (height * 3 // 2, width))
        self.frame = self._kernels.device.mirror(whole, np.uint8)
        self._across = self._kernels.upload(taps(width, resized[1]))
        self._down = self._kernels.upload(taps(height, resized[0], rows=True))
        self._fit = fit
        return fit

    def enqueue(self) -> None:
        """Queue the upload of `frame` and what makes `tensor` of it; capturable."""
        if self.frame is None or self._fit is None:
            raise ValueError("no frame size is known yet: call place() first")
        self.frame.push(self._kernels.stream)
        self.enqueue_from(self.frame, pitch=int(self.frame.array.strides[0]))

    def enqueue_from(
        self, pixels: HasPointer, *, pitch: int, chroma: HasPointer | None = None
    ) -> None:
        """Queue what makes `tensor` of a frame that is on the device already.

        Args:
            pitch: bytes from row to row.
            chroma: of NV12, if it does not follow the luma at once; of the same pitch.
        """
        fit = self._fit
        assert fit is not None
        if chroma is None:
            chroma = _Address(pixels.pointer + pitch * fit.source_hw[0])
        into_h, into_w = self.contract.hw
        self._kernels.launch(
            self._name,
            (into_w, into_h),
            (32, 8),
            *(pixels, chroma, pitch, self._across, self._down, self._levels, self.tensor),
            *(into_w, into_h, *fit.pad_xy, *fit.resized_hw[::-1]),
            *(int(self.contract.channel_order == "RGB"), self.contract.pad_value),
        )

    def __call__(self, frame: NDArray[np.uint8]) -> tuple[NDArray[Any], Letterbox]:
        """The tensor, copied to the host, and where the frame lies in it.

        Raises:
            ValueError: `frame` is not of the layout.
        """
        fit = self.place(frame_hw(frame, self.layout))
        assert self.frame is not None
        np.copyto(self.frame.array, frame)
        self.enqueue()
        return self._kernels.download(self.tensor), fit

    def _release(self) -> None:
        for buffer in (self.frame, self._across, self._down):
            if buffer is not None:
                buffer.close()
        self.frame = self._across = self._down = self._fit = None

    def close(self) -> None:
        """Give the frame's and the tables' memory back; `tensor` stays."""
        self._release()
        self._levels.close()


@dataclass(frozen=True)
class _Address:
    pointer: int


class Candidates:
    """What passed the threshold, on the device and in no order; `capacity` of them at most.

    A key is the score's bits above the complement of the candidate's number, so that the greater
    key is the better score and, among equals, the lower number.
    """

    def __init__(self, device: Device, capacity: int) -> None:
        self.capacity = capacity
        self.keys = device.allocate(capacity, np.uint64)
        self.boxes = device.allocate((capacity, 4), np.float32)
        self.labels = device.allocate(capacity, np.int32)
        self.count = device.allocate(1, np.uint32)

    @property
    def buffers(self) -> tuple[DeviceBuffer, ...]:
        """In the order in which the kernels take them."""
        return self.keys, self.boxes, self.labels, self.count

    def close(self) -> None:
        """Give the memory back."""
        for buffer in self.buffers:
            buffer.close()


class Decoder:
    """Raw heads to candidates; see `ops_cpu.Decoder` for formulas and arguments.

    Attributes:
        raw: the heads, float32, on the device; what `enqueue` reads.
        candidates: what it writes.
        suppressed: whether the graph has suppressed overlapping boxes already.
        exclusive: whether boxes suppress each other whatever their classes.
    """

    def __init__(
        self,
        spec: ModelSpec,
        kernels: Kernels,
        *,
        raw: list[DeviceBuffer] | None = None,
        multi_label: bool = False,
    ) -> None:
        """Allocate the candidates.

        Args:
            raw: where a network leaves its heads; by default memory that `__call__` fills.
        """
        self._foreign = any(head.kind == "foreign" for head in spec.heads)
        self._kernels, self._spec, self._classes = kernels, spec, len(spec.classes)
        self._count = sum(head.candidates for head in spec.heads)
        self.suppressed, self.exclusive = spec.heads[0].layout.suppressed, False
        if self._foreign:
            self._begin_foreign(raw, multi_label)
            return
        activations = {head.class_activation for head in spec.heads}
        if len(activations) != 1:
            raise ValueError(f"{spec.name}: heads of different class activations: {activations}")
        self._activation = _ACTIVATIONS[activations.pop()]
        self._multi_label = multi_label and self._activation == _ACTIVATIONS["sigmoid"]
        self._owned = [] if raw is not None else self._allocate()
        self.raw = raw if raw is not None else self._owned
        self._table = kernels.upload(self._heads())
        anchors = [anchor for head in spec.heads for anchor in head.anchors]
        self._anchors = kernels.upload(np.asarray(anchors, np.float32))
        each = self._classes if self._multi_label else 1
        self.candidates = Candidates(kernels.device, self._count * each)

    def _begin_foreign(self, raw: list[DeviceBuffer] | None, multi_label: bool) -> None:
        """The tables of `decode_any`, which reads any head."""
        spec, kernels = self._spec, self._kernels
        first = spec.heads[0]
        for head in spec.heads[1:]:
            # The table has each level's own stretch.
            box = replace(head.box, levels=first.box.levels, stretch=first.box.stretch)
            if (
                box != first.box
                or head.score != first.score
                or head.layout.held != first.layout.held
            ):
                raise ValueError(f"{spec.name}: heads of different codings")
        plain = "label" not in first.layout.held and first.score.classes != "softmax"
        self._multi_label = multi_label and plain
        self.exclusive = first.score.exclusive and not self._multi_label
        shapes = [
            (head.columns(tensor, self._classes), head.candidates // head.side_by_side)
            for head in spec.heads
            for tensor in head.layout.tensors
        ]
        self._owned = [kernels.device.allocate(each, np.float32) for each in shapes]
        if raw is not None:
            for buffer in self._owned:
                buffer.close()
            self._owned = []
        self.raw = raw if raw is not None else self._owned
        self._table = kernels.upload(self._any_heads())
        self._coding = kernels.upload(self._coded())
        tables = [candidate_table(h, spec.contract) for h in spec.heads if h.box.levels]
        geometry = np.concatenate(tables, axis=2) if tables else np.zeros(1, np.float32)
        self._anchors = kernels.upload(geometry)
        each = self._classes if self._multi_label and "classes" in first.layout.held else 1
        self.candidates = Candidates(kernels.device, self._count * each)

    def _any_heads(self) -> NDArray[Any]:
        heads = np.zeros(len(self._spec.heads), _ANY_HEAD)
        first, tensor = 0, 0
        for head, row in zip(self._spec.heads, heads, strict=True):
            row["first"], row["end"] = first, first + head.candidates
            rows = row["rows"] = head.candidates // head.side_by_side
            for kind, part in parts_of(head, tensor, self._classes).items():
                buffer = self.raw[part.source]
                total = buffer.nbytes // 4 // rows
                across, down = (rows, 1) if head.layout.axis == "last" else (1, total)
                at = (buffer.pointer - self.raw[0].pointer) // 4 + part.column * across
                place = (at, part.step * across, down, across, part.width)
                row["parts"][_KINDS.index(kind)] = place
            first, tensor = first + head.candidates, tensor + len(head.tensors)
        return heads

    def _coded(self) -> NDArray[Any]:
        box, score = self._spec.heads[0].box, self._spec.heads[0].score
        height, width = self._spec.contract.hw
        unit = (width, height) if box.unit == "input" else (1, 1)
        background = {None: 0, "first": 1, "last": 2}[score.background]
        named = _ANY_ACTIVATIONS.index
        row = (
            *(_FORMS.index(box.form), named(box.activation), named(box.size), box.squared),
            *(box.bins, box.order == "yx", box.clip_boxes),
            *(named(score.classes), named(score.objectness), background, score.first_label),
            *(box.variances[1], *score.powers, *unit, width, height),
        )
        return np.array([row], _CODING)

    def _allocate(self) -> list[DeviceBuffer]:
        shapes = [(1, head.channels(self._classes), *head.grid_hw) for head in self._spec.heads]
        return [self._kernels.device.allocate(shape, np.float32) for shape in shapes]

    def _heads(self) -> NDArray[Any]:
        rows, first, anchors = [], 0, 0
        for buffer, head in zip(self.raw, self._spec.heads, strict=True):
            end, (height, width) = first + head.candidates, head.grid_hw
            rows.append(
                (
                    *((buffer.pointer - self.raw[0].pointer) // 4, first, end, anchors),
                    *(width, height * width, *_planes(head, self._classes)),
                    *(head.kind == "convdet", *_steps(head, self._spec.contract.hw)),
                    head.scale_xy,
                )
            )
            first, anchors = end, anchors + len(head.anchors)
        return np.array(rows, _HEAD)

    def enqueue(self, score: float) -> Candidates:
        """Queue the decoding of `raw`; capturable."""
        gate = float(np.log(score / (1 - score))) if 0 < score < 1 else -np.inf
        self._kernels.device.zero_async(self.candidates.count, self._kernels.stream)
        if self._foreign:
            self._kernels.launch(
                "decode_any",
                (self._count,),
                (_BLOCK,),
                *(self.raw[0], self._table, self._coding, self._anchors, self._count),
                *(self._classes, int(self._multi_label), max(float(score), 0.0)),
                *self.candidates.buffers,
            )
            return self.candidates
        self._kernels.launch(
            "decode",
            (self._count,),
            (_BLOCK,),
            *(self.raw[0], self._table, self._anchors, self._count, self._classes),
            *(self._activation, int(self._multi_label), gate, max(float(score), 0.0)),
            *self.candidates.buffers,
        )
        return self.candidates

    def __call__(self, raw: list[NDArray[Any]], score: float) -> Detections:
        """What scores above `score`, copied to the host, in the CPU's order.

        Raises:
            ValueError: the number of heads or a head's size is not the spec's.
        """
        names = self._spec.tensors
        if len(raw) != len(names):
            raise ValueError(f"{len(raw)} raw outputs for heads that read {len(names)}")
        for array, name, buffer in zip(raw, names, self.raw, strict=True):
            if array.size * 4 != buffer.nbytes:
                raise ValueError(f"output {name} of shape {array.shape} is not the spec's")
        given = [np.ascontiguousarray(array, np.float32) for array in raw]
        for array, buffer in zip(given, self.raw, strict=True):
            self._kernels.device.copy_to_device_async(buffer, array, self._kernels.stream)
        found = self.enqueue(score)
        keys, boxes, labels, count = (self._kernels.download(each) for each in found.buffers)
        order = np.argsort(~keys[: count[0]] & np.uint64(0xFFFFFFFF), kind="stable")
        scores = (keys[order] >> np.uint64(32)).astype(np.uint32).view(np.float32)
        return Detections(boxes[order], scores, labels[order])

    def close(self) -> None:
        """Give the memory back; the heads that were handed in stay."""
        self.candidates.close()
        more = (self._coding,) if self._foreign else ()
        for buffer in (self._table, self._anchors, *more, *self._owned):
            buffer.close()


def _planes(head: HeadSpec, classes: int) -> tuple[int, ...]:
    """First plane and planes per anchor of boxes, objectness and classes."""
    count, each = len(head.anchors), 5 + classes
    if head.kind == "convdet":  # all class logits, all confidences, all deltas; each by anchor
        return count * (classes + 1), 4, count * classes, 1, 0, classes
    return 0, each, 4, each, 5, each


def _steps(head: HeadSpec, input_hw: tuple[int, int]) -> tuple[float, float]:
    """Pixels from one cell's centre to the next, across and down."""
    (height, width), (rows, columns) = input_hw, head.grid_hw
    if head.kind == "convdet":  # upstream SqueezeDet spreads them over W/(columns + 1) steps
        return width / (columns + 1), height / (rows + 1)
    return width / columns, height / rows


class Suppressor:
    """Sorting and greedy suppression within each class; at most `limit` boxes come out.

    Attributes:
        result: the boxes that stay, best first, behind one row that counts them.
    """

    def __init__(self, kernels: Kernels, limit: int = 300) -> None:
        self._kernels, self.limit = kernels, limit
        device, words = kernels.device, -(-CANDIDATES // _WORD)
        self._boxes = device.allocate((CANDIDATES, 4), np.float32)
        self._scores = device.allocate(CANDIDATES, np.float32)
        self._labels = device.allocate(CANDIDATES, np.int32)
        self._mask = device.allocate((words, CANDIDATES), np.uint64)
        self.result = device.mirror(limit + 1, _ROW)

    def enqueue(self, found: Candidates, iou: float, exclusive: bool = False) -> None:
        """Queue suppression and the one copy of what stays; capturable.

        Args:
            exclusive: boxes suppress each other whatever their classes.
        """
        launch, sorted_ = self._kernels.launch, (self._boxes, self._scores, self._labels)
        keys, boxes, labels, count = found.buffers
        launch(
            *("rank", (found.capacity * _SLICES,), (32 * _SLICES,)),
            *(keys, boxes, labels, count, CANDIDATES, *sorted_),
        )
        launch(
            *("overlap", (CANDIDATES, self._mask.shape[0]), (_WORD, 1)),
            *(self._boxes, self._labels, count, CANDIDATES, float(iou), int(exclusive), self._mask),
        )
        launch(
            *("keep", (_KEEPERS,), (_KEEPERS,)),
            *(*sorted_, count, CANDIDATES, self.limit, self._mask, self.result),
        )
        self.result.pull(self._kernels.stream)

    def collect(self) -> Detections:
        """What stays, once the stream is synchronised; the arrays are the caller's."""
        rows = self.result.array
        rows = rows[1 : 1 + int(rows[0]["class_id"])]
        return Detections(rows["xyxy"].copy(), rows["score"].copy(), rows["class_id"].copy())

    def close(self) -> None:
        """Give the memory back."""
        self.result.close()
        for buffer in (self._boxes, self._scores, self._labels, self._mask):
            buffer.close()


def nms(found: Detections, iou: float = 0.45, limit: int = 300, *, kernels: Kernels) -> Detections:
    """See `ops_cpu.nms`; boxes without a score above 0 are left out, NaN among them."""
    if not len(found) or limit < 1:
        return found[:0]
    given = [kernels.upload(part) for part in (found.xyxy, found.score, found.class_id)]
    candidates, suppressor = Candidates(kernels.device, len(found)), Suppressor(kernels, limit)
    kernels.device.zero_async(candidates.count, kernels.stream)
    kernels.launch("collect", (len(found),), (_BLOCK,), *given, len(found), *candidates.buffers)
    suppressor.enqueue(candidates, iou)
    kernels.device.synchronize(kernels.stream)
    kept = suppressor.collect()
    candidates.close()
    suppressor.close()
    for buffer in given:
        buffer.close()
    return kept
