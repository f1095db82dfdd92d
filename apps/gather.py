"""Run a suite: accuracy of every artifact, latency in turns, noise of every layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps import sensors
from apps.accuracy import Accuracy, data_digest, labelled, open_exact, run_over, score
from apps.camera_figures import CameraRun, film
from apps.frames import hold_frames
from apps.host import fingerprint
from apps.interleave import Runner, open_runner, opencv_threads, take_turns_until, warm_up
from apps.measurement import Measurement
from apps.statistics import compare_ratio
from apps.suite import Entry, Suite, is_scenes
from edge.artifact import read_manifest, sha256_of
from edge.data.datasets import Dataset, load
from edge.errors import ArtifactError, DataError
from edge.runtime.ops_cpu import Preprocessor
from edge.spec import Manifest
from export.verify import TensorNoise, compare_tensors, open_network

__all__ = ["LEAST_IMAGES", "Gathered", "gather", "host_facts", "log_ratios", "open_data"]

# A bootstrap over fewer images says little of others.
LEAST_IMAGES = 30
_HELD = 16
# A run that cannot tell goes on for so many times its rounds.
_LONGEST = 4


@dataclass(eq=False)
class Gathered:
    """What one run of a suite measured.

    Attributes:
        measurements: by the artifact's name in the suite.
        accuracies: by file, those of references among them.
        dataset: in pixels.
        rivals: log(latency / that of `faster_than`) of each round, by name.
        noises: of each tensor against the reference, by name.
        heads: names of the raw outputs, by name.
        frames_ms: pipeline latency of every frame, by name; of the baseline as "".
        camera: the camera's loop, by file; empty without a source.
    """

    dataset: Dataset
    measurements: dict[str, Measurement] = field(default_factory=dict)
    accuracies: dict[Path, Accuracy] = field(default_factory=dict)
    rivals: dict[str, list[float]] = field(default_factory=dict)
    noises: dict[str, list[TensorNoise]] = field(default_factory=dict)
    heads: dict[str, set[str]] = field(default_factory=dict)
    frames_ms: dict[str, list[float]] = field(default_factory=dict)
    camera: dict[Path, CameraRun] = field(default_factory=dict)


def open_data(suite: Suite) -> tuple[Dataset, str]:
    """The suite's images and their digest; every artifact must be there.

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
    """`fingerprint`, and what else decides a latency, as far as the machine tells it."""
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
    _judge(suite, dataset, gathered)
    for entry in suite.entries:
        gathered.noises[entry.name] = _noise(entry, suite, dataset)
        heads = read_manifest(entry.path).spec.heads
        gathered.heads[entry.name] = {head.tensor for head in heads}
    runners, warnings, gathered.camera = _time(suite)
    for entry in suite.entries:
        gathered.measurements[entry.name] = _measurement(
            entry, suite, gathered, runners, digest, warnings
        )
        gathered.frames_ms[entry.name] = runners[entry.path].frames_ms()
        if entry.faster_than is not None:
            gathered.rivals[entry.name] = log_ratios(
                runners[entry.path], runners[entry.faster_than]
            )
    if suite.baseline is not None:
        gathered.frames_ms[""] = runners[suite.baseline].frames_ms()
    return gathered


def _judge(suite: Suite, dataset: Dataset, gathered: Gathered) -> None:
    """All artifacts and references over each image in turn: an image is read or rendered once."""
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
    """log(latency / the other's) of each round's neighbouring blocks."""
    pairs = zip(mine.medians("pipeline"), other.medians("pipeline"), strict=True)
    return [math.log(a / b) for a, b in pairs]


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
    # A baseline that is no artifact of the suite is slow, and its engine is nobody's concern.
    runner.whole = path not in {entry.path for entry in suite.entries}
    return runner


def _precise(suite: Suite, runners: Mapping[Path, Runner]) -> bool:
    """Whether every ratio is known to within its margin."""
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
        # Where it lies differs from machine to machine; the digest tells what it is.
        data=gathered.dataset.name,
        data_sha256=digest,
        images=len(gathered.dataset),
        host=host_facts(),
        threads=suite.threads,
        made=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        noise_db={one.name: round(one.db, 2) for one in gathered.noises[entry.name]},
        warnings=list(warnings),
        **_speed(
            runner,
            runners[suite.baseline] if suite.baseline else None,
            gathered.camera.get(entry.path),
        ),
        **_rightness(gathered.accuracies[entry.path]),
    )


def _speed(runner: Runner, baseline: Runner | None, camera: CameraRun | None) -> dict[str, Any]:
    latency = runner.medians("pipeline")
    rounds = {"engine": runner.medians("engine"), "pipeline": latency}
    if baseline is not None:
        rounds["baseline"] = baseline.medians("pipeline")
    return {
        "fps": {
            "engine": 1e3 / float(np.median(rounds["engine"])),
            "pipeline": 1e3 / float(np.median(runner.frames_ms())),
            **({} if camera is None else {"camera": float(np.median(camera.fps))}),
        },
        "frame_age_ms": None if camera is None else camera.ages(),
        "camera": None if camera is None else asdict(camera),
        "latency_ms": _percentiles(runner),
        "speedup": None if baseline is None else _speedup(runner, baseline),
        "baseline": "" if baseline is None else _named(baseline),
        "memory_bytes": runner.memory_bytes,
        "energy_j": runner.energy_j,
        "rounds_ms": rounds,
    }


def _rightness(right: Accuracy) -> dict[str, Any]:
    metrics = right.metrics
    return {
        "map50": metrics.map50,
        "map50_95": metrics.map50_95,
        "by_class": metrics.by_class,
        "by_size": metrics.by_size,
        "results": right.results,
        "small": right.small,
    }


def _speedup(runner: Runner, baseline: Runner) -> float:
    return math.exp(-float(np.median(log_ratios(runner, baseline))))


def _named(runner: Runner) -> str:
    return f"{_label(runner.detector.manifest)} {sha256_of(runner.artifact)[:12]}"


def _label(manifest: Manifest) -> str:
    height, width = manifest.spec.contract.hw
    facts = f" ({', '.join(manifest.labels)})" if manifest.labels else ""
    return f"{manifest.spec.name} {width}x{height} {manifest.precision}{facts}"


def _percentiles(runner: Runner) -> dict[str, dict[str, float]]:
    stages = {name: [one[name] for one in runner.stages_ms] for name in runner.stages_ms[0]}
    values = {**stages, "pipeline": runner.frames_ms()}
    return {
        name: dict(
            zip(("p50", "p95", "p99"), np.percentile(one, (50, 95, 99)).tolist(), strict=True)
        )
        for name, one in values.items()
    }
