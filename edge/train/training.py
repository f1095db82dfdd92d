"""Training a detector on labelled pictures: `edge train`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edge.built_in import BUILT_IN
from edge.data.datasets import Dataset, match_classes, open_dataset
from edge.data.items import Problem
from edge.errors import ArtifactError, DataError
from edge.files import make_folder, write_json
from edge.reporting import track
from edge.spec import ModelSpec
from edge.train.distributed import Team, team
from edge.train.epochs import Hooks, run_epochs
from edge.train.journal import OVERFIT_MAP50, open_log, progress_bar, tell_problems, teller
from edge.train.journal import tensorboard as board_in
from edge.train.pictures import Pictures, read_pictures
from edge.train.recipe import Recipe
from edge.train.session import Session, count_classes, open_session
from edge.train.start import Start, shipped, start, write_model
from edge.train.validate import validate

__all__ = ["train"]


@dataclass(frozen=True)
class _Place:
    """The files of a training."""

    folder: Path
    name: str

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}.checkpoint.safetensors"


def train(
    model: str | Path,
    data: str | Path,
    *,
    val: str | Path | None = None,
    recipe: Recipe | None = None,
    output: str | Path = "out",
    name: str | None = None,
    weights: str | Path | None = None,
    names: str | Path | None = None,
    resize: str | None = None,
    hw: tuple[int, int] | None = None,
    random_weights: bool = False,
    images: int | None = None,
    val_images: int | None = None,
    overfit: int = 0,
    patience: int = 0,
    resume: bool = False,
    tensorboard: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    keep_mib: int = 4096,
    command: str = "",
    json_path: str | Path | None = None,
) -> dict[str, Any]:
    """Train and write `output/NAME.safetensors`, of a Darknet cfg and weights too.

    Args:
        model, weights, names, resize, hw: as `edge.train.start.start` takes them.
        data, val: as `open_dataset` takes them; without `val` the last weights are kept.
        recipe: how to train.
        random_weights: of a built-in detector, in place of the shipped ones.
        name: of the files, by default the model's.
        images, val_images: take at most so many of `data` and of `val`, spread evenly.
        overfit: train and validate on so many pictures alone, unchanged.
        patience: epochs without a better mAP@.5 after which to stop; 0: never.
        resume: go on from the checkpoint in `output`.
        tensorboard: folder of event files.
        device: auto, cpu or cuda.
        threads: of torch on the CPU.
        keep_mib: memory for pictures; the rest is read again each time.
        command: for the log.
        json_path: where to write the result too.

    Returns:
        `files`, `history`, `best`, `ended`, `problems` by reason, and what was trained.

    Raises:
        DataError: labels that cannot be learnt from, or a loss that is no number.
        ArtifactError: a model, weights or checkpoint that does not fit.
        MissingDependency: torch, safetensors, pycocotools or tensorboard is needed and absent.
    """
    recipe = recipe or Recipe()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    with team(device) as members:
        if str(model) in BUILT_IN and weights is None and not random_weights:
            begun = shipped(str(model))
        else:
            begun = start(
                model, weights=weights, names=names, resize=resize, hw=hw, seed=recipe.seed
            )
        place = _Place(Path(output), name or begun.spec.name)
        _check_place(place, model, weights)
        log = open_log(place.folder / f"{place.name}.log", members, resume)
        log(command or f"edge train {model} --data {data}")
        log(f"torch {torch.__version__}, {members.size} x {members.device}")
        for note in begun.notes:
            log(note)
        judged = _validation(val, begun.spec, val_images)
        ready = _prepare(
            begun, place, data, judged, recipe, members, log, images, overfit, resume, keep_mib
        )
        session = ready.session
        began = time.monotonic()
        with board_in(tensorboard, members) as board, progress_bar(members, session) as told:
            hooks = Hooks(
                validate=_judge(begun.spec, ready.judged) if ready.judged is not None else None,
                keep=lambda module: _keep(module, begun.spec, place),
                told=told,
                done=teller(session, board, log),
                checkpoint=place.checkpoint,
                patience=patience,
            )
            ended = run_epochs(session, hooks)
        result = _result(ready, place, begun.spec, ended, bool(overfit))
        result["seconds"] = round(time.monotonic() - began, 1)
        log(f"ended: {ended}")
        if json_path is not None and not members.rank:
            write_json(result, Path(json_path))
        return result


class _Ready(NamedTuple):
    """A session, what it is validated on, objects by class, and what is wrong with the labels."""

    session: Session
    judged: Dataset | None
    counts: list[int]
    problems: tuple[Problem, ...]


def _prepare(
    begun: Start,
    place: _Place,
    data: str | Path,
    val: Dataset | None,
    recipe: Recipe,
    members: Team,
    log: Callable[[str], None],
    images: int | None,
    overfit: int,
    resume: bool,
    keep_mib: int,
) -> _Ready:
    dataset = open_dataset(data, begun.spec.classes, overfit or images)
    pictures, problems, items = read_pictures(
        dataset, begun.spec, keep_mib=keep_mib, follow=_following(members, len(dataset))
    )
    tell_problems(problems, log)
    if overfit:
        recipe, val = _overfitting(recipe, len(pictures)), replace(dataset, items=items)
    counts = _counts(dataset, items, begun.spec)
    session = open_session(
        begun.module,
        begun.spec,
        pictures,
        recipe,
        members,
        counts=counts,
        checkpoint=place.checkpoint if resume else None,
    )
    log(_describe(session, pictures, counts, begun))
    if session.changed:
        log(f"goes on otherwise than it began: {'; '.join(session.changed)}")
    return _Ready(session, val, counts, problems)


def _check_place(place: _Place, *sources: Any) -> None:
    make_folder(place.folder)
    written = {
        (place.folder / f"{place.name}{suffix}").resolve()
        for suffix in (".safetensors", ".cfg", ".weights")
    }
    for source in sources:
        if source is not None and Path(source).resolve() in written:
            raise ArtifactError(
                f"{source}: training would overwrite what it begins with; give --name or -o"
            )


def _following(members: Team, total: int) -> Callable[[Any], Any]:
    if members.rank:
        return iter
    return lambda items: track(items, "reading", total)


def _overfitting(recipe: Recipe, pictures: int) -> Recipe:
    batch = min(recipe.batch, pictures)
    return replace(
        recipe,
        augmentation=None,
        scales=False,
        batch=batch,
        steps=recipe.steps or 300,
        epoch_steps=recipe.epoch_steps or 50,
        average=min(recipe.average, 0.95),
    )


def _counts(dataset: Dataset, items: Sequence[Any], spec: ModelSpec) -> list[int]:
    """Objects by the model's class."""
    counts = [0] * len(spec.classes)
    join = match_classes(dataset.classes, spec.classes).tolist()
    for own, count in zip(join, count_classes(items, len(dataset.classes)), strict=True):
        if own >= 0:
            counts[own] += count
    return counts


