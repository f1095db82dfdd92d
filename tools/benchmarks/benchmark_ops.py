"""Pre-processing, decoding and suppression beside OpenCV's and ultralytics', as ratios of one run.

    python tools/benchmarks/benchmark_ops.py
    PYTHONPATH=. /path/to/venv-with-ultralytics/bin/python tools/benchmarks/benchmark_ops.py

ultralytics is AGPL and drags much in, so it stays out of this project's environment; where it
cannot be imported the OpenCV ratios are printed alone. Where torchvision is absent too its
suppression counts as free, which flatters ultralytics; --torchvision-nms puts that right.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import os
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from interleave import medians_ms
from numpy.typing import NDArray

from apps.commands.terminal import Terminal, show
from edge.detections import Detections
from edge.measure.host import fingerprint
from edge.reporting import listen, say
from edge.runtime.ops_cpu import Decoder, Preprocessor, nms
from edge.spec import HeadSpec, InputContract, ModelSpec

Array = NDArray[np.float32]
Calls = dict[str, Callable[[], Any]]
SIDE, CLASSES, SCORE, IOU = 416, 80, 0.25, 0.45
OURS = "edge"
# Anchors by grid, pixels: arXiv:1804.02767 section 2.3 and pjreddie's yolov3-tiny.cfg.
TINY = {13: ((81, 82), (135, 169), (344, 319)), 26: ((10, 14), (23, 27), (37, 58))}
FULL = {
    13: ((116, 90), (156, 198), (373, 326)),
    26: ((30, 61), (62, 45), (59, 119)),
    52: ((10, 13), (16, 30), (33, 23)),
}
ULTRALYTICS, BLOB = "ultralytics LetterBox + preprocess", "cv2.dnn.blobFromImage"
OWN, TORCHVISION = "ultralytics, its own NMS", "ultralytics, torchvision NMS"
FREE = "ultralytics, NMS for free (no torchvision)"
PREPROCESS_LIMITS = {ULTRALYTICS: 0.6, BLOB: 1.0}
DECODE_LIMITS = {
    2535: {OWN: 1 / 15, TORCHVISION: 1 / 2, FREE: 1 / 2},
    10647: {OWN: 1 / 8, TORCHVISION: 2 / 3, FREE: 2 / 3},
}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--block", type=int, default=20, help="calls of each in a round")
    parser.add_argument("--threads", type=int, default=2, help="of OpenCV and torch")
    parser.add_argument("--objects", type=int, default=40, help="in the decoded output")
    parser.add_argument(
        "--torchvision-nms",
        metavar="LIBRARY",
        help="torchvision's csrc/ops/cpu/nms_kernel.cpp as a shared library of torch operators, "
        "where torchvision itself is not installed",
    )
    return parser.parse_args(argv)


def ultralytics() -> Any:
    """Its predictor and suppression with torch, or the reason why not as text."""
    os.environ.setdefault("YOLO_OFFLINE", "true")
    try:
        import torch

        _without_torchvision()
        from ultralytics import __version__
        from ultralytics.engine.predictor import BasePredictor
        from ultralytics.utils import nms as module
    except (ImportError, importlib.metadata.PackageNotFoundError) as error:
        return str(error)
    return types.SimpleNamespace(
        torch=torch, predictor=BasePredictor, nms=module, version=__version__
    )


def _without_torchvision() -> None:
    """ultralytics asks for torchvision's version on import, and needs nothing more of it here."""
    asked = importlib.metadata.version
    try:
        asked("torchvision")
    except importlib.metadata.PackageNotFoundError:
        # Releases come in pairs: torch 2.13 with torchvision 0.28.
        paired = f"0.{15 + int(asked('torch').split('.')[1])}.0"

        def version(distribution_name: str) -> str:
            return paired if distribution_name == "torchvision" else asked(distribution_name)

        importlib.metadata.version = version


def preprocessors(frame: NDArray[np.uint8], other: Any) -> Calls:
    """What turns a frame into a tensor, and a bare resize to the letterboxed size."""
    contract = InputContract((SIDE, SIDE))
    ours = Preprocessor(contract)
    height, width = ours(frame)[1].resized_hw
    calls: Calls = {
        OURS: lambda: ours(frame),
        "cv2.resize alone": lambda: cv2.resize(frame, (width, height)),
        BLOB: lambda: cv2.dnn.blobFromImage(frame, 1 / 255, (SIDE, SIDE), swapRB=True),
    }
    if not isinstance(other, str):
        predictor = _predictor(other)
        calls[ULTRALYTICS] = lambda: predictor.preprocess([frame])
    return calls


