"""What exporters write about a detector, in the file or beside it; read, compared, never trusted.

ultralytics: https://docs.ultralytics.com (`Exporter.metadata`); YOLOv5: export.py; LibreYOLO;
OpenVINO's ModelAPI (`model_info`); Roboflow's and mmdeploy's json files.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge.errors import ArtifactError
from edge.files import plain_text

__all__ = ["Facts", "read_facts", "refuse_other_tasks"]

_MOST_TEXT = 1 << 20
_MOST_CLASSES = 20_000
_SIDECARS = ("pipeline.json", "detail.json", "environment.json", "model_type.json", "config.json")


@dataclass(frozen=True)
class Facts:
    """What is said about a network.

    Attributes:
        origin: who says it; empty where nobody does.
        names: of the classes.
        hw: size of the input.
        task: such as `detect`.
        end_to_end: whether the rows need no suppression.
        rows: whether suppression is in the graph.
        contract: fields of the `InputContract` that are stated.
        evidence: one sentence for each fact.
    """

    origin: str = ""
    names: tuple[str, ...] = ()
    hw: tuple[int, int] | None = None
    task: str = ""
    end_to_end: bool = False
    rows: bool = False
    contract: Mapping[str, Any] = field(default_factory=dict)
    evidence: tuple[str, ...] = ()


def read_facts(metadata: Mapping[str, str], file: Path) -> Facts:
    """Read the `metadata_props` of an ONNX file, else the json files that lie beside it."""
    if "stride" in metadata and "names" in metadata:
        return _ultralytics(metadata)
    if any(key.startswith("model_info ") for key in metadata):
        return _openvino(metadata)
    if "names" in metadata:
        origin = "LibreYOLO" if "model_family" in metadata else "metadata"
        facts = Facts(origin, _names(metadata["names"]), _size(metadata.get("imgsz", "")))
        return _told(facts, metadata, ("model_family", "task"))
    return _beside(file)


def _literal(text: str) -> Any:
    """A Python or JSON literal; None for anything else."""
    if len(text) > _MOST_TEXT:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return None


def _names(value: Any) -> tuple[str, ...]:
    """Class names of a list, of a dict by number, or of their text; () where it is none."""
    found = _literal(value) if isinstance(value, str) else value
    if isinstance(found, dict):
        try:
            numbered = {int(key): name for key, name in found.items()}
        except (ValueError, TypeError):
            return ()
        if sorted(numbered) != list(range(len(numbered))):
            return ()
        found = [numbered[number] for number in range(len(numbered))]
    if not isinstance(found, (list, tuple)) or not 0 < len(found) <= _MOST_CLASSES:
        return ()
    if not all(isinstance(name, (str, int)) for name in found):
        return ()
    return tuple(plain_text(str(name)) for name in found)


def _size(text: str) -> tuple[int, int] | None:
    found = _literal(text)
    if isinstance(found, int):
        found = (found, found)
    if isinstance(found, (list, tuple)) and len(found) == 2:
        height, width = found
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            return height, width
    return None


def _told(facts: Facts, metadata: Mapping[str, str], keys: tuple[str, ...]) -> Facts:
    said = [f"{key} {plain_text(metadata[key])[:80]}" for key in keys if key in metadata]
    if facts.names:
        said.insert(0, f"{len(facts.names)} names, the first {facts.names[0]}")
    return replace(facts, evidence=(f"{facts.origin}: {', '.join(said)}",)) if said else facts


def _ultralytics(metadata: Mapping[str, str]) -> Facts:
    ours = "ultralytics" in (metadata.get("author", "") + metadata.get("description", "")).lower()
    arguments = _literal(metadata.get("args", ""))
    inside = isinstance(arguments, dict) and arguments.get("nms") is True
    contract: dict[str, Any] = {
        "resize": "letterbox",
        "pad_value": 114,
        "channel_order": "RGB",
        "mean": (0.0, 0.0, 0.0),
        "scale": (1 / 255, 1 / 255, 1 / 255),
        "rounding": "nearest",
        "scaling": "ratio",
        "placement": "centre",
    }
    facts = Facts(
        origin="ultralytics" if ours else "YOLOv5",
        names=_names(metadata["names"]),
        hw=_size(metadata.get("imgsz", "")),
        task=metadata.get("task", "detect"),
        end_to_end=metadata.get("end2end", "").lower() == "true",
        rows=inside,
        contract=contract,
    )
    keys = ("description", "version", "task", "imgsz", "stride", "end2end")
    facts = _told(facts, metadata, keys)
    if inside:
        facts = replace(facts, evidence=(*facts.evidence, "its arguments say nms True"))
    return facts


def _openvino(metadata: Mapping[str, str]) -> Facts:
    said = {key.partition(" ")[2]: value for key, value in metadata.items() if " " in key}
    contract: dict[str, Any] = {}
    reverse = said.get("reverse_input_channels", "").upper()
    if reverse in ("YES", "TRUE", "NO", "FALSE"):
        # Their pictures are BGR, as OpenCV reads them.
        contract["channel_order"] = "RGB" if reverse in ("YES", "TRUE") else "BGR"
    ways = {"fit_to_window_letterbox": "centre", "fit_to_window": "top left"}
    kind = said.get("resize_type", "")
    if kind in ways:
        contract |= {"resize": "letterbox", "placement": ways[kind]}
    elif kind == "standard":
        contract["resize"] = "stretch"
    mean, scale = _three(said.get("mean_values", "")), _three(said.get("scale_values", ""))
    if mean is not None or scale is not None:
        contract["mean"] = mean or (0.0, 0.0, 0.0)
        contract["scale"] = tuple(1 / each for each in scale or (1.0, 1.0, 1.0))
    if said.get("pad_value", "").isdigit():
        contract["pad_value"] = min(int(said["pad_value"]), 255)
    names = _names(said.get("labels", "").split())
    facts = Facts("OpenVINO model_info", names, contract=contract)
    keys = ("model_info model_type", "model_info resize_type", "model_info reverse_input_channels")
    return _told(facts, metadata, keys)


def _three(text: str) -> tuple[float, float, float] | None:
    try:
        found = [float(part) for part in text.replace(",", " ").strip("[]() ").split()]
    except ValueError:
        return None
    if len(found) == 1:
        found *= 3
    return (found[0], found[1], found[2]) if len(found) == 3 and min(found) >= 0 else None


def _beside(file: Path) -> Facts:
    """mmdeploy's and Roboflow's files, and a list of names as Roboflow writes it."""
    for name in (file.with_suffix(".json").name, *_SIDECARS):
        path = file.with_name(name)
        if not path.is_file() or path.stat().st_size > _MOST_TEXT:
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        names, contract = _search(found)
        if names or contract:
            facts = Facts(path.name, names, contract=contract)
            said = f"{path.name}: {len(names)} names" if names else f"{path.name}:"
            said += "".join(f", {key} {value}" for key, value in contract.items())
            return replace(facts, evidence=(said,))
    names_file = file.with_name("class_names.txt")
    if names_file.is_file() and names_file.stat().st_size <= _MOST_TEXT:
        lines = names_file.read_text(encoding="utf-8", errors="replace").split("\n")
        names = _names([line.strip() for line in lines if line.strip()])
        if names:
            return Facts(
                names_file.name, names, evidence=(f"{names_file.name}: {len(names)} names",)
            )
    return Facts()


def _search(value: Any, depth: int = 0) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names and mmdeploy's `Normalize`, `Resize` and `Pad` anywhere in a json."""
    names: tuple[str, ...] = ()
    contract: dict[str, Any] = {}
    if depth > 8:
        return names, contract
    if isinstance(value, dict):
        for key in (
            "names",
            "classes",
            "CLASSES",
            "class_names",
            "CLASS_LIST",
            "CLASS_MAP",
            "labels",
        ):
            names = names or _names(value.get(key))
        mean, deviation = _triple(value.get("mean")), _triple(value.get("std"))
        if value.get("type") == "Normalize" and mean and deviation and min(deviation) > 0:
            contract["mean"] = mean
            contract["scale"] = tuple(1 / each for each in deviation)
            contract["channel_order"] = "RGB" if value.get("to_rgb", True) else "BGR"
        if value.get("type") == "Resize" and "keep_ratio" in value:
            kept = bool(value["keep_ratio"])
            contract["resize"] = "letterbox" if kept else "stretch"
            if kept:
                contract["placement"] = "top left"
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        if isinstance(part, (dict, list)):
            found, more = _search(part, depth + 1)
            names, contract = names or found, {**more, **contract}
    return names, contract


def _triple(value: Any) -> tuple[float, ...]:
    """Three numbers of a json; () for anything else."""
    numbers = isinstance(value, list) and all(isinstance(each, (int, float)) for each in value)
    return tuple(map(float, value)) if numbers and len(value) == 3 else ()


def refuse_other_tasks(facts: Facts, source: str) -> None:
    """Raise for a network that says itself that it is no detector.

    Raises:
        ArtifactError: its task is another.
    """
    if facts.task and facts.task != "detect":
        raise ArtifactError(
            f"{source}: its metadata say task {facts.task!r}; edge imports detectors (detect)"
        )
