#!/usr/bin/env python3
"""mAP of INT8 by each recipe, ours and others', with paired intervals, on images none has seen.

    python tools/int8/int8_accuracy.py --data-root DATA --models \
        yolov3-tiny-aix2022,yolo-fastest-1.1

DATA holds weights/NAME.cfg and .weights, aix/ (labelled pictures in series) and coco/train,
coco/val. Each of the two halves of aix calibrates what is evaluated on the other.

onnxruntime's graphs are made as its documentation says (quant_pre_process, then quantize_static
with QDQ and weights per channel); NVIDIA's modelopt where it is installed. All graphs are computed
as they are written, as TensorRT does. With --kernels those of others run as onnxruntime optimises
them, whose sums overflow on an x86 CPU without VNNI. "best other" is the best of them by mAP@.5 on
the very images of the evaluation, which favours them.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from apps.commands.terminal import Terminal, show
from calibration.pipeline import calibrate
from calibration.recipe import CalibrationRecipe
from calibration.scales import network_inputs
from calibration.threshold import METHODS
from edge.artifact import read_manifest
from edge.errors import EdgeError
from edge.files import write_json
from edge.measure.accuracy import OPTIONS, labelled, run_over, score
from edge.measure.results import ClassResults
from edge.measure.statistics import mean_precision, resample
from edge.optional import require
from edge.reporting import listen, say
from edge.runtime.backend import open_backend
from edge.runtime.detector import Detector
from export.graph.writer import attach_manifest
from export.int8.quantize import write_half, write_int8
from export.options import SourceOptions
from export.source import fp32_onnx

# Names file, calibration images, evaluation images, both relative to the data folder.
AIX = ("aix.names", "aix", "aix")
COCO = ("coco.names", "coco/train", "coco/val")
MODELS = {
    "yolov3-tiny-aix2022": AIX,
    "yolov4-tiny-aix2023": AIX,
    "mbv2-yolov3-nano-coco": COCO,
    "yolo-fastest-1.1": COCO,
}
# The default first; those of one method alone show what equalising and bias correction give.
OURS = {
    "edge default": CalibrationRecipe(),
    "edge adaround": CalibrationRecipe(adaround=True),
    "edge best": CalibrationRecipe(method="best"),
    **{
        f"edge {method} alone": CalibrationRecipe(
            method=method, equalise=False, bias_correction=False
        )
        for method in METHODS
    },
}
# Beyond it onnxruntime's Entropy takes more than 6 GB.
ENTROPY_IMAGES = 50
_DRAWS = 1000
Make = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Recipe:
    """How one INT8 file is made from an FP32 file, and by whose recipe."""

    name: str
    ours: bool
    make: Make


def recipes(calib: str, images: int) -> Iterator[Recipe]:
    """Return all recipes to compare: FP16, ours with the default first, then others'."""
    yield Recipe("FP16", True, lambda source, target: void(write_half(source, target)))
    for name, steps in OURS.items():
        wanted = replace(steps, images=images)
        yield Recipe(name, True, lambda s, t, wanted=wanted: _ours(s, t, calib, wanted))
    for method in ("MinMax", "Entropy", "Percentile"):
        few = min(images, ENTROPY_IMAGES) if method == "Entropy" else images
        yield Recipe(
            f"onnxruntime {method}",
            False,
            lambda s, t, method=method, few=few: _onnxruntime(s, t, calib, few, method),
        )
    if find_spec("modelopt"):
        for method in ("entropy", "max"):
            yield Recipe(
                f"modelopt {method}",
                False,
                lambda s, t, method=method: _modelopt(s, t, calib, images, method),
            )


def void(_: object) -> None:
    """Do nothing."""


def _ours(source: Path, target: Path, calib: str, steps: CalibrationRecipe) -> None:
    write_int8(source, calibrate(source, calib, steps).table, target)


def _onnxruntime(source: Path, target: Path, calib: str, images: int, method: str) -> None:
    quantization = require("onnxruntime.quantization")
    prepared = target.with_suffix(".prepared.onnx")
    require("onnxruntime.quantization.shape_inference").quant_pre_process(
        str(source), str(prepared), skip_symbolic_shape=True
    )

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        inputs = network_inputs(source, calib, images)

        def get_next(self) -> dict[str, Any] | None:
            found = next(self.inputs, None)
            return None if found is None else {"images": np.array(found[1])}

    quantization.quantize_static(
        str(prepared),
        str(target),
        Reader(),
        per_channel=True,
        calibrate_method=getattr(quantization.CalibrationMethod, method),
    )
    _adopt(target, source)


