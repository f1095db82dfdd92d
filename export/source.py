"""Whatever a user calls a model, as an FP32 ONNX file of edge."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge.artifact import read_manifest
from edge.built_in import BUILT_IN, PACKAGED
from edge.edgez.graph import write_package_onnx
from edge.errors import ArtifactError
from edge.files import sha256_of, write_file
from edge.optional import require
from edge.spec import Manifest
from export.graph.writer import attach_manifest, write_onnx

__all__ = ["DEFAULT_MODEL", "fp32_onnx"]

DEFAULT_MODEL = "tiny-yolo-scenes"


def fp32_onnx(
    model: str | Path,
    folder: Path,
    *,
    weights: str | Path | None = None,
    names: str | Path | None = None,
    resize: str | None = None,
    random_weights: bool = False,
    seed: int = 0,
    hw: tuple[int, int] | None = None,
) -> Path:
    """Write `folder/NAME.fp32.onnx` from a built-in or zoo name or any file that holds a model.

    Args:
        model: a built-in or zoo name, .cfg, .npz, .safetensors, .onnx or .edgez.
        weights, names, resize, random_weights, seed, hw: as `edge.models.zoo.load_model`; only
            `resize` goes with a built-in or an ONNX file, none with a package.

    Raises:
        ArtifactError: no such model, damaged, or already of a lower precision.
        MissingDependency: torch is needed and not installed.
    """
    asset = {**BUILT_IN, **PACKAGED}.get(str(model), Path(model))
    if asset.suffix == ".onnx":
        if weights or names or random_weights or hw:
            raise ArtifactError(
                f"{model}: an ONNX file holds its weights, names and size; leave these options out"
            )
        return _from_onnx(asset, folder, resize)
    if asset.suffix == ".edgez":
        if weights or names or random_weights or hw or resize:
            raise ArtifactError(f"{model}: a package holds all of this; leave these options out")
        return write_package_onnx(asset, folder)
    load: Any = require("edge.models.zoo").load_model
    loaded = load(
        model,
        weights=weights,
        names=names,
        resize=resize,
        random_weights=random_weights,
        seed=seed,
        hw=hw,
    )
    target = folder / f"{loaded.spec.name}.fp32.onnx"
    arguments = {"model": Path(model).name, "resize": loaded.spec.contract.resize}
    if random_weights:
        arguments["seed"] = str(seed)
    write_onnx(
        loaded.module,
        loaded.spec,
        target,
        parent_sha256=loaded.source_sha256,
        labels=loaded.labels,
        arguments=arguments,
    )
    return target


def _from_onnx(source: Path, folder: Path, resize: str | None) -> Path:
    manifest = read_manifest(source)
    if manifest.precision != "fp32":
        raise ArtifactError(
            f"{source}: already {manifest.precision}; give the FP32 file it was made from, "
            "or leave the precision out to build its engine"
        )
    _check_graph(source)
    target = folder / f"{manifest.spec.name}.fp32.onnx"
    if resize and resize != manifest.spec.contract.resize:
        _with_resize(source, target, manifest, resize)
    elif target.resolve() != source.resolve():
        _copy(source, target)
    return target


def _check_graph(source: Path) -> None:
    """Refuse a damaged graph before a copy of it is written."""
    onnx = require("onnx")
    try:
        onnx.checker.check_model(onnx.load(str(source)))
    except Exception as error:  # protobuf's and onnx's exceptions share no other base
        raise ArtifactError(f"{source}: its graph is damaged: {error}") from error


def _with_resize(source: Path, target: Path, manifest: Manifest, resize: Any) -> None:
    onnx = require("onnx")
    model = onnx.load(str(source))
    contract = replace(manifest.spec.contract, resize=resize)
    spec = replace(manifest.spec, contract=contract)
    attach_manifest(model, replace(manifest, spec=spec, parent_sha256=sha256_of(source)))
    write_file(target, model.SerializeToString())


def _copy(source: Path, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(source, part)
        part.replace(target)
    except OSError as error:
        raise ArtifactError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
