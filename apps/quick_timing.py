"""A first look at how fast artifacts are, in a second or two; `edge bench` measures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.interleave import opencv_threads
from edge.runtime.backend import cpu_options
from edge.runtime.detector import Detector

__all__ = ["Quick", "quick_ms"]

_LEAST_ROUNDS, _MOST_ROUNDS = 3, 200


@dataclass(frozen=True)
class Quick:
    """Medians over few frames.

    Attributes:
        engine_ms, pipeline_ms: of the network, and from frame to boxes.
        backend: what ran it.
    """

    engine_ms: float
    pipeline_ms: float
    backend: str


def quick_ms(
    artifacts: Sequence[str | Path],
    frames: Sequence[NDArray[np.uint8]],
    *,
    seconds: float = 1.0,
    threads: int | None = None,
    least: int = _LEAST_ROUNDS,
) -> dict[Path, Quick]:
    """Run artifacts in turns, frame by frame, for about `seconds` all together.

    Args:
        least: rounds to measure however long they take.

    Raises:
        ArtifactError, EngineMismatch, MissingDependency: as `Detector.open`.
    """
    paths = list(dict.fromkeys(Path(one) for one in artifacts))
    with ExitStack() as stack:
        if threads is not None:
            stack.enter_context(opencv_threads(threads))
        detectors = [
            stack.enter_context(Detector.open(path, **cpu_options(path, threads=threads)))
            for path in paths
        ]
        for detector in detectors:
            detector(frames[0])
        rounds = _rounds(detectors, frames, seconds, least)
        found = {}
        for index, path in enumerate(paths):
            engine = [one[index]["engine"] for one in rounds]
            whole = [sum(one[index].values()) for one in rounds]
            name = detectors[index].backend.name
            found[path] = Quick(float(np.median(engine)), float(np.median(whole)), name)
    return found


def _rounds(
    detectors: Sequence[Detector], frames: Sequence[NDArray[np.uint8]], seconds: float, least: int
) -> list[list[dict[str, float]]]:
    rounds: list[list[dict[str, float]]] = []
    began = time.perf_counter()
    while len(rounds) < _MOST_ROUNDS:
        stages = []
        for detector in detectors:
            detector(frames[len(rounds) % len(frames)])
            stages.append(dict(detector.stages_ms))
        rounds.append(stages)
        if len(rounds) >= least and time.perf_counter() - began > seconds:
            break
    return rounds
