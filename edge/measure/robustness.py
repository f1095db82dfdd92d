"""What a detector still finds when pictures get worse, and whether another form of it breaks first.

mAP, recall at the score that the camera uses, recall of small objects and calibration of scores,
clean and under the corruptions of `edge.measure.corruptions`. Artifacts see the same corrupted
pictures; differences between them carry paired bootstrap intervals over the pictures. The mean
under corruption and its share of the clean figure are mPC and rPC of Michaelis et al.
(arXiv:1907.07484), at IoU 0.5.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.data.classes import match_classes
from edge.data.datasets import load
from edge.data.items import Dataset, Item
from edge.data.metrics import evaluate_detections
from edge.decoding import decode_json
from edge.detections import Detections, iou_matrix
from edge.errors import DataError
from edge.files import sha256_of
from edge.measure.accuracy import clip, data_digest, labelled
from edge.measure.corruptions import corrupt, corruption_names, random_state
from edge.measure.results import by_class
from edge.measure.statistics import mean_precision, quantile, resample
from edge.measure.views import read_views, with_views
from edge.options import count, option, share
from edge.reporting import say, track
from edge.runtime.detector import Detector

__all__ = [
    "ArtifactRobustness",
    "Condition",
    "RobustnessOptions",
    "RobustnessResult",
    "Verdict",
    "robustness",
]

_DRAWS = 200
# A low score keeps the whole curve of precision and recall.
_LOWEST_SCORE = 0.005
_SMALL = 32**2
_BINS = 10
_MATCH_IOU = 0.5
CLEAN = "clean"


def severities(text: str) -> tuple[int, ...]:
    """Read severities such as `1-5` or `1,3,5`."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"{text!r} is no list of severities, such as 1-5 or 1,3,5")
        found += range(int(first), int(last or first) + 1)
    if not found or not all(1 <= one <= 5 for one in found):
        raise ValueError(f"{text!r}: severities go from 1 to 5")
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class RobustnessOptions:
    """What to measure.

    Attributes:
        corruptions: names with commas between; `common` for the fifteen of ImageNet-C, `camera` for
            what cameras do besides, `all` for both
        severities: severities from 1 (least) to 5, such as 1-5 or 1,3,5
        images: number of labelled pictures to use, spread evenly; more make the intervals narrower
            and take longer
        score: score from which a detection counts for recall and precision; by default what was
            fitted to each artifact, or 0.25
        iou: IoU above which two boxes of one class count as one object
        tta: views of each picture to join, with commas between: flip, small, large, left, right,
            up, down
        workers: number of processes that share the work; by default one a core
        seed: seed of the corruptions' random numbers
    """

    corruptions: str = option("all", metavar="NAMES")
    severities: tuple[int, ...] = option((1, 2, 3, 4, 5), check=severities, metavar="S")
    images: int | None = option(None, check=count, metavar="N")
    score: float | None = option(None, check=share, metavar="S")
    iou: float = option(0.45, check=share, metavar="I")
    tta: str = option("", metavar="VIEWS")
    workers: int | None = option(None, check=count, metavar="N")
    seed: int = option(0, metavar="N")


@dataclass(frozen=True)
class Condition:
    """One artifact's figures under one corruption at one severity, all 0..1.

    Attributes:
        artifact: its sha256.
        corruption, severity: `clean` has severity 0.
        map50: mean average precision at IoU 0.5.
        draws: `map50` over bootstrap samples of the pictures, the same samples in every condition.
        recall, precision, small_recall: at the operating score; None where there is nothing to
            count.
        calibration_error: expected calibration error of the scores, over ten bins.
        true_score: mean score of the boxes that found an object.
    """

    artifact: str
    corruption: str
    severity: int
    map50: float
    draws: tuple[float, ...]
    recall: float
    precision: float | None
    small_recall: float | None
    calibration_error: float | None
    true_score: float | None


