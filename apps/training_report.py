"""What `edge train` tells while it runs and at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.table import show
from edge.data.items import Problem
from edge.reporting import progress, say
from edge.train.batches import make_batch
from edge.train.distributed import Team
from edge.train.monitor import dead_units, open_board, write_activations
from edge.train.session import Session

__all__ = [
    "OVERFIT_MAP50",
    "open_log",
    "print_training",
    "progress_bar",
    "tell_problems",
    "teller",
    "tensorboard",
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


def print_training(result: dict[str, Any], last: int = 10) -> None:
    """The last and the best epochs as a table, the files, and the verdict of `--overfit`."""
    shown = result["history"][-last:]
    if result["best"] is not None and result["best"] not in shown:
        shown = [result["best"], *shown]
    names = list(shown[0]["loss"]) if shown else []
    rows = [
        (
            f"{entry['epoch']}{' *' if entry == result['best'] else ''}",
            str(entry["step"]),
            *(f"{entry['loss'][name]:.4f}" for name in names),
            f"{100 * entry['map50']:.2f}" if "map50" in entry else "-",
        )
        for entry in shown
    ]
    title = f"{result['model']}: {result['steps']} steps; {result['ended']}"
    show(title, ("epoch (* best)", "step", *names, "mAP@.5 %"), rows)
    say("written: " + ", ".join(result["files"]))
    if "overfits" in result:
        verdict = (
            "learns its pictures by heart"
            if result["overfits"]
            else (
                f"stays under {OVERFIT_MAP50:.0%} mAP@.5 on the pictures it learns: look at "
                "labels, anchors and learning rate before training on more, or give it more --steps"
            )
        )
        say(f"overfit check: {verdict}")
