"""A foreign ONNX file as a plain FP32 graph: fixed sizes, one picture in, NCHW floats.

Every rewriting is done by onnx's own version converter, by onnxruntime's constant folding or by a
few lines here, and the outputs before and after are compared on one picture.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.artifact import foreign_header
from edge.errors import ArtifactError
from edge.files import plain_text, read_file
from edge.optional import require
from edge.runtime.session import open_session

__all__ = [
    "CHECKPOINTS",
    "IMAGES",
    "CleanGraph",
    "Output",
    "clean",
    "keep_outputs",
    "read_foreign",
    "refuse_other_files",
]

IMAGES = "images"
CHECKPOINTS = (".pt", ".pth", ".ckpt")
# What edge's own files are written in: FP16 scales need it, TensorRT 10 reads it.
_OPSET = 19
_OLDEST = 9
_DYNAMIC = {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
_INTEGER = {"QLinearConv", "QLinearMatMul", "QLinearAdd", "QGemm"}
# A graph without an own size may say one in its metadata; nobody trains on larger pictures.
_MOST_SIDE = 8192
_USUAL_HW = (640, 640)


@dataclass(frozen=True)
class Output:
    """One output as onnxruntime gives it: its shape without the batch, and whether integer."""

    name: str
    dims: tuple[int, ...]
    integer: bool = False

    def __str__(self) -> str:
        return f"{self.name} [{', '.join(map(str, (1, *self.dims)))}]"


@dataclass(eq=False)
class CleanGraph:
    """A graph that takes one (1, 3, H, W) float32 picture.

    Attributes:
        source: the file, for messages.
        model: onnx `ModelProto`.
        hw: size of its input.
        outputs: in the graph's order.
        quantized: whether it has Q/DQ nodes.
        whole_range: whether it takes pixels 0..255, because its own input was uint8.
        normalises: whether its first nodes are arithmetic with constants on the picture.
        varies: whether an output's size depends on the picture.
        metadata: `metadata_props`.
        notes: what was done to it, one sentence each.
    """

    source: str
    model: Any
    hw: tuple[int, int]
    outputs: tuple[Output, ...]
    quantized: bool
    whole_range: bool
    normalises: bool
    varies: bool
    metadata: dict[str, str]
    notes: list[str] = field(default_factory=list)

    @property
    def light_body(self) -> bool:
        """Whether it is built of depthwise convolutions and ReLU, as ShuffleNet is."""
        kinds = [node.op_type for node in self.model.graph.node]
        groups = [
            attribute.i
            for node in self.model.graph.node
            if node.op_type == "Conv"
            for attribute in node.attribute
            if attribute.name == "group"
        ]
        many = sum(group > 1 for group in groups) > kinds.count("Conv") // 5
        return many and kinds.count("Relu") > kinds.count("Conv") // 3

    def session(self) -> Any:
        """An onnxruntime session of it on the CPU."""
        return open_session(self.model.SerializeToString(), self.source)


def refuse_other_files(path: Path) -> None:
    """Raise with the way back for what is no ONNX file but comes from the same tools.

    Raises:
        ArtifactError: the file is missing, or a checkpoint or engine of ultralytics.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    if path.suffix in CHECKPOINTS:
        raise ArtifactError(
            f"{path}: a checkpoint of torch, which only its own code can read; export it there: "
            f"yolo export model={path.name} format=onnx, or torch.onnx.export, then edge import"
        )
    if path.suffix in (".engine", ".plan", ".trt"):
        header = foreign_header(path)
        raise ArtifactError(
            f"{path}: {header or 'an engine without a manifest of edge'}; import the ONNX file "
            "that it was built from"
        )
    if path.suffix != ".onnx":
        raise ArtifactError(f"{path}: not an .onnx file; export the network to ONNX first")