@dataclass(frozen=True)
class ArtifactRobustness:
    """One artifact over all conditions.

    Attributes:
        artifact: its path.
        backend: what ran it.
        score: the operating score.
        clean: the undamaged pictures.
        conditions: the others, corruption by corruption.
        mean_under_corruption: mean mAP over corruptions and severities (mPC).
        relative: that over the clean mAP (rPC); None where that is 0.
    """

    artifact: str
    backend: str
    score: float
    clean: Condition
    conditions: tuple[Condition, ...]
    mean_under_corruption: float
    relative: float | None

    def to_json(self) -> dict[str, Any]:
        """Figures by corruption and severity; bootstrap samples are left out."""
        table: dict[str, dict[str, Any]] = {}
        more: dict[str, dict[str, Any]] = {}
        for one in self.conditions:
            table.setdefault(one.corruption, {})[str(one.severity)] = one.map50
            more.setdefault(one.corruption, {})[str(one.severity)] = _figures(one)
        return {
            "artifact": self.artifact,
            "backend": self.backend,
            "score": self.score,
            "clean": _figures(self.clean),
            "corruptions": table,
            "figures": more,
            "mean_under_corruption": self.mean_under_corruption,
            "relative": self.relative,
        }


def _figures(one: Condition) -> dict[str, float | None]:
    names = ("map50", "recall", "precision", "small_recall", "calibration_error", "true_score")
    return {name: getattr(one, name) for name in names}


@dataclass(frozen=True)
class Verdict:
    """How the loss of one artifact compares with the first one's.

    Attributes:
        artifact, against: paths.
        corruption: that it is about; `mean` for all together.
        loss: mAP that it loses more than the other from clean to corrupted, 0..1; negative where it
            loses less.
        low, high: 95 % interval of `loss`; for single corruptions widened for their number
            (Bonferroni).
        breaks_earlier: whether the whole interval lies above 0.
    """

    artifact: str
    against: str
    corruption: str
    loss: float
    low: float
    high: float
    breaks_earlier: bool


@dataclass(frozen=True)
class RobustnessResult:
    """Artifacts under corruption, and which of them break earlier.

    Attributes:
        data, images: what was measured on, and how many pictures.
        corruptions, severities, tta: of the options.
        artifacts: in the order given; the first is what the others are compared with.
        verdicts: of each other artifact: all corruptions together, and each.
    """

    data: str
    images: int
    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    tta: tuple[str, ...]
    artifacts: tuple[ArtifactRobustness, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """One line for each artifact but the first."""
        return tuple(_sentence(self, one) for one in self.artifacts[1:])

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "data": self.data,
            "images": self.images,
            "severities": list(self.severities),
            "tta": list(self.tta),
            "artifacts": [one.to_json() for one in self.artifacts],
            "verdicts": [asdict(one) for one in self.verdicts],
            "sentences": list(self.sentences),
            "fooled": None,
        }


def _sentence(result: RobustnessResult, one: ArtifactRobustness) -> str:
    mine = [verdict for verdict in result.verdicts if verdict.artifact == one.artifact]
    broken = [verdict.corruption for verdict in mine if verdict.breaks_earlier]
    names, other = Path(one.artifact).name, Path(mine[0].against).name
    mean = next(verdict for verdict in mine if verdict.corruption == "mean")
    points = (
        f"{mean.loss * 100:+.1f} points of mAP ({mean.low * 100:+.1f} to {mean.high * 100:+.1f})"
    )
    single = [name for name in broken if name != "mean"]
    if single:
        return (
            f"{names} breaks earlier than {other} under {', '.join(single)}; in the mean {points}"
        )
    if broken:
        return (
            f"{names} breaks earlier than {other} in the mean: {points}; under no single corruption"
        )
    return f"{names} loses no more than {other} under any corruption; in the mean {points}"


