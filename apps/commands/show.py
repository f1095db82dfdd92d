"""`edge show` on the command line: what an artifact is."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from apps.commands.options import json_option
from apps.commands.terminal import listing, show
from calibration.table import CalibrationTable, read_table
from edge.artifact import layers_path, read_manifest
from edge.edgez.package import read_package
from edge.edgez.tensors import Entry
from edge.errors import ArtifactError, MissingDependency
from edge.files import sha256_of, write_json
from edge.reporting import say
from edge.spec import BoxCoding, HeadSpec, InputContract, Manifest, ScoreCoding, TensorSpec
from export.engine.layer_report import Convolution, read_layer_report
from export.graph.layers import GraphConvolution, GraphLayers, graph_layers

__all__ = [
    "EngineLayers",
    "Network",
    "PackageContent",
    "ShownFile",
    "Table",
    "arguments",
    "print_artifact",
    "run",
    "show_artifact",
]

_TYPES = {"f2": "float16", "f4": "float32"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `edge show`."""
    parser.add_argument(
        "artifact", metavar="ARTIFACT", help="file to describe: .onnx, .engine, .calib.json, .edgez"
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run `edge show`: always 0; errors are raised."""
    found = show_artifact(args.artifact)
    write_json(found, args.json)
    print_artifact(found)
    return 0


@dataclass(frozen=True)
class ShownFile:
    """The file that is shown."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class EngineLayers:
    """The layers of an engine.

    Attributes:
        count: number of layers.
        reformats: number of layers that only move, cast or reorder data.
        by_dtype: number of convolutions by data type.
    """

    count: int
    reformats: int
    by_dtype: Mapping[str, int]
    convolutions: tuple[Convolution, ...]


@dataclass(frozen=True)
class Network:
    """An ONNX file or an engine.

    Attributes:
        kind: `onnx` or `engine`.
        layers: None where they cannot be read, which `layers_missing` explains.
    """

    file: ShownFile
    kind: str
    manifest: Manifest
    layers: GraphLayers | EngineLayers | None
    layers_missing: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON: the file's fields first, `layers` or `layers_missing` last."""
        missing = {"layers_missing": self.layers_missing}
        last = missing if self.layers is None else {"layers": self.layers}
        return {**vars(self.file), "kind": self.kind, **_described(self.manifest), **last}


@dataclass(frozen=True)
class PackedTensor:
    """One tensor of a package.

    Attributes:
        type: of its stored numbers.
        values: size of its codebook; None where each number is stored.
        scaled: whether each output channel has a scale beside the codebook.
        zeros: how many of its numbers are exactly 0.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    values: int | None
    scaled: bool
    zeros: int


@dataclass(frozen=True)
class PackageContent:
    """A package.

    Attributes:
        coding: of the weights.
        dense_bytes: size of all tensors as float32.
        ratio: that size over the file's.
        bits_per_weight: of the shared weights; None where there are none.
        stages: how it was made, as `edge compress` says.
        sections: stored bytes by section.
    """

    file: ShownFile
    manifest: Manifest
    coding: str
    dense_bytes: int
    ratio: float
    bits_per_weight: float | None
    stages: tuple[Mapping[str, Any], ...]
    sections: Mapping[str, int]
    tensors: tuple[PackedTensor, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON, with the file's fields first."""
        own = {key: value for key, value in vars(self).items() if key not in ("file", "manifest")}
        return {**vars(self.file), "kind": "package", **_described(self.manifest), **own}


@dataclass(frozen=True)
class Table:
    """A calibration table."""

    file: ShownFile
    table: CalibrationTable

    def to_json(self) -> dict[str, Any]:
        """As JSON: the file's fields, then the table's."""
        fields = asdict(self.table) | {"amax": dict(self.table.amax)}
        return {**vars(self.file), "kind": "calibration", **fields}


def show_artifact(path: str | Path) -> Network | PackageContent | Table:
    """Describe an `.onnx`, `.engine`, package `.edgez` or table `.calib.json`.

    Raises:
        ArtifactError: another kind of file, missing, damaged or without a manifest.
        EngineMismatch: an engine with another checksum than its manifest's.
        CalibrationError: a calibration table that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file")
    if path.name.endswith(".calib.json"):
        return Table(_file(path), read_table(path))
    if path.suffix in (".onnx", ".engine"):
        return _network(path)
    if path.suffix == ".edgez":
        return _content(path)
    raise ArtifactError(f"{path}: not an .onnx, .engine, .edgez or .calib.json of edge")


def _file(path: Path) -> ShownFile:
    return ShownFile(str(path), path.stat().st_size, sha256_of(path))


def _described(manifest: Manifest) -> dict[str, Any]:
    pairs = {name: dict(getattr(manifest, name)) for name in ("made_by", "arguments")}
    described = asdict(manifest) | pairs
    # Keys of the first manifests, for programs that read them; only our own heads have them.
    names = ("tensor", "kind", "grid_hw", "anchors", "class_activation", "scale_xy")
    for head, told in zip(manifest.spec.heads, described["spec"]["heads"], strict=True):
        if head.kind != "foreign":
            told |= {name: getattr(head, name) for name in names}
            told["class_activation"] = {"none": "linear"}.get(head.class_activation) or (
                head.class_activation
            )
    return {
        "manifest": described,
        "contract_digest": manifest.spec.contract.digest,
    }


def _network(path: Path) -> Network:
    manifest, file = read_manifest(path), _file(path)
    kind = path.suffix[1:]
    if kind == "engine" and not layers_path(path).is_file():
        reason = f"{layers_path(path).name} does not lie beside it"
        return Network(file, kind, manifest, None, reason)
    try:
        layers = graph_layers(path) if kind == "onnx" else _engine_layers(path)
    except MissingDependency as error:
        return Network(file, kind, manifest, None, str(error))
    return Network(file, kind, manifest, layers)


def _engine_layers(path: Path) -> EngineLayers:
    """Layers of the builder's report, which lies beside the engine."""
    found = read_layer_report(path).summary
    kinds = Counter(conv.dtype for conv in found.convolutions)
    return EngineLayers(found.layers, found.reformats, dict(kinds), found.convolutions)


def _content(path: Path) -> PackageContent:
    """All weights are unfolded, one tensor at a time, so that their checksum is compared too."""
    package = read_package(path)
    zeros = {name: int(np.count_nonzero(dense == 0)) for name, dense in package.tensors()}
    shared = sum(entry.size for entry in package.entries if entry.layer is not None)
    file, sections = _file(path), dict(package.sections)
    return PackageContent(
        file=file,
        manifest=package.manifest,
        coding=package.coding,
        dense_bytes=package.dense_bytes,
        ratio=package.dense_bytes / file.bytes,
        bits_per_weight=8 * sections["weights"] / shared if shared else None,
        stages=package.stages,
        sections=sections,
        tensors=tuple(_packed(entry, zeros[entry.name]) for entry in package.entries),
    )


def _packed(entry: Entry, zeros: int) -> PackedTensor:
    levels = None if entry.layer is None else entry.layer.levels
    return PackedTensor(entry.name, entry.shape, _TYPES[entry.type], levels, entry.scaled, zeros)


def print_artifact(found: Network | PackageContent | Table) -> None:
    """Print what `show_artifact` found as tables on stdout."""
    if isinstance(found, Table):
        _print_table(found)
        return
    rows = _model_rows(found.file, found.manifest)
    if isinstance(found, PackageContent):
        bits = found.bits_per_weight
        each = "no weights" if bits is None else f"{bits:.3f} bits a weight"
        unfolded = f"{found.dense_bytes:,} bytes, {found.ratio:.2f} times the file"
        rows += [("unfolded", unfolded), ("weights", f"{found.coding}, {each}")]
    elif found.layers is not None:
        rows += _layer_rows(found.layers)
    listing(Path(found.file.file).name, ("", ""), rows)
    columns = ("tensors", "candidates", "boxes", "anchors, pixels", "scores")
    listing("heads", columns, map(_head, found.manifest.spec.heads))
    evidence = dict(found.manifest.arguments).get("evidence")
    if evidence is not None:
        rows = [(of, said) for of, _, said in (e.partition(": ") for e in json.loads(evidence))]
        listing("recognised by", ("from", "what it says"), rows)
    if isinstance(found, PackageContent):
        _print_content(found)
    elif found.layers is None:
        say(f"layers are not shown: {found.layers_missing}")
    else:
        _print_layers(found.layers.convolutions, found.manifest)


def _model_rows(file: ShownFile, manifest: Manifest) -> list[tuple[str, str]]:
    spec = manifest.spec
    return [
        *_file_rows(file),
        ("model", ", ".join([spec.name, spec.family, *manifest.labels])),
        ("precision", manifest.precision),
        ("made from", manifest.parent_sha256 or "nothing recorded"),
        ("made by", ", ".join(f"{name} {value}" for name, value in manifest.made_by)),
        ("arguments", _arguments(manifest) or "none"),
        ("classes", _classes(spec.classes)),
        ("input", _tensors(manifest.inputs)),
        ("outputs", _tensors(manifest.outputs)),
        ("frames", _frames(spec.contract)),
        ("contract", spec.contract.digest),
    ]


def _file_rows(file: ShownFile) -> list[tuple[str, str]]:
    return [("file", file.file), ("size", f"{file.bytes:,} bytes"), ("sha256", file.sha256)]


def _arguments(manifest: Manifest, most: int = 80) -> str:
    """Long lists by their length; without what the table of layers has, one value a layer."""
    shown = []
    for name, text in manifest.arguments:
        value = manifest.argument(name, object)
        if not isinstance(value, dict):
            if isinstance(value, list) and len(text) > most:
                text = f"{len(value)} entries"
            shown.append(f"{name} {text}")
    return ", ".join(shown)


def _classes(names: Sequence[str], most: int = 12) -> str:
    return f"{len(names)}: " + ", ".join([*names[:most], *(["..."] if len(names) > most else [])])


def _tensors(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{t.name} {'x'.join(map(str, t.shape))} {t.dtype}" for t in tensors)


def _frames(contract: InputContract) -> str:
    height, width = contract.hw
    mean, scale = (" ".join(f"{v:g}" for v in part) for part in (contract.mean, contract.scale))
    where = {"centre": "", "top left": " at the top left"}[contract.placement]
    return (
        f"{contract.resize} to {width}x{height}{where}, {contract.interpolation}, "
        f"{contract.channel_order}, pad {contract.pad_value}, (p - {mean}) * {scale}"
    )


def _head(head: HeadSpec) -> tuple[str, ...]:
    """The three parts of a head, in the words of `edge.spec`."""
    grids = [f"{level.grid_hw[1]}x{level.grid_hw[0]}" for level in head.box.levels]
    anchors = [" ".join(f"{w:g}x{h:g}" for w, h in level.anchors) for level in head.box.levels]
    return (
        ", ".join(f"{part.tensor} ({', '.join(part.holds)})" for part in head.layout.tensors),
        ", ".join(grids) or f"{head.layout.rows} rows",
        ", ".join([head.box.form, *_changed(head.box, BoxCoding("corners"), ("levels", "form"))]),
        "; ".join(anchors),
        ", ".join([head.score.classes, *_changed(head.score, ScoreCoding(), ())]),
    )


def _changed(part: object, default: object, skip: Sequence[str]) -> list[str]:
    """The fields that are not at their defaults."""
    pairs = ((key, value) for key, value in vars(part).items() if key not in skip)
    return [f"{key} {value}" for key, value in pairs if value != getattr(default, key)]


def _layer_rows(layers: GraphLayers | EngineLayers) -> list[tuple[str, str]]:
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in layers.by_dtype.items())
    rows = [
        ("layers", str(layers.count)),
        ("convolutions", f"{len(layers.convolutions)}: {kinds}"),
    ]
    if isinstance(layers, EngineLayers):
        return [*rows, ("reformats", str(layers.reformats))]
    return [
        *rows,
        ("parameters", f"{layers.parameters:,}"),
        ("work", f"{layers.macs / 1e9:.3f} GMAC a frame"),
    ]


def _print_layers(
    found: Sequence[GraphConvolution] | Sequence[Convolution], manifest: Manifest
) -> None:
    """The convolutions, with those arguments of the manifest that hold one value a layer."""
    own = list(vars(found[0])) if found else ["name"]
    names = {conv.name for conv in found}
    more: dict[str, dict[str, object]] = {}
    for name, _ in manifest.arguments:
        values = manifest.argument(name, object)
        if isinstance(values, dict) and names & values.keys():
            more[name] = values
    rows = [
        [_cell(getattr(conv, key)) for key in own]
        + [_cell(values.get(conv.name, "")) for values in more.values()]
        for conv in found
    ]
    show("convolutions", [*own, *more], rows)


def _cell(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _print_content(found: PackageContent) -> None:
    if found.stages:
        show("stages", ("stage", "bytes", "mAP@.5"), map(_stage, found.stages))
    sections = [(name, f"{size:,}") for name, size in found.sections.items()]
    show("sections", ("section", "bytes"), sections)
    columns = ("tensor", "shape", "numbers", "values", "zero")
    show("tensors", columns, map(_tensor, found.tensors))


def _stage(stage: Mapping[str, Any]) -> Sequence[str]:
    size, found = stage.get("bytes"), stage.get("map50")
    return (
        str(stage.get("name", "")),
        f"{size:,}" if isinstance(size, int) else "",
        f"{found:.2%}" if isinstance(found, float) else "",
    )


def _tensor(tensor: PackedTensor) -> Sequence[str]:
    values = "each" if tensor.values is None else str(tensor.values)
    return (
        tensor.name,
        "x".join(map(str, tensor.shape)),
        tensor.type,
        f"{values}, scaled" if tensor.scaled else values,
        f"{tensor.zeros / max(1, prod(tensor.shape)):.1%}",
    )


def _print_table(found: Table) -> None:
    table = found.table
    rows = [
        *_file_rows(found.file),
        ("method", table.method),
        ("images", str(len(table.images))),
        ("graph", table.graph_sha256),
        ("contract", table.contract_digest),
    ]
    listing(Path(found.file.file).name, ("", ""), rows)
    thresholds = [(name, f"{amax:.6g}", f"{amax / 127:.6g}") for name, amax in table.amax]
    show("thresholds", ("tensor", "amax", "scale"), thresholds)
