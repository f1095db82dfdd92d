"""The foreign detectors of the development data, and their detections by an independent decoder."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.detections import iou_matrix

__all__ = ["FOLDERS", "Folder", "unmatched"]

DATA = Path(os.environ.get("EDGE_DATA", "../shared/data"))


@dataclass(frozen=True)
class Folder:
    """One of them: its file, names where it has none, and what its README and reference say."""

    path: Path

    @property
    def onnx(self) -> Path:
        return next(self.path.glob("*.onnx"))

    @property
    def reference(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "reference.json").read_text())
        return found

    @property
    def names(self) -> Path | None:
        readme = (self.path / "README.md").read_text()
        stated = "yolo11n" in self.path.name or "yolo26n" in self.path.name
        listed = re.search(r"\.\./(coco\d\d\.names)", readme)
        return None if stated or listed is None else self.path.parent / listed.group(1)

    @property
    def ap(self) -> float | None:
        """AP on coco/val by the README."""
        found = re.search(r"coco/val \| ([\d.]+) /", (self.path / "README.md").read_text())
        return None if found is None else float(found.group(1))

    @property
    def iou(self) -> float | None:
        value = self.reference["settings"]["nms"]
        return None if value is None else float(value)


FOLDERS = [Folder(path) for path in sorted((DATA / "foreign").glob("*/")) if path.is_dir()]


def unmatched(
    some: list[dict[str, Any]], others: list[dict[str, Any]], score: float = 0.25
) -> list[dict[str, Any]]:
    """Those of `some` from `score` on that have no twin: same class, IoU .97, score within .01."""
    return [
        one
        for one in some
        if one["score"] >= score
        and not any(
            one["class"] == other["class"]
            and abs(one["score"] - other["score"]) <= 0.01
            and iou_matrix([one["xyxy"]], [other["xyxy"]])[0, 0] >= 0.97  # type: ignore[arg-type]
            for other in others
        )
    ]