@dataclass(frozen=True)
class _Work:
    """What a process needs to measure one condition."""

    artifacts: tuple[str, ...]
    dataset: Dataset
    classes: tuple[str, ...]
    options: RobustnessOptions
    views: tuple[str, ...]
    threads: int | None


def robustness(
    artifacts: Sequence[str | Path],
    data: str | Path,
    options: RobustnessOptions | None = None,
    *,
    journal: str | Path | None = None,
) -> RobustnessResult:
    """Measure artifacts of one detector clean and under corruptions, on the same pictures.

    Args:
        artifacts: .onnx or .engine files with the same classes; the others are compared with the
            first.
        data: labelled pictures, as `open_dataset` takes them.
        journal: a file that keeps what is measured, line by line; a run that was stopped goes on
            from there.

    Raises:
        DataError: no labels, no class in common, no such corruption.
        ArtifactError: artifacts with different classes.
    """
    options = options or RobustnessOptions()
    names, views = corruption_names(options.corruptions), read_views(options.tta)
    work, backends, scores = _prepare(artifacts, data, options, views)
    digests = [sha256_of(Path(one)) for one in work.artifacts]
    wanted = [(CLEAN, 0), *((name, one) for name in names for one in options.severities)]
    key = _key(work, digests)
    known = _read_journal(journal, key)
    left = [
        one for one in wanted if any((digest, one[0], one[1]) not in known for digest in digests)
    ]
    if known and left:
        say(f"{journal}: {len(wanted) - len(left)} of {len(wanted)} conditions are there already")
    for found in track(_measured(work, left, digests, scores), "corruptions", len(left)):
        known |= {(one.artifact, one.corruption, one.severity): one for one in found}
        _append(journal, key, found)
    gathered = [
        _gather(str(path), backend, score, [known[(digest, one[0], one[1])] for one in wanted])
        for path, backend, score, digest in zip(artifacts, backends, scores, digests, strict=True)
    ]
    return RobustnessResult(
        data=work.dataset.source,
        images=len(work.dataset),
        corruptions=names,
        severities=options.severities,
        tta=views,
        artifacts=tuple(gathered),
        verdicts=tuple(v for one in gathered[1:] for v in _verdicts(one, gathered[0], names)),
    )


def _prepare(
    artifacts: Sequence[str | Path],
    data: str | Path,
    options: RobustnessOptions,
    views: tuple[str, ...],
) -> tuple[_Work, list[str], list[float]]:
    """Open every artifact once: its classes, backend and operating score."""
    backends, scores, classes = [], [], None
    for path in artifacts:
        with Detector.open(path, score=options.score, exact=True) as one:
            if classes is not None and one.spec.classes != classes:
                raise DataError(f"{path}: has other classes than {artifacts[0]}; compare one model")
            classes = one.spec.classes
            backends.append(one.backend.name)
            scores.append(one.score)
    if classes is None:
        raise DataError("no artifact is given")
    dataset = labelled(data, classes, options.images)
    cores = os.cpu_count() or 1
    workers = min(options.workers or cores, cores)
    threads = None if workers == 1 else 1
    paths = tuple(str(path) for path in artifacts)
    work = _Work(paths, dataset, classes, replace(options, workers=workers), views, threads)
    return work, backends, scores


def _measured(
    work: _Work, left: Sequence[tuple[str, int]], digests: Sequence[str], scores: Sequence[float]
) -> Iterator[list[Condition]]:
    """Conditions as they get ready, shared out over processes."""
    jobs = [(work, name, severity, tuple(digests), tuple(scores)) for name, severity in left]
    if not jobs:
        return
    if work.options.workers == 1:
        yield from map(_condition, jobs)
        return
    # A forked onnxruntime hangs; each process opens its own.
    with ProcessPoolExecutor(work.options.workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_condition, jobs)


