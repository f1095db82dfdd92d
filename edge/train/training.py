"""Training a detector on labelled pictures: `edge train`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from edge.data.datasets import Dataset, match_classes, open_dataset
from edge.data.items import Item, Problem
from edge.data.separate import Fingerprints, refuse_shared
from edge.errors import ArtifactError, DataError
from edge.files import check_name, make_folder
from edge.measure.accuracy import labelled
from edge.reporting import track
from edge.spec import ModelSpec
from edge.train.distributed import Team, team
from edge.train.epochs import Hooks, run_epochs
from edge.train.journal import Journal, progress_bar, tensorboard
from edge.train.options import TrainOptions, for_overfitting
from edge.train.pictures import read_pictures
from edge.train.results import OVERFIT_MAP50, TrainResult
from edge.train.session import Session, count_classes, open_session
from edge.train.start import Start, start_from, write_model
from edge.train.validate import validate

__all__ = ["train"]

# Reasons for which a picture is not learned from, and the share of them that is worth a warning.
_LOST = ("image left out", "picture is missing")
_ALARM_ONE_IN = 10


@dataclass(frozen=True)
class _Files:
    """The files of a training, all in one folder and with one name."""

    folder: Path
    name: str

    def path(self, suffix: str) -> Path:
        return self.folder / f"{self.name}{suffix}"

    @property
    def weights(self) -> tuple[Path, ...]:
        return tuple(self.path(suffix) for suffix in (".cfg", ".safetensors", ".weights"))

    @property
    def checkpoint(self) -> Path:
        return self.path(".checkpoint.safetensors")

    @property
    def log(self) -> Path:
        return self.path(".log")

    def refuse_finished(self, options: TrainOptions) -> None:
        """Refuse to overwrite an earlier training that nobody asked to start over."""
        if self.checkpoint.is_file() and not (options.resume or options.fresh):
            raise ArtifactError(
                f"{self.checkpoint}: is the checkpoint of an earlier training; continue it with "
                "--resume, start over with --fresh, or give another --name or -o"
            )

    def written(self) -> tuple[str, ...]:
        every = sorted((*self.weights, self.checkpoint, self.log))
        return tuple(str(path) for path in every if path.is_file())


@dataclass(frozen=True, eq=False)
class _Lessons:
    """What a training learns from and is judged by.

    Attributes:
        session: ready to run.
        validation: the pictures of `--val`, or those of an overfit check; None: no validation.
        counts: objects by class of the model.
        problems: labels that were changed or left out.
    """

    session: Session
    validation: Dataset | None
    counts: list[int]
    problems: tuple[Problem, ...]


def train(
    model: str | Path,
    data: str | Path,
    options: TrainOptions | None = None,
    *,
    command: str = "",
) -> TrainResult:
    """Train a detector and write `OUTPUT/NAME.safetensors`, of a Darknet cfg and weights too.

    Args:
        model: as `edge.train.start.start_from` takes it.
        data: labelled pictures, as `open_dataset` takes them.
        command: first line of the log.

    Raises:
        DataError: the labels cannot be learned from, or the loss is no longer a number.
        ArtifactError: a model, weights or a checkpoint does not fit, or an earlier training would
            be overwritten.
        MissingDependency: torch, safetensors, pycocotools or tensorboard is needed and absent.
    """
    options = options or TrainOptions()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    with team(options.device) as members:
        classes = _classes(data) if options.classes_from_data else ()
        start = start_from(model, options, classes)
        files = _place(start.spec.name, options, (model, options.weights))
        journal = Journal.open(files.log, members, append=options.resume)
        journal.log(command or f"edge train {model} --data {data}")
        journal.log(f"torch {torch.__version__}, {members.size} x {members.device}")
        for note in start.notes:
            journal.log(note)
        validation = _open_validation(options, start.spec)
        lessons = _prepare(start, data, validation, options, members, journal, files.checkpoint)
        session = lessons.session
        began = time.monotonic()
        with (
            tensorboard(options.tensorboard, members) as board,
            progress_bar(members, session.schedule.steps) as step_done,
        ):
            hooks = Hooks(
                validate=_validator(start.spec, lessons.validation),
                keep=partial(_keep, start.spec, files),
                watch=journal.watcher(session),
                step_done=step_done,
                epoch_done=partial(journal.epoch_done, session, board),
                checkpoint=None if options.overfit else files.checkpoint,
                patience=options.patience,
            )
            ended = run_epochs(session, hooks)
        seconds = round(time.monotonic() - began, 1)
        journal.log(f"ended: {ended}")
        return _result(lessons, files, start.spec, ended, bool(options.overfit), seconds)


def _place(model_name: str, options: TrainOptions, sources: Iterable[str | Path | None]) -> _Files:
    """Return where the files go.

    Raises:
        ArtifactError: the training would overwrite what it starts from, or the name is none.
    """
    name = model_name if options.name is None else check_name(options.name, "--name")
    files = _Files(make_folder(options.output), name)
    written = {path.resolve() for path in files.weights}
    for source in sources:
        if source is not None and Path(source).resolve() in written:
            raise ArtifactError(
                f"{source}: training would overwrite what it begins with; give --name or -o"
            )
    files.refuse_finished(options)
    return files


def _classes(data: str | Path) -> tuple[str, ...]:
    """Return the classes of the data.

    Raises:
        DataError: it has no labels.
    """
    classes = open_dataset(data).classes
    if not classes:
        raise DataError(f"{data}: images without labels; they have no classes")
    return classes


def _open_validation(options: TrainOptions, spec: ModelSpec) -> Dataset | None:
    """Return the pictures of `--val`; what is wrong with them is known before the training."""
    if options.val is None:
        return None
    return labelled(options.val, spec.classes, options.val_images)


def _prepare(
    start: Start,
    data: str | Path,
    validation: Dataset | None,
    options: TrainOptions,
    members: Team,
    journal: Journal,
    checkpoint: Path,
) -> _Lessons:
    """Read the pictures and open the session."""
    dataset = open_dataset(data, start.spec.classes, options.overfit or options.images)

    def follow(items: Iterable[Item]) -> Iterable[Item]:
        return items if members.rank else track(items, "reading", len(dataset))

    known = Fingerprints()
    pictures, problems, items = read_pictures(
        dataset,
        start.spec,
        keep_mib=options.keep_mib,
        follow=follow,
        seen=None if validation is None or options.overfit else known.add,
    )
    journal.problems(problems)
    lost = sum(problem.reason in _LOST for problem in problems)
    if _ALARM_ONE_IN * lost > len(pictures) + lost:
        journal.log(
            f"warning: {lost} of {len(pictures) + lost} pictures are missing or cannot be read; "
            "look at the folder before training on the rest"
        )
    if validation is not None and not options.overfit:
        note = refuse_shared(known, validation, str(data), allowed=options.allow_overlap)
        if note is not None:
            journal.log(note)
    if options.overfit:
        options = for_overfitting(options, len(pictures))
        validation = replace(dataset, items=items)
    counts = _object_counts(dataset, items, start.spec)
    session = open_session(
        start.module,
        start.spec,
        pictures,
        options,
        members,
        counts=counts,
        checkpoint=checkpoint if options.resume else None,
    )
    journal.log(_description(session, counts, start.spec.name))
    if session.changed:
        journal.log(f"resumed with other options: {'; '.join(session.changed)}")
    return _Lessons(session, validation, counts, problems)


def _object_counts(dataset: Dataset, items: Sequence[Item], spec: ModelSpec) -> list[int]:
    """Return the number of objects of each class of the model."""
    counts = [0] * len(spec.classes)
    join = match_classes(dataset.classes, spec.classes).tolist()
    for own, number in zip(join, count_classes(items, len(dataset.classes)), strict=True):
        if own >= 0:
            counts[own] += number
    return counts


def _description(session: Session, counts: Sequence[int], name: str) -> str:
    learning = sum(p.numel() for p in session.run.model.parameters() if p.requires_grad)
    frozen = f", {len(session.frozen)} layers frozen" if session.frozen else ""
    return (
        f"{name}: {learning} parameters learn{frozen}; {len(session.maker.pictures)} pictures, "
        f"{sum(counts)} objects, steps {session.run.step + 1} to {session.schedule.steps}, "
        f"{session.epoch} an epoch"
    )


def _validator(
    spec: ModelSpec, dataset: Dataset | None
) -> Callable[[nn.Module], tuple[float, float]] | None:
    if dataset is None:
        return None

    def judge(module: nn.Module) -> tuple[float, float]:
        figures = validate(module, spec, dataset)
        return figures.map50, figures.map50_95

    return judge


def _keep(spec: ModelSpec, files: _Files, module: nn.Module) -> None:
    write_model(module, spec, files.folder, files.name)


def _result(
    lessons: _Lessons, files: _Files, spec: ModelSpec, ended: str, overfit: bool, seconds: float
) -> TrainResult:
    session = lessons.session
    result = TrainResult(
        rank=session.team.rank,
        model=files.name,
        files=files.written(),
        steps=session.run.step,
        ended=ended,
        schedule=session.schedule,
        batch=session.maker.size,
        objects=dict(zip(spec.classes, lessons.counts, strict=True)),
        problems=Counter(problem.reason for problem in lessons.problems),
        history=tuple(session.history),
        overfits=None,
        seconds=seconds,
    )
    if not overfit:
        return result
    best = result.best
    return replace(result, overfits=best is not None and (best.map50 or 0) >= OVERFIT_MAP50)
