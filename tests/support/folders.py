"""Folders of labelled pictures, as users have them."""

from __future__ import annotations

from pathlib import Path

import cv2

from edge.data.datasets import load, open_dataset

__all__ = ["write_yolo_folder"]


def write_yolo_folder(root: Path, data: str) -> Path:
    """Write `data` as `images/`, YOLO `labels/` and a `.names` file."""
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    dataset = open_dataset(data)
    (root / "set.names").write_text("\n".join(dataset.classes))
    for number, item in enumerate(dataset.items):
        frame, known = load(item)
        height, width = frame.shape[:2]
        cv2.imwrite(str(root / "images" / f"{number}.png"), frame)
        lines = []
        for box, label in zip(known.xyxy, known.class_id, strict=True):
            centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
            values = [centre[0] / width, centre[1] / height, size[0] / width, size[1] / height]
            lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values)]))
        (root / "labels" / f"{number}.txt").write_text("\n".join(lines))
    return root