def read_foreign(path: Path) -> Any:
    """The `ModelProto` of an ONNX file that can be imported.

    Raises:
        ArtifactError: damaged, of another kind, or quantized in a way that cannot be taken back.
    """
    refuse_other_files(path)
    onnx = require("onnx")
    data = read_file(path)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's exceptions share no other base
        raise ArtifactError(f"{path}: not an ONNX file, or cut short: {_line(error)}") from error
    if not model.graph.node or not model.graph.output:
        raise ArtifactError(f"{path}: an ONNX file without a graph: empty, or cut short")
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        # Some tools write what the standard does not allow and onnxruntime takes, such as scales
        # for each channel before opset 13.
        try:
            open_session(data, path)
        except ArtifactError:
            raise ArtifactError(f"{path}: its graph is damaged: {_line(error)}") from error
    found = {node.op_type for node in model.graph.node}
    if found & _DYNAMIC:
        raise ArtifactError(
            f"{path}: quantized dynamically ({', '.join(sorted(found & _DYNAMIC))}): its scales "
            "are computed for each picture, which no engine does; import the float file that it "
            "was made from, or export the network again without quantization"
        )
    if found & _INTEGER:
        raise ArtifactError(
            f"{path}: quantized with integer operators ({', '.join(sorted(found & _INTEGER))}); "
            "quantize it in the Q/DQ format, or import the float file that it was made from"
        )
    foreign = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
    if foreign:
        kinds = sorted({n.op_type for n in model.graph.node if n.domain in foreign})
        raise ArtifactError(
            f"{path}: operators outside of ONNX ({', '.join(kinds)} of {', '.join(foreign)}); "
            "export it without them, such as plugins for suppression"
        )
    opset = _opset(model)
    if opset < _OLDEST:
        raise ArtifactError(f"{path}: opset {opset}; from {_OLDEST} on it can be read")
    return model


def clean(
    model: Any,
    source: str,
    size: tuple[int, int] | None = None,
    said: tuple[int, int] | None = None,
) -> CleanGraph:
    """Bring a foreign graph into the form that the rest of edge takes.

    Args:
        source: the file, for messages.
        size: of the input where the graph leaves it open.
        said: what the metadata say about it; taken where nothing else is known.

    Raises:
        ArtifactError: it does not take one picture, or does not run at that size.
    """
    onnx = require("onnx")
    notes: list[str] = []
    original = model
    model = onnx.ModelProto()
    model.CopyFrom(original)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    constants = {constant.name for constant in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in constants]:
        model.graph.input.remove(value)
    picture, nhwc = _picture(model, source)
    hw = _fix_input(picture, nhwc, size, said, source, notes)
    _fix_others(model, picture, hw, source, notes)
    half = _to_float(model)
    if half:
        notes.append(f"{half} tensors of half precision became float32")
    kind = picture.type.tensor_type.elem_type
    byte = kind == onnx.TensorProto.UINT8
    if not byte and kind != onnx.TensorProto.FLOAT:
        raise ArtifactError(
            f"{source}: its input {picture.name} is {onnx.TensorProto.DataType.Name(kind)}; float "
            "and uint8 pictures can be fed"
        )
    before = _run(model, picture.name, _feed(hw, nhwc, byte), source)
    _standard_input(model, picture, hw, nhwc, byte, notes)
    quantized = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    if not quantized:
        model = _fold(model, source, notes)
    model = _upgrade(model, notes)
    _gather_constants(model)
    _name_nodes(model)
    _give_biases(model)
    _give_own_constants(model)
    after = _run(model, IMAGES, _feed(hw, False, False), source)
    names = [value.name for value in model.graph.output]
    worst = max(map(_difference, before.values(), (after[name] for name in before)))
    notes.append(f"outputs before and after differ by {worst:.2g} of their range at most")
    if worst > 1e-3:
        raise ArtifactError(
            f"{source}: rewriting it changed its outputs by {worst:.2g} of their range; please "
            "report it, or export it for opset 17 with constant folding"
        )
    outputs = tuple(_output(name, after[name]) for name in names)
    normalises = _normalises(model)
    varies = _varies(model, source)
    _set_output_types(model, after)
    return CleanGraph(
        source, model, hw, outputs, quantized, byte, normalises, varies, metadata, notes
    )


def _output(name: str, array: NDArray[Any]) -> Output:
    dims = array.shape[1:] if array.ndim > 1 and array.shape[0] == 1 else array.shape
    return Output(name, tuple(dims), array.dtype.kind in "iu")


