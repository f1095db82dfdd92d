"""Channels pruned to a budget: `edge prune`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edge.compress.channels.pruner import Target, read_plan
from edge.compress.finetune import FineTuning
from edge.errors import CompressionError
from edge.files import make_folder, write_json
from edge.measure.accuracy import labelled
from export.compress.channels import Choice, Work, finish, how_made
from export.compress.source import load_prunable, needed
from export.compress.stages import pictures_of

__all__ = ["prune"]


def prune(
    model: str | Path,
    data: str | Path | None = None,
    *,
    target: Target | None = None,
    max_drop: float | None = None,
    plan: str | Path | None = None,
    begin: str | Path | None = None,
    train: str | Path | None = None,
    choice: Choice | None = None,
    tuning: FineTuning | None = None,
    images: int | None = None,
    output: str | Path = "out",
    name: str | None = None,
    json_path: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Take channels out of a trained detector until it is as fast or small as asked for.

    Args:
        model: as `export.compress.source.load_prunable` takes it, with `options`.
        data: labelled images to judge by, at most `images` of them; left out: fresh scenes, for a
            built-in model alone.
        target: what to reach; exactly one of this, `max_drop` and `plan`.
        max_drop: points of mAP@.5 (0..100) that may be lost; as narrow as that allows.
        plan: a plan from an earlier run, replayed.
        begin: the `.safetensors` of that run, to train it further: what is pruned is not fitted
            again.
        train: labelled images for importance, batch norms and fine-tuning; left out: scenes,
            or `data`.
        choice: how channels are chosen.
        tuning: how to train afterwards; None does not.
        output, name: folder and stem of the files.
        json_path: where to write the result too.

    Returns:
        `stages` (`name`, `map50`, `map50_95`, `by_class`, `false_positives`, `megabytes`,
        `parameters`, `ms`), `files`, `plan` (rows), `host` and how it was done.

    Raises:
        CompressionError: the target cannot be met, or the plan is of another network.
        ArtifactError, DataError: the model or the images cannot be used.
    """
    choice = choice or Choice()
    if begin is not None and plan is None:
        raise CompressionError(f"{begin} can be gone on with from its plan alone: give --plan")
    if (target is None) + (max_drop is None) + (plan is None) != 2:
        raise ValueError("exactly one of target, max_drop and plan is taken")
    data, train = needed(model, data, train)
    folder, loaded = make_folder(output), load_prunable(model, **options)
    judged = labelled(data, loaded.spec.classes, images)
    learnt = judged if train == data else labelled(train, loaded.spec.classes)
    with TemporaryDirectory(dir=folder, prefix=".stages-") as scratch:
        work = Work(loaded, judged, pictures_of(learnt, loaded.spec), choice, Path(scratch))
        before = work.judge("before", loaded.module)
        if plan is not None:
            chosen = read_plan(plan)
        elif target is not None:
            chosen = work.plan_for(target, before)
        else:
            chosen = work.plan_by_drop(max_drop or 0.0, before, tuning)
        stages, log = work.after(chosen, tuning, begin)
        stem = name or f"{loaded.spec.name}-pruned"
        result = finish([before, *stages], work, chosen, folder, stem)
    result |= how_made(model, data, train, choice, tuning, log)
    write_json(result, json_path)
    return result