def _condition(
    job: tuple[_Work, str, int, tuple[str, ...], tuple[float, ...]],
) -> list[Condition]:
    work, name, severity, digests, scores = job
    items: list[Item] = []
    with ExitStack() as stack:
        looks: list[Callable[[NDArray[np.uint8]], Detections]] = []
        for path in work.artifacts:
            detector = Detector.open(
                path,
                score=_LOWEST_SCORE,
                iou=work.options.iou,
                limit=500,
                multi_label=True,
                threads=work.threads,
                exact=True,
            )
            looks.append(with_views(stack.enter_context(detector), work.views))
        found: list[list[Detections]] = [[] for _ in looks]
        for number, item in enumerate(work.dataset.items):
            frame, known = load(item)
            if name != CLEAN:
                rng = random_state(work.options.seed, name, severity, number)
                frame = corrupt(frame, name, severity, rng)
            items.append(known)
            for kept, look in zip(found, looks, strict=True):
                kept.append(clip(look(frame), frame.shape[:2]))
    dataset = replace(work.dataset, items=tuple(items))
    return [
        _figured(dataset, work.classes, mine, digest, name, severity, score)
        for mine, digest, score in zip(found, digests, scores, strict=True)
    ]


def _figured(
    dataset: Dataset,
    classes: tuple[str, ...],
    found: Sequence[Detections],
    digest: str,
    name: str,
    severity: int,
    score: float,
) -> Condition:
    metrics = evaluate_detections(dataset, found, classes)
    images = len(dataset)
    weights = np.vstack([np.ones((1, images)), resample(images, _DRAWS)])
    precision = mean_precision(by_class(metrics.matches, images), weights)
    points = _operating_point(dataset, classes, found, score)
    draws = tuple(round(float(one), 5) for one in precision[1:])
    return Condition(digest, name, severity, round(float(precision[0]), 6), draws, **points)


def _operating_point(
    dataset: Dataset, classes: tuple[str, ...], found: Sequence[Detections], score: float
) -> dict[str, Any]:
    """Recall, precision and calibration of scores, by greedy matching at IoU 0.5."""
    join = match_classes(dataset.classes, classes)
    objects = hits = small = small_hits = taken = 0
    scores: list[float] = []
    right: list[bool] = []
    for item, mine in zip(dataset.items, found, strict=True):
        label = np.where(item.class_id >= 0, join[item.class_id], -1)
        counts = ~(item.crowd | item.ignore) & (label >= 0)
        overlaps = iou_matrix(mine.xyxy, item.xyxy)
        overlaps[mine.class_id[:, None] != label[None]] = 0
        free = np.ones(len(item), bool)
        reached = np.zeros(len(item))
        for i in np.argsort(-mine.score, kind="stable"):
            best = int((overlaps[i] * free).argmax()) if len(item) else -1
            hit = best >= 0 and overlaps[i, best] * free[best] >= _MATCH_IOU
            if hit:
                free[best], reached[best] = False, mine.score[i]
            if hit and not counts[best]:
                continue
            scores.append(float(mine.score[i]))
            right.append(hit)
            taken += mine.score[i] >= score
        got = (reached >= score) & counts
        objects, hits = objects + int(counts.sum()), hits + int(got.sum())
        little = counts & (item.area < _SMALL)
        small, small_hits = small + int(little.sum()), small_hits + int((got & little).sum())
    true = [one for one, yes in zip(scores, right, strict=True) if yes]
    return {
        "recall": round(hits / max(objects, 1), 6),
        "precision": round(hits / taken, 6) if taken else None,
        "small_recall": round(small_hits / small, 6) if small else None,
        "calibration_error": _calibration_error(np.array(scores), np.array(right, bool)),
        "true_score": round(float(np.mean(true)), 6) if true else None,
    }


