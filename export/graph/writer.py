"""Writes a torch detector as ONNX: batch norm folded, tensors named after module paths.

A tensor has the name of the module that made it everywhere: in the torch model, the ONNX graph, the
calibration table and the engine's layer report.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edge
from calibration.graph import Graph
from edge.errors import ArtifactError
from edge.files import write_file
from edge.onnx_metadata import MANIFEST_KEY
from edge.optional import require
from edge.spec import Manifest, ModelSpec, TensorSpec
from export.graph.builder import IMAGES, GraphBuilder
from export.graph.modules import convolution, module_emitters

if TYPE_CHECKING:
    import torch

__all__ = ["IMAGES", "OPSET", "attach_manifest", "save_graph", "write_onnx"]

# 19 brings FP16 scales to QuantizeLinear; TensorRT 10.3 (JetPack 6) and onnxruntime 1.17 read it.
OPSET = 19
IR_VERSION = 9


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
    """Run the module once, so that every node knows its value's shape."""
    torch, prop = require("torch"), require("torch.fx.passes.shape_prop")
    with torch.no_grad():
        prop.ShapeProp(traced).propagate(torch.zeros(shape))


def _emit(graph: GraphBuilder, traced: Any, shape: tuple[int, ...]) -> list[str]:
    """Fill `graph` from a traced module and return the names of its outputs."""
    _shapes(traced, shape)
    nn = require("torch.nn")
    emitters, modules = module_emitters(), dict(traced.named_modules())
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
                graph.names[node] = convolution(graph, node.target, module, inputs, norm_module)
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

    The outputs are the raw heads of `spec.heads`, in that order; decoding is not in the graph.

    Args:
        module: traceable by `edge.models.tracing.trace`; its outputs are the raw heads.
        spec: the tensors of its heads must have the names of the outputs.
        target: the file; written whole or not at all.
        parent_sha256: of the weights that the module was made from.
        labels: facts that every report must repeat.
        arguments: recorded in the manifest.

    Raises:
        ArtifactError: a submodule has no ONNX form, weights are NaN, the heads are not the outputs.
        ValueError: the module computes outside of submodules, so it cannot be traced.
    """
    onnx, helper = require("onnx"), require("onnx.helper")
    shape = (1, 3, *spec.contract.hw)
    graph = GraphBuilder()
    outputs = _emit(graph, require("edge.models.tracing").trace(module.eval()), shape)
    heads = list(spec.tensors)
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
    _check_shapes(onnx, model, spec.name)
    attach_manifest(model, manifest)
    write_file(Path(target), model.SerializeToString())
    return manifest


def _check_shapes(onnx: Any, model: Any, name: str) -> None:
    """Check that the shapes can be inferred and are those of the spec."""
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


def save_graph(model: Any, manifest: Manifest, target: str | Path) -> Graph:
    """Write an onnx `ModelProto` with `manifest` to `target`; return it as an opened graph.

    Raises:
        ArtifactError: `target` cannot be written.
    """
    attach_manifest(model, manifest)
    data = model.SerializeToString()
    write_file(Path(target), data)
    return Graph(target, data, model)