def _predictor(other: Any) -> Any:
    """As for an exported engine of a fixed square input."""
    predictor = other.predictor.__new__(other.predictor)
    predictor.imgsz, predictor.device = (SIDE, SIDE), other.torch.device("cpu")
    predictor.args = types.SimpleNamespace(rect=False)
    predictor.model = types.SimpleNamespace(fp16=False, format="engine", stride=32)
    return predictor


def make_spec(name: str, anchors: Mapping[int, tuple[tuple[int, int], ...]]) -> ModelSpec:
    heads = tuple(HeadSpec.of_grid(f"head{g}", "yolo", (g, g), each) for g, each in anchors.items())
    classes = tuple(f"class{i}" for i in range(CLASSES))
    return ModelSpec(name, "darknet", classes, InputContract((SIDE, SIDE)), heads)


def make_output(spec: ModelSpec, objects: int, seed: int = 0) -> list[Array]:
    """Raw heads of a street: each object lights up its neighbourhood, the rest is background."""
    rng = np.random.default_rng(seed)
    heads = []
    for head in spec.heads:
        rows, columns = head.grid_hw
        raw = rng.normal(0, 0.3, (len(head.anchors), 5 + CLASSES, rows, columns))
        raw[:, 4] = rng.normal(-9, 1.5, raw[:, 4].shape)
        raw[:, 5:] = rng.normal(-6, 1.5, raw[:, 5:].shape)
        heads.append(raw.astype(np.float32))
    for _ in range(objects):
        _place(rng, spec, heads)
    return [raw.reshape(1, -1, *raw.shape[2:]) for raw in heads]


def _place(rng: np.random.Generator, spec: ModelSpec, heads: list[Array]) -> None:
    """One object of one head, seen by two anchors of each cell near its centre.

    Trained networks give two to four candidates for each object that is kept; so does this.
    """
    which = int(rng.integers(len(heads)))
    raw, head = heads[which], spec.heads[which]
    grid = head.grid_hw[0]
    label, centre = int(rng.integers(CLASSES)), rng.uniform(1.5, grid - 1.5, 2)
    size = np.array(head.anchors[int(rng.integers(3))]) * rng.uniform(0.8, 1.2, 2)
    # Cells off the centre still reach an object that is large beside them.
    reach = min(1, int(size.min() * grid / SIDE / 2))
    column, row = centre.astype(int)
    for y, x in np.ndindex(2 * reach + 1, 2 * reach + 1):
        at = np.array((column + x - reach, row + y - reach))
        offset = np.clip(centre - at, 0.02, 0.98)
        certainty = 2 if x == y == reach else -1
        for anchor in rng.choice(3, 2, replace=False):
            cell = raw[anchor, :, at[1], at[0]]
            cell[:2] = np.log(offset / (1 - offset)) + rng.normal(0, 0.1, 2)
            cell[2:4] = np.log(size / head.anchors[anchor]) + rng.normal(0, 0.05, 2)
            cell[4], cell[5 + label] = rng.normal(certainty, 1), rng.normal(3, 1)


def as_ultralytics(spec: ModelSpec, raw: list[Array]) -> Array:
    """The same output as (1, 4 + classes, N): xywh in pixels and class scores."""
    parts = []
    for head, array in zip(spec.heads, raw, strict=True):
        rows, columns = head.grid_hw
        grid = array.reshape(len(head.anchors), 5 + CLASSES, rows, columns).astype(np.float64)
        sigmoid = 1 / (1 + np.exp(-grid))
        cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)))
        centre = (sigmoid[:, :2] + cells) * (SIDE / columns)
        size = np.exp(grid[:, 2:4]) * np.asarray(head.anchors)[:, :, None, None]
        scores = sigmoid[:, 5:] * sigmoid[:, 4:5]
        joined = np.concatenate((centre, size, scores), axis=1)
        parts.append(joined.transpose(1, 0, 2, 3).reshape(4 + CLASSES, -1))
    return np.concatenate(parts, axis=1)[None].astype(np.float32)


