"""`edge detect` on the command line; what it runs is imported when it runs."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from apps.commands.options import exact_option, json_option, threads_option, threshold_options
from apps.commands.terminal import listing
from edge.data.datasets import read_image
from edge.data.items import images_in
from edge.errors import ArtifactError, DataError
from edge.files import make_folder, write_file, write_json
from edge.reporting import say, track
from edge.runtime.detector import Detector
from edge.video.draw import draw

__all__ = ["arguments", "detect", "print_detections", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edge detect`."""
    parser.add_argument("artifact", metavar="ARTIFACT", help=".onnx or .engine of edge")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="pictures or folders of them")
    threshold_options(parser, None)
    parser.add_argument(
        "--multi-label", action="store_true", help="every class of a box, not only its best"
    )
    parser.add_argument("--draw", metavar="DIR", help="write the pictures there with their boxes")
    threads_option(parser)
    exact_option(parser)
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """`edge detect`: always 0; errors are raised."""
    detect(
        args.artifact,
        args.images,
        score=args.score,
        iou=args.iou,
        multi_label=args.multi_label,
        json_path=args.json,
        draw_dir=args.draw,
        threads=args.threads,
        exact=not args.fast_int8,
    )
    return 0


def detect(
    artifact: str | Path,
    images: Sequence[str | Path],
    *,
    score: float | None = None,
    iou: float | None = None,
    multi_label: bool = False,
    json_path: str | Path | None = None,
    draw_dir: str | Path | None = None,
    threads: int | None = None,
    exact: bool = False,
) -> list[dict[str, Any]]:
    """Run the artifact over pictures, print what was found and say on stderr what ran it.

    Args:
        images: files and folders; of a folder every image at any depth below it.
        score, iou, multi_label: of the detector.
        json_path: where to write the result too.
        draw_dir: receives `NAME.detected.jpg` of every picture; made where it is missing.
        threads: of the CPU backend.
        exact: CPU backend: compute a quantized graph as it is written, see `OrtBackend`.

    Returns:
        By picture: `image`, the path as given, and `detections`: `class`, `class_id`, `score`,
        `xyxy` in pixels of the picture, highest score first.

    Raises:
        DataError: a picture is missing or damaged, or a folder holds none.
        ArtifactError, EngineMismatch, MissingDependency: as `Detector.open`; a file or folder
            that cannot be written.
    """
    paths = _expand(images)
    targets = _targets(paths, draw_dir)
    found: list[dict[str, Any]] = []
    with Detector.open(
        artifact, score=score, iou=iou, multi_label=multi_label, threads=threads, exact=exact
    ) as detector:
        manifest = detector.backend.manifest
        classes = manifest.spec.classes
        say(", ".join([Path(artifact).name, *manifest.labels, detector.backend.name]))
        for path, target in track(zip(paths, targets, strict=True), "detecting", len(paths)):
            frame = read_image(path)
            detections = detector(frame)
            found.append({"image": str(path), "detections": detections.to_json(classes)})
            if target is not None:
                _write_jpeg(target, draw(frame, detections, classes))
    write_json(found, json_path)
    print_detections(found)
    return found


def _expand(images: Sequence[str | Path]) -> list[Path]:
    paths: list[Path] = []
    for image in map(Path, images):
        if not image.exists():
            raise DataError(f"{image}: no such image or folder")
        paths.extend(images_in(image) if image.is_dir() else [image])
    if not paths:
        raise ValueError("nothing to look at: name at least one image or folder")
    return paths


def _targets(paths: Sequence[Path], folder: str | Path | None) -> Sequence[Path | None]:
    """A picture for each path; a second one of the same name gets a number."""
    if folder is None:
        return [None] * len(paths)
    folder = make_folder(folder)
    return [folder / f"{name}.detected.jpg" for name in _unique(path.stem for path in paths)]


def _unique(names: Iterator[str]) -> Iterator[str]:
    taken: set[str] = set()
    for name in names:
        free, count = name, 1
        while free in taken:
            count += 1
            free = f"{name}-{count}"
        taken.add(free)
        yield free


def _write_jpeg(target: Path, picture: NDArray[np.uint8]) -> None:
    done, data = cv2.imencode(".jpg", picture)
    if not done:
        raise ArtifactError(f"{target}: OpenCV cannot encode {picture.shape} as JPEG")
    write_file(target, data.tobytes())


def print_detections(found: Sequence[dict[str, Any]], classes: int = 4) -> None:
    """The result as a table on stdout: by picture the count and its most frequent classes."""
    rows = [
        (one["image"], str(len(one["detections"])), _most(one["detections"], classes))
        for one in found
    ]
    total = sum(len(one["detections"]) for one in found)
    listing(f"{total} detections in {len(found)} images", ("image", "found", "classes"), rows)


def _most(detections: Sequence[dict[str, Any]], count: int) -> str:
    seen = Counter(one["class"] for one in detections)
    # Highest scores come first, so `setdefault` keeps each class's best.
    best: dict[str, float] = {}
    for one in detections:
        best.setdefault(one["class"], one["score"])
    parts = [f"{number} {name} ({best[name]:.2f})" for name, number in seen.most_common(count)]
    return ", ".join([*parts, *(["..."] if len(seen) > count else [])])