def _validation(val: str | Path | None, spec: ModelSpec, limit: int | None) -> Dataset | None:
    """Refused before an hour's work instead of after it."""
    if val is None:
        return None
    dataset = open_dataset(val, spec.classes, limit)
    if dataset.kind == "images":
        raise DataError(f"{val}: images without labels; there is nothing to compare with")
    match_classes(dataset.classes, spec.classes)
    return dataset


def _describe(session: Session, pictures: Pictures, counts: Sequence[int], begun: Start) -> str:
    module = session.run.model
    learning = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = f", {len(session.frozen)} layers frozen" if session.frozen else ""
    return (
        f"{begun.spec.name}: {learning} parameters learn{frozen}; {len(pictures)} pictures, "
        f"{sum(counts)} objects, steps {session.run.step + 1} to {session.schedule.steps}, "
        f"{session.epoch} an epoch"
    )


def _judge(spec: ModelSpec, dataset: Dataset) -> Callable[[Any], dict[str, float]]:
    def judge(module: Any) -> dict[str, float]:
        figures = validate(module, spec, dataset)
        return {"map50": figures.map50, "map50_95": figures.map50_95}

    return judge


def _keep(module: Any, spec: ModelSpec, place: _Place) -> None:
    write_model(module, spec, place.folder, place.name)


def _result(
    ready: _Ready, place: _Place, spec: ModelSpec, ended: str, overfit: bool
) -> dict[str, Any]:
    session, problems = ready.session, ready.problems
    judged = [entry for entry in session.history if "map50" in entry]
    best = max(judged, key=lambda entry: entry["map50"]) if judged else None
    files = sorted(place.folder.glob(f"{place.name}.*"))
    result: dict[str, Any] = {
        "rank": session.team.rank,
        "model": place.name,
        "files": [str(file) for file in files],
        "steps": session.run.step,
        "ended": ended,
        "schedule": asdict(session.schedule),
        "batch": session.maker.size,
        "objects": dict(zip(spec.classes, ready.counts, strict=True)),
        "problems": {reason: sum(p.reason == reason for p in problems) for reason, _ in problems},
        "history": session.history,
        "best": best,
    }
    if overfit:
        result["overfits"] = best is not None and best["map50"] >= OVERFIT_MAP50
    return result