def _calibration_error(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> float | None:
    """Mean distance of score and share of hits, over bins of equal width weighted by their number.

    Guo et al., arXiv:1706.04599; scores below 0.05 are left out, as nobody acts on them.
    """
    used = scores >= 0.05
    if not used.any():
        return None
    scores, right = scores[used], right[used]
    place = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    gaps = [
        abs(float(scores[place == one].mean()) - float(right[place == one].mean()))
        * float((place == one).mean())
        for one in range(_BINS)
        if (place == one).any()
    ]
    return round(sum(gaps), 6)


def _gather(
    artifact: str, backend: str, score: float, conditions: Sequence[Condition]
) -> ArtifactRobustness:
    clean, *others = conditions
    mean = float(np.mean([one.map50 for one in others]))
    relative = round(mean / clean.map50, 6) if clean.map50 else None
    return ArtifactRobustness(
        artifact, backend, score, clean, tuple(others), round(mean, 6), relative
    )


def _verdicts(
    one: ArtifactRobustness, first: ArtifactRobustness, names: Sequence[str]
) -> Iterator[Verdict]:
    """The mean over all corruptions, then each: losses from clean, and their paired difference."""
    yield _verdict(one, first, "mean", one.conditions, first.conditions, 1)
    for name in names:
        mine, theirs = (
            [each for each in side.conditions if each.corruption == name] for side in (one, first)
        )
        yield _verdict(one, first, name, mine, theirs, len(names))


def _verdict(
    one: ArtifactRobustness,
    first: ArtifactRobustness,
    name: str,
    mine: Sequence[Condition],
    theirs: Sequence[Condition],
    tests: int,
) -> Verdict:
    def lost(side: ArtifactRobustness, conditions: Sequence[Condition]) -> NDArray[np.float64]:
        whole = np.array([[each.map50, *each.draws] for each in conditions])
        clean = np.array([side.clean.map50, *side.clean.draws])
        return np.asarray(clean - whole.mean(axis=0), np.float64)

    more = lost(one, mine) - lost(first, theirs)
    reach = quantile(1 - 0.025 / tests) * float(np.nanstd(more[1:]))
    loss = float(more[0])
    return Verdict(
        one.artifact,
        first.artifact,
        name,
        round(loss, 6),
        round(loss - reach, 6),
        round(loss + reach, 6),
        loss - reach > 0,
    )


def _key(work: _Work, digests: Sequence[str]) -> str:
    """What must be the same for a line of the journal to hold."""
    options = {
        "iou": work.options.iou,
        "seed": work.options.seed,
        "score": work.options.score,
        "views": work.views,
        "images": len(work.dataset),
        "data": _data_key(work.dataset),
    }
    return json.dumps(options, sort_keys=True)


def _data_key(dataset: Dataset) -> str:
    pixels = all(not item.fraction and item.seed is None for item in dataset.items)
    return data_digest(dataset) if pixels else f"{dataset.source} {len(dataset)}"


@dataclass(frozen=True)
class _Line:
    """A line of the journal."""

    key: str
    condition: Condition
    at: float = 0.0


def _read_journal(journal: str | Path | None, key: str) -> dict[tuple[str, str, int], Condition]:
    if journal is None or not Path(journal).exists():
        return {}
    found: dict[tuple[str, str, int], Condition] = {}
    lines = Path(journal).read_bytes().splitlines()
    for number, text in enumerate(lines, 1):
        try:
            line = decode_json(
                text, _Line, f"{journal}:{number}", "a line of a robustness journal", DataError
            )
        except DataError:
            if number == len(lines):
                # A run that was killed in the middle of a line.
                break
            raise
        one = line.condition
        if line.key == key:
            found[(one.artifact, one.corruption, one.severity)] = one
    return found


def _append(journal: str | Path | None, key: str, found: Sequence[Condition]) -> None:
    if journal is None:
        return
    text = "".join(
        json.dumps({"key": key, "condition": asdict(one), "at": round(time.time(), 1)}) + "\n"
        for one in found
    )
    try:
        with Path(journal).open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise DataError(f"{journal}: cannot be written: {error.strerror}") from error
