"""Run a graph over images and keep a histogram of each tensor that will be quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.equalise import apply_gains
from calibration.graph import Graph
from calibration.histogram import Histogram
from edge.errors import ArtifactError, CalibrationError, EdgeError
from edge.files import plain_text
from edge.optional import require
from edge.runtime.ops_cpu import Preprocessor
from edge.runtime.session import first_line, open_session

__all__ = ["activations", "collect", "collect_arrays", "conv_inputs"]

# Of one tensor: 1 GiB as float32; and bytes of a constant that may be a shape.
_MOST_VALUES, _SMALL_BYTES = 1 << 28, 1 << 10
Frame = tuple[str, NDArray[np.uint8]]
Gains = Mapping[str, NDArray[np.float32]]


def conv_inputs(model: Any) -> list[str]:
    """Return the names of the tensors that convolutions read, once each, in the graph's order."""
    return list(dict.fromkeys(n.input[0] for n in model.graph.node if n.op_type == "Conv"))


def _session(graph: Graph, tensors: list[str], threads: int | None, gains: Gains) -> Any:
    try:
        return _tapped(graph, tensors, threads, gains)
    except EdgeError:
        raise
    except Exception as error:  # onnxruntime's and protobuf's exceptions share no other base
        raise ArtifactError(f"{graph}: its graph cannot be read: {first_line(error)}") from error


def _tapped(graph: Graph, tensors: list[str], threads: int | None, gains: Gains) -> Any:
    onnx = require("onnx")
    model = apply_gains(graph.model, gains)
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name)
        for name in tensors
        if name not in present and name != model.graph.input[0].name
    )
    # Without the arena each image's activations are given back before the next one's.
    return open_session(model.SerializeToString(), graph.path, threads=threads, arena=False)


def collect(
    graph: Graph | str | Path,
    frames: Iterable[Frame],
    *,
    gains: Gains | None = None,
    progress: Callable[[int], None] | None = None,
    threads: int | None = None,
) -> dict[str, Histogram]:
    """Return a histogram of each convolution's input over `frames`, by tensor name.

    Frames go through the artifact's own input contract, the same code as the camera's. Memory
    depends on the network, not on the number of frames.

    Args:
        graph: FP32 ONNX file that edge wrote.
        frames: (name, BGR uint8 image) pairs; the name is for messages.
        gains: of `calibration.equalise`, applied to the graph first.
        progress: called with the number of frames done.
        threads: of onnxruntime; all cores by default.

    Raises:
        CalibrationError: no frame, or an activation that is NaN or infinite (names tensor and
            image).
    """
    graph = Graph.open(graph)
    preprocess = Preprocessor(graph.manifest.spec.contract)
    arrays = ((name, _input(preprocess, name, image)) for name, image in frames)
    return collect_arrays(graph, arrays, gains=gains, progress=progress, threads=threads)


def _input(preprocess: Preprocessor, name: str, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    try:
        return preprocess(image)[0]
    except ValueError as error:
        raise CalibrationError(f"{name}: cannot be calibrated on: {error}") from error


def collect_arrays(
    graph: Graph | str | Path,
    arrays: Iterable[tuple[str, NDArray[np.float32]]],
    *,
    gains: Gains | None = None,
    progress: Callable[[int], None] | None = None,
    threads: int | None = None,
) -> dict[str, Histogram]:
    """Do as `collect`, over (name, network input (1, 3, H, W) float32) pairs."""
    graph = Graph.open(graph)
    tensors = conv_inputs(graph.model)
    found = {name: Histogram() for name in tensors}
    found_by_image = activations(graph, tensors, arrays, threads, gains)
    for count, (_, values) in enumerate(found_by_image, 1):
        for tensor, value in values:
            found[tensor].add(value)
        if progress:
            progress(count)
    if not any(histogram.seen for histogram in found.values()):
        raise CalibrationError(f"{graph}: no image to calibrate on")
    return found


def _check_sizes(graph: Graph) -> None:
    """Refuse a graph whose outputs are not those of its manifest, or whose tensors are huge.

    Shapes are inferred without the weights, so that this costs nothing and is known first.
    """
    onnx = require("onnx")
    bare = onnx.ModelProto(ir_version=graph.model.ir_version)
    bare.opset_import.extend(graph.model.opset_import)
    bare.graph.name = graph.model.graph.name
    bare.graph.node.extend(graph.model.graph.node)
    bare.graph.input.extend(graph.model.graph.input)
    for output in graph.model.graph.output:
        kind = output.type.tensor_type.elem_type
        bare.graph.output.append(onnx.helper.make_tensor_value_info(output.name, kind, None))
    for tensor in graph.model.graph.initializer:
        # Shapes of reshapes are small constants; only their values are needed.
        if len(tensor.raw_data) <= _SMALL_BYTES:
            bare.graph.initializer.append(tensor)
        else:
            dims = list(tensor.dims)
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, dims)
            bare.graph.input.append(value)
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except Exception as error:  # onnx's exceptions share no other base
        raise ArtifactError(f"{graph}: its graph is damaged: {first_line(error)}") from error
    known = {tensor.name: tensor.shape for tensor in graph.manifest.outputs}
    for value in (*inferred.value_info, *inferred.output):
        sides = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if not sides or min(sides) < 1:
            continue
        wanted = known.get(value.name)
        if prod(sides) > _MOST_VALUES or (wanted is not None and tuple(sides) != wanted):
            raise ArtifactError(
                f"{graph}: its graph is damaged: {plain_text(value.name)} is of shape "
                f"{tuple(sides)}" + (f" and should be {wanted}" if wanted else "")
            )


def activations(
    graph: Graph,
    tensors: list[str],
    arrays: Iterable[tuple[str, NDArray[np.float32]]],
    threads: int | None = None,
    gains: Gains | None = None,
) -> Iterator[tuple[str, list[tuple[str, NDArray[np.float32]]]]]:
    """Yield, for each (name, network input), the name and the values of `tensors` by name.

    Raises:
        CalibrationError: a value is NaN or infinite (names tensor and image), or an input is not
            of the graph's size.
        ArtifactError: the graph is damaged.
    """
    _check_sizes(graph)
    session = _session(graph, tensors, threads, gains or {})
    feed, shape = session.get_inputs()[0].name, session.get_inputs()[0].shape
    wanted = [name for name in tensors if name != feed]
    for name, array in arrays:
        if list(array.shape) != list(shape):
            raise CalibrationError(
                f"{graph}: its input is {tuple(shape)}, the image {name} came as {array.shape}; "
                "calibrate with the input contract of the artifact"
            )
        try:
            values = dict(zip(wanted, session.run(wanted, {feed: array}), strict=True))
        except Exception as error:  # onnxruntime's exceptions share no other base
            raise ArtifactError(
                f"{graph}: onnxruntime cannot run it: {first_line(error)}"
            ) from error
        if feed in tensors:
            values[feed] = array
        for tensor, value in values.items():
            # max hands a NaN on; min sees the one infinity that max does not.
            if not np.isfinite([value.max(), value.min()]).all():
                raise CalibrationError(
                    f"{graph}: tensor {tensor} holds NaN or infinity for the image {name}; the "
                    "weights are damaged or the input contract is not the one of the training"
                )
        yield name, list(values.items())
