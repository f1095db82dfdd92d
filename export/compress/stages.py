"""What the commands that make networks smaller share: stages written, evaluated and timed alike."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from edge.compress.finetune import fine_tune
from edge.compress.options import FineTuneOptions
from edge.data.datasets import Dataset, Item, load
from edge.data.metrics import ClassAccuracy, Metrics, evaluate_detections
from edge.files import refuse_input, write_file
from edge.measure.accuracy import detect
from edge.measure.sensors import Watch
from edge.measure.statistics import interval
from edge.measure.turns import open_runner, opencv_threads, take_turns_until, warm_up
from edge.models.darknet import Darknet
from edge.reporting import say, ticking, track
from edge.spec import ModelSpec
from edge.train.augment import Labelled
from edge.train.pictures import Pictures, read_pictures
from edge.train.start import write_model
from export.graph.writer import write_onnx

__all__ = [
    "NETWORK_FILES",
    "Stage",
    "StageFacts",
    "StageResult",
    "StageTimes",
    "check_outputs",
    "evaluate_stage",
    "fine_tune_stage",
    "save_network",
    "time_stages",
    "training_pictures",
]

# A camera shows boxes above this score, and so wrong ones too.
_SHOWN = 0.25
_ROUNDS, _BLOCK_MS = 10, 60.0
# Networks are timed until their ratios are known this well, or for this many times `_ROUNDS`.
_SPREAD, _LONGEST = 0.05, 10
# Of all files that a narrower network may be written as.
NETWORK_FILES = (".safetensors", ".cfg", ".weights", ".names", ".fp32.onnx", ".plan.json", ".html")


@dataclass(frozen=True)
class StageFacts:
    """How right and how large a network is.

    Attributes:
        map50, map50_95: mean average precision, 0..1.
        by_class: of each class.
        false_positives: wrong boxes per image with a score of at least 0.25.
        megabytes: of the FP32 ONNX file.
        parameters: number of weights and biases.
    """

    map50: float
    map50_95: float
    by_class: dict[str, ClassAccuracy]
    false_positives: float
    megabytes: float
    parameters: int


@dataclass(frozen=True, eq=False)
class Stage:
    """A network between the full one and the small one, or one of these.

    Attributes:
        name: of the stage.
        artifact: its FP32 ONNX file.
    """

    name: str
    artifact: Path
    module: nn.Module
    spec: ModelSpec
    facts: StageFacts


@dataclass(frozen=True)
class StageResult:
    """A stage as results state it; `ms` are of the network alone."""

    name: str
    facts: StageFacts
    ms: float

    def to_json(self) -> dict[str, Any]:
        """Return the stage with the facts among its keys."""
        return {"name": self.name, **vars(self.facts), "ms": self.ms}


@dataclass(frozen=True)
class StageTimes:
    """How long networks take, timed in turns.

    Attributes:
        ms: median milliseconds of each network.
        spread: half of the 95 % interval of each network's time as a ratio to the first's.
    """

    ms: tuple[float, ...]
    spread: tuple[float, ...]

    @property
    def doubt(self) -> str | None:
        """What makes these times useless, if anything does."""
        if max(self.spread) <= _SPREAD:
            return None
        return (
            "cannot tell on this machine now: times of the same network differ, so that a ratio is "
            f"known to {max(self.spread):.1%} only; stop other programs and run again"
        )


def check_outputs(folder: Path, name: str, *suffixes: str) -> None:
    """Refuse a name of files that would replace an input, before any work is done.

    Raises:
        ArtifactError: `folder/name` with one of `suffixes` is an input of the running command.
    """
    for suffix in suffixes:
        refuse_input(folder / f"{name}{suffix}")


def evaluate_stage(
    name: str, module: nn.Module, spec: ModelSpec, data: Dataset, folder: Path, threads: int
) -> Stage:
    """Write the stage's ONNX file into `folder` and measure its accuracy on `data`.

    Raises:
        DataError: an image cannot be read, or no class in common.
    """
    artifact = folder / f"{name.replace(' ', '-')}.onnx"
    write_onnx(module, spec, artifact)
    found, pixels, _ = detect(artifact, data, threads)
    metrics = evaluate_detections(pixels, found, spec.classes)
    facts = StageFacts(
        map50=metrics.map50,
        map50_95=metrics.map50_95,
        by_class=metrics.by_class,
        false_positives=round(_false_positives(metrics), 4),
        megabytes=round(artifact.stat().st_size / 1e6, 4),
        parameters=sum(tensor.numel() for tensor in module.parameters()),
    )
    return Stage(name, artifact, module, spec, facts)


def _false_positives(metrics: Metrics) -> float:
    """Return the boxes per image that a camera would show and that hit nothing at IoU 0.5."""
    wrong = sum(
        int(np.count_nonzero((one.score >= _SHOWN) & ~one.matched[0] & ~one.ignored[0]))
        for one in metrics.matches
    )
    return wrong / metrics.images


def time_stages(artifacts: Sequence[Path], item: Item, threads: int, watch: Watch) -> StageTimes:
    """Time networks on onnxruntime in turns, until their ratios are stable or it takes too long.

    Args:
        item: the picture to run on.
        watch: looks at the machine between blocks.
    """
    frame, _ = load(item)
    runners = [open_runner(path, frame, threads) for path in artifacts]

    def spreads() -> tuple[float, ...]:
        first = runners[0].medians("engine")
        return tuple(_spread(first, runner.medians("engine")) for runner in runners)

    try:
        with opencv_threads(threads):
            for runner in runners:
                runner.block = max(1, round(_BLOCK_MS / max(1.0, warm_up(runner, [frame]))))
            take_turns_until(
                lambda: max(spreads()) <= _SPREAD, runners, [frame], _ROUNDS, _LONGEST, watch
            )
        return StageTimes(
            tuple(float(np.median(runner.medians("engine"))) for runner in runners),
            spreads(),
        )
    finally:
        for runner in runners:
            runner.detector.close()


def _spread(first: Sequence[float], other: Sequence[float]) -> float:
    ratios = [[mine / its] for its, mine in zip(first, other, strict=True)]
    low, high = interval(ratios, 50)
    return (high - low) / (high + low)


def training_pictures(dataset: Dataset, spec: ModelSpec) -> Pictures:
    """Read pictures for training.

    Raises:
        DataError: as `read_pictures`.
    """
    return read_pictures(dataset, spec, follow=lambda items: track(items, "reading", len(dataset)))[
        0
    ]


def fine_tune_stage(
    stage: Stage, pictures: Sequence[Labelled], options: FineTuneOptions, teacher: nn.Module
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a fine-tuned copy of the stage's network, and the log, whose lines are also said."""
    log: list[str] = []

    def report(line: str) -> None:
        log.append(line)
        # A terminal has a bar; a log file has nothing else to show that training goes on.
        if not sys.stderr.isatty():
            say(line)

    with ticking("fine-tuning", options.steps) as tick:
        module = deepcopy(stage.module)
        tuned = fine_tune(module, stage.spec, pictures, options, teacher, report, tick)
    return tuned, tuple(log)


def save_network(module: nn.Module, spec: ModelSpec, folder: Path, name: str) -> dict[str, str]:
    """Write the network in every form that it has; return the files by kind."""
    files = {path.suffix[1:]: str(path) for path in write_model(module, spec, folder, name)}
    onnx = folder / f"{name}.fp32.onnx"
    write_onnx(module, spec, onnx)
    files["onnx"] = str(onnx)
    if isinstance(module, Darknet):
        names = folder / f"{name}.names"
        write_file(names, "".join(f"{label}\n" for label in spec.classes).encode())
        files["names"] = str(names)
    return files
