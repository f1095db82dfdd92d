"""A detector of some of its classes, and what it no longer needs taken out: `edge dissect`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edge.compress.channels.dissect import of_classes, only_classes
from edge.compress.channels.importance import Importance
from edge.compress.channels.plan import PrunePlan
from edge.compress.channels.pruner import Target
from edge.compress.channels.slicing import slice_classes
from edge.compress.finetune import FineTuning
from edge.files import make_folder, write_file, write_json
from edge.measure.accuracy import labelled
from edge.spec import ModelSpec
from export.compress.channels import Choice, Work, finish, how_made
from export.compress.source import load_prunable, needed
from export.compress.stages import pictures_of

__all__ = ["dissect"]

# The page of plots: (title, scores of each layer's feature maps, plan) to HTML.
Draw = Callable[[str, Importance, PrunePlan], str]


def dissect(
    model: str | Path,
    classes: Sequence[str],
    data: str | Path | None = None,
    *,
    target: Target | None = None,
    train: str | Path | None = None,
    choice: Choice | None = None,
    tuning: FineTuning | None = None,
    images: int | None = None,
    output: str | Path = "out",
    name: str | None = None,
    draw: Draw | None = None,
    json_path: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Keep some classes of a trained detector and the channels that speak up for them.

    The head is sliced; feature maps are profiled over training images that hold only these
    classes; of every layer the best by m²/v + log v stay, never less than the classes' share.

    Args:
        model: as `export.compress.source.load_prunable` takes it, with `options`.
        classes: names; VOC's and COCO's spellings are one.
        data: labelled images to judge by: those with a box of these classes; left out: as
            `export.compress.prune.prune`.
        target: how far to prune; left out: half of the channels.
        train, choice, tuning, images, output, name, json_path: as `export.compress.prune.prune`;
            `choice.least` is set to the classes' share where it is below.

    Returns:
        As `export.compress.prune.prune`, with `classes`, `warning` and the stages before, sliced,
        pruned
        and, with `tuning`, fine-tuned.

    Raises:
        CompressionError: a class that the model does not have, or a target that cannot be met.
        ArtifactError, DataError: the model or the images cannot be used.
    """
    choice = choice or Choice(importance="dissection", spread="layer", untouched=2)
    data, train = needed(model, data, train)
    folder, loaded = make_folder(output), load_prunable(model, **options)
    module, spec = slice_classes(loaded.module, loaded.spec, classes)
    choice = replace(choice, least=max(choice.least, len(spec.classes) / len(loaded.spec.classes)))
    # Labels that have only numbers count in the full network's classes.
    judged = of_classes(labelled(data, loaded.spec.classes, images), spec.classes)
    learnt = labelled(train, loaded.spec.classes)
    pure = pictures_of(only_classes(learnt, spec.classes), spec)
    with TemporaryDirectory(dir=folder, prefix=".stages-") as scratch:
        sliced = replace(loaded, module=module, spec=spec)
        pictures = pictures_of(learnt, spec)
        work = Work(sliced, judged, pictures, choice, Path(scratch), profiled=pure)
        whole = Work(loaded, judged, pictures, choice, Path(scratch))
        stages = [whole.judge("before", loaded.module), work.judge("sliced", module)]
        plan = work.plan_for(target or Target("ratio", 0.5), stages[1])
        more, log = work.after(plan, tuning)
        stem = name or f"{loaded.spec.name}-dissected"
        result = finish([*stages, *more], work, plan, folder, stem)
        if draw is not None:
            plots = folder / f"{stem}.html"
            write_file(plots, draw(stem, work.pruner.importance, plan).encode())
            result["files"]["plots"] = str(plots)
    result |= {
        **how_made(model, data, train, choice, tuning, log),
        "classes": list(spec.classes),
        "profiled_images": min(len(pure), choice.images),
        "warning": _warning(loaded.spec, result["stages"]),
    }
    write_json(result, json_path)
    return result


def _warning(spec: ModelSpec, stages: Sequence[dict[str, Any]]) -> str | None:
    """What a softmax over fewer classes does to scores, with what was measured of it."""
    if all(head.class_activation != "softmax" for head in spec.heads):
        return None
    before, sliced = stages[0]["false_positives"], stages[1]["false_positives"]
    return (
        "the scores of a softmax head are shares of the classes that are left: what was another "
        f"class now looks like one of them; {before:.3f} wrong boxes an image before, "
        f"{sliced:.3f} with the head sliced; fine-tune, or raise the score threshold"
    )
