"""A torch detector to an ONNX file: batch norm folded, tensors named after module paths.

The name of a tensor is the path of the module that made it, in the torch model, the ONNX graph,
the calibration table and the engine's layer report alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import edge
from edge.artifact import write_atomic
from edge.errors import ArtifactError
from edge.onnx_metadata import MANIFEST_KEY
from edge.optional import require
from edge.spec import Manifest, ModelSpec, TensorSpec

if TYPE_CHECKING:
    import torch

__all__ = ["IMAGES", "OPSET", "attach_manifest", "write_onnx"]

# 19 brings FP16 scales to QuantizeLinear; TensorRT 10.3 (JetPack 6) and onnxruntime 1.17 read it.
OPSET = 19
IR_VERSION = 9
IMAGES = "images"


class _Graph:
    """Nodes and initializers in the making.

    `names` maps an fx node to its tensor, `shapes` a tensor to its shape.
    """

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.names: dict[Any, str] = {}

    def add(self, op: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        helper = require("onnx.helper")
        node = helper.make_node(op, list(inputs), [output], name=output, **attributes)
        self.nodes.append(node)
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        numpy_helper = require("onnx.numpy_helper")
        self.initializers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name


def _pair(value: Any) -> list[int]:
    return [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)] * 2


def _numpy(tensor: Any) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().double().numpy()
    return array


def _fold(conv: Any, norm: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight and bias of `conv` followed by `norm`, computed in double precision."""
    weight = _numpy(conv.weight)
    bias = np.zeros(len(weight)) if conv.bias is None else _numpy(conv.bias)
    if norm is not None:
        with np.errstate(invalid="ignore", divide="ignore"):  # what comes of it is refused
            gain = 1 / np.sqrt(_numpy(norm.running_var) + norm.eps)
        gain = gain * (_numpy(norm.weight) if norm.affine else 1.0)
        bias = (bias - _numpy(norm.running_mean)) * gain
        bias = bias + (_numpy(norm.bias) if norm.affine else 0.0)
        weight = weight * gain[:, None, None, None]
    return weight.astype(np.float32), bias.astype(np.float32)


def _weights(graph: _Graph, name: str, array: NDArray[np.float32]) -> str:
    if not np.isfinite(array).all():
        raise ArtifactError(f"{name} holds NaN or infinity: the weights are damaged")
    return graph.constant(name, array)


def _conv(graph: _Graph, path: str, conv: Any, inputs: list[str], norm: Any) -> str:
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        raise ArtifactError(f"{path}: its padding has no ONNX form; pad with zeros, in numbers")
    weight, bias = _fold(conv, norm)
    constants = [_weights(graph, f"{path}.weight", weight), _weights(graph, f"{path}.bias", bias)]
    return graph.add(
        "Conv",
        inputs + constants,
        path,
        kernel_shape=_pair(conv.kernel_size),
        strides=_pair(conv.stride),
        pads=list(getattr(conv, "pads", _pair(conv.padding) * 2)),
        dilations=_pair(conv.dilation),
        group=conv.groups,
    )


def _norm(graph: _Graph, path: str, norm: Any, inputs: list[str]) -> str:
    values = {
        "weight": norm.weight,
        "bias": norm.bias,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
    }
    constants = [
        _weights(graph, f"{path}.{name}", _numpy(v).astype(np.float32))
        for name, v in values.items()
    ]
    return graph.add("BatchNormalization", inputs + constants, path, epsilon=norm.eps)


def _swish(graph: _Graph, path: str, _: Any, inputs: list[str]) -> str:
    gate = graph.add("Sigmoid", inputs, f"{path}.gate")
    return graph.add("Mul", [inputs[0], gate], path)


def _mish(graph: _Graph, path: str, _: Any, inputs: list[str]) -> str:
    soft = graph.add("Softplus", inputs, f"{path}.softplus")
    gate = graph.add("Tanh", [soft], f"{path}.gate")
    return graph.add("Mul", [inputs[0], gate], path)


def _relu6(graph: _Graph, path: str, _: Any, inputs: list[str]) -> str:
    low = graph.constant(f"{path}.low", np.float32(0))
    high = graph.constant(f"{path}.high", np.float32(6))
    return graph.add("Clip", [*inputs, low, high], path)


