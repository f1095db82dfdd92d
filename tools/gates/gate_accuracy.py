"""The accuracy trials of `gate_sensitivity.py`: changed copies of an artifact before the gate.

A trial needs one run of the network over the images and nothing else of them: they are rendered,
decoded and pre-processed once, and their hits are found by `gate_matching`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from gate_matching import Matcher
from gate_trials import Trials
from numpy.typing import NDArray
from onnx import numpy_helper

from edge.artifact import read_manifest
from edge.data.datasets import load
from edge.data.items import Dataset
from edge.detections import Detections
from edge.letterbox import Letterbox
from edge.measure.accuracy import OPTIONS, clip
from edge.measure.results import ClassResults
from edge.measure.statistics import compare_precision, mean_precision, minimum_detectable_drop
from edge.reporting import say, track
from edge.runtime.backend import Raw
from edge.runtime.backend_ort import OrtBackend
from edge.runtime.detector import Detector
from edge.runtime.ops_cpu import Preprocessor

__all__ = ["Prepared", "accuracy_trials", "changed"]

Results = dict[str, ClassResults]


class Prepared:
    """The images of a dataset as tensors, kept in a file that the system holds in memory.

    Attributes:
        results: of the artifact that is not changed.
    """

    def __init__(self, artifact: Path, dataset: Dataset, folder: Path, threads: int) -> None:
        manifest = read_manifest(artifact)
        contract = manifest.spec.contract
        self._threads, preprocess = threads, Preprocessor(contract)
        shape = (len(dataset), 1, 3, *contract.hw)
        self._tensors = np.memmap(folder / "tensors", np.float32, "w+", shape=shape)
        self._fits: list[tuple[Letterbox, tuple[int, ...]]] = []
        items = []
        for i, item in enumerate(track(dataset.items, "preparing", len(dataset))):
            frame, known = load(item)
            self._tensors[i], fit = preprocess(frame)
            self._fits.append((fit, frame.shape[:2]))
            items.append(known)
        pixels = replace(dataset, items=tuple(items))
        self._matcher = Matcher(pixels, manifest.spec.classes)
        found = self.detect(artifact)
        self._matcher.check(found)
        self.results = self._matcher.results(found)

    def detect(self, artifact: Path, images: Sequence[int] | None = None) -> list[Detections]:
        """What `edge.measure.accuracy.detect` finds in all images or some, with the same options.

        Each thread has images of its own: a small network keeps two busier so than between them.
        """
        chosen = range(len(self._fits)) if images is None else images
        parts = [chosen[start :: self._threads] for start in range(self._threads)]
        with (
            OrtBackend(artifact, threads=1, exact=True) as backend,
            ThreadPoolExecutor(self._threads) as pool,
        ):
            found = list(pool.map(lambda part: self._detect(backend, part), parts))
        return [found[i % self._threads][i // self._threads] for i in range(len(chosen))]

    def _detect(self, backend: OrtBackend, images: Sequence[int]) -> list[Detections]:
        detector, found = Detector(backend, **OPTIONS), []
        for i in images:
            fit, hw = self._fits[i]
            raw = Raw(fit, backend.run(self._tensors[i]), {})
            found.append(clip(detector.finish(raw), hw))
        return found

    def judge(self, artifact: Path, images: Sequence[int] | None = None) -> Results:
        """Hits of a copy of the artifact; only of `images`, in their order, where they are given.

        Args:
            images: without them all.
        """
        return self._matcher.results(self.detect(artifact, images), images)


def accuracy_trials(
    artifact: Path,
    dataset: Dataset,
    trials: Trials,
    *,
    images: int,
    count: int,
    margin: float,
    alarm: float,
    threads: int,
    seed: int,
) -> None:
    """Go on until there are `count` regressions and as many copies without one.

    Each trial draws from a seed of its own: a run that was stopped and continued is the same.
    """
    done = len(trials.of("accuracy"))
    if done >= 2 * count:
        return
    with tempfile.TemporaryDirectory() as folder:
        prepared = Prepared(artifact, dataset, Path(folder), threads)
        if not trials.of("announced"):
            chosen = np.random.default_rng((seed, 0)).permutation(len(dataset))[:images]
            seen = subset(prepared.results, chosen)
            drop = minimum_detectable_drop(seen, margin=margin, alarm=alarm)
            trials.add({"kind": "announced", "drop": drop})
        copy = Path(folder) / "copy.onnx"
        for number in track(range(done, 2 * count), "accuracy", 2 * count - done):
            trial = _trial(artifact, prepared, copy, number, seed, images, margin, alarm)
            say(f"{number:4} {trial['what']}: lost {trial['loss'] * 100:+.2f}, {trial['verdict']}")
            trials.add(trial)


def _trial(
    artifact: Path,
    prepared: Prepared,
    copy: Path,
    number: int,
    seed: int,
    images: int,
    margin: float,
    alarm: float,
) -> dict[str, Any]:
    rng = np.random.default_rng((seed, 1, number))
    regression = number % 2 == 0
    size = float(rng.uniform(0.2, 1)) if regression else 0.01
    what = changed(artifact, copy, rng, size)
    before = prepared.results
    every = len(next(iter(before.values())).boxes)
    chosen = rng.permutation(every)[:images]
    true = None
    if regression:
        whole, plain = prepared.judge(copy), np.ones((1, every))
        true = float((mean_precision(before, plain) - mean_precision(whole, plain))[0])
        now = subset(whole, chosen)
    else:
        # What such a copy truly loses is nothing; only what the gate sees is run.
        now = subset(prepared.judge(copy, chosen.tolist()), np.arange(images))
    found = compare_precision(subset(before, chosen), now, margin=margin, alarm=alarm)
    return {
        "kind": "accuracy",
        "number": number,
        "regression": regression,
        "what": what,
        "true": true,
        "loss": found.loss,
        "spread": found.spread,
        "verdict": found.verdict,
    }


def changed(source: Path, target: Path, rng: np.random.Generator, size: float) -> str:
    """Write a copy with noised weights or one mis-scaled layer; what was done.

    Args:
        size: 0..1; at 1 the noise has 6 % of the weights' deviation, or the scale is 80 % off.
    """
    model = onnx.load(source)
    weights = [one for one in model.graph.initializer if one.name.endswith(".weight")]
    if rng.random() < 0.5:
        for one in weights:
            values = numpy_helper.to_array(one)
            noise = rng.normal(0, 0.06 * size * values.std(), values.shape)
            one.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), one.name))
        what = f"weights noised by {6 * size:.1f} %"
    else:
        one = weights[rng.integers(len(weights))]
        factor = 1 + float(rng.choice((-1, 1))) * 0.8 * size
        values = (numpy_helper.to_array(one) * factor).astype(np.float32)
        one.CopyFrom(numpy_helper.from_array(values, one.name))
        what = f"{one.name} x {factor:.3f}"
    onnx.save(model, target)
    return what


def subset(results: Results, images: NDArray[np.int64]) -> Results:
    """The same results on some of the images."""
    place = np.full(len(next(iter(results.values())).boxes), -1)
    place[images] = np.arange(len(images))
    picked = {}
    for name, one in results.items():
        stays = place[one.image] >= 0
        picked[name] = replace(
            one,
            image=place[one.image[stays]].astype(np.int32),
            score=one.score[stays],
            hit=one.hit[stays],
            boxes=one.boxes[images],
        )
    return {name: one for name, one in picked.items() if one.boxes.any()}
