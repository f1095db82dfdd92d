"""What `edge train` tells while it runs and at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge.data.items import Problem
from edge.models.hooks import hooked
from edge.optional import require
from edge.reporting import progress, say
from edge.train.batches import make_batch
from edge.train.distributed import Team
from edge.train.session import Session

__all__ = [
    "OVERFIT_MAP50",
    "activations",
    "dead_units",
    "open_board",
    "open_log",
    "progress_bar",
    "tell_problems",
    "teller",
    "tensorboard",
    "write_activations",
]

StepTold = Callable[[int, dict[str, float]], None]
# What a network, its loss and its labels must reach on a handful of pictures that it learns by
# heart; below it one of them is wrong.
OVERFIT_MAP50 = 0.9
_DEAD_ALARM = 0.5


def open_log(path: Path, members: Team, append: bool) -> Callable[[str], None]:
    """Lines on stderr and into the log, from process 0 alone."""
    if members.rank:
        return lambda line: None
    if not append:
        path.write_text("", "utf-8")

    def log(line: str) -> None:
        say(line)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    return log


def tell_problems(problems: Sequence[Problem], log: Callable[[str], None], first: int = 5) -> None:
    by_reason: dict[str, list[str]] = {}
    for problem in problems:
        by_reason.setdefault(problem.reason, []).append(problem.where)
    for reason, places in by_reason.items():
        more = f" and {len(places) - first} more" if len(places) > first else ""
        log(f"{len(places)} x {reason}: {', '.join(places[:first])}{more}")


def teller(
    session: Session, board: Any, log: Callable[[str], None]
) -> Callable[[dict[str, Any]], None]:
    """What is told after each epoch; the pictures to watch are those of step 0."""
    maker = replace(session.maker, options=None, scales=False)
    watched = make_batch(maker, 0)[0].to(session.team.device)

    def tell(entry: dict[str, Any]) -> None:
        dead = dead_units(session.run.model, watched)
        entry["dead_units"] = {path: list(pair) for path, pair in dead.items()}
        log(_line(entry))
        for path, (gone, every) in dead.items():
            if gone >= _DEAD_ALARM * every:
                log(f"alarm: {path}: {gone} of {every} channels are dead; lower --peak")
        if board is not None:
            _write_board(board, entry)
            write_activations(board, session.run.model, watched, entry["step"])

    return tell


def _line(entry: dict[str, Any]) -> str:
    parts = "  ".join(f"{name} {value:.4f}" for name, value in entry["loss"].items())
    score = f"  mAP@.5 {entry['map50']:.4f}" if "map50" in entry else ""
    return f"epoch {entry['epoch']:4d}  step {entry['step']:6d}  {parts}{score}"


def _write_board(board: Any, entry: dict[str, Any]) -> None:
    for name, value in entry["loss"].items():
        board.add_scalar(f"loss/{name}", value, entry["step"])
    board.add_scalar("rate", entry["rate"], entry["step"])
    board.add_scalar(
        "dead channels", sum(n for n, _ in entry["dead_units"].values()), entry["step"]
    )
    for name in ("map50", "map50_95"):
        if name in entry:
            board.add_scalar(f"validation/{name}", entry[name], entry["step"])
    board.flush()


@contextlib.contextmanager
def tensorboard(folder: str | Path | None, members: Team) -> Iterator[Any]:
    if folder is None or members.rank:
        yield None
        return
    board = open_board(folder)
    try:
        yield board
    finally:
        board.close()


@contextlib.contextmanager
def progress_bar(
    members: Team, session: Session
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    if members.rank:
        yield lambda step, parts: None
        return
    with progress("training", session.schedule.steps) as update:
        yield lambda step, parts: update(step, None, f"loss {sum(parts.values()):.3f}")


# A ReLU that answers nowhere passes no gradient either: its filter is lost for good.
_RECTIFIERS = (nn.ReLU, nn.ReLU6)
_ACTIVATIONS = (*_RECTIFIERS, nn.LeakyReLU, nn.SiLU, nn.Mish, nn.Sigmoid)


def open_board(folder: str | Path) -> Any:
    """TensorBoard's writer for event files in `folder`.

    Raises:
        MissingDependency: the package tensorboard is not installed.
    """
    require("tensorboard")
    return require("torch.utils.tensorboard").SummaryWriter(str(folder))


def activations(
    model: nn.Module, images: torch.Tensor, kinds: tuple[type[nn.Module], ...] = _ACTIVATIONS
) -> dict[str, torch.Tensor]:
    """Outputs (N, C, H, W) of the activation modules by path, as in eval mode."""
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
    """Of each ReLU that has some: channels that are nowhere above 0 in `images`, and all."""
    found = {}
    for path, output in activations(model, images, _RECTIFIERS).items():
        alive = output.flatten(2).amax(dim=(0, 2)) > 0
        if not alive.all():
            found[path] = (int((~alive).sum()), len(alive))
    return found


def write_activations(board: Any, model: nn.Module, images: torch.Tensor, step: int) -> None:
    """A histogram of every activation's output, under its module path."""
    for path, output in activations(model, images).items():
        board.add_histogram(f"activations/{path}", output.float().cpu(), step)
