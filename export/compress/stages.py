"""What `edge dissect` and `edge prune` share: stages written, judged and timed alike."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from edge.compress.finetune import FineTuning, fine_tune
from edge.data.datasets import Dataset, Item, load
from edge.data.metrics import Metrics, evaluate_detections
from edge.files import write_file
from edge.measure.accuracy import detect
from edge.measure.turns import open_runner, opencv_threads, take_turns, warm_up
from edge.models.darknet import Darknet
from edge.reporting import say, ticking, track
from edge.spec import ModelSpec
from edge.train.augment import Labelled
from edge.train.pictures import Pictures, read_pictures
from edge.train.start import write_model
from export.graph.writer import write_onnx

__all__ = ["SHOWN", "Stage", "judge", "learn", "pictures_of", "save", "time_stages"]

# The score above which a camera shows a box, and so above which a wrong one is seen.
SHOWN = 0.25
_ROUNDS, _BLOCK_MS = 10, 60.0


@dataclass(frozen=True, eq=False)
class Stage:
    """A network on its way from the full one to the small one.

    Attributes:
        name: of the stage.
        artifact: its FP32 ONNX file.
        facts: `map50`, `map50_95`, `by_class`, `false_positives` (per image, above `SHOWN`),
            `megabytes`, `parameters`.
    """

    name: str
    artifact: Path
    module: nn.Module
    spec: ModelSpec
    facts: dict[str, Any]


def judge(
    name: str, module: nn.Module, spec: ModelSpec, data: Dataset, folder: Path, threads: int
) -> Stage:
    """Write the stage's ONNX file into `folder` and measure how right it is over `data`.

    Raises:
        DataError: an image cannot be read, or no class in common.
    """
    artifact = folder / f"{name.replace(' ', '-')}.onnx"
    write_onnx(module, spec, artifact)
    found, pixels, _ = detect(artifact, data, threads)
    metrics = evaluate_detections(pixels, found, spec.classes)
    facts = {
        "map50": metrics.map50,
        "map50_95": metrics.map50_95,
        "by_class": metrics.by_class,
        "false_positives": round(_false_positives(metrics), 4),
        "megabytes": round(artifact.stat().st_size / 1e6, 4),
        "parameters": sum(tensor.numel() for tensor in module.parameters()),
    }
    return Stage(name, artifact, module, spec, facts)


def _false_positives(metrics: Metrics) -> float:
    """Boxes per image that a camera would show and that hit nothing at IoU 0.5."""
    wrong = sum(
        int(np.count_nonzero((one.score >= SHOWN) & ~one.matched[0] & ~one.ignored[0]))
        for one in metrics.matches
    )
    return wrong / metrics.images


def time_stages(artifacts: Sequence[Path], item: Item, threads: int) -> list[float]:
    """Milliseconds of each network on onnxruntime, the median of blocks taken in turns."""
    frame, _ = load(item)
    runners = [open_runner(path, frame, threads) for path in artifacts]
    try:
        with opencv_threads(threads):
            for runner in runners:
                runner.block = max(1, round(_BLOCK_MS / max(1.0, warm_up(runner, [frame]))))
            take_turns(runners, [frame], _ROUNDS)
        return [float(np.median(runner.medians("engine"))) for runner in runners]
    finally:
        for runner in runners:
            runner.detector.close()


def pictures_of(dataset: Dataset, spec: ModelSpec) -> Pictures:
    """Training pictures; raises DataError as `read_pictures`."""
    return read_pictures(dataset, spec, follow=lambda items: track(items, "reading", len(dataset)))[
        0
    ]


def learn(
    stage: Stage, pictures: Sequence[Labelled], how: FineTuning, teacher: nn.Module
) -> tuple[nn.Module, list[str]]:
    """A copy of the stage's network, fine-tuned, and the log, which is told as it grows."""
    log: list[str] = []

    def report(line: str) -> None:
        log.append(line)
        # A terminal has a bar; a log file has nothing else to show that training goes on.
        if not sys.stderr.isatty():
            say(line)

    with ticking("fine-tuning", how.steps) as tick:
        module = fine_tune(deepcopy(stage.module), stage.spec, pictures, how, teacher, report, tick)
    return module, log


def save(module: nn.Module, spec: ModelSpec, folder: Path, name: str) -> dict[str, str]:
    """Write the network in every form that it has; the files by kind."""
    files = {path.suffix[1:]: str(path) for path in write_model(module, spec, folder, name)}
    onnx = folder / f"{name}.fp32.onnx"
    write_onnx(module, spec, onnx)
    files["onnx"] = str(onnx)
    if isinstance(module, Darknet):
        names = folder / f"{name}.names"
        write_file(names, "".join(f"{label}\n" for label in spec.classes).encode())
        files["names"] = str(names)
    return files
