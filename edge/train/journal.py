"""The log of a training, its progress, and what TensorBoard shows of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge.data.items import Problem
from edge.errors import ArtifactError
from edge.models.hooks import hooked
from edge.optional import require
from edge.reporting import progress, say
from edge.train.batches import make_batch
from edge.train.distributed import Team
from edge.train.results import EpochRecord
from edge.train.session import Session

__all__ = [
    "Journal",
    "activations",
    "dead_units",
    "open_board",
    "progress_bar",
    "tensorboard",
    "write_activations",
]

# A ReLU that answers nowhere passes no gradient either: its filter is lost for good.
_RECTIFIERS = (nn.ReLU, nn.ReLU6)
_ACTIVATIONS = (*_RECTIFIERS, nn.LeakyReLU, nn.SiLU, nn.Mish, nn.Sigmoid)
_DEAD_ALARM = 0.5
_NAMED_PROBLEMS = 5


@dataclass(frozen=True)
class Journal:
    """The lines of a training, reported and written to a file by process 0 alone.

    Attributes:
        path: of the log; None for all other processes.
    """

    path: Path | None

    @classmethod
    def open(cls, path: Path, members: Team, *, append: bool) -> Journal:
        """Begin a log, or continue one.

        Raises:
            ArtifactError: the file cannot be written.
        """
        if members.rank:
            return cls(None)
        try:
            with path.open("a" if append else "w", encoding="utf-8"):
                return cls(path)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be written: {error.strerror}") from error

    def log(self, line: str) -> None:
        """Report a line and append it to the file."""
        if self.path is not None:
            say(line)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def problems(self, problems: Sequence[Problem]) -> None:
        """Log how many labels were changed or left out, by reason, and name the first."""
        by_reason: dict[str, list[str]] = {}
        for problem in problems:
            by_reason.setdefault(problem.reason, []).append(problem.where)
        for reason, places in by_reason.items():
            rest = len(places) - _NAMED_PROBLEMS
            more = f" and {rest} more" if rest > 0 else ""
            self.log(f"{len(places)} x {reason}: {', '.join(places[:_NAMED_PROBLEMS])}{more}")

    def watcher(self, session: Session) -> Callable[[nn.Module], dict[str, tuple[int, int]]]:
        """Return the function that finds dead units on the pictures of step 0."""
        watched = _watched(session)
        return lambda model: dead_units(model, watched)

    def epoch_done(self, session: Session, board: Any, record: EpochRecord) -> None:
        """Log an epoch, raise the alarm over dead layers, and show it on TensorBoard."""
        self.log(_epoch_line(record))
        for path, (dead, every) in record.dead_units.items():
            if dead >= _DEAD_ALARM * every:
                self.log(f"alarm: {path}: {dead} of {every} channels are dead; lower --peak")
        if board is not None:
            _write_board(board, record)
            write_activations(board, session.run.model, _watched(session), record.step)


def _watched(session: Session) -> torch.Tensor:
    """Return the pictures of step 0, unchanged."""
    maker = replace(session.maker, options=None, scales=False)
    return make_batch(maker, 0)[0].to(session.team.device)


def _epoch_line(record: EpochRecord) -> str:
    parts = "  ".join(f"{name} {value:.4f}" for name, value in record.loss.items())
    score = "" if record.map50 is None else f"  mAP@.5 {record.map50:.4f}"
    return f"epoch {record.epoch:4d}  step {record.step:6d}  {parts}{score}"


def _write_board(board: Any, record: EpochRecord) -> None:
    for name, value in record.loss.items():
        board.add_scalar(f"loss/{name}", value, record.step)
    board.add_scalar("rate", record.rate, record.step)
    dead = sum(number for number, _ in record.dead_units.values())
    board.add_scalar("dead channels", dead, record.step)
    for name, figure in (("map50", record.map50), ("map50_95", record.map50_95)):
        if figure is not None:
            board.add_scalar(f"validation/{name}", figure, record.step)
    board.flush()


@contextlib.contextmanager
def tensorboard(folder: str | Path | None, members: Team) -> Iterator[Any]:
    """Give TensorBoard's writer for `folder`; None without one, and in all processes but 0.

    Raises:
        MissingDependency: the package tensorboard is not installed.
    """
    if folder is None or members.rank:
        yield None
        return
    with contextlib.closing(open_board(folder)) as board:
        yield board


@contextlib.contextmanager
def progress_bar(members: Team, steps: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Give the function that reports each step and its loss; silent in all processes but 0."""
    if members.rank:
        yield lambda step, parts: None
        return
    with progress("training", steps) as update:
        yield lambda step, parts: update(step, None, f"loss {sum(parts.values()):.3f}")


def open_board(folder: str | Path) -> Any:
    """Return TensorBoard's writer for event files in `folder`.

    Raises:
        MissingDependency: the package tensorboard is not installed.
    """
    require("tensorboard")
    return require("torch.utils.tensorboard").SummaryWriter(str(folder))


def activations(
    model: nn.Module, images: torch.Tensor, kinds: tuple[type[nn.Module], ...] = _ACTIVATIONS
) -> dict[str, torch.Tensor]:
    """Return the outputs (N, C, H, W) of the activation modules by path, as in eval mode."""
    found: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            found[path] = output

        return hook

    watched = [(path, m) for path, m in model.named_modules() if isinstance(m, kinds)]
    hooks = [module.register_forward_hook(keep(path)) for path, module in watched]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with hooked(hooks), torch.no_grad():
            model(images)
    finally:
        for module, mode in training.items():
            module.training = mode
    return found


def dead_units(model: nn.Module, images: torch.Tensor) -> dict[str, tuple[int, int]]:
    """Return for each ReLU how many of how many channels are nowhere above 0, where some are."""
    found = {}
    for path, output in activations(model, images, _RECTIFIERS).items():
        alive = output.flatten(2).amax(dim=(0, 2)) > 0
        if not alive.all():
            found[path] = (int((~alive).sum()), len(alive))
    return found


def write_activations(board: Any, model: nn.Module, images: torch.Tensor, step: int) -> None:
    """Write a histogram of every activation's output, under its module path."""
    for path, output in activations(model, images).items():
        board.add_histogram(f"activations/{path}", output.float().cpu(), step)