def _modelopt(source: Path, target: Path, calib: str, images: int, method: str) -> None:
    # It changes onnxruntime's own calibration for the whole process that imports it.
    child = get_context("spawn").Process(
        target=_modelopt_alone, args=(source, target, calib, images, method)
    )
    child.start()
    child.join()
    if child.exitcode:
        raise RuntimeError(f"modelopt ended with status {child.exitcode}")
    _adopt(target, source)


def _modelopt_alone(source: Path, target: Path, calib: str, images: int, method: str) -> None:
    arrays = np.concatenate([array.copy() for _, array in network_inputs(source, calib, images)])
    import_module("modelopt.onnx.quantization").quantize(
        onnx_path=str(source),
        quantize_mode="int8",
        calibration_data={"images": arrays},
        calibration_method=method,
        calibration_eps=["cpu"],
        output_path=str(target),
    )


def _adopt(target: Path, source: Path) -> None:
    """Give a foreign graph the manifest that its decoding needs."""
    onnx = require("onnx")
    model = onnx.load(str(target))
    attach_manifest(model, replace(read_manifest(source), labels=("of another tool",)))
    onnx.save(model, str(target))


@contextmanager
def halves(folder: Path) -> Iterator[list[tuple[str, str]]]:
    """Return (calibration, evaluation) folders: each half of a labelled folder with the other.

    The order of the names splits pictures by their series, whose neighbours look alike.
    """
    pictures = sorted((folder / "images").iterdir())
    with tempfile.TemporaryDirectory() as name:
        sides = []
        for side, chosen in (
            ("a", pictures[: len(pictures) // 2]),
            ("b", pictures[len(pictures) // 2 :]),
        ):
            for part in ("images", "labels"):
                (Path(name) / side / part).mkdir(parents=True)
            for picture in chosen:
                label = folder / "labels" / f"{picture.stem}.txt"
                (Path(name) / side / "images" / picture.name).symlink_to(picture)
                (Path(name) / side / "labels" / label.name).symlink_to(label)
            for names in folder.glob("*.names"):
                (Path(name) / side / names.name).symlink_to(names)
            sides.append(str(Path(name) / side))
        yield [(sides[0], sides[1]), (sides[1], sides[0])]


def evaluated(
    path: Path, data: str, foreign: bool, args: argparse.Namespace
) -> dict[str, ClassResults]:
    """Return what the bootstrap needs of `path` over `data`."""
    options: dict[str, Any] = {"exact": not (foreign and args.kernels), "rearrange": not foreign}
    if args.threads is not None:
        options["threads"] = args.threads
    with open_backend(path, **options) as backend:
        spec = backend.manifest.spec
        dataset = labelled(data, spec.classes, args.eval_images)
        found, pixels = run_over([Detector(backend, **OPTIONS)], dataset, what=path.stem)
        return score(found[0], pixels, spec.classes).results


def measure(
    name: str, root: Path, pairs: list[tuple[str, str]], args: argparse.Namespace
) -> dict[str, Any]:
    """Measure every recipe of one model over its (calibration, evaluation) pairs."""
    results: dict[str, list[dict[str, ClassResults]]] = {}
    seconds: dict[str, float] = {}
    ours: dict[str, bool] = {"FP32": True}
    for calib, data in pairs:
        with tempfile.TemporaryDirectory() as folder:
            cfg = root / "weights" / f"{name}.cfg"
            names = root / "weights" / MODELS[name][0]
            source = fp32_onnx(cfg, Path(folder), SourceOptions(names=names, resize="stretch")).path
            results.setdefault("FP32", []).append(evaluated(source, data, False, args))
            for number, recipe in enumerate(recipes(calib, args.calib_images)):
                if args.recipes and not any(word in recipe.name for word in args.recipes):
                    continue
                target = Path(folder) / f"{number}.onnx"
                start = time.perf_counter()
                try:
                    recipe.make(source, target)
                    found = evaluated(target, data, not recipe.ours, args)
                except (EdgeError, MemoryError, ImportError, RuntimeError, ValueError) as error:
                    say(f"{name}, {recipe.name}: {' '.join(str(error).split())[:200]}")
                    continue
                seconds[recipe.name] = seconds.get(recipe.name, 0) + time.perf_counter() - start
                ours[recipe.name] = recipe.ours
                results.setdefault(recipe.name, []).append(found)
                say(f"{name}, {recipe.name}: done")
    return _judged(name, results, seconds, ours, len(pairs))


def _judged(
    name: str,
    results: dict[str, list[dict[str, ClassResults]]],
    seconds: dict[str, float],
    ours: dict[str, bool],
    pairs: int,
) -> dict[str, Any]:
    draws = {key: _draws(found) for key, found in results.items() if len(found) == pairs}
    rows = [
        {
            "recipe": key,
            "map50": round(float(found[0]), 5),
            "against_fp32": _difference(found, draws["FP32"]),
            "s": round(seconds.get(key, 0.0), 1),
        }
        for key, found in draws.items()
    ]
    others = [key for key in draws if not ours[key]]
    best = max(others, key=lambda key: float(draws[key][0]), default=None)
    versus = None
    if best is not None and "edge default" in draws:
        versus = {"best_other": best, **_difference(draws["edge default"], draws[best])}
    return {"model": name, "rows": rows, "default_against_best_other": versus}


def _draws(pairs: list[dict[str, ClassResults]]) -> Any:
    """Return mAP@.5 as measured, then of each bootstrap draw, as means over the pairs."""
    found = []
    for seed, results in enumerate(pairs):
        images = len(next(iter(results.values())).boxes)
        weights = np.vstack([np.ones((1, images)), resample(images, _DRAWS, seed)])
        found.append(mean_precision(results, weights))
    return np.mean(found, axis=0)


def _difference(one: Any, other: Any) -> dict[str, Any]:
    gained = one - other
    low, high = np.quantile(gained[1:], (0.025, 0.975))
    ends = [round(float(low), 5), round(float(high), 5)]
    return {"difference": round(float(gained[0]), 5), "interval": ends}


def _print(result: dict[str, Any], args: argparse.Namespace) -> None:
    show(
        f"{result['model']}: at most {args.calib_images} calibration images",
        ("recipe", "mAP@.5", "against FP32", "95 %", "s"),
        [
            (
                row["recipe"],
                f"{row['map50']:.4f}",
                f"{row['against_fp32']['difference']:+.4f}",
                "{:+.4f} to {:+.4f}".format(*row["against_fp32"]["interval"]),
                f"{row['s']:.0f}",
            )
            for row in result["rows"]
        ],
    )
    versus = result["default_against_best_other"]
    if versus:
        low, high = versus["interval"]
        say(
            f"edge default - {versus['best_other']}: {versus['difference']:+.4f} "
            f"(95 %: {low:+.4f} to {high:+.4f})"
        )


def _parser() -> argparse.ArgumentParser:
    words: Callable[[str], list[str]] = lambda text: text.split(",")  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True, metavar="DIR", help="the data folder")
    parser.add_argument(
        "--models", type=words, default=list(MODELS), help="models to measure, with commas between"
    )
    parser.add_argument(
        "--recipes", type=words, default=[], help="only recipes whose name has one of these words"
    )
    parser.add_argument(
        "--calib-images", type=int, default=200, help="number of calibration images (%(default)s)"
    )
    parser.add_argument("--eval-images", type=int, help="use at most this many images of each set")
    parser.add_argument("--threads", type=int, help="CPU threads of onnxruntime")
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="run other tools' graphs as onnxruntime optimises them",
    )
    parser.add_argument("--json", help="file for the tables as JSON")
    return parser


def main() -> None:
    """Print a table for each model."""
    args = _parser().parse_args()
    logging.disable(logging.WARNING)
    root = Path(args.data_root)
    tables = []
    for name in args.models:
        _, calib, data = MODELS[name]
        if calib == data:
            with halves(root / data) as pairs:
                tables.append(measure(name, root, pairs, args))
        else:
            pairs = [(str(root / calib), str(root / data))]
            tables.append(measure(name, root, pairs, args))
        _print(tables[-1], args)
    if args.json:
        write_json(tables, Path(args.json))


if __name__ == "__main__":
    listen(Terminal())
    main()
