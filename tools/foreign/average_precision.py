"""AP of every imported detector on coco/val, beside what its README states, as one table.

    python tools/foreign/average_precision.py [NAME ...] [--json F]

The README's figures are of an independent decoder: pycocotools, scores above .01, 100 boxes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from apps.commands.terminal import Terminal, show
from edge.data.datasets import open_dataset
from edge.data.metrics import evaluate_detections
from edge.files import write_json
from edge.measure.accuracy import run_over
from edge.reporting import listen
from edge.runtime.detector import Detector
from export.foreign.importing import import_model
from tests.support.foreign import DATA, FOLDERS, Folder

LIMIT = 0.003
# Its anchors are not in the file.
HEADS = {"v5lite-e-coco-320": "yolov5-sigmoid"}


def average_precision(folder: Folder, target: Path) -> tuple[float, float]:
    """AP (IoU .5 to .95) and AP50 of one import."""
    name = folder.path.name
    found = import_model(folder.onnx, names=folder.names, head=HEADS.get(name), output=target)
    iou = folder.iou
    with Detector.open(found.file, score=0.01, iou=iou, limit=100, threads=2) as detector:
        dataset = open_dataset(DATA / "coco" / "val", found.classes)
        seen, pixels = run_over([detector], dataset, what=name)
        metrics = evaluate_detections(pixels, seen[0], found.classes)
    return metrics.map50_95, metrics.map50


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="folders; left out: all with an AP")
    parser.add_argument("--json", help="write the figures there too")
    options = parser.parse_args(argv)
    rows, figures, well = [], {}, True
    for folder in FOLDERS:
        name, wanted = folder.path.name, folder.ap
        if wanted is None or (options.names and name not in options.names):
            continue
        with tempfile.TemporaryDirectory() as target:
            ap, ap50 = average_precision(folder, Path(target))
        holds = abs(ap - wanted) <= LIMIT
        well &= holds
        figures[name] = {"ap": ap, "ap50": ap50, "stated": wanted}
        rows.append((name, f"{ap:.4f}", f"{wanted:.4f}", f"{ap50:.4f}", "" if holds else "MISSED"))
    write_json(figures, options.json)
    show("AP on coco/val", ("detector", "AP", "README", "AP50", ""), rows)
    return 0 if well else 1


if __name__ == "__main__":
    listen(Terminal())
    sys.exit(main())