def _max_pool(graph: _Graph, path: str, pool: Any, inputs: list[str]) -> str:
    return graph.add(
        "MaxPool",
        inputs,
        path,
        kernel_shape=_pair(pool.kernel_size),
        strides=_pair(pool.stride),
        pads=_pair(pool.padding) * 2,
        dilations=_pair(pool.dilation),
        ceil_mode=int(pool.ceil_mode),
    )


def _darknet_max_pool(graph: _Graph, path: str, pool: Any, inputs: list[str]) -> str:
    return graph.add(
        "MaxPool",
        inputs,
        path,
        kernel_shape=[pool.size] * 2,
        strides=[pool.stride] * 2,
        pads=list(pool.pads),
    )


def _upsample(graph: _Graph, path: str, upsample: Any, inputs: list[str]) -> str:
    if upsample.mode != "nearest" or not isinstance(upsample.scale_factor, (int, float)):
        raise ArtifactError(f"{path}: has no ONNX form; upsample by one factor, to the nearest")
    factor = float(upsample.scale_factor)
    scales = graph.constant(f"{path}.scales", np.array([1, 1, factor, factor], np.float32))
    return graph.add(
        "Resize",
        [*inputs, "", scales],
        path,
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )


def _channel_group(graph: _Graph, path: str, part: Any, inputs: list[str]) -> str:
    bounds = [
        graph.constant(f"{path}.{name}", np.array([value], np.int64))
        for name, value in (("start", part.start), ("stop", part.stop), ("axis", 1))
    ]
    return graph.add("Slice", [*inputs, *bounds], path)