def _difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Of the range of `one`; shapes that depend on the picture may differ by a row."""
    if one.shape != other.shape or not one.size:
        return 0.0 if one.size == other.size else 1.0
    a, b = one.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.any():
        return 0.0
    span = max(float(np.ptp(a[finite])), 1e-6)
    return float(np.quantile(np.abs(a[finite] - b[finite]), 0.999)) / span


def _opset(model: Any) -> int:
    return max(
        (one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0
    )


def _dims(value: Any) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _picture(model: Any, source: str) -> tuple[Any, bool]:
    """The input that takes the picture, and whether its channels come last."""
    found = []
    for value in model.graph.input:
        dims = _dims(value)
        if len(dims) == 4:
            first, last = dims[1] == 3, dims[3] == 3
            if first or last:
                found.append((value, last and not first))
            elif dims[1] == 0 and dims[3] == 0:
                found.append((value, False))
    if len(found) != 1:
        inputs = ", ".join(f"{v.name} {_dims(v)}" for v in model.graph.input)
        raise ArtifactError(
            f"{source}: its inputs are {inputs}; a detector takes one colour picture"
        )
    return found[0]


def _fix_input(
    value: Any,
    nhwc: bool,
    size: tuple[int, int] | None,
    said: tuple[int, int] | None,
    source: str,
    notes: list[str],
) -> tuple[int, int]:
    dims = value.type.tensor_type.shape.dim
    batch, height, width, channels = (
        (dims[0], dims[1], dims[2], dims[3]) if nhwc else (dims[0], dims[2], dims[3], dims[1])
    )
    own = (height.dim_value, width.dim_value)
    if min(own) < 1:
        hw = size or said or _USUAL_HW
        whose = "--size" if size else "as the metadata say" if said else "as most have; --size HxW"
        notes.append(f"the input's open size became {hw[0]}x{hw[1]} ({whose})")
    elif size is not None and size != own:
        raise ArtifactError(
            f"{source}: its input is {own[0]}x{own[1]} and cannot become {size[0]}x{size[1]}; "
            "export it again for that size"
        )
    else:
        hw = own
        if said is not None and said != own:
            notes.append(
                f"warning: the metadata say {said[0]}x{said[1]}, the input is {own[0]}x{own[1]}; "
                "the graph's own size counts"
            )
    if not all(8 <= side <= _MOST_SIDE for side in hw):
        raise ArtifactError(f"{source}: an input of {hw[0]}x{hw[1]} pixels is no detector's")
    if batch.dim_value != 1:
        notes.append("its batch became 1")
    for dim, number in ((batch, 1), (height, hw[0]), (width, hw[1]), (channels, 3)):
        dim.ClearField("dim_param")
        dim.dim_value = number
    return hw


# Inputs that some exporters put beside the picture, as constants of the network's own input.
def _fix_others(
    model: Any, picture: Any, hw: tuple[int, int], source: str, notes: list[str]
) -> None:
    onnx = require("onnx")
    known = {
        "orig_target_sizes": [hw[1], hw[0]],
        "orig_target_size": [hw[1], hw[0]],
        "im_shape": [hw[0], hw[1]],
        "image_shape": [hw[0], hw[1]],
        "scale_factor": [1, 1],
    }
    for value in [value for value in model.graph.input if value.name != picture.name]:
        if value.name not in known:
            raise ArtifactError(
                f"{source}: beside the picture it takes {value.name} {_dims(value)}; export it "
                "without that input"
            )
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        array = np.array([known[value.name]], kind)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        model.graph.input.remove(value)
        notes.append(f"the input {value.name} became the constant {array.tolist()}")
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _to_float(model: Any) -> int:
    """Half precision to single, everywhere; how many tensors."""
    onnx = require("onnx")
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT

    def convert(tensor: Any) -> int:
        if tensor.data_type != half:
            return 0
        array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return 1

    def walk(graph: Any) -> int:
        number = sum(map(convert, graph.initializer))
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == half:
                value.type.tensor_type.elem_type = single
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    number += convert(attribute.t)
                elif attribute.type == onnx.AttributeProto.GRAPH:
                    number += walk(attribute.g)
                elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                    attribute.i = single
        return number

    return walk(model.graph)


def _standard_input(
    model: Any, picture: Any, hw: tuple[int, int], nhwc: bool, byte: bool, notes: list[str]
) -> None:
    """Put an NCHW float32 input `images` in front of whatever the graph took."""
    onnx = require("onnx")
    helper = onnx.helper
    old, taken = picture.name, {value.name for value in model.graph.output}
    nodes, last = [], IMAGES
    if nhwc:
        nodes.append(helper.make_node("Transpose", [last], [f"{old}_nhwc"], perm=[0, 2, 3, 1]))
        last = f"{old}_nhwc"
        notes.append("its channels came last: a transposition was put in front")
    if byte:
        kind = onnx.TensorProto.UINT8
        nodes.append(helper.make_node("Cast", [last], [f"{old}_bytes"], to=kind))
        last = f"{old}_bytes"
        notes.append("it took bytes: it now takes the numbers 0..255")
    for node in model.graph.node:
        for number, name in enumerate(node.input):
            if name == old:
                node.input[number] = last
    if old in taken:
        nodes.append(helper.make_node("Identity", [last], [old]))
    for number, node in enumerate(nodes):
        model.graph.node.insert(number, node)
    shape = [1, 3, *hw]
    value = helper.make_tensor_value_info(IMAGES, onnx.TensorProto.FLOAT, shape)
    model.graph.input.remove(picture)
    model.graph.input.insert(0, value)


def _upgrade(model: Any, notes: list[str]) -> Any:
    """To the opset of edge's own files, by onnx's converter; as it is where that cannot."""
    onnx, opset = require("onnx"), _opset(model)
    if opset >= _OPSET:
        return model
    for target in (_OPSET, 17, 13):
        if target <= opset:
            break
        try:
            converted = onnx.version_converter.convert_version(model, target)
            onnx.checker.check_model(converted)
        except Exception:
            continue  # the next lower one; the converter's exceptions share no other base
        notes.append(f"opset {opset} became {target}")
        return converted
    notes.append(f"opset {opset} stays: onnx's converter cannot raise it")
    return model


def _fold(model: Any, source: str, notes: list[str]) -> Any:
    """Constant folding by onnxruntime: sizes that were computed become numbers.

    Of its basic optimisations only: these give operators of ONNX alone.
    """
    onnx = require("onnx")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "folded.onnx"
        open_session(model.SerializeToString(), source, folded=target)
        folded = onnx.load(str(target))
    used = {node.domain for node in folded.graph.node}
    if used - {"", "ai.onnx"}:
        notes.append("constants were not folded: onnxruntime would put its own operators in")
        return model
    kept = [one for one in folded.opset_import if one.domain in ("", "ai.onnx")]
    del folded.opset_import[:]
    folded.opset_import.extend(kept)
    folded.ir_version = model.ir_version
    notes.append(f"{len(model.graph.node)} nodes became {len(folded.graph.node)} by folding")
    return folded


def _gather_constants(model: Any) -> None:
    """Constant nodes become constants of the graph, where all that rewrites it looks for them."""
    onnx = require("onnx")
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        values = [each for each in node.attribute if each.name == "value"]
        if values:
            array = onnx.numpy_helper.to_array(values[0].t)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, node.output[0]))
            model.graph.node.remove(node)


def _name_nodes(model: Any) -> None:
    """A name of its own for every node: calibration and layer reports speak of them by name."""
    seen: set[str] = set()
    for node in model.graph.node:
        name = node.name or f"{node.op_type}_{node.output[0]}"
        number = 1
        while name in seen:
            number += 1
            name = f"{node.name or node.op_type}_{number}"
        seen.add(name)
        node.name = name


def _give_biases(model: Any) -> None:
    """Zeros as a bias for convolutions without one: INT8 corrects rounding errors there."""
    onnx = require("onnx")
    constants = {constant.name: constant for constant in model.graph.initializer}
    for node in model.graph.node:
        weight = constants.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is not None and len([name for name in node.input if name]) == 2:
            name = f"{node.name}_zero_bias"
            zeros = np.zeros(weight.dims[0], np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(zeros, name))
            del node.input[2:]
            node.input.append(name)


def _give_own_constants(model: Any) -> None:
    """Copy weights and biases that convolutions share: INT8 changes them for each by itself."""
    constants = {constant.name: constant for constant in model.graph.initializer}
    readers = Counter(name for node in model.graph.node for name in node.input)
    readers.update(value.name for value in model.graph.output)
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        for index, name in enumerate(node.input[1:], 1):
            if name in constants and readers[name] > 1:
                readers[name] -= 1
                copy = model.graph.initializer.add()
                copy.CopyFrom(constants[name])
                copy.name = node.input[index] = f"{node.name}_own_{name}"


def _varies(model: Any, source: str) -> bool:
    """Whether onnxruntime cannot tell the size of an output beforehand."""
    outputs = open_session(model.SerializeToString(), source).get_outputs()
    return any(not isinstance(dim, int) for output in outputs for dim in output.shape)


def _set_output_types(model: Any, arrays: dict[str, NDArray[Any]]) -> None:
    onnx = require("onnx")
    for value in model.graph.output:
        array = arrays[value.name]
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, list(array.shape)))


def _normalises(model: Any) -> bool:
    """Whether the picture first meets arithmetic with constants: its scale is in the graph."""
    constants = {constant.name for constant in model.graph.initializer}
    reads: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            reads.setdefault(name, []).append(node)
    at = IMAGES
    for _ in range(6):
        following = reads.get(at, [])
        kinds = {node.op_type for node in following}
        if kinds & {"Mul", "Div", "Sub", "Add"}:
            return any(set(node.input) & constants for node in following)
        if len(following) != 1 or not kinds <= {"Cast", "Transpose", "Identity", "Reshape"}:
            return False
        at = following[0].output[0]
    return False


def _feed(hw: tuple[int, int], nhwc: bool, byte: bool) -> NDArray[Any]:
    picture = np.random.default_rng(0).integers(0, 256, (1, 3, *hw)).astype(np.float32)
    if nhwc:
        picture = np.ascontiguousarray(picture.transpose(0, 2, 3, 1))
    return picture.astype(np.uint8) if byte else picture


def _run(model: Any, name: str, feed: NDArray[Any], source: str) -> dict[str, NDArray[Any]]:
    session = open_session(model.SerializeToString(), source)
    outputs = [output.name for output in session.get_outputs()]
    try:
        arrays = session.run(outputs, {name: feed})
    except Exception as error:  # onnxruntime's exceptions share no other base
        height, width = feed.shape[1:3] if feed.shape[-1] == 3 else feed.shape[2:]
        raise ArtifactError(
            f"{source}: it does not run on one picture of {height}x{width}: {_line(error)}"
        ) from error
    return dict(zip(outputs, arrays, strict=True))


def _line(error: Exception) -> str:
    return plain_text(" ".join(str(error).split()))[:300] or type(error).__name__


def keep_outputs(model: Any, names: Sequence[str]) -> Any:
    """The graph with those outputs alone, in that order, and without what only others need."""
    onnx = require("onnx")
    known = {value.name: value for value in model.graph.output}
    inferred = None
    outputs = []
    for name in names:
        if name not in known and inferred is None:
            inferred = onnx.shape_inference.infer_shapes(model)
            known |= {value.name: value for value in inferred.graph.value_info}
        outputs.append(known[name])
    needed, nodes = set(names), []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= set(node.input) | set(_captured(node))
    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    del (
        kept.graph.node[:],
        kept.graph.output[:],
        kept.graph.initializer[:],
        kept.graph.value_info[:],
    )
    kept.graph.node.extend(reversed(nodes))
    kept.graph.output.extend(outputs)
    kept.graph.initializer.extend(c for c in model.graph.initializer if c.name in needed)
    return kept


def _captured(node: Any) -> Iterable[str]:
    """Names that the bodies of a node take from outside."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                yield from inner.input
                yield from _captured(inner)
            yield from (value.name for value in attribute.g.output)
