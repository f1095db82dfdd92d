"""Choose a folder of calibration pictures out of many, a video or a camera."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.candidates import open_candidates
from calibration.graph import Graph
from calibration.scales import inputs_of
from calibration.sets import Coverage, choose, coverage, measure_features
from edge.data.distinct import Seen, pictures
from edge.data.hashes import NEAR, distances, near_duplicates
from edge.data.items import Dataset, Item
from edge.data.overlap import either_way
from edge.errors import CalibrationError, DataError
from edge.reporting import track
from edge.video.address import public_name

__all__ = ["ChosenPictures", "choose_images"]

Array = NDArray[np.float32]
# So many candidates for each image chosen are run through the network.
_CANDIDATES = 10
_MOST = 2000


@dataclass(frozen=True)
class ChosenPictures:
    """What was chosen, and from what.

    Attributes:
        folder: where the pictures lie.
        candidates: pictures looked at.
        duplicates, evaluation: left out as near-duplicates, and as pictures of the evaluation set.
        chosen: names, best first.
        coverage: how much of the candidates the chosen pictures cover.
        skipped: a line for each picture that cannot be used.
    """

    folder: Path
    candidates: int
    duplicates: int
    evaluation: int
    chosen: tuple[str, ...]
    coverage: Coverage
    skipped: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The choice as `edge calibrate --json` writes it."""
        return {
            "folder": str(self.folder),
            "candidates": self.candidates,
            "duplicates": self.duplicates,
            "evaluation": self.evaluation,
            "images": list(self.chosen),
            "skipped": list(self.skipped),
            "coverage": asdict(self.coverage),
        }


def choose_images(
    onnx: Graph | str | Path,
    data: str | Path,
    count: int,
    folder: str | Path,
    *,
    not_in: Dataset | None = None,
    threads: int | None = None,
) -> ChosenPictures:
    """Copy the `count` pictures that reach most ranges and classes to `folder`.

    Args:
        onnx: FP32 ONNX file that edge wrote.
        data: folder, labelled set, `scenes://`, video, or camera as `edge camera --source` takes
            it.
        folder: must be missing or empty; it is made.
        not_in: evaluation pictures, of which none is chosen.

    Raises:
        CalibrationError: nothing is left to choose from, or `folder` holds something.
        DataError, CameraError: `data` cannot be opened.
    """
    graph, folder = Graph.open(onnx), Path(folder)
    _check_free(folder)
    with open_candidates(data, min(count * _CANDIDATES, _MOST), folder) as dataset:
        seen = Seen()
        whole = track(dataset.items, "looking", len(dataset))
        items = [item for item in whole if _reads(dataset, item, seen)]
        fresh = _not_in(seen.hashes, not_in)
        hashes = [seen.hashes[i] for i in fresh]
        alike = set(near_duplicates(hashes))
        left = [items[index] for at, index in enumerate(fresh) if at not in alike]
        if not left:
            raise CalibrationError(_nothing(data, seen, len(items), len(fresh)))
        pool = replace(dataset, items=tuple(left))
        inputs = inputs_of(pool, graph.manifest.spec.contract)
        features = measure_features(graph, _shown(inputs, len(left)), threads=threads)
        chosen = choose(features, count)
        _copy([left[i] for i in chosen], dataset, folder)
    return ChosenPictures(
        folder=folder,
        candidates=len(dataset),
        duplicates=len(alike),
        evaluation=len(items) - len(fresh),
        chosen=tuple(features.names[i] for i in chosen),
        coverage=coverage(features, chosen),
        skipped=tuple(seen.skipped),
    )


def _shown(inputs: Iterator[tuple[str, Array]], count: int) -> Iterator[tuple[str, Array]]:
    yield from track(inputs, "measuring", count)


def _check_free(folder: Path) -> None:
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise CalibrationError(f"{folder}: already there; name another with --pictures")


def _reads(dataset: Dataset, item: Item, seen: Seen) -> bool:
    return any(True for _ in pictures(replace(dataset, items=(item,)), seen))


def _not_in(hashes: list[str], evaluation: Dataset | None) -> list[int]:
    """Return the indices of the hashes that are far from every picture of `evaluation`."""
    if evaluation is None or not hashes:
        return list(range(len(hashes)))
    other = [one for _, frame in pictures(evaluation, Seen()) for one in either_way(frame)]
    if not other:
        return list(range(len(hashes)))
    near = distances(hashes, other).min(axis=1) <= NEAR
    return [index for index, taken in enumerate(near) if not taken]


def _nothing(data: str | Path, seen: Seen, read: int, fresh: int) -> str:
    name = public_name(str(data))
    if not read:
        first = seen.skipped[0] if seen.skipped else "it gave no frame"
        return f"{name}: no image can be used; the first: {first}"
    return f"{name}: all its {read} images are in the evaluation set ({read - fresh}); give others"


def _copy(items: list[Item], dataset: Dataset, folder: Path) -> None:
    """Copy files as they are, and write as PNG what is no file; all or none."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for rank, item in enumerate(items, 1):
            stem = f"{rank:04d}-{item.image.stem}"
            if item.seed is None:
                shutil.copyfile(item.image, part / f"{stem}{item.image.suffix.lower()}")
                continue
            for _, frame in pictures(replace(dataset, items=(item,)), Seen()):
                cv2.imwrite(str(part / f"{stem}.png"), frame)
        part.replace(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