def _reorg(graph: _Graph, path: str, reorg: Any, inputs: list[str]) -> str:
    """As `Reorg.forward`: reshape, transpose, reshape."""
    n, c, h, w = graph.shapes[inputs[0]]
    s = reorg.stride
    split = graph.constant(f"{path}.split", np.array([n, c * h // (s * s), s, w, s], np.int64))
    joined = graph.constant(f"{path}.joined", np.array([n, c * s * s, h // s, w // s], np.int64))
    current = graph.add("Reshape", [inputs[0], split], f"{path}.0")
    current = graph.add("Transpose", [current], f"{path}.1", perm=[0, 2, 4, 1, 3])
    return graph.add("Reshape", [current, joined], path)


def _plain(op: str, **attributes: Any) -> Callable[..., str]:
    def emit(graph: _Graph, path: str, _: Any, inputs: list[str]) -> str:
        return graph.add(op, inputs, path, **attributes)

    return emit


def _emitters() -> dict[type, Callable[..., str]]:
    nn = require("torch.nn")
    blocks = require("edge.models.blocks")
    return {
        nn.BatchNorm2d: _norm,
        nn.LeakyReLU: lambda g, p, m, i: g.add("LeakyRelu", i, p, alpha=m.negative_slope),
        nn.ReLU: _plain("Relu"),
        nn.ReLU6: _relu6,
        nn.Sigmoid: _plain("Sigmoid"),
        nn.SiLU: _swish,
        nn.Mish: _mish,
        nn.MaxPool2d: _max_pool,
        nn.Upsample: _upsample,
        blocks.DarknetMaxPool: _darknet_max_pool,
        blocks.Avgpool: _plain("GlobalAveragePool"),
        blocks.Concat: _plain("Concat", axis=1),
        blocks.Add: _plain("Add"),
        blocks.Multiply: _plain("Mul"),
        blocks.ChannelGroup: _channel_group,
        blocks.Reorg: _reorg,
    }


def _folds_into_conv(node: Any, modules: dict[str, Any]) -> bool:
    nn = require("torch.nn")
    before = node.args[0]
    return (
        isinstance(modules[node.target], nn.BatchNorm2d)
        and before.op == "call_module"
        and isinstance(modules[before.target], nn.Conv2d)
        and len(before.users) == 1
    )


def _shapes(traced: Any, shape: tuple[int, ...]) -> None:
    """Note every value's shape in its node, by running the module once."""
    torch, prop = require("torch"), require("torch.fx.passes.shape_prop")
    with torch.no_grad():
        prop.ShapeProp(traced).propagate(torch.zeros(shape))


def _emit(graph: _Graph, traced: Any, shape: tuple[int, ...]) -> list[str]:
    """Fill `graph` from a traced module; the names of its outputs."""
    _shapes(traced, shape)
    nn = require("torch.nn")
    emitters, modules = _emitters(), dict(traced.named_modules())
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            graph.names[node] = IMAGES
        elif node.op == "output":
            outputs = node.args[0] if isinstance(node.args[0], (tuple, list)) else [node.args[0]]
            return [graph.names[output] for output in outputs]
        elif node.op != "call_module":
            raise ArtifactError(f"{node.op} {node.target} has no ONNX form; make it a module")
        else:
            inputs = [graph.names[source] for source in node.args]
            module = modules[node.target]
            if isinstance(module, (nn.Identity, nn.Dropout)) or (
                isinstance(module, nn.BatchNorm2d) and _folds_into_conv(node, modules)
            ):
                graph.names[node] = inputs[0]
            elif isinstance(module, nn.Conv2d):
                follow = next(iter(node.users), None)
                norm = follow and follow.op == "call_module" and _folds_into_conv(follow, modules)
                norm_module = modules[follow.target] if norm and follow else None
                graph.names[node] = _conv(graph, node.target, module, inputs, norm_module)
            elif type(module) in emitters:
                graph.names[node] = emitters[type(module)](graph, node.target, module, inputs)
            else:
                raise ArtifactError(f"{node.target}: {type(module).__name__} has no ONNX form yet")
            graph.shapes[graph.names[node]] = tuple(node.meta["tensor_meta"].shape)
    raise ArtifactError("the traced module returns nothing")


def write_onnx(
    module: torch.nn.Module,
    spec: ModelSpec,
    target: str | Path,
    *,
    parent_sha256: str = "",
    labels: tuple[str, ...] = (),
    arguments: dict[str, Any] | None = None,
) -> Manifest:
    """Write `module` as FP32 ONNX (opset 19, batch 1) with its manifest in the metadata.

    The outputs are the raw heads of `spec.heads`, in that order; decoding stays outside.

    Args:
        module: traceable by `edge.models.tracing.trace`; its outputs are the raw heads.
        spec: its `heads[i].tensor` is overwritten by nothing: it must be the i-th output's name.
        target: the file; written whole or not at all.
        parent_sha256: of the weights it was made from.
        labels: facts that every report must repeat.
        arguments: recorded in the manifest.

    Raises:
        ArtifactError: a module without an ONNX form, NaN weights, heads that are not the outputs.
        ValueError: the module computes outside of submodules, so it cannot be traced.
    """
    onnx, helper = require("onnx"), require("onnx.helper")
    shape = (1, 3, *spec.contract.hw)
    graph = _Graph()
    outputs = _emit(graph, require("edge.models.tracing").trace(module.eval()), shape)
    heads = [head.tensor for head in spec.heads]
    if outputs != heads:
        raise ArtifactError(f"{spec.name}: the graph gives {outputs}, the spec decodes {heads}")
    out_specs = tuple(
        TensorSpec(h.tensor, (1, h.channels(len(spec.classes)), *h.grid_hw)) for h in spec.heads
    )
    manifest = Manifest(
        spec=spec,
        precision="fp32",
        inputs=(TensorSpec(IMAGES, shape),),
        outputs=out_specs,
        parent_sha256=parent_sha256,
        made_by=(("edge", edge.__version__), ("onnx", onnx.__version__)),
        arguments=tuple((k, json.dumps(v)) for k, v in (arguments or {}).items()),
        labels=labels,
    )
    kind = onnx.TensorProto.FLOAT
    proto = helper.make_graph(
        graph.nodes,
        spec.name,
        [helper.make_tensor_value_info(IMAGES, kind, shape)],
        [helper.make_tensor_value_info(t.name, kind, t.shape) for t in out_specs],
        graph.initializers,
    )
    model = helper.make_model(
        proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    model.producer_name, model.producer_version = "edge", edge.__version__
    _check(onnx, model, spec.name)
    attach_manifest(model, manifest)
    write_atomic(Path(target), model.SerializeToString())
    return manifest


def _check(onnx: Any, model: Any, name: str) -> None:
    """Shapes must infer, and to those that the spec claims."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred, full_check=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        text = " ".join(str(error).split())[:300]
        raise ArtifactError(f"{name}: the graph's shapes do not fit the spec: {text}") from error


def attach_manifest(model: Any, manifest: Manifest) -> None:
    """Put `manifest` into the metadata of an onnx `ModelProto`, in place of one it has."""
    helper = require("onnx.helper")
    kept = {p.key: p.value for p in model.metadata_props if p.key != MANIFEST_KEY}
    helper.set_model_props(model, {**kept, MANIFEST_KEY: manifest.to_json()})
