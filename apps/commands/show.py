"""`edge show` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from apps.commands.options import json_option
from apps.commands.show_package import package_facts, package_rows, print_package
from apps.commands.terminal import listing, show
from calibration.table import read_table
from edge.artifact import layers_path, read_manifest
from edge.errors import ArtifactError, MissingDependency
from edge.files import sha256_of, write_json
from edge.optional import require
from edge.reporting import say
from edge.spec import BoxCoding, Manifest, ScoreCoding

__all__ = ["arguments", "print_artifact", "run", "show_artifact"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge show`."""
    parser.add_argument(
        "artifact", metavar="ARTIFACT", help=".onnx, .engine, .calib.json or .edgez"
    )
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge show`: always 0; errors are raised."""
    show_artifact(args.artifact, json_path=args.json)
    return 0


_FLOAT16, _INT8, _UINT8 = 10, 3, 2  # TensorProto.DataType of onnx.proto3


def show_artifact(path: str | Path, json_path: str | Path | None = None) -> dict[str, Any]:
    """Read an `.onnx`, `.engine`, package `.edgez` or table `.calib.json`, and print it.

    Returns:
        `file`, `kind` (`onnx`, `engine`, `package`, `calibration`), `bytes`, `sha256`; of a
        network `manifest`, `contract_digest` and `layers`, or `layers_missing`, the reason why
        not; of a package these two and what `apps.commands.show_package.package_facts` says; of a
        table
        its fields.

    Raises:
        ArtifactError: another kind of file, missing, damaged or without a manifest.
        EngineMismatch: an engine with another checksum than its manifest's.
        CalibrationError: a calibration table that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file")
    if path.name.endswith(".calib.json"):
        facts = {"kind": "calibration", **asdict(read_table(path))}
        facts["amax"] = dict(facts["amax"])
    elif path.suffix in (".onnx", ".engine"):
        facts = _network(path)
    elif path.suffix == ".edgez":
        manifest, facts = package_facts(path)
        facts = {"kind": "package", **_described(manifest), **facts}
    else:
        raise ArtifactError(f"{path}: not an .onnx, .engine, .edgez or .calib.json of edge")
    size, sha256 = path.stat().st_size, sha256_of(path)
    result = {"file": str(path), "bytes": size, "sha256": sha256, **facts}
    write_json(result, json_path)
    print_artifact(result)
    return result


def _network(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path)
    facts: dict[str, Any] = {"kind": path.suffix[1:], **_described(manifest)}
    try:
        facts["layers"] = _graph(path) if path.suffix == ".onnx" else _report(path, manifest)
    except (MissingDependency, FileNotFoundError) as error:
        facts["layers_missing"] = str(error)
    return facts


def _described(manifest: Manifest) -> dict[str, Any]:
    pairs = {name: dict(getattr(manifest, name)) for name in ("made_by", "arguments")}
    return {
        "manifest": asdict(manifest) | pairs,
        "contract_digest": manifest.spec.contract.digest,
    }


def _graph(path: Path) -> dict[str, Any]:
    """Convolutions of an ONNX graph with their size, and the totals."""
    onnx = require("onnx")
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    except Exception as error:  # protobuf's and onnx's exceptions share no other base
        raise ArtifactError(f"{path}: onnx cannot read it: {error}") from error
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for side in (model.graph.value_info, model.graph.input, model.graph.output)
        for value in side
    }
    makers = {output: node for node in model.graph.node for output in node.output}
    constants = {constant.name: constant for constant in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    try:
        found = [_convolution(node, shapes, makers, constants) for node in nodes]
    except KeyError as error:
        raise ArtifactError(f"{path}: the weights {error} are no constant of the graph") from error
    kinds = Counter(conv["dtype"] for conv in found)
    return {
        "count": len(model.graph.node),
        "by_dtype": dict(kinds),
        "parameters": sum(conv["parameters"] for conv in found),
        "macs": sum(conv["macs"] for conv in found),
        "operations": dict(Counter(node.op_type for node in model.graph.node).most_common()),
        "convolutions": found,
    }


def _convolution(
    node: Any, shapes: dict[str, list[int]], makers: dict[str, Any], constants: dict[str, Any]
) -> dict[str, Any]:
    weight, *bias = (_constant(name, makers, constants) for name in node.input[1:])
    attributes = {a.name: list(a.ints) or a.i for a in node.attribute}
    output = shapes.get(node.output[0], [])
    dims = list(weight.dims)
    # (O, I / groups, kH, kW): each output number sums over all but the first.
    return {
        "name": node.name,
        "dtype": _dtype(node, weight, makers),
        "input": shapes.get(node.input[0], []),
        "output": output,
        "kernel": dims[2:],
        "stride": attributes.get("strides", [1, 1]),
        "groups": attributes.get("group", 1),
        "parameters": prod(dims) + sum(prod(each.dims) for each in bias),
        "macs": prod(output) * prod(dims[1:]) if output else 0,
    }


def _constant(name: str, makers: dict[str, Any], constants: dict[str, Any]) -> Any:
    while name not in constants and name in makers:
        name = makers[name].input[0]
    return constants[name]


def _dtype(node: Any, weight: Any, makers: dict[str, Any]) -> str:
    """int8 where activations and weights both are; TensorRT falls back if only one is."""
    maker = makers.get(node.input[0])
    if weight.data_type in (_INT8, _UINT8):
        quantized = maker is not None and maker.op_type == "DequantizeLinear"
        return "int8" if quantized else "int8 weights"
    return "half" if weight.data_type == _FLOAT16 else "float"


def _report(path: Path, manifest: Manifest) -> dict[str, Any]:
    """The builder's layer report, which lies beside the engine."""
    report = layers_path(path)
    if not report.is_file():
        raise FileNotFoundError(f"{report.name} does not lie beside it")
    try:
        summary = json.loads(report.read_bytes())["summary"]
        found = summary["convolutions"]
        kinds = Counter(conv["dtype"] for conv in found)
        facts = {"count": summary["layers"], "reformats": summary["reformats"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{report}: not a layer report of edge: {error!r}") from error
    return {**facts, "by_dtype": dict(kinds), "convolutions": found}


def print_artifact(result: dict[str, Any]) -> None:
    """The result as tables on stdout."""
    print_kind = _print_table if result["kind"] == "calibration" else _print_network
    print_kind(result)
    if result["kind"] == "package":
        print_package(result)
    if "layers_missing" in result:
        say(f"layers are not shown: {result['layers_missing']}")
    if "layers" in result:
        _print_layers(result["layers"], _by_layer(result))


def _print_network(result: dict[str, Any]) -> None:
    manifest = result["manifest"]
    spec = manifest["spec"]
    contract = spec["contract"]
    rows = [
        *_file_rows(result),
        ("model", ", ".join([spec["name"], spec["family"], *manifest["labels"]])),
        ("precision", manifest["precision"]),
        ("made from", manifest["parent_sha256"] or "nothing recorded"),
        ("made by", _pairs(manifest["made_by"])),
        ("arguments", _pairs(_short(manifest["arguments"])) or "none"),
        ("classes", _classes(spec["classes"])),
        ("input", _tensors(manifest["inputs"])),
        ("outputs", _tensors(manifest["outputs"])),
        ("frames", _frames(contract)),
        ("contract", result["contract_digest"]),
        *_layer_rows(result.get("layers")),
        *(package_rows(result) if result["kind"] == "package" else ()),
    ]
    listing(Path(result["file"]).name, ("", ""), rows)
    listing("heads", ("tensors", "candidates", "boxes", "anchors, pixels", "scores"), _heads(spec))


def _heads(spec: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each head: its three parts, in the words of `edge.spec`."""
    return [
        (
            ", ".join(
                f"{t['tensor']} ({', '.join(t['holds'])})" for t in head["layout"]["tensors"]
            ),
            ", ".join(f"{x['grid_hw'][1]}x{x['grid_hw'][0]}" for x in head["box"]["levels"])
            or f"{head['layout']['rows']} rows",
            _set(head["box"], ("levels", "form")),
            "; ".join(
                " ".join(f"{w:g}x{h:g}" for w, h in level["anchors"])
                for level in head["box"]["levels"]
            ),
            _set(head["score"], ()),
        )
        for head in spec["heads"]
    ]


def _set(part: dict[str, Any], skip: Sequence[str]) -> str:
    """The fields that are not at their defaults."""
    default = asdict(BoxCoding("corners") if "form" in part else ScoreCoding())
    own = [f"{key} {part[key]}" for key in part if key not in skip and part[key] != default[key]]
    return ", ".join([*([part["form"]] if "form" in part else [part["classes"]]), *own])


def _file_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    size = f"{result['bytes']:,} bytes"
    return [("file", result["file"]), ("size", size), ("sha256", result["sha256"])]


def _pairs(values: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _short(arguments: dict[str, str], most: int = 80) -> dict[str, str]:
    """Lists as their length; without what holds one value a layer, which the layers' table has."""
    return {
        name: f"{len(json.loads(text))} entries" if text[0] == "[" and len(text) > most else text
        for name, text in arguments.items()
        if not text.startswith("{")
    }


def _by_layer(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The manifest's arguments that hold one value a layer."""
    arguments = result.get("manifest", {}).get("arguments", {})
    return {name: json.loads(text) for name, text in arguments.items() if text.startswith("{")}


def _classes(names: Sequence[str], most: int = 12) -> str:
    return f"{len(names)}: " + ", ".join([*names[:most], *(["..."] if len(names) > most else [])])


def _tensors(tensors: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{t['name']} {'x'.join(map(str, t['shape']))} {t['dtype']}" for t in tensors)


def _frames(contract: dict[str, Any]) -> str:
    height, width = contract["hw"]
    mean, scale = (" ".join(f"{v:g}" for v in contract[key]) for key in ("mean", "scale"))
    where = {"centre": "", "top left": " at the top left"}[contract["placement"]]
    return (
        f"{contract['resize']} to {width}x{height}{where}, {contract['interpolation']}, "
        f"{contract['channel_order']}, pad {contract['pad_value']}, (p - {mean}) * {scale}"
    )


def _layer_rows(layers: dict[str, Any] | None) -> list[tuple[str, str]]:
    if layers is None:
        return []
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in layers["by_dtype"].items())
    rows = [
        ("layers", str(layers["count"])),
        ("convolutions", f"{len(layers['convolutions'])}: {kinds}"),
    ]
    if "reformats" in layers:
        rows.append(("reformats", str(layers["reformats"])))
    if "macs" in layers:
        rows.append(("parameters", f"{layers['parameters']:,}"))
        rows.append(("work", f"{layers['macs'] / 1e9:.3f} GMAC a frame"))
    return rows


def _print_layers(layers: dict[str, Any], more: dict[str, dict[str, Any]]) -> None:
    found = layers["convolutions"]
    own = list(found[0]) if found else ["name"]
    more = {name: values for name, values in more.items() if {c["name"] for c in found} & {*values}}
    rows = [
        [_cell(conv[key]) for key in own]
        + [_cell(values.get(conv["name"], "")) for values in more.values()]
        for conv in found
    ]
    show("convolutions", [*own, *more], rows)


def _cell(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def _print_table(result: dict[str, Any]) -> None:
    rows = [
        *_file_rows(result),
        ("method", result["method"]),
        ("images", str(len(result["images"]))),
        ("graph", result["graph_sha256"]),
        ("contract", result["contract_digest"]),
    ]
    listing(Path(result["file"]).name, ("", ""), rows)
    thresholds = [
        (name, f"{amax:.6g}", f"{amax / 127:.6g}") for name, amax in result["amax"].items()
    ]
    show("thresholds", ("tensor", "amax", "scale"), thresholds)