def decoders(spec: ModelSpec, raw: list[Array], other: Any, library: str | None) -> Calls:
    """What turns raw heads into detections; ultralytics gets its boxes decoded already."""
    decode = Decoder(spec)

    def ours() -> Detections:
        return nms(decode(raw, SCORE), IOU)

    calls: Calls = {OURS: ours}
    if isinstance(other, str):
        return calls
    ready = other.torch.from_numpy(as_ultralytics(spec, raw))

    def theirs() -> Any:
        return other.nms.non_max_suppression(ready, SCORE, IOU)[0]

    passing = len(decode(raw, SCORE))
    say(f"{passing} of {ready.shape[2]} candidates pass, {len(ours())} are kept")
    if len(ours()) != len(theirs()):
        say("the counts differ: the ratios compare different work")
    calls[OWN] = theirs
    fast, name = _torchvision(other, theirs, library)
    calls[name] = lambda: _with_module(fast, theirs)
    return calls


def _torchvision(other: Any, theirs: Callable[[], Any], library: str | None) -> tuple[Any, str]:
    """A module with torchvision's `ops.nms`, or one that knows the answer beforehand."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("torchvision"), TORCHVISION
    if library is not None:
        other.torch.ops.load_library(library)
        return _module(other.torch.ops.torchvision.nms), TORCHVISION
    kept: list[Any] = []
    own = other.nms.TorchNMS.nms

    def record(*args: Any) -> Any:
        kept.append(own(*args))
        return kept[-1]

    other.nms.TorchNMS.nms = staticmethod(record)
    theirs()
    other.nms.TorchNMS.nms = staticmethod(own)
    return _module(lambda *_: kept[0]), FREE


def _module(suppress: Callable[..., Any]) -> Any:
    module: Any = types.ModuleType("torchvision")
    module.ops = types.SimpleNamespace(nms=suppress)
    return module


def _with_module(module: Any, call: Callable[[], Any]) -> Any:
    """ultralytics takes torchvision's suppression when that module was imported."""
    sys.modules["torchvision"] = module
    try:
        return call()
    finally:
        sys.modules.pop("torchvision")


def report(title: str, calls: Calls, limits: Mapping[str, float], options: Any) -> bool:
    """Measure, print, and tell whether every limit holds."""
    found = medians_ms(calls, options.rounds, options.block)
    rows, well = [], True
    for name, ms in found.items():
        ratio, limit = found[OURS] / ms, limits.get(name)
        holds = limit is None or ratio <= limit
        well &= holds
        verdict = "" if limit is None else "holds" if holds else "MISSED"
        rows.append((name, f"{ms:.3f}", f"{ratio:.3f}", f"{limit or 0:.3f}" * bool(limit), verdict))
    show(title, ("what", "ms", f"{OURS} / this", "at most", ""), rows)
    return well


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    cv2.setNumThreads(options.threads)
    other = ultralytics()
    host = fingerprint()
    say(f"{host['cpu']}, {options.threads} threads, OpenCV {cv2.__version__}")
    if isinstance(other, str):
        say(f"ultralytics is not here, so only OpenCV is compared with: {other}")
    else:
        other.torch.set_num_threads(options.threads)
        say(f"ultralytics {other.version}, torch {other.torch.__version__}")
    well = True
    for height, width in ((720, 1280), (1080, 1920)):
        frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        title = f"{width}x{height} to {SIDE}x{SIDE}"
        well &= report(title, preprocessors(frame, other), PREPROCESS_LIMITS, options)
    for name, anchors in (("yolov3-tiny-416", TINY), ("yolov3-416", FULL)):
        spec = make_spec(name, anchors)
        count = sum(3 * head.grid_hw[0] * head.grid_hw[1] for head in spec.heads)
        output = make_output(spec, options.objects)
        calls = decoders(spec, output, other, options.torchvision_nms)
        title = f"decoding and suppression of {name}, {count} candidates"
        well &= report(title, calls, DECODE_LIMITS[count], options)
    return 0 if well else 1


if __name__ == "__main__":
    listen(Terminal())
    sys.exit(main())
