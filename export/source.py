"""Whatever a user calls a model, as an FP32 ONNX file of edge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from calibration.graph import Graph
from edge.built_in import BUILT_IN, PACKAGED
from edge.edgez.graph import write_package_onnx
from edge.errors import ArtifactError
from edge.files import write_file
from edge.optional import require
from export.graph.writer import save_graph, write_onnx
from export.options import SourceOptions

__all__ = ["DEFAULT_MODEL", "fp32_onnx"]

DEFAULT_MODEL = "tiny-yolo-scenes"


def fp32_onnx(
    model: Graph | str | Path, folder: Path, options: SourceOptions | None = None
) -> Graph:
    """Write `folder/NAME.fp32.onnx` from a built-in or zoo name or any file that holds a model.

    Args:
        model: a built-in or zoo name, .cfg, .npz, .safetensors, .onnx or .edgez.
        options: only `resize` goes with a built-in or an ONNX file, none with a package.

    Raises:
        ArtifactError: no such model, damaged, or already of a lower precision.
        MissingDependency: torch is needed and not installed.
    """
    options = options or SourceOptions()
    asset = {**BUILT_IN, **PACKAGED}.get(str(model), Path(model))
    given = options.weights or options.names or options.random_weights or options.hw
    if asset.suffix == ".onnx":
        if given:
            raise ArtifactError(
                f"{model}: an ONNX file holds its weights, names and size; leave these options out"
            )
        source = model if isinstance(model, Graph) else Graph(asset)
        return _from_onnx(source, folder, options.resize)
    if asset.suffix == ".edgez":
        if given or options.resize:
            raise ArtifactError(f"{model}: a package holds all of this; leave these options out")
        return Graph(write_package_onnx(asset, folder))
    load: Any = require("edge.models.zoo").load_model
    loaded = load(
        model,
        weights=options.weights,
        names=options.names,
        resize=options.resize,
        random_weights=options.random_weights,
        seed=options.seed,
        hw=options.hw,
    )
    target = folder / f"{loaded.spec.name}.fp32.onnx"
    arguments = {"model": Path(model).name, "resize": loaded.spec.contract.resize}
    if options.random_weights:
        arguments["seed"] = str(options.seed)
    write_onnx(
        loaded.module,
        loaded.spec,
        target,
        parent_sha256=loaded.source_sha256,
        labels=loaded.labels,
        arguments=arguments,
    )
    return Graph(target)


def _from_onnx(source: Graph, folder: Path, resize: Any) -> Graph:
    manifest = source.manifest
    if manifest.precision != "fp32":
        raise ArtifactError(
            f"{source}: already {manifest.precision}; give the FP32 file it was made from, "
            "or leave the precision out to build its engine"
        )
    data = source.data
    _refuse_damaged(source)
    target = folder / f"{manifest.spec.name}.fp32.onnx"
    if resize and resize != manifest.spec.contract.resize:
        contract = replace(manifest.spec.contract, resize=resize)
        spec = replace(manifest.spec, contract=contract)
        changed = replace(manifest, spec=spec, parent_sha256=source.sha256)
        return save_graph(source.model, changed, target)
    if target.resolve() == source.path.resolve():
        return source
    write_file(target, data)
    return Graph(target, data, source.model)


def _refuse_damaged(source: Graph) -> None:
    """Refuse a damaged graph before a copy of it is written."""
    try:
        require("onnx").checker.check_model(source.model)
    except ArtifactError:
        raise
    except Exception as error:  # protobuf's and onnx's exceptions share no other base
        raise ArtifactError(f"{source}: its graph is damaged: {error}") from error
