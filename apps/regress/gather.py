"""Measure a suite: accuracy of every artifact, latency in turns, noise of every layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.regress.camera_rounds import film
from apps.regress.measurement import CameraRun, Measurement
from apps.regress.suite import Entry, Suite, is_scenes
from edge.artifact import read_manifest
from edge.data.datasets import Dataset, load
from edge.errors import ArtifactError, DataError
from edge.files import sha256_of, to_plain
from edge.measure import sensors
from edge.measure.accuracy import Accuracy, data_digest, labelled, open_exact, run_over, score
from edge.measure.frames import hold_frames
from edge.measure.host import fingerprint
from edge.measure.noise import TensorNoise, compare_tensors, open_network
from edge.measure.statistics import compare_ratio
from edge.measure.turns import (
    Runner,
    block_logs,
    flat,
    open_runner,
    opencv_threads,
    percentiles,
    stage_times,
    take_turns_until,
    warm_up,
    whole,
)
from edge.runtime.ops_cpu import Preprocessor
from edge.spec import Manifest

__all__ = ["LEAST_IMAGES", "Gathered", "gather", "host_facts", "log_ratios", "open_data"]

# A bootstrap over fewer images says little of others.
LEAST_IMAGES = 30
_HELD = 16
# A run that cannot tell goes on, up to this many times its rounds.
_LONGEST = 4


@dataclass(eq=False)
class Gathered:
    """What one run of a suite measured.

    Attributes:
        measurements: by the artifact's name in the suite.
        accuracies: by file, those of references among them.
        dataset: in pixels.
        noises: of each tensor against the reference, by name.
        heads: names of the raw outputs, by name.
        camera: the camera's loop, by file; empty without a source.
    """

    dataset: Dataset
    measurements: dict[str, Measurement] = field(default_factory=dict)
    accuracies: dict[Path, Accuracy] = field(default_factory=dict)
    noises: dict[str, list[TensorNoise]] = field(default_factory=dict)
    heads: dict[str, set[str]] = field(default_factory=dict)
    camera: dict[Path, CameraRun] = field(default_factory=dict)


def open_data(suite: Suite) -> tuple[Dataset, str]:
    """Return the suite's images and their digest; every artifact must be there.

    Raises:
        ArtifactError, EngineMismatch: an artifact is missing or damaged.
        DataError: no labels, no class in common, or fewer images than the statistics need.
    """
    wanted = [entry.path for entry in suite.entries] + [
        path
        for entry in suite.entries
        for path in (entry.reference, entry.faster_than, suite.baseline)
        if path is not None
    ]
    manifests = [read_manifest(path) for path in dict.fromkeys(wanted)]
    dataset = labelled(suite.data, manifests[0].spec.classes, suite.images)
    if len(dataset) < LEAST_IMAGES:
        raise DataError(
            f"{suite.path}: {len(dataset)} images; the statistics need at least {LEAST_IMAGES}"
        )
    return dataset, data_digest(dataset)


def host_facts() -> dict[str, Any]:
    """Return `fingerprint`, and what else decides a latency, as far as the machine says it."""
    clocks = sensors.clocks_mhz()
    facts = {
        "gpu": sensors.gpu(),
        "power_mode": sensors.power_mode(),
        "clocks_mhz": sorted(set(clocks)) or None,
    }
    return {**fingerprint(), **{key: value for key, value in facts.items() if value is not None}}


def gather(suite: Suite, dataset: Dataset, digest: str) -> Gathered:
    """Measure everything that the suite names.

    Raises:
        ArtifactError, CameraError, DataError, EngineMismatch, MissingDependency: one line each.
    """
    gathered = Gathered(dataset)
    _evaluate(suite, dataset, gathered)
    for entry in suite.entries:
        gathered.noises[entry.name] = _noise(entry, suite, dataset)
        gathered.heads[entry.name] = set(read_manifest(entry.path).spec.tensors)
    runners, warnings, gathered.camera = _time(suite)
    for entry in suite.entries:
        gathered.measurements[entry.name] = _measurement(
            entry, suite, gathered, runners, digest, warnings
        )
    return gathered


def _evaluate(suite: Suite, dataset: Dataset, gathered: Gathered) -> None:
    """Run all artifacts and references over each image in turn: it is read or rendered once."""
    paths = [path for entry in suite.entries for path in (entry.path, entry.reference) if path]
    with ExitStack() as stack:
        detectors = {
            path: stack.enter_context(open_exact(path, suite.threads))
            for path in dict.fromkeys(paths)
        }
        found, gathered.dataset = run_over(list(detectors.values()), dataset, what="evaluating")
    for (path, detector), one in zip(detectors.items(), found, strict=True):
        gathered.accuracies[path] = score(
            one, gathered.dataset, detector.spec.classes, detector.backend.name
        )


def log_ratios(mine: Runner, other: Runner) -> list[float]:
    """Return log(latency / the other's) of each round's neighbouring blocks."""
    return block_logs(whole(mine.latency_ms), whole(other.latency_ms))


def _noise(entry: Entry, suite: Suite, dataset: Dataset) -> list[TensorNoise]:
    if entry.reference is None or {entry.path.suffix, entry.reference.suffix} != {".onnx"}:
        return []
    networks = [open_network(path, suite.threads) for path in (entry.reference, entry.path)]
    preprocess = Preprocessor(read_manifest(entry.reference).spec.contract)
    step = max(1, len(dataset) // suite.noise_images)
    chosen = dataset.items[::step][: suite.noise_images]
    try:
        return compare_tensors(
            networks[0], networks[1], (preprocess(load(item)[0])[0].copy() for item in chosen)
        )
    except ArtifactError:
        # Another architecture: its boxes can be compared, its layers cannot.
        return []


def _time(suite: Suite) -> tuple[dict[Path, Runner], list[str], dict[Path, CameraRun]]:
    held, _ = hold_frames(None if is_scenes(suite.source or "scenes") else suite.source, _HELD)
    paths = [*([suite.baseline] if suite.baseline else [])]
    for entry in suite.entries:
        paths += [entry.path, *([entry.faster_than] if entry.faster_than else [])]
    watch = sensors.Watch()
    with ExitStack() as stack:
        stack.enter_context(opencv_threads(suite.threads))
        runners = {path: _start(stack, path, suite, held) for path in dict.fromkeys(paths)}
        every = list(runners.values())
        take_turns_until(
            lambda: _precise(suite, runners), every, held, suite.rounds, _LONGEST, watch
        )
        camera = _film(suite, runners)
    return runners, watch.warnings(int(str(fingerprint()["cores"]))), camera


def _film(suite: Suite, runners: Mapping[Path, Runner]) -> dict[Path, CameraRun]:
    if suite.source is None or not suite.camera_seconds:
        return {}
    detectors = {entry.path: runners[entry.path].detector for entry in suite.entries}
    return film(detectors, suite.source, suite.camera_seconds)


def _start(stack: ExitStack, path: Path, suite: Suite, held: list[NDArray[np.uint8]]) -> Runner:
    runner = open_runner(path, held[0], suite.threads)
    stack.callback(runner.detector.close)
    once_ms = warm_up(runner, held)
    runner.block = max(1, round(suite.seconds * 1e3 / (2 * suite.rounds) / once_ms))
    # Of a baseline that is no artifact of the suite only the pipeline is compared.
    runner.whole = path not in {entry.path for entry in suite.entries}
    return runner


def _precise(suite: Suite, runners: Mapping[Path, Runner]) -> bool:
    """Return whether every ratio is known to within its margin."""
    for entry in suite.entries:
        other = entry.faster_than or suite.baseline
        if entry.margins.slowdown is None or other is None:
            continue
        logs = log_ratios(runners[entry.path], runners[other])
        found = compare_ratio(logs, margin=entry.margins.slowdown, alarm=suite.alarm)
        if found.high - found.loss > found.margin:
            return False
    return True


def _measurement(
    entry: Entry,
    suite: Suite,
    gathered: Gathered,
    runners: Mapping[Path, Runner],
    digest: str,
    warnings: Iterable[str],
) -> Measurement:
    runner = runners[entry.path]
    manifest = runner.detector.manifest
    return Measurement(
        name=entry.name,
        label=_label(manifest),
        artifact=entry.path.name,
        sha256=sha256_of(entry.path),
        bytes=entry.path.stat().st_size,
        backend=runner.detector.backend.name,
        precision=manifest.precision,
        # Its folder differs from machine to machine; the digest says what it is.
        data=gathered.dataset.name,
        data_sha256=digest,
        images=len(gathered.dataset),
        host=host_facts(),
        threads=suite.threads,
        made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        noise_db={one.name: round(one.db, 2) for one in gathered.noises[entry.name]},
        warnings=list(warnings),
        **_speed(runner, _beside(entry, suite, runners), gathered.camera.get(entry.path)),
        **_rightness(gathered.accuracies[entry.path]),
    )


def _beside(entry: Entry, suite: Suite, runners: Mapping[Path, Runner]) -> dict[str, Runner]:
    paths = {"baseline": suite.baseline, "faster_than": entry.faster_than}
    return {name: runners[path] for name, path in paths.items() if path is not None}


def _speed(
    runner: Runner, others: Mapping[str, Runner], camera: CameraRun | None
) -> dict[str, Any]:
    """Return every figure of speed, from the raw times that the record keeps."""
    engine, pipeline = whole(runner.engine_ms), whole(runner.latency_ms)
    beside = {name: whole(other.latency_ms) for name, other in others.items()}
    baseline = beside.get("baseline")
    stages = stage_times(runner)
    return {
        "fps": {
            "engine": 1e3 / float(np.median(flat(engine))),
            "pipeline": 1e3 / float(np.median(flat(pipeline))),
            **({} if camera is None else {"camera": float(np.median(camera.fps))}),
        },
        "frame_age_ms": None if camera is None else camera.ages(),
        "camera": camera,
        "latency_ms": {
            name: percentiles(each) for name, each in {**stages, "pipeline": pipeline}.items()
        },
        "speedup": None
        if baseline is None
        else math.exp(-float(np.median(block_logs(pipeline, baseline)))),
        "baseline": _named(others["baseline"]) if baseline is not None else "",
        "memory_bytes": runner.memory_bytes,
        "energy_j": runner.energy_j,
        "frames_us": {"engine": engine, "pipeline": pipeline, **beside},
        "stages_us": stages,
    }


def _rightness(right: Accuracy) -> dict[str, Any]:
    metrics = right.metrics
    return {
        "map50": metrics.map50,
        "map50_95": metrics.map50_95,
        "by_class": to_plain(metrics.by_class),
        "by_size": to_plain(metrics.by_size),
        "results": right.results,
        "small": right.small,
    }


def _named(runner: Runner) -> str:
    return f"{_label(runner.detector.manifest)} {sha256_of(runner.artifact)[:12]}"


def _label(manifest: Manifest) -> str:
    height, width = manifest.spec.contract.hw
    facts = f" ({', '.join(manifest.labels)})" if manifest.labels else ""
    return f"{manifest.spec.name} {width}x{height} {manifest.precision}{facts}"
